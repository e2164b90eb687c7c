"""Addresses and folders that ``make up`` prints and watches; the rooms read the same variables for themselves."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="NUNCHI_", frozen=True)

    var: Path = ROOT / "var"
    host: str = Field("127.0.0.1", min_length=1)
    gateway_port: int = Field(8080, ge=1, le=65535)
    triton_http_port: int = Field(8000, ge=1, le=65535)
    triton_grpc_port: int = Field(8001, ge=1, le=65535)
    up_timeout_seconds: float = Field(120.0, gt=0)
    """How long ``make up`` waits for the first answered prediction."""
