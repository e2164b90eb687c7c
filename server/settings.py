"""The environment variables of this room, read once by `python -m server`."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.errors import CannotStart

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "NUNCHI_"

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """Each field is the variable NUNCHI_<FIELD>; relative paths start at the root of the repository.

    There is no host here: this Triton has known holes (CVE-2025-23319, CVE-2026-24207 and others), so it listens on the
    loopback address only.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    model_repository: Path = Path("model_repository")
    var: Path = Path("var")
    triton_http_port: Port = 8000
    triton_grpc_port: Port = 8001
    triton_metrics_port: Port = 8002
    # It travels on Triton's command line, where its own syntax would read commas, colons and equals signs.
    triton_admin_key: Annotated[SecretStr, Field(min_length=16)] | None = None
    otlp_endpoint: str | None = None  # base URL of the OTLP/HTTP collector that traces go to
    triton_start_seconds: Annotated[float, Field(gt=0, le=3600)] = 120  # from spawning to the first right answer

    @field_validator("*", mode="before")
    @classmethod
    def refuse_empty(cls, value: object) -> object:
        if isinstance(value, str) and not value.strip():
            raise ValueError("it is empty; give it a value or unset it")
        return value

    @field_validator("model_repository", "var")
    @classmethod
    def from_root(cls, path: Path) -> Path:
        return (ROOT / path.expanduser()).resolve()

    @field_validator("triton_admin_key")
    @classmethod
    def refuse_punctuation(cls, key: SecretStr | None) -> SecretStr | None:
        if key and not key.get_secret_value().replace("-", "").replace("_", "").isalnum():
            raise ValueError("it may hold letters, digits, - and _ only")
        return key

    @field_validator("otlp_endpoint")
    @classmethod
    def refuse_what_is_no_url(cls, url: str | None) -> str | None:
        if url and not re.fullmatch(r"https?://[^\s,/?#]+[^\s,?#]*", url):  # a comma would end it on the command line
            raise ValueError("it is not the base URL of a collector; write it as http://127.0.0.1:4318")
        return url

    @model_validator(mode="after")
    def refuse_shared_ports(self) -> "Settings":
        ports = self.ports()
        for name, port in ports.items():
            other = next(other for other, value in ports.items() if value == port)
            if other != name:
                raise ValueError(f"{other} and {name} are both {port}; each needs its own port")
        return self

    def ports(self) -> dict[str, int]:
        """Every port Triton will listen on, by the variable that sets it."""
        fields = ("triton_http_port", "triton_grpc_port", "triton_metrics_port")
        return {f"{PREFIX}{field.upper()}": getattr(self, field) for field in fields}


def read_settings() -> Settings:
    """The settings of this process; `CannotStart` names the first variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        raise CannotStart(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    field = str(first["loc"][0])
    name = f"{PREFIX}{field.upper()}"
    if "key" in field:  # a secret does not belong in a message
        return f"{name} is wrong: {message}"
    return f"{name} is {first['input']!r}: {message}"
