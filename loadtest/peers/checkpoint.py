"""A checkpoint of KcBERT-base's shape with random weights: as fast as the real one, and as wise as a coin.

    python loadtest/peers/checkpoint.py --output var/bench/kcbert-shape [--source folder with config.json and vocab.txt]

12 layers of 768, 30,000 words. ``--source`` gives the real vocabulary; without one a vocabulary is learnt from the
bundled reviews and filled up, which cuts texts into more tokens. Run by its path, not as a module: it needs torch.
"""

import argparse
import sys
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent.parent
WORDS = 30_000
LENGTH = 300


def tokenizer_of(source: Path | None) -> PreTrainedTokenizerBase:
    if source:
        words = BertWordPieceTokenizer(str(source / "vocab.txt"), lowercase=False, strip_accents=False)
        names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
        return PreTrainedTokenizerFast(tokenizer_object=words._tokenizer, model_max_length=LENGTH, **names)
    sys.path.insert(0, str(ROOT))
    from training.data import SAMPLE, read_reviews
    from training.vocabulary import train_tokenizer

    return train_tokenizer(read_reviews(SAMPLE).document, WORDS, max_length=LENGTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--source", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH)  # the rest of BERT-base is KcBERT-base's too
    model = BertForSequenceClassification(config)
    # Far from undecided, so that the parity gate, which compares labels, is not asked about coins that stand on edge.
    model.classifier.bias.data = torch.tensor([0.0, 2.0])
    model.save_pretrained(options.output)
    tokenizer_of(options.source).save_pretrained(options.output)


if __name__ == "__main__":
    main()
