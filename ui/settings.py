"""Where the page listens, and the gateway it asks."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """Each field is the variable NUNCHI_<FIELD>; relative paths start at the root of the repository."""

    model_config = SettingsConfigDict(env_prefix="NUNCHI_", frozen=True)

    ui_host: str = Field("127.0.0.1", min_length=1)
    ui_port: Port = 7860
    gateway_url: str = Field("", pattern=r"^https?://[^/]+$")
    """http://<NUNCHI_HOST>:<NUNCHI_GATEWAY_PORT> when unset; by loopback where that is every address."""
    host: str = Field("127.0.0.1", min_length=1)
    """Where the gateway listens."""
    gateway_port: Port = 8080
    api_key: SecretStr | None = None
    """The gateway's key, sent with every question of the page where one is set."""
    var: Path = Path("var")

    @field_validator("var")
    @classmethod
    def from_root(cls, path: Path) -> Path:
        return (ROOT / path.expanduser()).resolve()

    @model_validator(mode="before")
    @classmethod
    def next_door(cls, values: dict[str, object]) -> dict[str, object]:
        if not values.get("gateway_url"):
            host = values.get("host", "127.0.0.1")
            reached = "127.0.0.1" if host in ("0.0.0.0", "::") else host
            values["gateway_url"] = f"http://{reached}:{values.get('gateway_port', 8080)}"
        return values

    @property
    def opinions_file(self) -> Path:
        return self.var / "feedback.sqlite3"
