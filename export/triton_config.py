"""`config.pbtxt`, built as a protobuf message so that a misspelt field is an error here and not in Triton."""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, TYPE_INT64, ModelConfig

from export.errors import RepositoryError
from export.serving import MODEL

MAX_BATCH_SIZE = 64


def build_config(labels: int, versions: list[int]) -> ModelConfig:
    """One configuration for the embedded server and for NVIDIA's container: ``runtime`` and ``kind`` stay unset."""
    from export.manifest import IDS, LOGITS, MASK  # a tenth of a second, which a rollback does without

    config = ModelConfig(name=MODEL, backend="onnxruntime", max_batch_size=MAX_BATCH_SIZE)
    for name in (IDS, MASK):
        config.input.add(name=name, data_type=TYPE_INT64, dims=[-1])
    config.output.add(name=LOGITS, data_type=TYPE_FP32, dims=[labels])
    config.instance_group.add(count=1)
    config.dynamic_batching.SetInParent()
    config.version_policy.specific.versions.extend(versions)
    return config


def to_text(config: ModelConfig) -> str:
    return text_format.MessageToString(config)


def named_versions(repository: Path) -> list[int]:
    """The versions that config.pbtxt names: each has been proven, and none is being let go."""
    file = repository / MODEL / "config.pbtxt"
    return list(read_config(file).version_policy.specific.versions) if file.exists() else []


def read_config(file: Path) -> ModelConfig:
    """Raises:
    RepositoryError: the file is not a model configuration.
    """
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as exc:
        raise RepositoryError(f"{file} is not a Triton model configuration ({exc}); restore or remove it") from exc
