import json

import pytest

from server.bundle import check_files, read_served_bundle
from server.errors import CannotStart
from tests.bundles import set_serving, write_bundle
from tests.server.odd_bundles import edit_config


def edit_manifest(repository, **changes):
    file = repository / "sentiment" / "1" / "manifest.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({key: value for key, value in (document | changes).items() if value is not None}))


def test_the_served_version_is_read_whatever_other_versions_there_are(repository):
    write_bundle(repository, 2)
    assert read_served_bundle(repository).version == 1
    set_serving(repository, 2, previous=1)
    bundle = read_served_bundle(repository)
    check_files(bundle)
    assert bundle.version == bundle.manifest.version == 2


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda r: (r / "serving.json").unlink(), r"serving\.json cannot be read \(No such file"),
        (lambda r: (r / "serving.json").write_text("{"), r"serving\.json is not JSON"),
        (lambda r: (r / "serving.json").write_text("[]"), r"serving\.json holds a list where an object belongs"),
        (lambda r: (r / "serving.json").write_text('{"model":"sentiment","version":0}'), r"serving\.json: version: "),
        (lambda r: (r / "serving.json").write_bytes(b"\xff\xfe"), r"serving\.json is not UTF-8"),
        (lambda r: set_serving(r, 7), r"7/manifest\.json cannot be read"),
        (lambda r: (r / "sentiment/config.pbtxt").unlink(), r"config\.pbtxt cannot be read"),
        (
            lambda r: (r / "sentiment/config.pbtxt").write_text("max_batchsize: 8"),
            r"config\.pbtxt is not a Triton model",
        ),
        (lambda r: edit_config(r, lambda c: c.version_policy.specific.versions.__setitem__(0, 9)), r"loads only \[9\]"),
        (
            lambda r: edit_config(r, lambda c: setattr(c, "backend", "python")),
            "backend is python, it must be onnxruntime",
        ),
        (
            lambda r: edit_config(r, lambda c: setattr(c, "max_batch_size", 0)),
            "max_batch_size 0, which turns batching off",
        ),
        (
            lambda r: edit_config(r, lambda c: c.output[0].dims.__setitem__(0, 3)),
            r"logits is \[\[3\]\], it must be \[\[2\]\]",
        ),
        (lambda r: edit_manifest(r, schema=2), r"has schema 2, this server reads schema 1"),
        (lambda r: edit_manifest(r, version=3), "serving.json names version 1, the manifest in its folder says 3"),
        (lambda r: edit_manifest(r, golden=[]), r"manifest\.json: golden: "),
        (lambda r: edit_manifest(r, labels=None), r"manifest\.json: labels: field required"),
        (lambda r: edit_manifest(r, vocab_size=5), "golden row of version 1 does not fit its 2 labels and 5 words"),
    ],
)
def test_a_broken_bundle_is_one_sentence_with_the_file_and_the_remedy(repository, damage, sentence):
    damage(repository)
    with pytest.raises(CannotStart, match=sentence) as caught:
        read_served_bundle(repository)
    assert "python -m export" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_repository_is_told_the_variable(tmp_path):
    with pytest.raises(CannotStart, match="nowhere does not exist; set NUNCHI_MODEL_REPOSITORY"):
        read_served_bundle(tmp_path / "nowhere")


def test_a_changed_or_missing_file_is_found_by_its_checksum(repository):
    bundle = read_served_bundle(repository)
    tokenizer = bundle.folder / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    with pytest.raises(CannotStart, match=r"tokenizer\.json has sha256 .*, its manifest says .*git lfs pull"):
        check_files(bundle)
    tokenizer.unlink()
    with pytest.raises(CannotStart, match=r"tokenizer\.json cannot be read"):
        check_files(bundle)


def test_a_manifest_that_leaves_a_file_out_is_refused(repository):
    bundle = read_served_bundle(repository)
    files = {name: file.model_dump() for name, file in bundle.manifest.files.items() if name != "tokenizer.json"}
    edit_manifest(repository, files=files)
    with pytest.raises(CannotStart, match=r"no checksum for tokenizer\.json"):
        check_files(read_served_bundle(repository))
