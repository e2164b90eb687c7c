"""A bad release never serves: with a real Triton, and callers who ask the version before all the while."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.__main__ import main
from export.errors import BundleBroken, ReleaseRefused, RepositoryBusy
from export.publish import open_stage
from export.release import let_go, release
from export.serving import read_serving
from tests.bundles import VOCABULARY, describe, tiny_model, tiny_tokenizer, write_json
from tests.export.live import House, asking, describe_anew, lay, running_house
from tests.gateway.served_app import served_app

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> House:
    with running_house(tmp_path_factory.mktemp("bad")) as house:
        yield house


def only_checksums(folder: Path) -> None:
    """The manifest vouches for the files as they are now; golden rows stay."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = {name: describe(folder / name) for name in manifest["files"]}
    write_json(folder / "manifest.json", manifest)


def edit_manifest(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    write_json(folder / "manifest.json", manifest | values)


def truncate_the_model(folder: Path) -> None:
    file = folder / "model.onnx"
    file.write_bytes(file.read_bytes()[:-200])


def truncate_the_model_and_vouch_for_it(folder: Path) -> None:
    truncate_the_model(folder)
    only_checksums(folder)


def flip_a_weight(folder: Path) -> None:
    """A bit of the embedding's sign, deep in the file, which still parses."""
    file = folder / "model.onnx"
    content = bytearray(file.read_bytes())
    place = content.index(np.float32(6).tobytes())
    content[place + 3] ^= 0x80
    file.write_bytes(bytes(content))


def flip_a_weight_and_vouch_for_it(folder: Path) -> None:
    flip_a_weight(folder)
    only_checksums(folder)


def state_a_wrong_checksum(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["model.onnx"]["sha256"] = "0" * 64
    write_json(folder / "manifest.json", manifest)


def bring_another_vocabulary(folder: Path) -> None:
    """The same words in another order."""
    document = json.loads(tiny_tokenizer(32).to_str())
    words = [*VOCABULARY[:4], *reversed(VOCABULARY[4:])]
    document["model"]["vocab"] = {word: index for index, word in enumerate(words)}
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    only_checksums(folder)


def bring_a_larger_vocabulary(folder: Path) -> None:
    tokenizer = tiny_tokenizer(32)
    tokenizer.add_tokens(["대박"])
    tokenizer.save(str(folder / "tokenizer.json"))
    only_checksums(folder)


def add_a_label(folder: Path) -> None:
    labels = [{"name": name, "korean": name} for name in ("negative", "positive", "mixed")]
    edit_manifest(folder, labels=labels)


def answer_with_three_logits(folder: Path) -> None:
    onnx.save(tiny_model(labels=3, version=int(folder.name)), str(folder / "model.onnx"))
    only_checksums(folder)


def answer_nan(folder: Path) -> None:
    table = np.full((len(VOCABULARY), 4), np.nan, np.float32)
    onnx.save(tiny_model(embedding=table), str(folder / "model.onnx"))
    only_checksums(folder)


def save_with_a_last_step(folder: Path, operator: str, rows: int) -> None:
    """The tiny model, whose last step goes wrong beyond so many rows: `Where` answers NaN, `Reshape` fails."""
    model = tiny_model(version=int(folder.name))
    graph = model.graph
    graph.node[-1].output[0] = "good"
    constants = {
        "which": np.array([0], np.int64),
        "limit": np.array([rows], np.int64),
        "bad": np.array([np.nan], np.float32) if operator == "Where" else np.array([7, 11], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Shape", ["input_ids"], ["shape"]),
            helper.make_node("Gather", ["shape", "which"], ["size"], axis=0),
            helper.make_node("Greater", ["size", "limit"], ["too_large"]),
        ]
    )
    if operator == "Where":
        graph.node.append(helper.make_node("Where", ["too_large", "bad", "good"], ["logits"]))
    else:
        graph.node.extend(
            [
                helper.make_node("Shape", ["good"], ["right"]),
                helper.make_node("Where", ["too_large", "bad", "right"], ["target"]),
                helper.make_node("Reshape", ["good", "target"], ["logits"]),
            ]
        )
    graph.output[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 2]))
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    describe_anew(folder)


def answer_nan_in_a_full_batch(folder: Path) -> None:
    """Which batch is full config.pbtxt says; the bundle, and whoever verifies it alone, cannot know."""
    save_with_a_last_step(folder, "Where", rows=32)


def fail_in_a_full_batch(folder: Path) -> None:
    save_with_a_last_step(folder, "Reshape", rows=32)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (truncate_the_model, BundleBroken, "model.onnx is not the file its manifest describes"),
        (truncate_the_model_and_vouch_for_it, BundleBroken, "ONNX Runtime cannot run .*model.onnx"),
        (flip_a_weight, BundleBroken, "model.onnx is not the file its manifest describes"),
        (flip_a_weight_and_vouch_for_it, BundleBroken, "is off its golden rows by"),
        (state_a_wrong_checksum, BundleBroken, "model.onnx is not the file its manifest describes"),
        (bring_another_vocabulary, BundleBroken, "tokenizer.json gives other ids than golden row 0"),
        (bring_a_larger_vocabulary, BundleBroken, "tokenizer.json has 33 words, its manifest says 32"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), BundleBroken, "is not the file its manifest"),
        (add_a_label, BundleBroken, "names 3 labels and golden row 0 has 2 probabilities"),
        (answer_with_three_logits, BundleBroken, "answers with 3 logits, its manifest names 2 labels"),
        (answer_nan, BundleBroken, "is off its golden rows by nan"),
        (lambda folder: edit_manifest(folder, version=99), BundleBroken, "says version 99, it is to be published as"),
        (answer_nan_in_a_full_batch, ReleaseRefused, "Triton fails on its golden rows in a batch of 64 .*not finite"),
        (fail_in_a_full_batch, ReleaseRefused, "Triton fails on its golden rows in a batch of 64 .*could not run"),
    ],
)
def test_a_bad_bundle_never_serves(house, spoil, error, words):
    before, files, loaded = house.serving, house.files(), house.loaded
    with asking(house):
        with pytest.raises(error, match=words) as refusal:
            house.release(spoil)
        assert "\n" not in str(refusal.value)
        assert house.serving == before
        assert house.files() == files
        assert sorted(house.loaded) == sorted(loaded)
        assert house.loaded[before["version"]] == loaded[before["version"]], "the process that serves is the same"
        good = house.release().serving
    assert (good.version, good.previous) == (before["version"] + 1, before["version"])
    assert sorted(house.loaded) == house.named == [good.previous, good.version]


def test_a_refusal_by_triton_says_what_serves_on(house):
    before = house.serving["version"]
    with pytest.raises(
        ReleaseRefused, match=rf"^version {before + 1} was not released: .*; version {before} serves on"
    ):
        house.release(fail_in_a_full_batch)


@pytest.mark.parametrize("limit", [500, 5_000])
def test_a_full_disk_while_staging_publishes_nothing(house, limit, trained, reviews_file, monkeypatch, capsys):
    """A limit on the size of a file makes a write fail midway, as a full disk does: of the tokenizer, of the model."""
    for name, value in house.environment.items():
        monkeypatch.setenv(name, value)
    files, (soft, hard) = house.files(), resource.getrlimit(resource.RLIMIT_FSIZE)
    with asking(house):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            status = main(["--checkpoint", str(trained), "--data", str(reviews_file), "--precision", "fp32"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        said = capsys.readouterr()
        assert (status, said.out) == (2, "")
        assert "has no room left (File too large); make room there" in said.err.splitlines()[-1]
        assert house.files() == files
        house.release()


@pytest.mark.parametrize("step", ["write_config", "replace_serving"])
def test_a_disk_that_is_full_by_the_last_steps_changes_nothing(house, step):
    files, loaded = house.files(), house.loaded
    command = [sys.executable, "-c", STOPPED, str(house.repository), step, "fill the disk"]
    with asking(house):
        ended = subprocess.run(command, cwd=ROOT, env=os.environ | house.environment, capture_output=True, text=True)
        assert "make room there, nothing was changed" in ended.stderr.splitlines()[-1], ended.stderr
        assert house.files() == files
        assert sorted(house.loaded) == sorted(loaded)
        house.release()


STOPPED = """
import os, resource, signal, sys
from pathlib import Path
from export import publish, release
from export.gateway import Gateway
from export.publish import open_stage
from export.settings import read_settings
from export.triton import Triton
from tests.export.live import lay

repository, step, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def stop_at(function):
    def stopped(*arguments, **options):
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "kill after":
            function(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
        return function(*arguments, **options)
    return stopped

for place in (publish, release, Triton, Gateway):
    if hasattr(place, step):
        setattr(place, step, stop_at(getattr(place, step)))
with open_stage(repository) as stage:
    lay(stage.version_folder, stage.version)
    if step == "stage":
        (stage.version_folder / "model.onnx").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    released = release.release(stage, read_settings())
if step in ("let_go", "_keep_only"):
    release.let_go(repository, read_settings(), released.serving)
"""
STEPS = ["rename_in", "load", "check_golden_rows", "write_config", "replace_serving", "let_go"]
MOMENTS = [(step, moment) for step in STEPS for moment in ("kill", "kill after")]
LAST = ("replace_serving", "kill after")
ONCE = [("stage", "kill"), ("_keep_only", "kill")]  # half a model; config.pbtxt has let go, Triton was not told


@pytest.mark.parametrize(("step", "moment"), [*ONCE, *MOMENTS])
def test_a_promoter_that_is_killed_harms_nobody(house, step, moment):
    kill_and_look(house, step, moment, flipped=step in ("let_go", "_keep_only") or (step, moment) == LAST)


def test_a_promoter_that_is_killed_while_it_waits_for_the_gateway_harms_nobody(house):
    with served_app(house.repository, house.triton.grpc_port) as app:
        settings = house.settings.model_copy(update={"gateway_port": app.port})
        kill_and_look(replace(house, settings=settings), "wait_for", "kill", flipped=True)


def kill_and_look(house: House, step: str, moment: str, *, flipped: bool) -> None:
    before = house.serving["version"]
    let_go(house.repository, house.settings, read_serving(house.repository))
    command = [sys.executable, "-c", STOPPED, str(house.repository), step, moment]
    with asking(house):
        killed = subprocess.run(command, cwd=ROOT, env=os.environ | house.environment, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        serving = house.serving["version"]
        assert (serving > before) == flipped
        assert serving in house.named
        assert set(house.named) <= set(house.loaded), "config.pbtxt names only what has been proven"
        for version in house.named:
            assert (house.repository / "sentiment" / str(version) / "manifest.json").is_file()

        good = house.release().serving
    assert good.previous == serving
    assert sorted(house.loaded) == house.named == [serving, good.version]
    assert [path.name for path in house.repository.parent.iterdir()] == ["model_repository"]
    assert {path.name for path in house.repository.iterdir()} == {"sentiment", "serving.json"}


def test_of_two_promoters_at_once_the_second_is_told_to_wait(house):
    with asking(house), open_stage(house.repository) as first:
        lay(first.version_folder, first.version)
        with pytest.raises(RepositoryBusy, match=r"another export is writing to .*; wait until it has ended"):
            house.release()
        release(first, house.settings)
    assert house.serving["version"] == first.version
