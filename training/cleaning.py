"""The cleaning of unrefined Korean web text, as a normalizer that lives inside ``tokenizer.json``.

Nothing outside the tokenizer file cleans text: whoever loads it, in Python, Rust or JavaScript, cleans the same way, so
training, export, gateway and TorchServe cannot disagree.

What survives: Hangul, Hangul jamo (ㅋ, ㅠ), Latin, digits, ordinary punctuation, hearts and stars.
What goes or shrinks, in this order:

1. zero-width, bidirectional, variation-selector and replacement characters
2. canonical composition (NFC; NFKC would tear ㅋ apart), full-width punctuation to ASCII
3. HTML entities are decoded, then HTML elements, comments, scripts and styles go ("<기생충>" is a title and stays)
4. URLs
5. emoji: ``keep``, ``remove``, or ``words`` (the Korean that says the same: 😂 → ㅋㅋ, 👎 → 별로)
6. runs of one character (ㅋㅋㅋㅋ, ㅠㅠㅠ, !!!!) or of one pair (ㅋㅎㅋㅎㅋㅎ) shrink to two, digits and ★ not
7. control characters and runs of white space become one space; the ends are stripped
8. lower case, where the vocabulary is uncased

The shrinking to two follows ``repeat_normalize(num_repeats=2)`` of soynlp, with which KcBERT's corpus was cleaned
(github.com/Beomi/KcBERT).
"""

import json
from functools import cache
from typing import Literal, get_args

from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.normalizers import Normalizer

EmojiMode = Literal["keep", "remove", "words"]

INVISIBLE = (
    "\u00ad\u034f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff0-\uffff\U000e0000-\U000e0fff"
)
# U+3164 and its relatives are Hangul letters to Unicode and blanks to the eye.
BLANK = "\\p{Cc}\\s\\p{Z}\u115f\u1160\u3164\uffa0"

FULL_WIDTH = {"！": "!", "？": "?", "．": ".", "，": ",", "～": "~", "：": ":", "；": ";", "（": "(", "）": ")"}

# `&amp;` first: crawled text is often escaped twice.
ENTITIES = {
    "&(?:amp|#38|#x26);": "&",
    "&(?:lt|#60|#x3c);": "<",
    "&(?:gt|#62|#x3e);": ">",
    "&(?:quot|ldquo|rdquo|#34|#x22);": '"',
    "&(?:apos|lsquo|rsquo|#39|#x27|#039);": "'",
    "&(?:hellip|#8230);": "...",
    "&(?:hearts|#9829);": "♥",
    "&(?:#[0-9]{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,8});": " ",
}

# Only real element names: Korean titles stand in angle brackets too.
HTML_ELEMENTS = (
    "a|abbr|address|article|aside|audio|b|big|blockquote|body|br|button|center|code|dd|del|div|dl|dt|em|embed|font|footer|"
    "form|h1|h2|h3|h4|h5|h6|head|header|hr|html|i|iframe|img|input|ins|label|li|link|main|mark|meta|nav|object|ol|option|"
    "p|param|pre|q|s|script|section|select|small|source|span|strike|strong|style|sub|sup|svg|table|tbody|td|textarea|"
    "tfoot|th|thead|title|tr|u|ul|video"
)
# Bounded quantifiers keep hostile input linear: an unclosed "<script" costs at most its bound.
HTML = (
    r"<(?:script|style)\b[^<>]{0,500}>[^<]{0,5000}</(?:script|style)\s{0,9}>"
    r"|<!--.{0,500}?-->"
    rf"|</?(?:{HTML_ELEMENTS})(?:[\s/][^<>]{{0,2000}})?>"
)

URL = r"(?:https?://|(?<![A-Za-z0-9.])www\.)[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]{1,2000}"

EMOJI = (
    "\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff"
    "\u203c\u2049\u2139\u231a-\u23ff\u2600-\u2604\u2607-\u265f\u2670-\u27bf\u2b00-\u2bff"
)
SKIN_TONES = "\U0001f3fb-\U0001f3ff"
EMOJI_WORDS = {
    "😀😁😂😃😄😅😆🤣😹": "ㅋㅋ",
    "😇😉😊😋😌😎🙂🤗☺😙😚": " ^^ ",
    "😢😥😭😿🥺🥲": "ㅠㅠ",
    "❣❤🧡💓-💝💞💟🖤🤍🤎🩷😍😘🥰😻": "♥",
    "⭐🌟": "★",
    "😐😑😒🙄😶": "ㅡㅡ",
    "👍👌🆗": " 굿 ",
    "👎❌🙅": " 별로 ",
    "🔥💯🏆🥇": " 최고 ",
    "👏🙌": " 박수 ",
    "😠😡🤬👿💢": " 화난다 ",
    "😴💤🥱": " 졸림 ",
    "🤢🤮🤑💩🗑": " 쓰레기 ",
    "☹😓😔😕😖😞😟😣😤😩😪😫🙁💔": " 실망 ",
}

# The count of digits and of ★/☆ carries meaning; \K keeps what stands before it, so only the surplus is deleted.
REPEATED_CHARACTER = r"([^\d★☆])\1\K\1+"
REPEATED_PAIR = r"([^\d★☆][^\d★☆])\1\K\1+"


def cleaning_normalizer(emoji: EmojiMode = "words", *, lowercase: bool = False) -> Normalizer:
    """The cleaning as one serializable normalizer.

    Args:
        emoji: ``keep`` leaves emoji for the vocabulary to know; ``remove`` deletes them; ``words`` writes the common
            ones as the Korean that says the same and deletes the rest.
        lowercase: for uncased vocabularies. KcBERT is cased: leave it off there.

    Raises:
        ValueError: ``emoji`` is none of the three modes.
    """
    if emoji not in get_args(EmojiMode):
        raise ValueError(f"emoji is {emoji!r}; it must be one of {', '.join(get_args(EmojiMode))}")
    steps: list[Normalizer] = [_replace(f"[{INVISIBLE}]+", ""), normalizers.NFC()]
    steps += [normalizers.Replace(wide, narrow) for wide, narrow in FULL_WIDTH.items()]
    steps += [_replace(f"(?i){entity}", character) for entity, character in ENTITIES.items()]
    steps += [_replace(f"(?im){HTML}", " "), _replace(f"(?i){URL}", " ")]
    if emoji == "words":
        steps.append(_replace(f"[{SKIN_TONES}]+", ""))
        steps += [_replace(f"[{characters}]", word) for characters, word in EMOJI_WORDS.items()]
    if emoji != "keep":
        steps.append(_replace(f"[{EMOJI}]+", " "))
    steps += [_replace(f"[{BLANK}]+", " "), _replace(REPEATED_CHARACTER, ""), _replace(REPEATED_PAIR, "")]
    steps.append(normalizers.Strip())
    if lowercase:
        steps.append(normalizers.Lowercase())
    return normalizers.Sequence(steps)


def add_cleaning(tokenizer: Tokenizer, emoji: EmojiMode = "words") -> None:
    """Put the cleaning in front of the normalizer that a downloaded tokenizer (KcBERT, KcELECTRA) brings, in place."""
    own = tokenizer.normalizer
    cleaning = cleaning_normalizer(emoji)
    tokenizer.normalizer = cleaning if own is None else normalizers.Sequence([cleaning, own])


def has_cleaning(tokenizer: Tokenizer) -> bool:
    """Whether the cleaning, or an earlier edition of it, is in the tokenizer already."""
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    steps = [normalizer]
    for step in steps:  # grows while it is walked: sequences nest
        steps += step.get("normalizers", [])
    return any(step.get("pattern", {}).get("Regex") == REPEATED_CHARACTER for step in steps)


def words(text: str) -> str:
    """What a text says, by which two are told to be one: its letters and digits once cleaned, in lower case.

    "정말 재밌어요ㅋㅋㅋ!!" and "정말재밌어요 ㅠㅠ" are the same words. A text that has none, as "ㅋㅋ" or "!!", is
    itself without white space.
    """
    plain = _plain().normalize_str(text)
    said = "".join(letter for letter in plain if letter.isalnum() and not "\u3131" <= letter <= "\u318e")  # ㄱ to ㆎ
    return said or "".join(plain.split()) or "".join(text.split())


@cache
def _plain() -> Normalizer:
    return cleaning_normalizer("remove", lowercase=True)


def _replace(pattern: str, content: str) -> Normalizer:
    return normalizers.Replace(Regex(pattern), content)
