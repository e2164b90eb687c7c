"""Tokenized texts as the Hugging Face Trainer takes them: encoded once, padded per batch to the longest."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast
from transformers.trainer_pt_utils import LengthGroupedSampler


class EncodedTexts(torch.utils.data.Dataset):
    """Texts tokenized up front; item i is {"input_ids": INT64 [length], "label": INT64 []}.

    A label may also be a distribution over the labels, FP32 [labels].
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], labels: Sequence[int], max_length: int
    ):
        if len(texts) != len(labels):
            raise ValueError(f"{len(texts)} texts have {len(labels)} labels; each text needs exactly one")
        encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_attention_mask=False)
        self.rows = [torch.tensor(ids) for ids in encoded["input_ids"]]
        self.labels = torch.from_numpy(np.array(labels))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "label": self.labels[index]}


class LengthGroups(LengthGroupedSampler):
    """Random batches of texts of like length, in an order that follows from seed and epoch alone.

    So every worker of a trial draws the same order, and a resumed run the one that it would have drawn.
    """

    def __init__(self, texts: EncodedTexts, batch_size: int, seed: int):
        super().__init__(batch_size, lengths=[len(row) for row in texts.rows], generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed * 1_000_003 + epoch)


class HiddenWords(torch.utils.data.Dataset):
    """The same texts, with each token hidden behind [MASK] with ``probability``, anew at every reading.

    The first and the last token, [CLS] and [SEP], stay.
    """

    def __init__(self, texts: EncodedTexts, mask_token_id: int, probability: float):
        self.texts = texts
        self.mask_token_id = mask_token_id
        self.probability = probability

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = self.texts[index]
        hidden = torch.rand(len(item["input_ids"])) < self.probability
        hidden[[0, -1]] = False
        return {**item, "input_ids": torch.where(hidden, self.mask_token_id, item["input_ids"])}


def pad_batch(items: list[dict[str, torch.Tensor]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask INT64 [batch, longest], labels INT64 [batch]."""
    rows = [item["input_ids"] for item in items]
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": torch.stack([item["label"] for item in items]),
    }
