"""`python -m server` refusing to start: one `error:` line, exit status 2, nothing left behind."""

import json
import socket

import pytest

from tests.bundles import tiny_model, write_bundle
from tests.server.odd_bundles import replace_model
from tests.triton_process import NotStarted, free_ports, running_triton, start_triton


def refusal(repository, var, **environment) -> str:
    """The error line of a start that must fail."""
    with pytest.raises(NotStarted) as caught, running_triton(repository, var, **environment):
        pass
    assert caught.value.status == 2, caught.value.output
    assert "Traceback" not in caught.value.output
    (line,) = [line for line in caught.value.output.splitlines() if line.startswith("error: ")]
    return line


def test_a_port_in_use(repository, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        line = refusal(repository, tmp_path / "var", NUNCHI_TRITON_GRPC_PORT=port)
    assert f"port {port} cannot be used" in line and "NUNCHI_TRITON_GRPC_PORT" in line


def test_a_wrong_setting(repository, tmp_path):
    line = refusal(repository, tmp_path / "var", NUNCHI_TRITON_HTTP_PORT="")
    assert line == "error: NUNCHI_TRITON_HTTP_PORT is '': it is empty; give it a value or unset it"


def test_a_state_folder_that_cannot_be_written(repository, tmp_path):
    (tmp_path / "file").touch()
    assert "set NUNCHI_VAR to a folder of yours" in refusal(repository, tmp_path / "file")


def test_a_damaged_model_file(repository, tmp_path):
    model = repository / "sentiment" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    assert "model.onnx has sha256" in refusal(repository, tmp_path / "var")


def test_a_graph_that_does_not_fit_its_config_in_tritons_own_words(repository, tmp_path):
    replace_model(repository, tiny_model(labels=3), check=False)
    line = refusal(repository, tmp_path / "var")
    assert line.startswith("error: Triton does not answer: creating server: ")
    assert "model.onnx answers with 3 logits, config.pbtxt says [2], manifest.json has 2 labels" in line
    assert "At:" not in line, "the stack trace belongs into the log"
    assert line.endswith("var/log/triton.log)")


def test_a_model_that_is_no_onnx_file(repository, tmp_path):
    replace_model(repository, b"not a model", check=False)
    assert "model.onnx" in refusal(repository, tmp_path / "var")


def test_golden_rows_the_model_does_not_answer(repository, tmp_path):
    file = repository / "sentiment" / "1" / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest["golden"][5]["probabilities"].reverse()
    file.write_text(json.dumps(manifest), encoding="utf-8")
    line = refusal(repository, tmp_path / "var")
    assert "of 32 golden rows 1 have another label, and a probability is off by" in line
    assert "0.02 is allowed" in line


def test_a_start_that_takes_too_long(repository, tmp_path):
    line = refusal(repository, tmp_path / "var", NUNCHI_TRITON_START_SECONDS="0.05")
    assert "no answer within NUNCHI_TRITON_START_SECONDS=0.05 s of its start" in line


def test_a_state_folder_that_another_server_holds(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as triton:
        line = refusal(repository, tmp_path / "var")
        assert f"process {triton.process.pid} already serves with the state folder" in line
        assert "set NUNCHI_VAR" in line


def test_a_stop_while_it_still_starts_is_a_stop_and_not_an_error(repository, tmp_path):
    triton = start_triton(repository, tmp_path / "var", ports=tuple(free_ports(3)))
    while not (tmp_path / "var" / "log" / "triton.log").exists():
        assert triton.process.poll() is None
    assert triton.stop() == 0
    triton.process.stdout.close()
    assert "error" not in triton.output


def test_another_version_that_cannot_be_loaded_is_named(repository, tmp_path):
    write_bundle(repository, 2)
    replace_model(repository, tiny_model(labels=3, version=2), version=2, check=False)
    assert "version 2 is at UNAVAILABLE state" in refusal(repository, tmp_path / "var")
