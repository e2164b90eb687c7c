"""Plain texts get the tokens that the whole cleaning would give them; which steps go is read off their patterns."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gateway.bundle import load_tokenizers
from gateway.plain import ASCII, SIGNS, for_plain_text, is_plain
from tests.gateway.test_golden_cleaning import SHIPPED
from training.cleaning import cleaning_normalizer
from training.data import SAMPLE, read_reviews


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Tokenizer, Tokenizer]:
    return load_tokenizers(SHIPPED)


def steps_left(*steps: dict) -> list[dict]:
    document = {"normalizer": {"type": "Sequence", "normalizers": [*steps]}, "model": {}}
    return json.loads(for_plain_text(json.dumps(document).encode()))["normalizer"]["normalizers"]


def replace(kind: str, pattern: str) -> dict:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": ""}


# What people write: pieces of every step's pattern, whole and torn.
PIECES = [
    "http://",
    "https://a.b/c",
    "www.",
    "WWW.naver.com",
    "amp;",
    "#39;",
    "br/>",
    "ㅋㅋㅋㅋ",
    "ㅠㅠㅠ",
    "!!!!",
    "하하하하하",
]
PIECES += [
    "★★★★★",
    "[CLS]",
    "[UNK]",
    "  ",
    "10000",
    "ㅇㅈㅇㅈㅇㅈ",
    "굿 ",
    "KIS",
    "가",
    "힣",
    "A" * 200,
    "뷁" * 90,
    "_",
]


@settings(max_examples=400, deadline=None)
@given(
    text=st.lists(st.one_of(st.sampled_from(PIECES), st.text(ASCII + SIGNS + "영화가 재밌ㄱㅎㅏㅣ", max_size=9))).map(
        "".join
    )
)
def test_plain_texts_get_the_tokens_of_the_whole_cleaning(tokenizers, text):
    whole, plain = tokenizers
    if is_plain(text):
        expected, found = whole.encode(text), plain.encode(text)
        assert (found.ids, len(found.overflowing)) == (expected.ids, len(expected.overflowing))


def test_all_bundled_reviews_get_the_same_tokens_and_nearly_all_of_them_are_plain(tokenizers):
    whole, plain = tokenizers
    texts = read_reviews(SAMPLE).document.tolist()
    those = list(filter(is_plain, texts))
    assert len(those) > 0.8 * len(texts)
    assert [each.ids for each in plain.encode_batch(those)] == [each.ids for each in whole.encode_batch(those)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a&amp;b",
        "<br>좋다",
        "좋다😂",
        "좋\u200b다",
        "！",
        "\u1112\u1161",
        "a\u0301",
        "가\u11a8",
        "漢",
        "\t",
        "\ufffd",
    ],
)
def test_what_the_cleaning_may_change_is_not_plain(text):
    assert not is_plain(text)


def test_few_steps_of_the_cleaning_are_left():
    left = steps_left(json.loads(cleaning_normalizer(lowercase=True).__getstate__()))
    (sequence,) = left
    assert [each["type"] for each in sequence["normalizers"]] == [*["Replace"] * 4, "Strip", "Lowercase"]


@pytest.mark.parametrize(
    "step",
    [
        {"type": "NFC"},
        replace("String", "！"),
        replace("String", "a！"),
        replace("Regex", "[😀😁]"),
        replace("Regex", "[😀-😅]{2,}"),
        replace("Regex", "(?i)&(?:amp|#38);"),
        replace("Regex", "<b>|</b>|좋😀"),
        replace("Regex", "a*😀"),
        replace("Regex", "(?:a|(b😀))?😀"),
    ],
    ids=str,
)
def test_a_step_goes_whose_every_match_holds_a_character_that_is_not_plain(step):
    assert steps_left(step) == []


@pytest.mark.parametrize(
    "step",
    [
        {"type": "NFKC"},
        {"type": "Lowercase"},
        {"type": "BertNormalizer", "clean_text": True},
        replace("String", "ab"),
        replace("Regex", "[😀a]"),
        replace("Regex", "[^😀]"),
        replace("Regex", "😀*"),
        replace("Regex", "😀?a"),
        replace("Regex", "<b>|b"),
        replace("Regex", "(?i)[ſ]"),  # s in another case
        replace("Regex", "(?i)ß"),  # ss
        replace("Regex", "(?<!<)a"),
        replace("Regex", r"\p{Hangul}"),
        replace("Regex", r"(.)\1\K\1+"),
        replace("Regex", "[a-z&&[😀]]"),
        replace("Regex", "[[:alpha:]]"),
        replace("Regex", "(?x) a # <"),
        replace("Regex", "(unclosed<"),
    ],
    ids=str,
)
def test_a_step_stays_that_may_change_a_plain_text_or_is_not_understood(step):
    assert steps_left(step) == [step]
