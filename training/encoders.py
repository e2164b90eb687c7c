"""Encoders by name: where each is found, how it becomes a classifier with the cleaning inside, what of it learns.

An encoder is named in one of four ways, each with ``@revision`` behind it if another commit, branch or pull request
(``@refs/pr/1``) of its hub repository is meant:

* ``nano``: the folder training/nano, shipped, no network needed
* a name of PINNED: one exact commit on the hub
* a folder that ``save_pretrained`` has written (a folder has no revisions)
* any hub id, ``owner/name``

Weights are read from safetensors only: a pickle can run code while it is read. `revision_of` names the commit that a
loaded model came from.
"""

import difflib
import functools
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from huggingface_hub import get_repo_discussions, model_info, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from training.cleaning import add_cleaning, has_cleaning
from training.config import ENCODERS
from training.errors import CheckpointError, ConfigRefused

log = logging.getLogger(__name__)

NANO = Path(__file__).parent / "nano"

# Read off the hub's pages huggingface.co/<id>/tree/<commit>. The first two hold model.safetensors. KcELECTRA's holds a
# pickle alone (and only README.md has changed since): the hub's own conversion of it is taken instead.
PINNED = {
    "kcbert-base": "beomi/kcbert-base@0f2f3f8ce58a3e2dab3f4c9f547cbb612061c2ed",
    "kcbert-large": "beomi/kcbert-large@0652121cd77997a5bc6614a5876779593de7f546",
    "kcelectra-base": "beomi/KcELECTRA-base-v2022@4431b6c7ad00f82fd50880864574cef97e0a368b",
}

WANTED = ["*.json", "vocab.txt", "merges.txt", "model.safetensors", "model-*.safetensors"]
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
CONVERTER, CONVERSION = "SFconvertbot", "Adding `safetensors` variant of this model"


def load_classifier(
    encoder: str, labels: list[str], *, dropout: float = 0.1
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A classifier over ``labels`` on the encoder, fp32, and its tokenizer with the project's cleaning inside.

    Args:
        encoder: as the module's docstring says. A head made for another number of labels is replaced by a fresh one.

    Raises:
        CheckpointError: nothing is found under that name, the hub cannot be reached, or it holds no whole model.
    """
    folder, commit = _find(str(encoder))
    config = _read_config(folder)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.hidden_dropout_prob = dropout
    model, fresh, tokenizer = _load(folder, config)
    # A head may start fresh, and BERT's pooler, which masked-word pretraining leaves out.
    prefix = f"{model.base_model_prefix}."
    lacking = [key for key in fresh if key.startswith(prefix) and not key.startswith(f"{prefix}pooler.")]
    _refuse_lacking(lacking, folder)
    model.config._commit_hash = commit
    return model, tokenizer


def load_finetuned(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A classifier as it was saved, with its own labels and its own head, fp32 and in evaluation mode.

    Raises:
        CheckpointError: the folder is missing or holds no whole classifier.
    """
    _check_folder(folder)
    model, fresh, tokenizer = _load(folder, _read_config(folder))
    _refuse_lacking(fresh, folder)
    return model.eval(), tokenizer


def revision_of(model: PreTrainedModel) -> str | None:
    """The hub commit (40 hex digits) that `load_classifier` took the model from; None where it came from a folder."""
    return getattr(model.config, "_commit_hash", None)


def freeze(model: PreTrainedModel, unfrozen_layers: int | None) -> None:
    """Let the head and the top ``unfrozen_layers`` layers learn; embeddings and the layers below stay as they are.

    0: the head alone (BERT's pooler is part of it); None: everything learns.

    Raises:
        ConfigRefused: the encoder has fewer layers.
    """
    model.requires_grad_(True)
    if unfrozen_layers is None:
        return
    layers = _layers(model)
    if not 0 <= unfrozen_layers <= len(layers):
        raise ConfigRefused(
            f"model.unfrozen_layers is {unfrozen_layers}, the encoder has {len(layers)} layers; "
            f"give 0 to {len(layers)}, or null to train the embeddings too"
        )
    for part in _below(model):
        part.requires_grad_(False)
    for layer in layers[: len(layers) - unfrozen_layers]:
        layer.requires_grad_(False)


def parameter_groups(
    model: PreTrainedModel, *, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict]:
    """Groups for ``torch.optim.AdamW``: the head at the full rate, each layer at ``layer_decay`` times the one above.

    Embeddings come last. Bias and LayerNorm do not decay; frozen parameters are left out.
    """
    steps_down = {}
    if layer_decay != 1:  # only then does the shape of the encoder matter
        layers = _layers(model)
        parts = [*reversed(layers), nn.ModuleList(_below(model))]
        steps_down = {id(weight): step for step, part in enumerate(parts, 1) for weight in part.parameters()}
    groups = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # One dimension: a bias or a LayerNorm.
            groups[steps_down.get(id(parameter), 0), parameter.ndim > 1].append(parameter)
    return [
        {"params": group, "lr": learning_rate * layer_decay**step, "weight_decay": weight_decay if decays else 0.0}
        for (step, decays), group in groups.items()
    ]


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer layers from the bottom up."""
    layers = getattr(getattr(model.base_model, "encoder", None), "layer", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigRefused(
            f"{type(model).__name__} keeps its layers elsewhere than BERT and ELECTRA do; "
            "set model.unfrozen_layers to null and train.layer_decay to 1, or take an encoder of theirs"
        )
    return layers


def _below(model: PreTrainedModel) -> list[nn.Module]:
    """What stands under the layers: embeddings, and ELECTRA's projection of them."""
    return [part for name, part in model.base_model.named_children() if name.startswith("embeddings")]


def _find(encoder: str) -> tuple[Path, str | None]:
    """The folder with the encoder's files, downloaded if need be, and the hub commit they are of."""
    if encoder == "nano":
        if not (NANO / "config.json").is_file():
            raise CheckpointError(f"{NANO} is missing; it is shipped: git checkout training/nano restores it")
        return NANO, None
    if encoder not in PINNED and Path(encoder).is_dir():
        return _check_folder(Path(encoder)), None
    name, _, asked = encoder.partition("@")
    if name == "nano" or (name not in PINNED and Path(name).is_dir()):
        raise CheckpointError(f"encoder {encoder!r} names a revision, but a folder has none; leave @{asked} out")
    repository, _, pinned = PINNED.get(name, name).partition("@")
    revision = asked or pinned or None
    if repository.count("/") != 1:
        raise CheckpointError(_no_such_name(name))
    folder = _download(repository, revision)
    if not _has_weights(folder):
        if asked or not (conversion := _conversion(repository)):
            raise CheckpointError(_only_pickle(repository, revision))
        log.warning("%s@%s holds no safetensors: taking the hub's conversion %s", repository, revision, conversion)
        folder = _download(repository, conversion)
    return _check_folder(folder), folder.name


def _check_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json; name a folder that save_pretrained has written")
    if _has_weights(folder):
        return folder
    if any(folder.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{folder} holds its weights only as pytorch_model.bin, a pickle, which can run code while it is read; "
            f"convert it where you trust it: {_conversion_command(str(folder), folder)}"
        )
    raise CheckpointError(f"{folder} holds no model.safetensors; copy all that save_pretrained has written")


def _has_weights(folder: Path) -> bool:
    return any((folder / file).is_file() for file in WEIGHTS)


def _download(repository: str, revision: str | None) -> Path:
    """The files of one commit; the folder is named by the commit."""
    try:
        return _fetch(repository, revision)
    except RevisionNotFoundError as exc:
        raise CheckpointError(
            f"{repository} has no revision {revision!r} on the hub; give a commit, a branch, refs/pr/N, or leave it out"
        ) from exc
    except GatedRepoError as exc:
        raise CheckpointError(
            f"{repository} is gated; accept its terms on the hub and set HF_TOKEN, or take one of {', '.join(ENCODERS)}"
        ) from exc
    except RepositoryNotFoundError as exc:
        raise CheckpointError(
            f"the hub knows no {repository}, or it is private; mind the spelling, set HF_TOKEN for a private one, "
            f"or take one of {', '.join(ENCODERS)}"
        ) from exc
    except HFValidationError as exc:
        raise CheckpointError(_no_such_name(repository)) from exc
    except (OSError, httpx.HTTPError) as exc:
        raise CheckpointError(_unreachable(repository, revision, exc)) from exc


def _fetch(repository: str, revision: str | None) -> Path:
    """From the cache unasked if it is a commit that lies there whole; where the hub fails, whatever lies there."""
    fetch = functools.partial(snapshot_download, repository, revision=revision, allow_patterns=WANTED)
    if re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        with suppress(LocalEntryNotFoundError):
            cached = Path(fetch(local_files_only=True))
            if _has_weights(cached):
                return cached
    try:
        model_info(repository, revision=revision, timeout=10)  # fails at once, where a download tries for half a minute
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise
    except (OSError, httpx.HTTPError):
        with suppress(LocalEntryNotFoundError):
            return Path(fetch(local_files_only=True))
        raise
    return Path(fetch())


def _conversion(repository: str) -> str | None:
    """The pull request in which the hub's own converter offers the weights as safetensors, such as refs/pr/1.

    Transformers looks for it in the same way, and like it no other author is trusted.
    """
    try:
        offers = get_repo_discussions(repository, author=CONVERTER, discussion_type="pull_request")
        trusted = (offer for offer in offers if (offer.author, offer.title) == (CONVERTER, CONVERSION))
        return next((offer.git_reference for offer in trusted if offer.status in ("open", "merged")), None)
    except (OSError, httpx.HTTPError):
        return None


def _only_pickle(repository: str, revision: str | None) -> str:
    place = f"{repository}@{revision}" if revision else repository
    return (
        f"{place} holds no model.safetensors (a pytorch_model.bin is a pickle, which can run code while it is read) "
        f"and no conversion by {CONVERTER} was found; look for one at huggingface.co/{repository}/discussions and name "
        f"it as {repository}@refs/pr/N, or convert the pickle where you trust it and name the folder: "
        f"{_conversion_command(repository, Path('FOLDER'))}"
    )


def _conversion_command(source: str, target: Path) -> str:
    return (
        'python -c "from transformers import AutoModel, AutoTokenizer; '
        f"[kind.from_pretrained('{source}').save_pretrained('{target}') for kind in (AutoModel, AutoTokenizer)]\""
    )


def _unreachable(repository: str, revision: str | None, exc: Exception) -> str:
    status = exc.response.status_code if isinstance(exc, HfHubHTTPError) and exc.response is not None else None
    if status in (401, 403):
        return f"the hub answered {status} for {repository}; set HF_TOKEN to a token that may read it"
    reason = f"the hub answered {status}" if status else f"the hub cannot be reached: {_first_line(exc)}"
    at = f" --revision {revision}" if revision else ""
    return (
        f"{repository} is not on this machine, and {reason}; train nano, which is shipped, or fetch it where there is "
        f"a network with `hf download {repository}{at} --local-dir FOLDER`, carry FOLDER here and name it"
    )


def _no_such_name(name: str) -> str:
    near = [] if "/" in name else difflib.get_close_matches(name, ENCODERS, n=1, cutoff=0.7)
    meant = f"did you mean {near[0]}? " if near else ""
    return (
        f"no encoder could be loaded from {name!r}: it is no folder here and no hub id (owner/name); {meant}"
        f"give a local folder, or one of {', '.join(ENCODERS)}"
    )


def _read_config(folder: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as exc:
        raise CheckpointError(
            f"{folder}/config.json cannot be used ({_first_line(exc)}); name a folder that save_pretrained has written"
        ) from exc


def _load(folder: Path, config: PretrainedConfig) -> tuple[PreTrainedModel, list[str], PreTrainedTokenizerFast]:
    """Model and tokenizer, and between them the names of the weights that were not there, or in another shape."""
    try:
        with _quiet():  # what transformers would say of fresh weights, the callers judge
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as exc:
        raise CheckpointError(
            f"{folder} cannot be loaded ({_first_line(exc)}); name a folder that save_pretrained has written, "
            "model and tokenizer"
        ) from exc
    _refuse_foreign_tokenizer(model, tokenizer, folder)
    fresh = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    return model, sorted(fresh), _with_cleaning(tokenizer)


def _refuse_lacking(weights: list[str], folder: Path) -> None:
    if weights:
        raise CheckpointError(
            f"{folder} lacks {len(weights)} of the model's weights, {weights[0]} among them, or has them in another "
            "shape; they would start from chance: name a whole checkpoint"
        )


def _refuse_foreign_tokenizer(model: PreTrainedModel, tokenizer, folder: Path) -> None:
    words, vocabulary = model.config.vocab_size, tokenizer.get_vocab()
    if len(vocabulary) <= len(tokenizer.all_special_tokens):  # transformers makes one from nothing where files lack
        raise CheckpointError(f"{folder} holds no vocabulary; put its tokenizer.json or vocab.txt there")
    highest = max(vocabulary.values())
    if highest >= words:
        raise CheckpointError(
            f"the tokenizer of {folder} gives ids up to {highest}, the model has {words} embeddings; "
            "use the tokenizer that the model was trained with"
        )


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers without its load report and its progress bar."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]
