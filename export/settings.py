"""The one setting of this room. Read from the environment once, by the command that runs."""

from pathlib import Path

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from export.errors import SettingRefused

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="NUNCHI_", frozen=True)

    model_repository: str = Field("model_repository", description="folder that Triton serves; relative to the checkout")

    @field_validator("model_repository")
    @classmethod
    def the_folder_has_a_name(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("it is empty; name a folder, or unset it")
        return value

    @property
    def repository(self) -> Path:
        return ROOT / self.model_repository


def read_settings() -> Settings:
    """Raises:
    SettingRefused: a variable of this room is empty.
    """
    try:
        return Settings()
    except ValidationError as exc:
        first = exc.errors()[0]
        raise SettingRefused(f"NUNCHI_{str(first['loc'][0]).upper()}: {first['ctx']['error']}") from None
