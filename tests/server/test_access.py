"""Who may ask what: everybody on this machine for inference, only the holder of the admin key for the rest."""

import subprocess
import sys

import pytest
from tritonclient.grpc import InferenceServerClient as GrpcClient
from tritonclient.http import InferenceServerClient as HttpClient
from tritonclient.utils import InferenceServerException

from tests.triton_process import ROOT

ADMIN = {
    "load": lambda client, **key: client.load_model("sentiment", **key),
    "unload": lambda client, **key: client.unload_model("sentiment", **key),
    "index": lambda client, **key: client.get_model_repository_index(**key),
    "configuration": lambda client, **key: client.get_model_config("sentiment", **key),
    "shared memory": lambda client, **key: client.register_system_shared_memory("x", "/nunchi_x", 64, **key),
    "trace": lambda client, **key: client.get_trace_settings(**key),
    "log": lambda client, **key: client.update_log_settings({"log_verbose_level": 1}, **key),
}


@pytest.mark.parametrize("what", ADMIN)
def test_administration_needs_the_key(shared_triton, what):
    with GrpcClient(f"127.0.0.1:{shared_triton.grpc_port}") as client:
        with pytest.raises(InferenceServerException, match="triton-grpc-protocol-admin-key"):
            ADMIN[what](client)
        with pytest.raises(InferenceServerException, match="triton-grpc-protocol-admin-key"):
            ADMIN[what](client, headers={"triton-grpc-protocol-admin-key": "guess"})
    with HttpClient(f"127.0.0.1:{shared_triton.http_port}") as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            ADMIN[what](client)
        with pytest.raises(InferenceServerException, match="restricted"):
            ADMIN[what](client, headers={"admin-key": "guess"})


def test_with_the_key_it_is_open(shared_triton):
    key = shared_triton.admin_key
    with GrpcClient(f"127.0.0.1:{shared_triton.grpc_port}") as client:
        (entry,) = client.get_model_repository_index(headers={"triton-grpc-protocol-admin-key": key}).models
        assert (entry.name, entry.state) == ("sentiment", "READY")
    with HttpClient(f"127.0.0.1:{shared_triton.http_port}") as client:
        assert client.get_model_config("sentiment", headers={"admin-key": key})["backend"] == "onnxruntime"


def test_without_the_key_a_gateway_can_see_what_it_needs(shared_triton):
    with GrpcClient(f"127.0.0.1:{shared_triton.grpc_port}") as client:
        assert client.is_model_ready("sentiment", "1")
        metadata = client.get_model_metadata("sentiment", "1")
        assert [tensor.name for tensor in metadata.inputs] == ["input_ids", "attention_mask"]
        assert client.get_inference_statistics("sentiment").model_stats


@pytest.mark.parametrize(("protocol", "port"), [("grpc", "grpc_port"), ("http", "http_port")])
def test_the_examples_print_label_and_confidence(shared_triton, shared_repository, protocol, port):
    command = [sys.executable, "-m", f"server.examples.{protocol}_client", "정말 좋다 최고", "지루 최악 ㅠㅠ"]
    command += ["--repository", str(shared_repository), "--address", f"127.0.0.1:{getattr(shared_triton, port)}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    first, second = result.stdout.splitlines()
    assert first.startswith("positive 긍정 0.9") and first.endswith(" 정말 좋다 최고")
    assert second.startswith("negative 부정 0.9") and second.endswith(" 지루 최악 ㅠㅠ")
