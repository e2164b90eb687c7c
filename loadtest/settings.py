"""Where the stack that is measured listens."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """Each field is the variable NUNCHI_<FIELD>; relative paths start at the root of the repository."""

    model_config = SettingsConfigDict(env_prefix="NUNCHI_", frozen=True)

    host: str = Field("127.0.0.1", min_length=1)
    gateway_port: Port = 8080
    triton_http_port: Port = 8000
    triton_grpc_port: Port = 8001
    var: Path = Path("var")
    model_repository: Path = Path("model_repository")
    api_key: str | None = None
    """The gateway's key, sent with every request where one is set."""

    @field_validator("model_repository", "var")
    @classmethod
    def from_root(cls, path: Path) -> Path:
        return (ROOT / path.expanduser()).resolve()
