"""Addresses and folders that ``make up`` watches and prints; the rooms read the same variables for themselves."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent

Port = Annotated[int, Field(ge=1, le=65535)]


class StartError(Exception):
    """The stack cannot run until the user mends something; the message is one sentence."""


class Settings(BaseSettings):
    """Each field is the variable NUNCHI_<FIELD>; relative paths start at the root of the repository."""

    model_config = SettingsConfigDict(env_prefix="NUNCHI_", frozen=True)

    var: Path = Path("var")
    host: str = "127.0.0.1"
    gateway_port: Port = 8080
    triton_http_port: Port = 8000
    triton_grpc_port: Port = 8001
    ui_host: str = "127.0.0.1"
    ui_port: Port = 7860
    up_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 120
    """How long ``make up`` waits for the first answered prediction, and the page."""
    deadline_seconds: Annotated[float, Field(gt=0, le=600)] = 15.0
    """The gateway's: a request in flight may take this long when the gateway is stopped."""
    api_key: str | None = None
    """The gateway's key, with which ``make up`` asks its first question where one is set."""

    @field_validator("*", mode="before")
    @classmethod
    def refuse_empty(cls, value: object) -> object:
        if isinstance(value, str) and not value.strip():
            raise ValueError("it is empty; give it a value or unset it")
        return value

    @field_validator("var")
    @classmethod
    def from_root(cls, path: Path) -> Path:
        return (ROOT / path.expanduser()).resolve()

    @property
    def stop_seconds(self) -> float:
        """For one part to stop when asked: the gateway's guardian takes 12 s beyond the deadline at most."""
        return self.deadline_seconds + 15

    @property
    def gateway_url(self) -> str:
        return f"http://{_from_here(self.host)}:{self.gateway_port}"

    @property
    def page_url(self) -> str:
        return f"http://{_from_here(self.ui_host)}:{self.ui_port}"


def _from_here(host: str) -> str:
    """How this machine reaches what listens on ``host``: by loopback when that is every address."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host


def read_settings() -> Settings:
    """The settings of this process; `StartError` names the first variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"NUNCHI_{str(first['loc'][0]).upper()}"
        raise StartError(f"{name} is {first['input']!r}: {first['msg'].removeprefix('Value error, ')}") from None
