import pytest

from gateway.errors import SettingRefused
from gateway.settings import ROOT, read_settings


def test_the_defaults_are_those_of_the_design(monkeypatch):
    settings = read_settings()
    assert (settings.host, settings.gateway_port, settings.triton_address) == ("127.0.0.1", 8080, "127.0.0.1:8001")
    assert settings.repository == ROOT / "model_repository"
    assert settings.api_key is None


def test_values_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NUNCHI_GATEWAY_PORT", "1234")
    monkeypatch.setenv("NUNCHI_MODEL_REPOSITORY", str(tmp_path))
    monkeypatch.setenv("NUNCHI_UI_PORT", "not ours")
    settings = read_settings()
    assert (settings.gateway_port, settings.repository) == (1234, tmp_path)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NUNCHI_GATEWAY_PORT", ""),
        ("NUNCHI_GATEWAY_PORT", "eighty"),
        ("NUNCHI_GATEWAY_PORT", "0"),
        ("NUNCHI_GATEWAY_PORT", "65536"),
        ("NUNCHI_HOST", ""),
        ("NUNCHI_HOST", "  "),
        ("NUNCHI_TRITON_GRPC_HOST", ""),
        ("NUNCHI_MODEL_REPOSITORY", ""),
        ("NUNCHI_API_KEY", ""),
        ("NUNCHI_MAX_IN_FLIGHT", "0"),
        ("NUNCHI_MAX_TEXTS", "-1"),
        ("NUNCHI_MAX_BODY_BYTES", "many"),
        ("NUNCHI_DEADLINE_SECONDS", "0"),
        ("NUNCHI_LOG_FORMAT", "xml"),
        ("NUNCHI_OTLP_ENDPOINT", ""),
        ("NUNCHI_OTLP_ENDPOINT", "127.0.0.1:4318"),
        ("NUNCHI_DEADLINE_SECONDS", "nan"),
        ("NUNCHI_API_KEYS_FILE", ""),
        ("NUNCHI_HOST_WITHOUT_KEY", ""),
        ("NUNCHI_CORS_ORIGINS", ""),
        ("NUNCHI_CORS_ORIGINS", "example.org"),
        ("NUNCHI_CORS_ORIGINS", "https://example.org/page"),
        ("NUNCHI_CORS_ORIGINS", "https://example.org,"),
        ("NUNCHI_CORS_ORIGINS", "https://example.org, *"),
        ("NUNCHI_CORS_ORIGINS", "https://*.example.org"),
        ("NUNCHI_LOG_FORMAT", "xml"),
        ("NUNCHI_OTLP_ENDPOINT", "localhost:4318"),
        ("RAY_ADDRESS", ""),
    ],
)
def test_an_empty_or_wrong_value_is_one_sentence_that_names_the_variable(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingRefused) as refusal:
        read_settings()
    assert variable in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_limits_that_contradict_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("NUNCHI_MAX_IN_FLIGHT", "10")
    with pytest.raises(SettingRefused, match="NUNCHI_MAX_TEXTS is 1024 but NUNCHI_MAX_IN_FLIGHT only 10"):
        read_settings()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_on_loopback_no_key_is_needed(monkeypatch, host):
    monkeypatch.setenv("NUNCHI_HOST", host)
    assert read_settings().host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gateway.example.org"])
def test_elsewhere_a_key_is_needed_unless_it_is_said_twice(monkeypatch, tmp_path, host):
    monkeypatch.setenv("NUNCHI_HOST", host)
    with pytest.raises(SettingRefused, match=f"NUNCHI_HOST is {host}, .* NUNCHI_HOST_WITHOUT_KEY={host}"):
        read_settings()
    monkeypatch.setenv("NUNCHI_HOST_WITHOUT_KEY", "127.0.0.1")
    with pytest.raises(SettingRefused, match=f"NUNCHI_HOST is {host}"):
        read_settings()
    monkeypatch.setenv("NUNCHI_HOST_WITHOUT_KEY", host)
    assert read_settings().host == host
    monkeypatch.delenv("NUNCHI_HOST_WITHOUT_KEY")
    for variable, value in (("NUNCHI_API_KEY", "s3cret"), ("NUNCHI_API_KEYS_FILE", str(tmp_path / "keys"))):
        monkeypatch.setenv(variable, value)
        assert read_settings().asks_for_a_key
        monkeypatch.delenv(variable)


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("*", ["*"]),
        ("https://example.org", ["https://example.org"]),
        ("https://example.org, http://127.0.0.1:7860", ["https://example.org", "http://127.0.0.1:7860"]),
    ],
)
def test_origins_are_a_list_or_a_star(monkeypatch, value, origins):
    assert read_settings().origins == []
    monkeypatch.setenv("NUNCHI_CORS_ORIGINS", value)
    assert read_settings().origins == origins


def test_the_key_is_never_shown(monkeypatch):
    monkeypatch.setenv("NUNCHI_API_KEY", "s3cret")
    assert "s3cret" not in repr(read_settings())
