"""Where training keeps its state and its registry. Read from the environment once, by the command that runs."""

from pathlib import Path

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from training.errors import SettingRefused

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Each field is the variable NUNCHI_<FIELD>; relative paths start at the root of the repository."""

    model_config = SettingsConfigDict(env_prefix="NUNCHI_", frozen=True)

    var: Path = Path("var")
    """Logs, downloads, checkpoints, searches, mlflow.db, mlartifacts, model_registry.json."""

    model_repository: Path = Path("model_repository")
    """What Triton serves: its serving version is the Champion while the registry has none."""

    mlflow_tracking_uri: str | None = None
    """An MLflow server; without one, SQLite and files under ``var``."""

    mlflow_port: int = Field(5050, ge=1, le=65535)
    """Where ``make mlflow`` shows the pages of what lies under ``var``."""

    registered_model: str = "sentiment"
    """Name of the registered model in MLflow."""

    @field_validator("var", "model_repository", mode="before")
    @classmethod
    def from_root(cls, value: str | Path) -> Path:
        if not str(value).strip():
            raise ValueError("it is empty; name a folder, or unset it")
        return (ROOT / Path(value).expanduser()).resolve()

    @field_validator("mlflow_tracking_uri", "registered_model")
    @classmethod
    def not_empty(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("it is empty; give it a value, or unset it")
        return value

    @property
    def searches(self) -> Path:
        return self.var / "searches"

    @property
    def tracking_uri(self) -> str:
        return self.mlflow_tracking_uri or f"sqlite:///{self.var / 'mlflow.db'}"

    @property
    def artifact_root(self) -> Path:
        """Where artifacts go while no MLflow server is named."""
        return self.var / "mlartifacts"

    @property
    def registry_file(self) -> Path:
        return self.var / "model_registry.json"


def read_settings() -> Settings:
    """The settings of this process; `SettingRefused` names the variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"NUNCHI_{str(first['loc'][0]).upper()}"
        raise SettingRefused(f"{name} is {first['input']!r}: {first['msg'].removeprefix('Value error, ')}") from None
