"""``python -m deploy.demo`` (``make demo``): the whole loop on the bundled reviews, offline, in a folder of its own.

    search → register → promote → export → serve → predict

Every step is the command that a user would type; what it leaves lies under ``var/demo`` and touches neither the
registry nor the model repository of this checkout. A second run starts from nothing again.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy.settings import ROOT, Settings, StartError, read_settings

SEARCH = "demo"
SENTENCES = ["다시 보고 싶은 영화", "돈이 아깝다 진짜", "배송 빠르고 좋아요 ㅎㅎ", "두 번은 안 간다 ㅡㅡ"]
PORTS = ["TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "GATEWAY_PORT", "UI_PORT"]
STOP_SECONDS = 60.0


@dataclass
class Demo:
    """A run of the demo: its folder, its free ports, and a row per step for the table at the end."""

    folder: Path
    ports: dict[str, int]
    console: Console = field(default_factory=Console)
    rows: list[tuple[str, float, str, str]] = field(default_factory=list)

    @property
    def repository(self) -> Path:
        return self.folder / "model_repository"

    @property
    def environment(self) -> dict[str, str]:
        ports = {f"NUNCHI_{name}": str(port) for name, port in self.ports.items()}
        inherited = {name: value for name, value in os.environ.items() if name != "NUNCHI_MLFLOW_TRACKING_URI"}
        folders = {"NUNCHI_VAR": str(self.folder), "NUNCHI_MODEL_REPOSITORY": str(self.repository)}
        return inherited | ports | folders | {"HF_HUB_OFFLINE": "1"}

    @contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Heads and times a step; the body puts two strings into the list: what happened, where to look."""
        self.console.rule(f"{len(self.rows) + 1}. {title}", align="left")
        began, said = time.monotonic(), []
        yield said
        self.rows.append((title, time.monotonic() - began, *said))

    def run(self, *command: str) -> None:
        """A command of the project, its output shown as it comes.

        Raises:
            StartError: it ends with another status than 0.
        """
        self.console.print(f"[dim]$ python -m {' '.join(command)}[/dim]", highlight=False)
        status = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=self.environment).returncode
        if status:
            raise StartError(f"python -m {' '.join(command)} ended with status {status}; its last lines above say why")


def demo(settings: Settings) -> None:
    """Raises:
    StartError: a step has failed.
    """
    folder = settings.var / "demo"
    run = Demo(folder, dict(zip(PORTS, free_ports(len(PORTS)), strict=True)))
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    with run.step("search: fine-tune the shipped nano on the bundled reviews") as said:
        run.run("training.tune", "--config", "training/configs/demo.yaml", "--name", SEARCH)
        said += _searched(folder)
    with run.step("register: read test once, make the best trial a Candidate") as said:
        run.run("training.registry", "register", SEARCH)
        said += _registered(folder, "Candidate")
    with run.step("promote: through the gates, to Champion") as said:
        run.run("training.registry", "promote", "1")
        said += _registered(folder, "Champion")
    with run.step("export: the padding-free int8 graph, compared with torch") as said:
        run.run("export")
        said += _exported(run.repository)
    with run.step("serve and predict: Triton and the gateway") as said, served(run) as url:
        said += [_predict(run.console, url), shown(folder / "log")]
    show_table(run, time.monotonic() - began)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all of them different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _searched(folder: Path) -> list[str]:
    search_folder = folder / "searches" / SEARCH
    search = read_json(search_folder / "search.json")
    trials = list((search_folder / "trials").glob("*/trial.json"))
    epochs = (search_folder / "trials" / search["best"] / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    best = max(json.loads(line)["dev_f1"] for line in epochs)
    return [f"{len(trials)} trials; the best has dev F1 {best:.3f}", shown(search_folder)]


def _registered(folder: Path, stage: str) -> list[str]:
    file = folder / "model_registry.json"
    version = next(each for each in read_json(file)["versions"] if each["stage"] == stage)
    metrics = version["metrics"]
    return [f"version {version['number']} is {stage}; test F1 {metrics['f1']:.3f}", shown(file)]


def _exported(repository: Path) -> list[str]:
    version = read_json(repository / "serving.json")["version"]
    folder = repository / "sentiment" / str(version)
    manifest = read_json(folder / "manifest.json")
    megabytes = (folder / "model.onnx").stat().st_size / 1e6
    agreement = manifest["parity"]["label_agreement"]
    return [f"{manifest['precision']}, {megabytes:.1f} MB, {agreement:.1%} of the labels as torch", shown(folder)]


@contextmanager
def served(run: Demo) -> Iterator[str]:
    """The stack over the demo's model repository; the gateway's address once a prediction has been answered."""
    output = run.folder / "log" / "up.txt"
    output.parent.mkdir(parents=True, exist_ok=True)
    run.console.print("[dim]$ python -m deploy.local up[/dim]", highlight=False)
    with output.open("w", encoding="utf-8") as file:
        stack = subprocess.Popen(
            [sys.executable, "-m", "deploy.local", "up"],
            cwd=ROOT, env=run.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        while "ready after" not in (said := output.read_text(encoding="utf-8")):
            if stack.poll() is not None:
                raise StartError(f"the stack did not start: {said.strip().splitlines()[-1]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{run.ports['GATEWAY_PORT']}"
    finally:
        stop(stack)


def stop(process: subprocess.Popen) -> None:
    """SIGTERM, and force when that takes too long."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ask(url: str) -> dict:
    """What the gateway answers to `SENTENCES`."""
    body = json.dumps({"texts": SENTENCES}).encode()
    request = urllib.request.Request(f"{url}/v1/predict/batch", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def _predict(console: Console, url: str) -> str:
    answer = ask(url)
    for text, row in zip(SENTENCES, answer["predictions"], strict=True):
        console.print(f"{row['label']} {row['confidence']:.2f}  {text}", highlight=False)
    return f"{len(answer['predictions'])} sentences answered by version {answer['model_version']}"


def show_table(run: Demo, seconds: float) -> None:
    table = Table(title=f"the whole loop in {seconds:.0f} s")
    for heading, justify in (("step", "left"), ("s", "right"), ("what happened", "left"), ("where to look", "left")):
        table.add_column(heading, justify=justify, overflow="fold")
    for title, took, *said in run.rows:
        table.add_row(title.partition(":")[0], f"{took:.0f}", *said)
    run.console.print(table)
    run.console.print(
        f"Curves, confusion matrix, evidence of the gates: NUNCHI_VAR={shown(run.folder)} make mlflow\n"
        f"Serve this model: NUNCHI_MODEL_REPOSITORY={shown(run.repository)} make up",
        highlight=False,
    )


def read_json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def shown(path: Path) -> str:
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)


def main() -> int:
    try:
        demo(read_settings())
    except StartError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
