"""`config.pbtxt`, built as a protobuf message so that a misspelt field is an error here and not in Triton."""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, TYPE_INT64, ModelConfig, ModelInstanceGroup

from export.errors import RepositoryError
from export.serving import MODEL

MAX_BATCH_SIZE = 64
# On GPUs: a bucket is a length that TensorRT tunes its kernels for, at so many rows.
SHORTEST_BUCKET, TUNED_ROWS = 32, 16
WARMUP_FILE = "ones"
# Where Triton keeps the engines that the execution provider builds: on a volume they survive the container.
ENGINE_CACHE = "/tmp/trt-engines"


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


def onnxruntime_gpu_config(labels: int, versions: list[int], buckets: list[int]) -> ModelConfig:
    """The same with the TensorRT execution provider, which counts only where Triton has a GPU. No precision_mode: the
    graph says what is fp16. One profile, up to the longest bucket: the provider takes no second one."""
    config = build_config(labels, versions)
    tensorrt = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    shapes = profile_shapes(buckets[-1])
    tensorrt.parameters.update(
        {
            "max_workspace_size_bytes": str(4 << 30),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": ENGINE_CACHE,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": ENGINE_CACHE,
            **{f"trt_profile_{size}_shapes": value for size, value in shapes.items()},
        }
    )
    _warm_up(config, buckets)
    return config


def tensorrt_config(labels: int, versions: list[int], buckets: list[int]) -> ModelConfig:
    """For the plan that build.sh makes of the same graph: one profile for each bucket; needs a GPU."""
    config = build_config(labels, versions)
    config.backend = "tensorrt"
    config.default_model_filename = "model.plan"
    (group,) = config.instance_group
    group.kind = ModelInstanceGroup.KIND_GPU
    group.profile.extend(str(number) for number in range(len(buckets)))
    _warm_up(config, buckets)
    return config


def length_buckets(max_length: int) -> list[int]:
    """Tokens: 32, 64, … and ``max_length``."""
    buckets = []
    length = SHORTEST_BUCKET
    while length < max_length:
        buckets.append(length)
        length *= 2
    return [*buckets, max_length]


def profile_shapes(length: int) -> dict[str, str]:
    """What one optimization profile covers, and what it is tuned for, as trtexec and ONNX Runtime spell it."""
    from export.manifest import IDS, MASK

    shapes = {"min": "1x1", "opt": f"{TUNED_ROWS}x{length}", "max": f"{MAX_BATCH_SIZE}x{length}"}
    return {size: ",".join(f"{name}:{shape}" for name in (IDS, MASK)) for size, shape in shapes.items()}


def _warm_up(config: ModelConfig, buckets: list[int]) -> None:
    """Each bucket is run at load, alone and as a full batch, so that no caller waits for kernels or engines. The file
    holds ones: an id that every vocabulary has, and the mask of a text without padding."""
    from export.manifest import IDS, MASK

    for length in buckets:
        for rows in (1, MAX_BATCH_SIZE):
            warmup = config.model_warmup.add(name=f"{rows} x {length}", batch_size=rows, count=1)
            for name in (IDS, MASK):
                given = warmup.inputs[name]
                given.data_type, given.input_data_file = TYPE_INT64, WARMUP_FILE
                given.dims.append(length)


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
