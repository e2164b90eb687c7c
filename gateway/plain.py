"""Plain text, and a tokenizer that reads it without the steps of the cleaning that find nothing in it.

The cleaning in a `tokenizer.json` is some forty replacements, of emoji, HTML entities, full-width punctuation and the
like, and tokenizers copies a text at each, whether it finds anything or not: half of the time that a text takes. Nearly
all reviews consist of Hangul, ASCII and a few signs. A replacement of which every match holds a character that no such
text has leaves them as they are, so they are read without it.

Nothing is known here of the cleaning itself: which steps those are is read off their patterns, and one that is not
understood stays.
"""

import re
import string
from re import _constants as codes
from re import _parser as parser

import orjson

SIGNS = "…·‘’“”♥♡★☆"
ASCII = string.ascii_letters + string.digits + string.punctuation.replace("&", "").replace("<", "") + " "
# Syllables and letters that stand alone; no two of all these make a third in NFC.
PLAIN = re.compile(f"[가-힣ㄱ-ㅎㅏ-ㅣ{re.escape(ASCII + SIGNS)}]+")
# And what a pattern that ignores case may take for one of them: ſ for s, ß for ss.
FOUND_IN_PLAIN = frozenset(
    code for code in range(0x10000) if PLAIN.search(chr(code) + chr(code).casefold() + chr(code).upper())
)
# What Oniguruma, which tokenizers runs, reads in another way than Python, whose parser looks at the patterns here.
READ_DIFFERENTLY = re.compile(r"&&|\[\[|\[:|\(\?[a-z-]*x")


def is_plain(text: str) -> bool:
    return PLAIN.fullmatch(text) is not None


def for_plain_text(tokenizer: bytes) -> bytes:
    """The `tokenizer.json` that gives plain texts the same tokens, with less work."""
    document = orjson.loads(tokenizer)
    document["normalizer"] = _without_idle_steps(document["normalizer"])
    return orjson.dumps(document)


def _without_idle_steps(normalizer: dict | None) -> dict | None:
    if normalizer is None or _is_idle(normalizer):
        return None
    if normalizer["type"] != "Sequence":
        return normalizer
    steps = map(_without_idle_steps, normalizer["normalizers"])
    return {**normalizer, "normalizers": [step for step in steps if step is not None]}


def _is_idle(step: dict) -> bool:
    if step["type"] == "NFC":
        return True
    if step["type"] != "Replace":
        return False
    pattern = step["pattern"]
    if "String" in pattern:
        return not is_plain(pattern["String"])
    if READ_DIFFERENTLY.search(pattern["Regex"]):
        return False
    try:
        return _needs_more_than_plain(parser.parse(pattern["Regex"]))
    except (re.error, OverflowError):
        return False


def _needs_more_than_plain(parts: parser.SubPattern) -> bool:
    """Whether each match holds a character that no plain text has."""
    for code, value in parts:
        match code:
            case codes.LITERAL:
                needs = _is_strange(value, value)
            case codes.IN:
                needs = all(_all_are_strange(*each) for each in value)
            case codes.MAX_REPEAT | codes.MIN_REPEAT | codes.POSSESSIVE_REPEAT:
                least, _, repeated = value
                needs = least > 0 and _needs_more_than_plain(repeated)
            case codes.SUBPATTERN:
                needs = _needs_more_than_plain(value[-1])
            case codes.BRANCH:
                needs = all(map(_needs_more_than_plain, value[1]))
            case _:
                needs = False
        if needs:
            return True
    return False


def _all_are_strange(code: int, value: object) -> bool:
    """Of one member of a class of characters."""
    if code is codes.LITERAL:
        return _is_strange(value, value)
    return code is codes.RANGE and _is_strange(*value)


def _is_strange(first: int, last: int) -> bool:
    return FOUND_IN_PLAIN.isdisjoint(range(first, last + 1))
