"""Searches built by hand, brought into a real MLflow: its SQLite file, and its server started, stopped and hanging."""

import contextlib
import csv
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from mlflow import MlflowClient
from mlflow.entities import ViewType
from transformers import BertConfig, BertForSequenceClassification

from training import tracking
from training.config import TrainingConfig
from training.data import SAMPLE, read_reviews
from training.errors import SearchError, TrackingError
from training.projection import Projection, description
from training.search import (
    CHECKPOINT,
    DEV_PREDICTIONS,
    Search,
    Trial,
    append_epoch,
    read_search,
    read_trial,
    read_trials,
    trial_folder,
    write_search,
    write_trial,
)
from training.settings import ROOT, Settings
from training.vocabulary import train_tokenizer

STARTED = "2026-11-22T10:00:00.000+00:00"
CREATED = "2026-11-22T09:59:00.000+00:00"
F1 = {"trial-1": [0.70, 0.81, 0.80], "trial-2": [0.75, 0.85]}
TEXTS = ["재밌어요", "돈 아깝다", "<script>alert(1)</script> 최악", "그냥 그래요", "다시 보고 싶다", "별로"]
PATIENCE = 15.0  # seconds; far more than the 4 a call may take, far less than MLflow's own minutes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """One layer of 32, saved as the hub saves it, with the record that training leaves beside it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tokenizer = train_tokenizer(read_reviews(SAMPLE).document.tolist(), 600)
    shape = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=32, id2label={0: "negative", 1: "positive"})  # fmt: skip
    BertForSequenceClassification(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"max_length": 48}), encoding="utf-8")
    return folder


@pytest.fixture
def begin(tmp_path, checkpoint):
    """A search of two trials, as the search's driver writes it: begin it, run epochs of a trial, end it."""
    return lambda name="two-trials": HandMadeSearch(tmp_path / "searches" / name, checkpoint)


class HandMadeSearch:
    def __init__(self, folder: Path, checkpoint: Path):
        self.folder, self.checkpoint = folder, checkpoint
        config = TrainingConfig().model_dump(mode="json")
        write_search(folder, Search(folder.name, config, "NSMC", "0123456789ab", "abcdef012345+", CREATED))
        for index, name in enumerate(F1):
            params = {"train.learning_rate": 1e-4 * (index + 1)}
            started = STARTED.replace("10:00", f"10:0{index}")
            write_trial(trial_folder(folder, name), Trial(name, params, started=started))

    def run(self, trial: str, epochs: range) -> None:
        for epoch in epochs:
            f1 = F1[trial][epoch - 1]
            append_epoch(
                trial_folder(self.folder, trial),
                {"epoch": epoch, "train_loss": 0.7 / epoch, "dev_loss": 0.6 / epoch, "dev_f1": f1,
                 "dev_accuracy": f1 + 0.01, "learning_rate": 1e-4, "seconds": 12.5},
            )  # fmt: skip

    def end(self, trial: str, state="finished", error: str | None = None) -> None:
        folder = trial_folder(self.folder, trial)
        if state != "failed":
            shutil.copytree(self.checkpoint, folder / CHECKPOINT)
            sure = np.linspace(0.55, 0.99, len(TEXTS))
            rows = {"text": TEXTS, "label": [1, 0, 0, 0, 1, 0], "probabilities": [[1 - p, p] for p in sure]}
            pd.DataFrame(rows).to_parquet(folder / DEV_PREDICTIONS)
        ended = "2026-11-22T10:30:00.000+00:00"
        write_trial(folder, replace(read_trial(folder), state=state, ended=ended, error=error))

    def finish(self, best: str | None = "trial-2") -> Path:
        finished = "2026-11-22T10:31:00.000+00:00"
        write_search(self.folder, replace(read_search(self.folder), finished=finished, best=best))
        return self.folder

    def whole(self) -> Path:
        self.run("trial-1", range(1, 4))
        self.run("trial-2", range(1, 3))
        self.end("trial-1")
        self.end("trial-2", "stopped")
        return self.finish()


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    """One SQLite file for the module, as making its tables takes seconds; each test brings a search of its own name."""
    return Settings(var=tmp_path_factory.mktemp("var"), mlflow_tracking_uri=None)


@pytest.fixture(scope="module")
def brought(tmp_path_factory, checkpoint, settings):
    """A whole search in MLflow: its folder and the id of its run."""
    folder = HandMadeSearch(tmp_path_factory.mktemp("searches") / "brought", checkpoint).whole()
    return folder, tracking.project(folder, settings)


@pytest.fixture(autouse=True)
def no_memory_of_absences():
    tracking._absences.clear()


def runs_of(folder: Path, settings: Settings) -> dict[str, object]:
    """Every run of a search that is not deleted, by trial; the search's own under ""."""
    client = tracking.connect(settings)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    name = read_search(folder).name
    found = client.search_runs([experiment], f"tags.`nunchi.search` = '{name}'", ViewType.ACTIVE_ONLY)
    runs = {run.data.tags.get("nunchi.trial", ""): run for run in found}
    assert len(runs) == len(found), "a trial has two runs"
    return runs


def history(run, metric: str, settings: Settings) -> list[tuple[int, float]]:
    points = tracking.connect(settings).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in points)


def assert_whole(folder: Path, settings: Settings) -> None:
    """All of a HandMadeSearch.whole() is in MLflow, and each epoch once."""
    runs = runs_of(folder, settings)
    assert set(runs) == {"", *F1}
    for trial, values in F1.items():
        for metric, points in (("dev_f1", values), ("dev_loss", [0.6 / (n + 1) for n in range(len(values))])):
            assert history(runs[trial], metric, settings) == list(enumerate(points, 1))
        assert len(history(runs[trial], "best_dev_f1", settings)) == 1
        assert runs[trial].data.tags["mlflow.parentRunId"] == runs[""].info.run_id
        assert runs[trial].info.status == "FINISHED"
    assert history(runs[""], "best_dev_f1", settings) == [(2, 0.85)]
    assert runs[""].info.status == "FINISHED"
    assert "confusion_matrix.png" in files_of(runs["trial-1"], settings)
    assert len(models_of(folder, settings)) == 1


def files_of(run, settings: Settings) -> set[str]:
    return {file.path for file in tracking.connect(settings).list_artifacts(run.info.run_id)}


def models_of(folder: Path, settings: Settings) -> list:
    client = tracking.connect(settings)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    ids = {run.info.run_id for run in runs_of(folder, settings).values()}
    return [model for model in client.search_logged_models([experiment]) if model.source_run_id in ids]


def download(run, file: str, folder: Path, settings: Settings) -> Path:
    return Path(tracking.connect(settings).download_artifacts(run.info.run_id, file, folder))


# -- what MLflow shows ----------------------------------------------------------------------------------------------


def test_a_search_is_a_run_and_its_trials_are_runs_below_it(brought, settings):
    folder, run_id = brought
    runs = runs_of(folder, settings)
    assert runs[""].info.run_id == run_id
    assert {run.data.tags.get("mlflow.parentRunId") for trial, run in runs.items() if trial} == {run_id}
    assert "mlflow.parentRunId" not in runs[""].data.tags
    assert {trial: run.info.run_name for trial, run in runs.items()} == {"": "brought", **{name: name for name in F1}}


def test_a_trial_shows_the_whole_configuration_with_its_own_values(brought, settings):
    runs = runs_of(brought[0], settings)
    assert runs["trial-1"].data.params["train.learning_rate"] == "0.0001"
    assert runs["trial-2"].data.params["train.learning_rate"] == "0.0002"
    assert runs["trial-1"].data.params["dataset.labels"] == '["negative", "positive"]'
    assert runs["trial-1"].data.params["model.unfrozen_layers"] == "null"
    assert runs[""].data.params["tune.space.train.learning_rate.high"] == "0.0005"
    assert set(runs[""].data.params) == set(runs["trial-1"].data.params)


def test_every_figure_is_there_once_per_epoch_at_the_time_the_epoch_ended(brought, settings):
    assert_whole(brought[0], settings)
    run = runs_of(brought[0], settings)["trial-1"]
    points = tracking.connect(settings).get_metric_history(run.info.run_id, "train_loss")
    assert [point.timestamp - run.info.start_time for point in points] == [12_500, 25_000, 37_500]
    tracking.project(brought[0], settings)
    tracking.upload(brought[0], settings)
    (brought[0] / "mlflow.json").unlink()
    tracking.project(brought[0], settings)
    assert_whole(brought[0], settings)


def test_the_best_trial_by_dev_f1_is_named_and_has_the_model(brought, settings):
    runs = runs_of(brought[0], settings)
    assert runs[""].data.tags["nunchi.best_trial"] == "trial-2"
    assert runs[""].data.metrics["best_dev_f1"] == 0.85
    assert runs["trial-1"].data.metrics["best_dev_f1"] == 0.81  # of epoch 2; its last epoch has 0.80
    [model] = models_of(brought[0], settings)
    assert model.source_run_id == runs["trial-2"].info.run_id == tracking.run_id_of(brought[0], "trial-2", settings)
    assert {metric.key: metric.value for metric in model.metrics}["dev_f1"] == 0.85
    assert model.params["train.learning_rate"] == "0.0002"


def test_pictures_and_the_table_of_errors_lie_with_their_trial(brought, settings, tmp_path):
    runs = runs_of(brought[0], settings)
    pictures = {"learning_curves.png", "confusion_matrix.png", "reliability.png"}
    assert files_of(runs["trial-1"], settings) == {*pictures, "errors.html", "errors.csv", "config.yaml"}
    assert files_of(runs[""], settings) == {"learning_curves.png", "config.yaml", "requirements.txt"}
    for picture in pictures:
        pixels = imread(download(runs["trial-1"], picture, tmp_path, settings))
        assert min(pixels.shape[:2]) > 200
        assert pixels[..., :3].std() > 0.05  # something is drawn
    page = download(runs["trial-1"], "errors.html", tmp_path, settings).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "별로" in page
    with download(runs["trial-1"], "errors.csv", tmp_path, settings).open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [TEXTS[5], TEXTS[3], TEXTS[2], TEXTS[1]]
    assert rows[0] == {"text": "별로", "label": "negative", "predicted": "positive", "confidence": "0.99"}


def test_the_run_of_the_search_describes_its_trials_the_best_first(brought, settings):
    lines = runs_of(brought[0], settings)[""].data.tags["mlflow.note.content"].splitlines()
    assert lines == [
        "| trial | dev F1 | epochs | state | learning_rate |",
        "| --- | --- | --- | --- | --- |",
        "| trial-2 | 0.8500 | 2 | stopped | 0.0002 |",
        "| trial-1 | 0.8100 | 3 | finished | 0.0001 |",
    ]


def test_the_description_of_hundreds_of_trials_fits_and_of_a_strange_error_stays_a_table(begin, settings):
    search = begin("hundreds")
    for number in range(3, 303):
        folder = trial_folder(search.folder, f"trial-{number}")
        write_trial(folder, Trial(folder.name, {"train.learning_rate": 1e-4}, "failed", STARTED, STARTED, "a|b\nc"))
    search.run("trial-1", range(1, 2))
    search.end("trial-1")
    _, _, *rows = description(read_trials(search.folder)).splitlines()
    assert rows[0] == "| trial-1 | 0.7000 | 1 | finished | 0.0001 |"
    assert rows[1] == "| trial-10 |  | 0 | failed: a/b c | 0.0001 |"
    assert rows[-1] == f"{301 - len(rows[:-2])} more trials are in the runs below."
    assert 4000 < sum(len(row) + 1 for row in rows) < 5000


def test_data_commit_and_environment_are_kept(brought, settings, tmp_path):
    for run in runs_of(brought[0], settings).values():
        [dataset] = run.inputs.dataset_inputs
        assert (dataset.dataset.name, dataset.dataset.digest) == ("NSMC", "0123456789ab")
        assert run.data.tags["nunchi.dataset_fingerprint"] == "0123456789ab"
        assert run.data.tags["mlflow.source.git.commit"] == "abcdef012345+"
    run = runs_of(brought[0], settings)[""]
    text = download(run, "requirements.txt", tmp_path, settings).read_text(encoding="utf-8")
    assert text.startswith("# Python 3.11.")
    assert "\ntransformers==" in text
    assert "learning_rate: 0.0002" in download(run, "config.yaml", tmp_path, settings).read_text(encoding="utf-8")


def test_a_running_search_is_followed_epoch_by_epoch(begin, settings):
    search = begin("followed")
    tracking.project(search.folder, settings)
    assert {run.info.status for run in runs_of(search.folder, settings).values()} == {"RUNNING"}
    search.run("trial-1", range(1, 2))
    tracking.project(search.folder, settings)
    search.run("trial-1", range(2, 3))
    tracking.project(search.folder, settings)
    assert history(runs_of(search.folder, settings)["trial-1"], "dev_f1", settings) == [(1, 0.70), (2, 0.81)]
    search.end("trial-2", "failed", error="CUDA out of memory")
    tracking.project(search.folder, settings)
    runs = runs_of(search.folder, settings)
    assert (runs["trial-2"].info.status, runs["trial-1"].info.status) == ("FAILED", "RUNNING")
    assert runs["trial-2"].data.tags["nunchi.error"] == "CUDA out of memory"
    search.finish(best=None)
    tracking.project(search.folder, settings)
    assert runs_of(search.folder, settings)[""].info.status == "FAILED"


def test_a_search_of_the_same_name_made_anew_has_runs_of_its_own(begin, settings):
    search = begin("again")
    first = tracking.project(search.folder, settings)
    write_search(search.folder, replace(read_search(search.folder), created="2026-11-23T09:00:00.000+00:00"))
    assert tracking.project(search.folder, settings) != first


def test_a_call_with_nothing_new_asks_mlflow_nothing(begin, settings, monkeypatch):
    folder = begin("quiet").folder
    run_id = tracking.project(folder, settings)
    with monkeypatch.context() as patched:
        patched.delattr(MlflowClient, "get_experiment_by_name")  # the first thing that anybody asks
        assert tracking.project(folder, settings) == run_id


def test_what_changes_while_the_folder_is_read_comes_with_the_next_call(begin, settings):
    search = begin("racing")
    tracking.project(search.folder, settings)
    search.run("trial-1", range(1, 2))
    projection = Projection(search.folder, settings.tracking_uri, trusting=True)
    search.run("trial-1", range(2, 3))
    client = tracking.connect(settings)
    projection.bring(client, client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id)
    tracking.project(search.folder, settings)
    assert history(runs_of(search.folder, settings)["trial-1"], "dev_f1", settings) == [(1, 0.70), (2, 0.81)]


def test_runs_that_somebody_deleted_come_back_with_the_next_epoch(begin, settings):
    search = begin("deleted")
    search.run("trial-1", range(1, 3))
    tracking.project(search.folder, settings)
    for run in runs_of(search.folder, settings).values():
        tracking.connect(settings).delete_run(run.info.run_id)
    search.run("trial-2", range(1, 2))
    tracking.project(search.folder, settings)
    runs = runs_of(search.folder, settings)
    assert history(runs["trial-1"], "dev_f1", settings) == [(1, 0.70), (2, 0.81)]
    assert runs["trial-1"].data.tags["mlflow.parentRunId"] == runs[""].info.run_id


def test_a_trial_that_mlflow_does_not_hold_is_said_with_the_remedy(brought, settings):
    with pytest.raises(TrackingError, match=r"no run of trial trial-9 .*python -m training.tracking upload .*brought"):
        tracking.run_id_of(brought[0], "trial-9", settings)


# -- the model ------------------------------------------------------------------------------------------------------

STRANGER = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
texts = json.loads(sys.argv[3])
answers = [model.predict(data) for data in (texts, pd.Series(texts, name="review"), pd.DataFrame({"document": texts}))]
assert answers[0].equals(answers[1]) and answers[0].equals(answers[2])
assert "training" not in sys.modules
print(answers[0].to_json(orient="records"))
"""


def test_the_logged_model_reads_raw_korean_where_our_code_is_not(brought, settings, checkpoint, tmp_path):
    [model] = models_of(brought[0], settings)
    texts = ["재밌어요ㅋㅋㅋㅋ!!", "돈 아깝다", "재밌다 " * 500, ""]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, settings.tracking_uri, model.model_uri, json.dumps(texts)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert [set(answer) for answer in answers] == [{"prediction", "label", "confidence", "probs"}] * 4
    expected = probabilities(checkpoint, texts)
    for answer, row in zip(answers, expected, strict=True):
        assert list(answer["probs"].values()) == pytest.approx(row, abs=1e-5)
        assert answer["confidence"] == pytest.approx(max(row), abs=1e-5)
        assert (answer["prediction"], answer["label"]) in {("negative", "부정"), ("positive", "긍정")}
        assert answer["probs"][answer["prediction"]] == answer["confidence"]
    assert "mlflow" not in done.stderr.lower()
    assert "warning" not in done.stderr.lower()


def probabilities(checkpoint: Path, texts: list[str]) -> list[list[float]]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        rows = [tokenizer(text, truncation=True, max_length=48, return_tensors="pt") for text in texts]
        return [model(row["input_ids"]).logits.softmax(1)[0].tolist() for row in rows]


def test_a_checkpoint_is_stored_once_and_comes_back_byte_for_byte(brought, settings, checkpoint, tmp_path):
    folder, _ = brought
    run_id = tracking.run_id_of(folder, "trial-2", settings)
    uri = tracking.log_model(run_id, trial_folder(folder, "trial-2") / CHECKPOINT, settings)
    assert [model.model_uri for model in models_of(folder, settings)] == [uri]
    target = tracking.checkpoint_of(uri, tmp_path / "registry" / "1", settings)
    files = {file.name: file.read_bytes() for file in target.iterdir()}
    assert files == {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_a_checkpoint_that_was_damaged_in_the_store_is_refused(brought, settings, tmp_path):
    [model] = models_of(brought[0], settings)
    weights = next(settings.artifact_root.glob(f"models/{model.model_id}/**/model.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(TrackingError, match="damaged"):
            tracking.checkpoint_of(model.model_uri, tmp_path / "1", settings)
    finally:
        weights.write_bytes(whole)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrackingError, match="cannot be read"):
        tracking.checkpoint_of("models:/m-0000000000000000000000000000000", tmp_path / "1", settings)


# -- MLflow away ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hanging_port():
    """Takes connections, as the kernel does, and never says a word. ``.asked()`` counts those that came."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        server.setblocking(False)
        server_connections = []

        def asked() -> int:
            with contextlib.suppress(BlockingIOError):
                while True:
                    server_connections.append(server.accept()[0])
            return len(server_connections)

        yield server.getsockname()[1], asked
        for connection in server_connections:
            connection.close()


def elsewhere(settings: Settings, port: int, credentials: str = "") -> Settings:
    return settings.model_copy(update={"mlflow_tracking_uri": f"http://{credentials}127.0.0.1:{port}"})


def test_a_server_that_refuses_costs_one_warning_with_the_command_for_later(begin, settings, free_port, caplog):
    folder = begin("refused").folder
    nowhere = elsewhere(settings, free_port, credentials="me:secret@")
    with caplog.at_level(logging.INFO, "training"):
        assert [tracking.project(folder, nowhere) for _ in range(3)] == [None] * 3
    [warning] = caplog.records
    assert f"python -m training.tracking upload {folder}" in warning.getMessage()
    assert f"127.0.0.1:{free_port}" in warning.getMessage()
    assert "secret" not in caplog.text
    with pytest.raises(TrackingError) as refusal:
        tracking.upload(folder, nowhere)
    assert "secret" not in str(refusal.value)
    assert not any("secret" in file.read_text() for file in folder.iterdir() if file.is_file())


def test_a_server_that_hangs_is_waited_for_shortly_and_not_asked_again_at_once(begin, settings, hanging_port):
    port, asked = hanging_port
    search = begin("hanging")
    started = time.monotonic()
    assert tracking.project(search.folder, elsewhere(settings, port)) is None
    assert time.monotonic() - started < PATIENCE
    came = asked()
    assert came > 0
    search.run("trial-1", range(1, 2))
    assert tracking.project(search.folder, elsewhere(settings, port)) is None
    assert asked() == came
    tracking._absences[search.folder].until = 0
    assert tracking.project(search.folder, elsewhere(settings, port)) is None
    assert asked() > came
    assert tracking._absences[search.folder].pause == 2 * tracking.PAUSE


def test_mlflows_patience_is_ours_the_inner_one_counts_and_a_persons_own_stays(monkeypatch):
    names = list(tracking.PATIENT)

    def patience() -> list[str | None]:
        return [os.environ.get(name) for name in names]

    monkeypatch.delenv(names[0], raising=False)
    monkeypatch.setenv(names[1], "9")
    with tracking.asking("outer"):
        assert patience() == [tracking.PATIENT[names[0]], "9"]
        with tracking.asking("inner", tracking.HURRIED):
            assert patience() == [tracking.HURRIED[names[0]], "9"]
        assert patience() == [tracking.PATIENT[names[0]], "9"]
    assert patience() == [None, "9"]


class Server:
    """A real ``mlflow server`` on its own database; stopped and started again it has the same port."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.port, self.process = folder, port, None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        with (self.folder / "log").open("w") as log:
            environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # five processes fewer
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=environment, start_new_session=True
            )
        while True:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5),
            ):
                return
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, 9)  # it has a worker beside it
            self.process.wait()


@pytest.fixture(scope="module")
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory, settings):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = Server(tmp_path_factory.mktemp("server"), port)
    tracking.connect(settings)
    shutil.copy(settings.var / "mlflow.db", server.folder / "server.db")  # tables made, which takes seconds
    client = MlflowClient(f"sqlite:///{server.folder / 'server.db'}")
    client.rename_experiment(client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id, "of another store")
    server.start()
    yield server
    server.stop()


def test_what_a_dead_server_missed_is_uploaded_later(begin, settings, server, caplog, tmp_path):
    settings = elsewhere(settings, server.port)
    search = begin("cut-off")
    search.run("trial-1", range(1, 3))
    run_id = tracking.upload(search.folder, settings)
    server.stop()
    search.run("trial-1", range(3, 4))
    search.run("trial-2", range(1, 3))
    assert tracking.project(search.folder, settings) is None
    search.end("trial-1")
    search.end("trial-2", "stopped")
    search.finish()
    assert tracking.project(search.folder, settings) is None
    assert [record.levelname for record in caplog.records if record.name == "training.tracking"] == ["WARNING"]
    server.start()
    assert tracking.upload(search.folder, settings) == run_id
    assert_whole(search.folder, settings)
    [model] = models_of(search.folder, settings)
    target = tracking.checkpoint_of(model.model_uri, tmp_path / "back", settings)
    assert (target / "model.safetensors").read_bytes() == (search.checkpoint / "model.safetensors").read_bytes()
    assert not list(settings.artifact_root.glob(f"models/{model.model_id}"))  # the server keeps it, not we


def test_mlflow_that_is_back_is_found_by_the_search_itself(begin, settings, free_port, caplog):
    search = begin("interrupted")
    search.run("trial-1", range(1, 2))
    assert tracking.project(search.folder, elsewhere(settings, free_port)) is None
    assert tracking.project(search.folder, settings) is None  # not before its time
    search.finish(best=None)
    with caplog.at_level(logging.INFO, "training"):
        assert tracking.project(search.folder, settings) is not None  # but a search that ends asks in any case
    assert "MLflow is back" in caplog.text
    assert history(runs_of(search.folder, settings)["trial-1"], "dev_f1", settings) == [(1, 0.70)]


class Killed(BaseException):
    """What SIGKILL is to the code under test: nothing of ours or MLflow's catches it."""


def test_an_upload_killed_anywhere_is_completed_by_the_next(begin, settings, monkeypatch):
    folder = begin("killed").whole()
    writes = ["create_run", "log_batch", "log_artifacts", "log_inputs", "set_terminated", "create_logged_model",
              "log_outputs", "log_model_artifacts"]  # fmt: skip
    deaths = 0
    left = 0

    def until_killed(write):
        def mortal(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return write(*args, **kwargs)

        return mortal

    with monkeypatch.context() as patched:
        for name in writes:
            patched.setattr(MlflowClient, name, until_killed(getattr(MlflowClient, name)))
        while True:
            left = deaths
            try:
                tracking.upload(folder, settings)
                break
            except Killed:
                deaths += 1
    assert deaths >= 5  # each a write later, and each attempt goes on from what the ones before it left
    assert_whole(folder, settings)


def test_an_upload_that_is_killed_twice_in_truth_is_completed_by_the_next(begin, settings):
    """By SIGKILL: once when a trial has come to MLflow, once while the files of the model do."""
    folder = begin("shot").whole()
    models = settings.artifact_root / "models"
    before = set(models.glob("*"))
    for has_come in (lambda: (folder / "mlflow.json").is_file(), lambda: set(models.glob("*")) - before):
        upload = subprocess.Popen(
            [sys.executable, "-m", "training.tracking", "upload", str(folder)],
            cwd=ROOT, env=os.environ | {"NUNCHI_VAR": str(settings.var)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not has_come():
            assert upload.poll() is None
            time.sleep(0.005)
        upload.kill()
        assert upload.communicate()[0] == ""
        assert upload.returncode == -signal.SIGKILL
    half = runs_of(folder, settings)
    assert "trial-1" in half
    tracking.upload(folder, settings)
    assert {name: run.info.run_id for name, run in runs_of(folder, settings).items()} == {
        name: run.info.run_id for name, run in half.items()
    }
    assert_whole(folder, settings)


def test_only_one_process_brings_a_folder_at_a_time(begin, settings):
    folder = begin("busy").folder
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert tracking.project(folder, settings) is None
    os.close(handle)
    tracking._absences.clear()
    assert tracking.project(folder, settings) is not None


def test_an_upload_waits_for_the_process_that_has_the_folder_and_says_so(begin, settings, caplog):
    folder = begin("waited-for").folder
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    caplog.set_level(logging.INFO, "training")
    with ThreadPoolExecutor() as pool:
        upload = pool.submit(tracking.upload, folder, settings)
        while not caplog.records:
            time.sleep(0.01)
        assert caplog.messages == ["waiting for another process that is bringing waited-for to MLflow"]
        assert not upload.done()
        os.close(handle)
        assert upload.result() == tracking.project(folder, settings)


# -- first use, noise, the command ----------------------------------------------------------------------------------

FIRST_USE = """
import logging, socket, sys
logging.basicConfig(level=logging.INFO)
find = socket.getaddrinfo
def found(host, *args, **kwargs):
    print("asked for", host, flush=True)
    return find(host, *args, **kwargs)
socket.getaddrinfo = found
from training import tracking
from training.settings import read_settings
sys.stdin.readline()
client = tracking.connect(read_settings())
print("experiment", client.get_experiment_by_name("nunchi").experiment_id)
"""


def test_two_first_users_at_once_make_one_database_in_silence(tmp_path):
    hidden = {"PYTEST_CURRENT_TEST", "CI", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"}  # each of them stops telemetry
    environment = {name: value for name, value in os.environ.items() if name not in hidden and "MLFLOW" not in name}
    users = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_USE], cwd=ROOT, env=environment | {"NUNCHI_VAR": str(tmp_path / "var")},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for user in users:
        user.stdin.write("go\n")
        user.stdin.flush()
    answers = [user.communicate() for user in users]
    assert [user.returncode for user in users] == [0, 0], answers
    assert answers[0] == answers[1]
    assert answers[0][0].startswith("experiment ")  # nobody was looked up in the network
    assert answers[0][1] == ""


def test_the_command_uploads_and_says_where(begin, settings, monkeypatch, capsys):
    monkeypatch.setenv("NUNCHI_VAR", str(settings.var))
    folder = begin("by-command").folder
    assert tracking.main(["upload", str(folder)]) == 0
    assert runs_of(folder, settings)[""].info.run_id in capsys.readouterr().out


def test_the_command_refuses_a_folder_that_is_no_search(tmp_path, capsys):
    assert tracking.main(["upload", str(tmp_path)]) == 2
    assert "search.json" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SearchError):
        tracking.project(tmp_path, Settings(var=tmp_path / "var"))


def test_a_deleted_experiment_is_said_with_the_remedy(settings):
    client = tracking.connect(settings)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    client.delete_experiment(experiment)
    try:
        with pytest.raises(TrackingError, match=f"mlflow experiments restore --experiment-id {experiment}"):
            tracking.connect(settings)
    finally:
        client.restore_experiment(experiment)
