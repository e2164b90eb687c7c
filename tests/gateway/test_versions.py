"""`/v1/versions`: what the manifests of the repository say, which version does what, and what is broken."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.schemas import VersionsAnswer
from tests.bundles import CREATED, set_serving, write_bundle
from tests.gateway.gateway_process import wait_until
from tests.gateway.served_app import ServedApp, served_app


@pytest.fixture
def app(repository: Path, shared_triton) -> Iterator[ServedApp]:
    """Version 1 answers; 2, 9 and 10 lie beside it, and things that are no version."""
    for version in (2, 9, 10):
        write_bundle(repository, version)
    (repository / "sentiment" / "7").write_text("not a folder")
    (repository / "sentiment" / "4.new").mkdir()
    with served_app(repository, shared_triton.grpc_port) as app:
        yield app


def listed(app: ServedApp) -> dict[str, dict]:
    answer = app.client.get("/v1/versions")
    assert answer.status_code == 200, answer.text
    VersionsAnswer.model_validate_json(answer.content)
    return {each["version"]: each for each in answer.json()["versions"]}


def test_all_versions_are_described_the_newest_first(app):
    versions = listed(app)
    assert list(versions) == ["10", "9", "2", "1"]
    assert versions["1"] == {
        "version": "1",
        "serving": True,
        "previous": False,
        "candidate": False,
        "encoder": "tiny",
        "precision": "fp32",
        "max_length": 32,
        "labels": [{"name": "negative", "korean": "부정"}, {"name": "positive", "korean": "긍정"}],
        "created": CREATED,
        "source": {
            "checkpoint": "tiny", "git_commit": None, "dataset": "none", "mlflow_run": None, "registry_version": None
        },
        "metrics": None,
        "parity": versions["1"]["parity"],
        "broken": None,
    }  # fmt: skip
    assert versions["1"]["parity"]["label_agreement"] == 1.0


def test_what_serving_json_says_of_a_version_is_seen_at_once(app, repository):
    def roles() -> dict[str, list[str]]:
        return {
            version: [role for role in ("serving", "previous", "candidate") if about[role]]
            for version, about in listed(app).items()
        }

    assert roles() == {"10": [], "9": [], "2": [], "1": ["serving"]}
    set_serving(repository, 1, 2, candidate={"version": 9, "mode": "shadow", "share": 0.5})
    wait_until(lambda: roles() == {"10": [], "9": ["candidate"], "2": ["previous"], "1": ["serving"]}, 5, "the roles")
    set_serving(repository, 10, 1)  # which Triton does not have, so 1 goes on
    wait_until(lambda: roles() == {"10": [], "9": [], "2": [], "1": ["serving", "previous"]}, 5, "1 goes on")


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda folder: (folder / "manifest.json").write_text("{"), "sentiment/2/manifest.json is not what the contr"),
        (lambda folder: (folder / "manifest.json").unlink(), "sentiment/2/manifest.json cannot be read"),
        (lambda folder: (folder / "model.onnx").unlink(), "sentiment/2/model.onnx is not there, its manifest says"),
        (lambda folder: os.truncate(folder / "tokenizer.json", 10), "sentiment/2/tokenizer.json has 10 bytes, its man"),
        (lambda folder: shutil.copy(folder.parent / "1/manifest.json", folder), "sentiment/2/manifest.json describes"),
    ],
    ids=["garbage", "no manifest", "no model", "cut short", "another's manifest"],
)
def test_a_broken_version_says_what_is_wrong_and_not_where_we_live(app, repository, harm, complaint):
    assert listed(app)["2"]["broken"] is None
    harm(repository / "sentiment" / "2")
    about = listed(app)
    assert about["2"]["broken"].startswith(complaint)
    assert str(repository) not in json.dumps(about)
    assert about["1"]["broken"] is None


def test_a_manifest_is_read_again_only_when_its_version_has_changed(app, repository):
    """An edit that leaves inode, size and time as they were is not seen; with another time it is."""
    listed(app)
    manifest = repository / "sentiment" / "2" / "manifest.json"
    status, text = manifest.stat(), manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace('"tiny"', '"tidy"'), encoding="utf-8")
    os.utime(manifest, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert listed(app)["2"]["encoder"] == "tiny"
    os.utime(manifest, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert listed(app)["2"]["encoder"] == "tidy"
    shutil.rmtree(manifest.parent)
    assert list(listed(app)) == ["10", "9", "1"]


def test_a_repository_that_cannot_be_read_is_503_and_the_model_answers_on(app, repository):
    (repository / "sentiment").rename(repository / "away")
    refused = app.client.get("/v1/versions")
    assert (refused.status_code, refused.json()["code"]) == (503, "model_unavailable")
    assert str(repository) not in refused.text
    assert app.predict("좋다").status_code == 200


def test_the_key_of_the_gateway_is_asked_for(repository, shared_triton):
    with served_app(repository, shared_triton.grpc_port, api_key="s3cret") as app:
        assert app.client.get("/v1/versions").status_code == 401
        assert app.client.get("/v1/versions", headers={"authorization": "Bearer s3cret"}).status_code == 200
