"""The cleaning: what it removes, what survives, and that it travels inside tokenizer.json."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from tokenizers.normalizers import BertNormalizer

from training.cleaning import add_cleaning, cleaning_normalizer, has_cleaning, words

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden_cleaning.json").read_text(encoding="utf-8"))
CLEANING = cleaning_normalizer(lowercase=True)


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: row["raw"][:20])
def test_raw_text_is_normalized_as_the_golden_file_says(row):
    assert CLEANING.normalize_str(row["raw"]) == row["normalized"]


def test_the_words_of_a_text_are_what_it_says_whatever_stands_around_them():
    same = [
        "정말 재밌어요",
        "정말재밌어요ㅋㅋㅋ",
        "정말 재밌어요!!! ㅠㅠ",
        "<b>정말</b> 재밌어요 👍",
        "정말… 재밌어요~",
    ]
    assert {words(text) for text in same} == {"정말재밌어요"}
    assert words("OST 100점") == "ost100점"
    assert (words("ㅋㅋㅋㅋ"), words("! !"), words("👍👍")) == ("ㅋㅋ", "!!", "👍👍")


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: row["raw"][:20])
def test_the_tokenizer_of_the_shipped_encoder_cleans_and_encodes_as_the_golden_file_says(row):
    tokenizer = Tokenizer.from_file(str(ROOT / "training" / "nano" / "tokenizer.json"))
    assert tokenizer.normalizer.normalize_str(row["raw"]) == row["normalized"]
    assert tokenizer.encode(row["raw"]).ids == row["input_ids"]


def test_every_modern_hangul_syllable_and_jamo_survives():
    syllables = "".join(chr(code) for code in range(0xAC00, 0xD7A4))
    jamo = "".join(chr(code) for code in range(0x3131, 0x3164))
    for text in (syllables, jamo):
        assert CLEANING.normalize_str(text) == text


def test_latin_digits_and_ordinary_punctuation_survive():
    text = string.ascii_letters + string.digits + "!\"#$%'()*+,-./:;=?@[\\]^_`{|}~ & < > · … “ ” ‘ ’ 《 》 ♥ ★ ☆ ♪ ㅡ"
    assert cleaning_normalizer().normalize_str(text) == text


@given(st.text(max_size=200))
def test_any_text_leaves_no_control_character_and_no_outer_or_double_space(text):
    cleaned = CLEANING.normalize_str(text)
    assert "  " not in cleaned
    assert cleaned == cleaned.strip(" ")
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in cleaned)


@given(st.text(alphabet="가나ㅋㅠ !?.~a1★", max_size=80))
def test_cleaning_twice_changes_nothing_more(text):
    once = CLEANING.normalize_str(text)
    assert CLEANING.normalize_str(once) == once


@given(st.integers(3, 500), st.sampled_from("ㅋㅎㅠㅜ!?.~;아"))
def test_a_run_of_any_length_becomes_two(count, character):
    assert CLEANING.normalize_str("좋다 " + character * count) == "좋다 " + character * 2


@pytest.mark.parametrize(
    ("mode", "cleaned"), [("keep", "좋다😂👍 끝🎬"), ("remove", "좋다 끝"), ("words", "좋다ㅋㅋ 굿 끝")]
)
def test_emoji_are_handled_as_configured(mode, cleaned):
    assert cleaning_normalizer(mode).normalize_str("좋다😂👍 끝🎬") == cleaned


def test_an_unknown_emoji_mode_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'smile'; it must be one of keep, remove, words"):
        cleaning_normalizer("smile")


def test_cleaning_runs_before_the_tokenizers_own_normalizer_and_survives_the_file(tmp_path):
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "굿": 1}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True, strip_accents=False)
    assert not has_cleaning(tokenizer)
    add_cleaning(tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    reloaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert has_cleaning(reloaded)
    assert reloaded.normalizer.normalize_str("<b>GOOD</b>ㅋㅋㅋㅋ") == "good ㅋㅋ"
    assert reloaded.encode("👍").ids == [1]


@pytest.mark.parametrize("hostile", ["<script>", "<!--", "<a ", "&", "<", "http://", "ㅋㅎ", "www."])
def test_hostile_repetition_is_cleaned_to_something_no_longer(hostile):
    text = hostile * (10_000 // len(hostile))
    assert len(CLEANING.normalize_str(text)) <= len(text)
