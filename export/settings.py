"""The environment variables of this room, read once by the command that runs."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from export.errors import SettingRefused

ROOT = Path(__file__).resolve().parent.parent

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """Each field is the variable NUNCHI_<FIELD>; relative paths start at the root of the checkout."""

    model_config = SettingsConfigDict(env_prefix="NUNCHI_", frozen=True)

    model_repository: str = Field("model_repository", description="folder that Triton serves")
    var: Path = Field(Path("var"), description="where the running server keeps its admin key, and the logs are")
    triton_grpc_host: str = Field("127.0.0.1", description="host of Triton's gRPC endpoint")
    triton_grpc_port: Port = Field(8001, description="port of Triton's gRPC endpoint")
    triton_admin_key: SecretStr | None = Field(None, description="default: the one the embedded server has written")
    host: str = Field("127.0.0.1", description="address the gateway listens on")
    gateway_port: Port = Field(8080, description="port the gateway listens on")
    soak_seconds: Annotated[float, Field(ge=0, le=86_400)] = Field(
        60.0, description="how long the version before stays loaded, ready for a rollback in no time"
    )

    @field_validator("*", mode="before")
    @classmethod
    def refuse_empty(cls, value: object) -> object:
        if isinstance(value, str) and not value.strip():
            raise ValueError("it is empty; give it a value, or unset it")
        return value

    @property
    def repository(self) -> Path:
        return ROOT / self.model_repository

    @property
    def state(self) -> Path:
        """The absolute path of ``var``."""
        return (ROOT / self.var.expanduser()).resolve()

    @property
    def admin_key_file(self) -> Path:
        return self.state / "run" / "triton-admin-key"

    @property
    def gateway_log(self) -> Path:
        return self.state / "log" / "gateway.log"

    @property
    def gateway_host(self) -> str:
        """Where this machine reaches the gateway: loopback when it listens on every address."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host


def read_settings() -> Settings:
    """Raises:
    SettingRefused: a variable of this room is empty or wrong.
    """
    try:
        return Settings()
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        name = f"NUNCHI_{str(first['loc'][0]).upper()}"
        message = first["msg"].removeprefix("Value error, ")
        if "empty" in message or "KEY" in name:  # a secret does not belong in a message
            raise SettingRefused(f"{name}: {message}") from None
        raise SettingRefused(f"{name} is {first['input']!r}: {message}") from None
