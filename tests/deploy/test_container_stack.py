"""What the containers run, run without containers: the commands and environments of docker-compose.yml as they stand.

Each image is put together as its Dockerfile says, in a folder: the packages of its group, the files it copies.  Names
of services become loopback addresses, Triton's another one than the gateway's, and `/models` a folder; the Triton is
the embedded one, which is given what the newer one in NVIDIA's image does not need.  What an engine adds is not shown
here: users, limits, networks, read-only file systems.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from threading import Thread

import httpx
import pytest

from export.errors import TritonAway
from export.publish import open_stage
from export.release import Released, release
from export.settings import Settings
from server.preflight import find_libpython, libpython_folders, loader_libraries
from server.triton import environment as triton_environment
from server.triton import lay_out, wheel
from tests.deploy.compose import ROOT
from tests.export.live import lay
from tests.gateway.gateway_process import wait_until
from tests.triton_process import free_ports

START_SECONDS = 150
STOP_SECONDS = 40
TRITON, GATEWAY = "127.0.0.2", "127.0.0.1"
SENTENCE = {"text": "다시 보고 싶은 영화"}


@dataclass(frozen=True)
class Image:
    """A folder with what the last stage of a Dockerfile has: its packages, its files, its command."""

    folder: Path
    command: list[str]

    @property
    def work(self) -> Path:
        return self.folder / "srv" / "nunchi"

    @property
    def binaries(self) -> Path:
        return self.folder / "opt" / "venv" / "bin"

    def environment(self, service: dict, names: dict[str, str]) -> dict[str, str]:
        """What the container of this service gets, with the names of services turned into addresses."""
        given = {name: translated(str(value), names) for name, value in service["environment"].items()}
        home = self.folder / "tmp"
        home.mkdir(exist_ok=True)
        return {"PATH": f"{self.binaries}:/usr/bin:/bin", "HOME": str(home), "TMPDIR": "/tmp", **given}


def translated(text: str, names: dict[str, str]) -> str:
    for name, place in names.items():
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", place, text)
    return text


def build(dockerfile: Path, folder: Path) -> Image:
    """Follow its instructions, those of the last stage into `folder`, those before in a folder of their own."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text(encoding="utf-8"))
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    packages, _, last = text.rpartition("\nFROM ")
    (install,) = [line for line in packages.splitlines() if line.startswith("RUN uv venv")]
    install = install.removeprefix("RUN ").replace("/opt/venv", str(folder / "opt" / "venv"))
    uv = [f"{Path(sys.executable).parent}:/usr/bin:/bin", os.environ.get("PIP_FIND_LINKS", "")]
    done = subprocess.run(
        ["bash", "-euc", install.replace("uv venv", f"uv venv --python {sys.executable}").replace("--no-cache", "")],
        cwd=ROOT,  # where pyproject.toml and requirements.lock are
        env=os.environ | arguments | {"PATH": uv[0], "UV_FIND_LINKS": uv[1]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    image = Image(folder, json.loads(re.search(r"^CMD (.*)$", last, re.MULTILINE)[1]))
    image.work.mkdir(parents=True)
    for line in re.findall(r"^COPY (?!--from)(.*)$", last, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            copy = image.work / (Path(source).name if target == "./" else target)
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, copy)
    return image


@contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """A program that is stopped as Docker stops one: SIGTERM, and force when that takes too long."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_up(process: subprocess.Popen, url: str, log: Path) -> bool:
    assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")
    return httpx.get(url, timeout=10).status_code == 200


def packages(image: Image) -> set[str]:
    (folder,) = image.binaries.parent.glob("lib/python*/site-packages")
    return {each.metadata["Name"].lower() for each in metadata.distributions(path=[str(folder)])}


@pytest.fixture(scope="module")
def services(compose) -> dict[str, dict]:
    return compose.document("cpu", "train")["services"]


@pytest.fixture(scope="module")
def gateway_image(tmp_path_factory) -> Image:
    return build(ROOT / "deploy" / "docker" / "gateway.Dockerfile", tmp_path_factory.mktemp("gateway"))


@dataclass(frozen=True)
class Stack:
    models: Path
    key: str
    gateway: str
    triton_http: str
    grpc_port: int
    gateway_port: int


@pytest.fixture(scope="module")
def stack(services, gateway_image, tmp_path_factory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    models = folder / "models"
    models.mkdir()
    names = {"/models": str(models), "triton": TRITON, "gateway": GATEWAY}
    http, grpc, metrics, port = free_ports(4)
    fill(services, gateway_image, models)
    with ExitStack() as exits:
        embedded = lay_out(folder / "triton", find_libpython(libpython_folders(), loader_libraries()))
        own = [
            f"--backend-directory={embedded.backends}",
            f"--cache-directory={wheel() / 'caches'}",
            *(f"--{kind}-address={TRITON}" for kind in ("http", "grpc", "metrics")),
            *(f"--{kind}-port={number}" for kind, number in (("http", http), ("grpc", grpc), ("metrics", metrics))),
            "--backend-config=python,shm-default-byte-size=4194304",
            f"--backend-config=python,shm-region-prefix-name=compose_{os.getpid()}",
        ]
        (folder / "bin").mkdir()
        program = folder / "bin" / "tritonserver"
        program.write_text(f'#!/bin/sh\nexec {wheel() / "bin" / "tritonserver"} "$@" {shlex.join(own)}\n')
        program.chmod(0o755)
        around = triton_environment(embedded)
        around |= services["triton"]["environment"] | {"PATH": f"{folder / 'bin'}:{around['PATH']}"}
        words = [*services["triton"]["entrypoint"], *services["triton"]["command"]]
        command = [translated(word.replace("$$", "$"), names) for word in words]
        triton = exits.enter_context(running(command, embedded.working_directory, around, folder / "triton.log"))
        check = services["triton"]["healthcheck"]["test"]
        url = check[-1].replace("127.0.0.1:8000", f"{TRITON}:{http}")
        wait_until(lambda: is_up(triton, url, folder / "triton.log"), START_SECONDS, "Triton is ready")
        assert subprocess.run([*check[1:-1], url], capture_output=True).returncode == 0

        environment = gateway_image.environment(services["gateway"], names)
        environment |= {"NUNCHI_GATEWAY_PORT": str(port), "NUNCHI_TRITON_GRPC_PORT": str(grpc)}
        command = [str(gateway_image.binaries / gateway_image.command[0]), *gateway_image.command[1:]]
        gateway = exits.enter_context(running(command, gateway_image.work, environment, folder / "gateway.log"))
        url = f"http://{GATEWAY}:{port}"
        wait_until(
            lambda: is_up(gateway, f"{url}/readyz", folder / "gateway.log"), START_SECONDS, "the gateway is ready"
        )
        yield Stack(models, environment["NUNCHI_API_KEY"], url, f"http://{TRITON}:{http}", grpc, port)


def fill(services: dict[str, dict], image: Image, models: Path) -> None:
    """The command of the service `models`, on a volume that is this folder."""
    shell, option, script = services["models"]["command"]
    script = translated(script, {"/models": str(models)})
    subprocess.run([shell, option, script], cwd=image.work, check=True)


def test_the_image_of_the_gateway_has_no_torch(gateway_image):
    names = packages(gateway_image)
    assert {"ray", "fastapi", "tokenizers"} <= names
    assert not names & {"torch", "transformers", "mlflow", "mlflow-skinny"}
    assert {each.name for each in gateway_image.work.iterdir()} == {"gateway", "model_repository"}


def test_an_empty_volume_gets_the_shipped_champion_and_a_used_one_keeps_its_own(services, gateway_image, tmp_path):
    fill(services, gateway_image, tmp_path)
    shipped = {path.relative_to(ROOT) for path in (ROOT / "model_repository").rglob("*")}
    assert {path.relative_to(tmp_path) for path in (tmp_path / "model_repository").rglob("*")} == shipped
    (tmp_path / "model_repository" / "serving.json").write_text("mine")
    fill(services, gateway_image, tmp_path)
    assert (tmp_path / "model_repository" / "serving.json").read_text() == "mine"


def test_the_gateway_in_its_image_answers_from_a_triton_at_another_address(stack):
    answer = httpx.post(
        f"{stack.gateway}/v1/predict", json=SENTENCE, headers={"authorization": f"Bearer {stack.key}"}, timeout=30
    )
    assert (answer.status_code, answer.json()["label"]) == (200, "긍정")
    assert httpx.post(f"{stack.gateway}/v1/predict", json=SENTENCE, timeout=30).status_code == 401


def test_its_health_check_says_so(services, gateway_image, stack):
    _, python, *words = services["gateway"]["healthcheck"]["test"]
    for port, status in ((stack.gateway_port, 0), (free_ports(1)[0], 1)):
        command = [gateway_image.binaries / python, *(word.replace("8080", str(port)) for word in words)]
        assert subprocess.run(command, capture_output=True).returncode == status


def test_tritons_admin_interfaces_want_the_key_there_too(compose, stack):
    index = f"{stack.triton_http}/v2/repository/index"
    key = compose.secrets["NUNCHI_TRITON_ADMIN_KEY"]
    assert httpx.post(index).status_code == 403
    assert httpx.post(index, headers={"admin-key": "0" * len(key)}).status_code == 403
    assert httpx.post(index, headers={"admin-key": key}).status_code == 200


def test_a_release_reaches_triton_and_gateway_with_the_environment_of_the_training_container(services, stack, tmp_path):
    given = services["train"]["environment"]
    names = {"/models": str(stack.models), "triton": TRITON, "gateway": GATEWAY}
    fields = {
        name.removeprefix("NUNCHI_").lower(): translated(value, names)
        for name, value in given.items()
        if name.removeprefix("NUNCHI_").lower() in Settings.model_fields
    }
    settings = Settings(
        **fields | {"var": tmp_path, "triton_grpc_port": stack.grpc_port, "gateway_port": stack.gateway_port}
    )
    assert settings.triton_grpc_host == TRITON
    with pytest.raises(TritonAway, match="refuses the admin key"):
        publish(settings.model_copy(update={"triton_admin_key": type(settings.triton_admin_key)("x" * 16)}))
    released = publish(settings)
    assert released.live
    answer = httpx.post(
        f"{stack.gateway}/v1/predict", json=SENTENCE, headers={"authorization": f"Bearer {stack.key}"}, timeout=30
    )
    assert answer.json()["model_version"] == str(released.serving.version)


def publish(settings: Settings) -> Released:
    with open_stage(settings.repository) as stage:
        lay(stage.version_folder, stage.version)
        return release(stage, settings)


def test_the_page_in_its_image_opens_without_torch(services, tmp_path):
    image = build(ROOT / "deploy" / "docker" / "ui.Dockerfile", tmp_path / "ui")
    assert "gradio" in packages(image)
    assert not packages(image) & {"torch", "transformers", "mlflow", "ray"}
    (port,) = free_ports(1)
    environment = image.environment(services["ui"], {"gateway": GATEWAY}) | {"NUNCHI_UI_PORT": str(port)}
    command = [str(image.binaries / image.command[0]), *image.command[1:]]
    log = tmp_path / "ui.log"
    with running(command, image.work, environment, log) as page:
        url = services["ui"]["healthcheck"]["test"][-1].split('"')[1].replace("7860", str(port))
        wait_until(lambda: is_up(page, url, log), START_SECONDS, "the page opens")


class Store(BaseHTTPRequestHandler):
    """As much of an S3-compatible store as MLflow asks for: buckets are listed and made, objects are put.

    It stands in for SeaweedFS, which only its container has.  `kept` is what was put, by path.
    """

    kept: dict[str, bytes]

    def do_GET(self) -> None:
        names = [path.strip("/") for path in self.kept if path.count("/") == 1]
        buckets = "".join(
            f"<Bucket><Name>{name}</Name><CreationDate>2026-11-30T00:00:00Z</CreationDate></Bucket>" for name in names
        )
        self._answer(f"<ListAllMyBucketsResult><Buckets>{buckets}</Buckets></ListAllMyBucketsResult>".encode())

    def do_PUT(self) -> None:
        assert "nunchi/" in self.headers["authorization"]  # signed by the account of docker-compose.yml
        self.kept[self.path] = self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running_store() -> Iterator[tuple[str, dict[str, bytes]]]:
    kept: dict[str, bytes] = {}
    (port,) = free_ports(1)
    server = ThreadingHTTPServer((GATEWAY, port), type("Kept", (Store,), {"kept": kept}))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{GATEWAY}:{port}", kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_mlflow_starts_makes_its_bucket_and_puts_artifacts_there(services, tmp_path):
    """With SQLite in PostgreSQL's place: the image's own script and the variables of docker-compose.yml."""
    given = {name: str(value) for name, value in services["mlflow"]["environment"].items()}
    (port,) = free_ports(1)
    log = tmp_path / "mlflow.log"
    with running_store() as (store, kept):
        environment = given | {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
            "MLFLOW_S3_ENDPOINT_URL": store,
            "MLFLOW_HOST": GATEWAY,
            "MLFLOW_PORT": str(port),
            "MLFLOW_WORKERS": "1",
        }
        url = f"http://{GATEWAY}:{port}"
        with running([str(ROOT / "deploy/docker/mlflow.sh")], tmp_path, environment, log) as mlflow:
            wait_until(lambda: is_up(mlflow, f"{url}/health", log), START_SECONDS, "MLflow is up")
            assert "/mlflow" in kept
            artifact = f"{url}/api/2.0/mlflow-artifacts/artifacts/picture.txt"
            assert httpx.put(artifact, content="그림".encode(), timeout=30).status_code == 200
            assert "그림".encode() in kept["/mlflow/picture.txt"]
            strange = httpx.get(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"host": "evil:1"})
            assert strange.status_code == 403
            asked = httpx.get(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"host": "mlflow:5050"})
            assert asked.json()["experiment"]["artifact_location"].startswith("mlflow-artifacts:")
