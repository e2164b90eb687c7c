"""Write the Champion, or any checkpoint, for NVIDIA GPUs: an fp16 graph, and two model repositories that serve it.

    python -m export.gpu
    python -m export.gpu --checkpoint var/checkpoints/nano --data ratings_test.txt --output var/gpu

    var/gpu/onnxruntime/    serves at once: ONNX Runtime with the TensorRT execution provider, CUDA where that cannot
    var/gpu/tensorrt/       serves when the plans are built: Triton's TensorRT backend
    var/gpu/build.sh        builds them, inside Triton's image

make export TARGET=gpu is the first of them. Each is a whole model repository with the same bundle (an fp16 model.onnx,
see padded.py) under the same name and version: Triton and the gateway are pointed at one of the two by
NUNCHI_MODEL_REPOSITORY, in containers by the folder mounted as /models/model_repository. The parity gate is the usual
one, rehearsed on the CPU. Nothing here was ever run on a GPU.

The gateway pads to max_length, a full batch to its longest row: TensorRT answers the one with the profile of the
longest bucket, the other with that of a bucket it fits into.
"""

import argparse
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.arguments import at_least
from export.build import Order, add_arguments, build, order, stand_back
from export.bundle import verify_bundle
from export.errors import ExportError
from export.manifest import Manifest
from export.publish import Stage, open_stage, rename_in, write_config
from export.serving import MODEL, Serving, now, read_serving, replace_serving
from export.settings import Settings, read_settings
from export.triton_config import WARMUP_FILE, length_buckets, onnxruntime_gpu_config, profile_shapes, tensorrt_config
from training.errors import TrainingError

log = logging.getLogger("export.gpu")

PLANS = Path(__file__).with_name("build_plans.sh")
# What holds for TensorRT 10.12 to 11: the types stand in the graph (--fp16 is gone in 11).
TRTEXEC = ("--stronglyTyped", "--skipInference", "--builderOptimizationLevel=3")


def main(arguments: list[str] | None = None) -> int:
    try:
        settings = read_settings()
        options = _parser(settings).parse_args(arguments)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        print(write(options.output.resolve(), _checkpoint(options), order(options), options.version), flush=True)
    except (ExportError, TrainingError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def write(output: Path, checkpoint: Path, order: Order, version: int | None = None) -> Path:
    """Publish the checkpoint in both repositories of ``output``, which is returned.

    Raises:
        ExportError: it cannot be exported, the parity gate stays closed, or a repository cannot take it.
    """
    with open_stage(output / "onnxruntime", version) as stage, open_stage(output / "tensorrt", stage.version) as plans:
        build(stage, checkpoint, order)
        manifest = verify_bundle(stage.version_folder)
        labels, buckets = len(manifest.labels), length_buckets(manifest.max_length)
        for file in stage.version_folder.iterdir():
            shutil.copyfile(file, plans.version_folder / file.name)
        arguments = [*TRTEXEC, *_profiles(buckets)]
        (plans.version_folder / "trtexec.args").write_text("\n".join(arguments) + "\n", encoding="utf-8")
        _publish(stage, manifest, onnxruntime_gpu_config(labels, [stage.version], buckets))
        _publish(plans, manifest, tensorrt_config(labels, [stage.version], buckets))
    shutil.copyfile(PLANS, output / "build.sh")
    (output / "build.sh").chmod(0o755)
    log.info("version %d is in %s and %s; build.sh builds its plan", stage.version, stage.repository, plans.repository)
    return output


def _publish(stage: Stage, manifest: Manifest, config: ModelConfig) -> None:
    """As release.py does where nothing runs."""
    before = read_serving(stage.repository)
    rename_in(stage)
    file = stage.repository / MODEL / "warmup" / WARMUP_FILE
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(np.ones(manifest.max_length, np.int64).tobytes())
    write_config(stage, config)
    after = Serving(version=stage.version, previous=before.version if before else None, since=now())
    replace_serving(stage.repository, before, after)


def _profiles(buckets: list[int]) -> list[str]:
    """One optimization profile for each bucket, in the order in which config.pbtxt names them."""
    lines = []
    for number, length in enumerate(buckets):
        lines.append(f"--profile={number}")
        lines.extend(f"--{size}Shapes={shapes}" for size, shapes in profile_shapes(length).items())
    return lines


def _checkpoint(options: argparse.Namespace) -> Path:
    if options.checkpoint is not None:
        return options.checkpoint
    from export.champion import find_champion

    registry, champion = find_champion()
    log.info("the Champion is version %d of the registry", champion.number)
    return registry.fetch(champion)


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.gpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, help="folder that save_pretrained has written (default: the registry's Champion)"
    )
    add_arguments(parser, ("fp16", "fp32"))
    parser.add_argument("--version", type=at_least(1), metavar="N", help="default: the next free one")
    parser.add_argument(
        "--output", type=Path, default=settings.state / "gpu", help="folder to write to (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    stand_back()
    sys.exit(main())
