"""Releases of tiny bundles into a repository that a real Triton serves, while callers ask all the while."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from export.publish import open_stage
from export.release import Released, release
from export.serving import read_serving
from export.settings import Settings
from export.triton_config import read_config
from tests.bundles import softmax, tiny_tokenizer, write_bundle, write_manifest
from tests.server.asking import tensors
from tests.triton_process import TritonProcess, free_ports, running_triton


@dataclass(frozen=True)
class House:
    """A repository, the Triton that serves it, and the settings with which the commands find both."""

    repository: Path
    triton: TritonProcess
    settings: Settings

    @property
    def environment(self) -> dict[str, str]:
        return {
            "NUNCHI_MODEL_REPOSITORY": str(self.repository),
            "NUNCHI_VAR": str(self.triton.var_dir),
            "NUNCHI_TRITON_GRPC_PORT": str(self.settings.triton_grpc_port),
            "NUNCHI_GATEWAY_PORT": str(self.settings.gateway_port),
        }

    @property
    def serving(self) -> dict:
        return json.loads((self.repository / "serving.json").read_text(encoding="utf-8"))

    @property
    def named(self) -> list[int]:
        """What config.pbtxt names."""
        return list(read_config(self.repository / "sentiment/config.pbtxt").version_policy.specific.versions)

    @property
    def loaded(self) -> dict[int, int]:
        """The process of each version that is ready in Triton."""
        with InferenceServerClient(f"127.0.0.1:{self.triton.grpc_port}") as client:
            stubs = psutil.Process(self.triton.process.pid).children(recursive=True)
            found = {int(Path(stub.cmdline()[1]).parent.name): stub.pid for stub in stubs if is_stub(stub)}
            return {version: pid for version, pid in found.items() if client.is_model_ready("sentiment", str(version))}

    def files(self) -> dict[str, bytes]:
        """Everything where Triton looks, and beside it; serving.json without the mark of a version that was left."""
        house = self.repository.parent
        found = {
            str(path.relative_to(house)): path.read_bytes()
            for root in [self.repository, *house.glob(".*")]
            for path in [root, *root.rglob("*")]
            if path.is_file()
        }
        document = {key: value for key, value in self.serving.items() if key != "rolled_back"}
        return found | {f"{self.repository.name}/serving.json": json.dumps(document).encode()}

    def release(self, change: Callable[[Path], None] = lambda folder: None) -> Released:
        """Stage the next version as a tiny bundle, spoil it with ``change``, and release it."""
        with open_stage(self.repository) as stage:
            lay(stage.version_folder, stage.version)
            change(stage.version_folder)
            return release(stage, self.settings)


def is_stub(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[:1] != [] and process.cmdline()[0].endswith("triton_python_backend_stub")
    except psutil.Error:
        return False


@contextmanager
def running_house(folder: Path, **settings: object) -> Iterator[House]:
    """Version 1 serves."""
    repository = folder / "house" / "model_repository"
    write_bundle(repository)
    with running_triton(repository, folder / "var") as triton:
        (unused,) = free_ports(1)
        found = {"var": triton.var_dir, "triton_grpc_port": triton.grpc_port, "gateway_port": unused}
        yield House(repository, triton, Settings(model_repository=str(repository), **found | settings))


def lay(folder: Path, version: int) -> None:
    """The three files of a tiny bundle of that number."""
    workshop = folder.with_name(f"{folder.name}.workshop")
    for file in write_bundle(workshop, version).iterdir():
        shutil.copyfile(file, folder / file.name)
    shutil.rmtree(workshop)


def describe_anew(folder: Path) -> None:
    """The manifest of what lies there now, golden rows and checksums."""
    write_manifest(folder, tiny_tokenizer(32), version=int(folder.name), labels=2, max_length=32)


@dataclass
class Callers:
    """Ask the version that serves, without a pause, for a golden row; keep what went wrong."""

    house: House
    answers: int = 0
    faults: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with InferenceServerClient(f"127.0.0.1:{self.house.triton.grpc_port}") as client:
            while not self._stop.is_set():
                version = read_serving(self.house.repository).version
                folder = self.house.repository / "sentiment" / str(version)
                row = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["golden"][self.answers % 32]
                try:
                    result = client.infer(
                        "sentiment",
                        tensors([row["input_ids"]], [[1] * len(row["input_ids"])]),
                        model_version=str(version),
                        client_timeout=10,
                    )
                    probabilities = softmax(result.as_numpy("logits").astype(float))[0]
                    if np.abs(probabilities - row["probabilities"]).max() > 0.02:
                        self.faults.append(f"version {version} is off")
                    self.answers += 1
                except InferenceServerException as exc:
                    self.faults.append(str(exc))
                time.sleep(0.002)


@contextmanager
def unreadable(folder: Path) -> Iterator[None]:
    """Its permissions are withdrawn, also from root, which becomes nobody for the block."""
    folder.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@contextmanager
def asking(house: House) -> Iterator[Callers]:
    """Callers in the block; not one of them may have been failed, and some must have come."""
    callers = Callers(house)
    thread = threading.Thread(target=callers.run)
    thread.start()
    try:
        yield callers
    finally:
        callers._stop.set()
        thread.join()
    assert callers.faults == []
    assert callers.answers > 0
