import pytest

from server.errors import CannotStart
from server.settings import ROOT, read_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    import os

    for name in os.environ:
        if name.startswith("NUNCHI_"):
            monkeypatch.delenv(name)


def test_defaults_are_the_documented_ones():
    settings = read_settings()
    assert list(settings.ports().values()) == [8000, 8001, 8002]
    assert settings.model_repository == ROOT / "model_repository"
    assert settings.var == ROOT / "var"
    assert settings.triton_admin_key is None


def test_relative_paths_start_at_the_root_of_the_repository_and_not_where_the_command_was_typed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUNCHI_VAR", "state")
    assert read_settings().var == ROOT / "state"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("NUNCHI_TRITON_HTTP_PORT", "", "NUNCHI_TRITON_HTTP_PORT is '': it is empty; give it a value or unset it"),
        ("NUNCHI_VAR", "  ", "NUNCHI_VAR is '  ': it is empty; give it a value or unset it"),
        ("NUNCHI_TRITON_GRPC_PORT", "http", "NUNCHI_TRITON_GRPC_PORT is 'http': Input should be a valid integer"),
        ("NUNCHI_TRITON_GRPC_PORT", "70000", "NUNCHI_TRITON_GRPC_PORT is '70000': Input should be less than or equal"),
        ("NUNCHI_TRITON_GRPC_PORT", "8000", "NUNCHI_TRITON_HTTP_PORT and NUNCHI_TRITON_GRPC_PORT are both 8000"),
        ("NUNCHI_OTLP_ENDPOINT", "127.0.0.1:4318", "it is not the base URL of a collector; write it as http://127"),
        ("NUNCHI_OTLP_ENDPOINT", "http://a:1,url=http://b", "it is not the base URL of a collector"),
        ("NUNCHI_TRITON_START_SECONDS", "0", "NUNCHI_TRITON_START_SECONDS is '0': Input should be greater than 0"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_variable(monkeypatch, name, value, sentence):
    monkeypatch.setenv(name, value)
    with pytest.raises(CannotStart) as caught:
        read_settings()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["short", "sixteen-letters-and=an-equals-sign", "a,comma,splits,the,list"])
def test_an_admin_key_triton_would_misread_is_refused_without_being_shown(monkeypatch, key):
    monkeypatch.setenv("NUNCHI_TRITON_ADMIN_KEY", key)
    with pytest.raises(CannotStart) as caught:
        read_settings()
    assert "NUNCHI_TRITON_ADMIN_KEY" in str(caught.value)
    assert key not in str(caught.value)
