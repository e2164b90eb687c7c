"""Encoders by name: where each is found, and how it becomes a classifier with the cleaning in its tokenizer."""

from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from training.cleaning import add_cleaning, has_cleaning
from training.errors import CheckpointError

HUB = {
    "kcbert-base": "beomi/kcbert-base",
    "kcbert-large": "beomi/kcbert-large",
    "kcelectra-base": "beomi/KcELECTRA-base-v2022",
}


def load_classifier(
    encoder: str, labels: list[str], *, dropout: float = 0.1
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A classifier over ``labels`` on the encoder, and its tokenizer with the project's cleaning inside.

    Args:
        encoder: a name of HUB, a local folder, or a hub id. A head made for other labels is replaced by a fresh one.

    Raises:
        CheckpointError: nothing is found under that name, or it holds no weights as safetensors.
    """
    source = HUB.get(encoder, encoder)
    try:
        config = AutoConfig.from_pretrained(source)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.hidden_dropout_prob = dropout
        model = AutoModelForSequenceClassification.from_pretrained(
            source, config=config, ignore_mismatched_sizes=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as exc:
        raise CheckpointError(
            f"no encoder could be loaded from {encoder!r} ({str(exc).splitlines()[0]}); give a local folder, "
            f"one of {', '.join(HUB)} with a network, or make nano's with python -m training.pretrain"
        ) from exc
    return model, _with_cleaning(tokenizer)


def _with_cleaning(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer with the cleaning inside, as the plain class that saves and loads ``tokenizer.json`` verbatim.

    The model-specific classes of transformers 5 rebuild their pipeline from the vocabulary on load and would lose it.
    """
    backend = tokenizer.backend_tokenizer
    if not has_cleaning(backend):
        add_cleaning(backend)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        **{name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
    )
