"""Where training keeps its state. Read from the environment once, by the command that runs."""

from pathlib import Path

from pydantic import ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from training.errors import SettingRefused

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Each field is the variable NUNCHI_<FIELD>; relative paths start at the root of the repository."""

    model_config = SettingsConfigDict(env_prefix="NUNCHI_", frozen=True)

    var: Path = Path("var")
    """Logs, downloads, checkpoints."""

    @field_validator("var", mode="before")
    @classmethod
    def from_root(cls, value: str | Path) -> Path:
        if not str(value).strip():
            raise ValueError("it is empty; name a folder, or unset it")
        return (ROOT / Path(value).expanduser()).resolve()


def read_settings() -> Settings:
    """The settings of this process; `SettingRefused` names the variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"NUNCHI_{str(first['loc'][0]).upper()}"
        raise SettingRefused(f"{name} is {first['input']!r}: {first['msg'].removeprefix('Value error, ')}") from None
