"""Pack a published version as it is into a .mar for TorchServe: same model.onnx, tokenizer.json and manifest.json.

    python -m export.torchserve                          the version that serves, into var/torchserve
    python -m export.torchserve --version 3 --batch-size 16 --batch-delay 10 --output folder

make export TARGET=torchserve is the first of them. Prints the line that starts TorchServe; its path is the last line on
stdout. torch-model-archiver writes the .mar, the handler in it is torchserve_handler.py.

pytorch/serve was archived on 7 August 2025: 0.12.0 is the last release, and its holes are not mended any more. So the
configuration written here listens on loopback only and leaves the management of models switched off.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from export.arguments import add_repository, at_least
from export.bundle import verify_bundle
from export.errors import ExportError, NothingServes, PackingFailed
from export.manifest import MANIFEST_FILE, MODEL, MODEL_FILE, TOKENIZER_FILE
from export.serving import read_serving, version_folder
from export.settings import Settings, read_settings

log = logging.getLogger("export.torchserve")

HANDLER = Path(__file__).with_name("torchserve_handler.py")
ARCHIVE = f"{MODEL}.mar"
# At half of capacity most batches wait in vain for more rows: each millisecond here is one for every caller.
BATCH_SIZE, BATCH_DELAY = 32, 5
START = "torchserve --start --foreground --ncs --model-store . --ts-config config.properties"
CONFIG = f"""# TorchServe 0.12.0 for {ARCHIVE}: loopback only, so it asks for no token; model management is off.
inference_address=http://127.0.0.1:8085
management_address=http://127.0.0.1:8086
metrics_address=http://127.0.0.1:8087
grpc_inference_address=127.0.0.1
grpc_management_address=127.0.0.1
disable_token_authorization=true
enable_model_api=false
allowed_urls=
install_py_dep_per_model=false
max_request_size=1000000
disable_system_metrics=true
load_models={ARCHIVE}
# TS_INFERENCE_ADDRESS, TS_MANAGEMENT_ADDRESS and so on override the lines above.
enable_envvars_config=true
"""


def main(arguments: list[str] | None = None) -> int:
    try:
        settings = read_settings()
        options = _parser(settings).parse_args(arguments)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        archive = pack(
            choose(options.repository, options.version),
            options.output.resolve(),
            options.batch_size,
            options.batch_delay,
        )
        log.info("start it with: cd %s && %s", archive.parent, START)
        print(archive, flush=True)
    except ExportError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


def choose(repository: Path, version: int | None) -> Path:
    """The folder of the version asked for, or of the one that serves.

    Raises:
        NothingServes: there is none.
    """
    serving = read_serving(repository)
    if version is None and serving is None:
        raise NothingServes(f"{repository} serves nothing yet; run make export first")
    return version_folder(repository, version or serving.version)


def pack(bundle: Path, output: Path, batch_size: int = BATCH_SIZE, batch_delay: int = BATCH_DELAY) -> Path:
    """Write ``output``/sentiment.mar and ``output``/config.properties; a batch is closed by its ``batch_size`` rows or
    ``batch_delay`` milliseconds after its first.

    Raises:
        BundleBroken: the version is not whole.
        PackingFailed: torch-model-archiver cannot write.
    """
    manifest = verify_bundle(bundle)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".torchserve-", dir=output) as work:
        scratch = Path(work, "scratch")  # the archiver empties <temporary folder>/sentiment, whosever that is
        scratch.mkdir()
        for name in (MODEL_FILE, TOKENIZER_FILE, MANIFEST_FILE):
            shutil.copyfile(bundle / name, Path(work, name))
        shutil.copyfile(HANDLER, Path(work, HANDLER.name))
        Path(work, "model-config.yaml").write_text(
            f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {batch_size}\nmaxBatchDelay: {batch_delay}\n", encoding="utf-8"
        )
        command = [
            Path(sysconfig.get_path("scripts"), "torch-model-archiver"), "--model-name", MODEL,
            "--version", str(manifest.version), "--serialized-file", MODEL_FILE, "--handler", HANDLER.name,
            "--extra-files", f"{TOKENIZER_FILE},{MANIFEST_FILE}", "--config-file", "model-config.yaml",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=work, env=os.environ | {"TMPDIR": str(scratch)}, capture_output=True, text=True
        )
        if done.returncode:
            last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
            raise PackingFailed(f"torch-model-archiver could not pack {bundle} ({last}); mend that and pack again")
        os.replace(Path(work, ARCHIVE), output / ARCHIVE)
    (output / "config.properties").write_text(CONFIG, encoding="utf-8")
    log.info("version %d: %s, %.1f MB", manifest.version, ARCHIVE, (output / ARCHIVE).stat().st_size / 1e6)
    return output / ARCHIVE


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.torchserve", description=__doc__.splitlines()[0])
    add_repository(parser, settings)
    parser.add_argument("--version", type=at_least(1), metavar="N", help="default: the version that serves")
    parser.add_argument(
        "--output", type=Path, default=settings.state / "torchserve", help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), default=BATCH_SIZE, metavar="ROWS", help="default: %(default)s"
    )
    parser.add_argument(
        "--batch-delay", type=at_least(1), default=BATCH_DELAY, metavar="MS",
        help="how long the first row of a batch waits for others (default: %(default)s)",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
