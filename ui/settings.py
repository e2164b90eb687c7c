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
    """http://127.0.0.1:<NUNCHI_GATEWAY_PORT> when unset."""
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
            values["gateway_url"] = f"http://127.0.0.1:{values.get('gateway_port', 8080)}"
        return values

    @property
    def opinions_file(self) -> Path:
        return self.var / "feedback.sqlite3"
