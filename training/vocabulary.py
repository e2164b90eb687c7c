"""WordPiece vocabularies of our own, with the cleaning inside (training/cleaning.py).

``train_tokenizer`` learns the vocabulary of ``nano`` from raw review texts. Words are split from runs of jamo, of
digits and of punctuation first, so that 재밌다, 재밌다ㅋㅋ and 재밌다!! share their first token.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from training.cleaning import EmojiMode, cleaning_normalizer

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORD_BOUNDARIES = r"[ㄱ-ㅣ]+|\d+|(?:[^\w\s]|_)+"
JAMO = [chr(code) for code in range(0x3131, 0x3164)]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, emoji: EmojiMode = "words", max_length: int = 128
) -> PreTrainedTokenizerFast:
    """Learn an uncased WordPiece vocabulary of ``vocab_size`` pieces from raw texts.

    Fewer when the texts do not yield that many. A syllable too rare to enter it makes its word [UNK]. Pieces of equal
    count are ranked in no fixed order by the library, so two runs differ in a few ids: keep the file, not the recipe.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK, max_input_chars_per_word=60))
    tokenizer.normalizer = cleaning_normalizer(emoji, lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(WORD_BOUNDARIES), "isolated")]
    )
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=3,
        limit_alphabet=min(3000, vocab_size // 4),  # each takes two pieces: at a word's start and inside
        initial_alphabet=JAMO,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token=PAD,
        unk_token=UNK,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
    )
