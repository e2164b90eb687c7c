"""The environment variables of this room, read by ``python -m dags`` and by every DAG file."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent

Port = Annotated[int, Field(ge=1, le=65535)]


class SettingRefused(Exception):
    """An environment variable is empty or wrong; the message names it."""


class Settings(BaseSettings):
    """Each field is the variable NUNCHI_<FIELD>; relative paths start at the root of the repository."""

    model_config = SettingsConfigDict(env_prefix="NUNCHI_", frozen=True)

    var: Path = Path("var")
    airflow_port: Port = 8081
    airflow_user: str = Field("nunchi", pattern=r"^[a-z][a-z0-9_-]*$")
    airflow_password: SecretStr | None = None
    """Made by the first ``make airflow`` and kept in .env."""
    airflow_retry_seconds: Annotated[float, Field(gt=0, le=3600)] = 60
    """Before the second try of a task; twice as long before the third."""
    collect_sites: str | None = None
    """Names or paths of the sites that are crawled, separated by commas."""
    retrain_config: str = "training/configs/nano.yaml"
    """What a retraining runs with; its dataset is always what was collected."""
    retrain_reviews: Annotated[int, Field(ge=1)] = 5000
    """So many new reviews start a retraining before the week is over."""
    slack_webhook_token: SecretStr | None = Field(None, validation_alias="SLACK_WEBHOOK_TOKEN")
    """What follows https://hooks.slack.com/services/ in the address of the incoming webhook."""
    slack_webhook_url: SecretStr | None = Field(None, validation_alias="SLACK_WEBHOOK_URL")
    """The whole address, instead of the token."""
    host: str = Field("127.0.0.1", min_length=1)
    """The gateway's; with its port, and MLflow's, what the links of a message point to."""
    gateway_port: Port = 8080
    mlflow_tracking_uri: str | None = None
    mlflow_port: Port = 5050
    registered_model: str = "sentiment"

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

    @field_validator("airflow_password")
    @classmethod
    def refuse_weak(cls, password: SecretStr | None) -> SecretStr | None:
        if password is not None and len(password.get_secret_value()) < 16:
            raise ValueError("it has fewer than 16 characters; unset it, and make airflow makes one")
        return password

    @property
    def airflow_home(self) -> Path:
        return self.var / "airflow"

    @property
    def collected(self) -> Path:
        return self.var / "collected"

    @property
    def sites(self) -> list[str]:
        return [site.strip() for site in (self.collect_sites or "").split(",") if site.strip()]

    @property
    def slack_webhook(self) -> SecretStr | None:
        return self.slack_webhook_url or self.slack_webhook_token

    @property
    def airflow_url(self) -> str:
        return f"http://127.0.0.1:{self.airflow_port}"

    @property
    def gateway_url(self) -> str:
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.gateway_port}"

    @property
    def mlflow_url(self) -> str:
        """Its pages: the server that is named, or ``make mlflow``."""
        uri = self.mlflow_tracking_uri or ""
        return uri.rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{self.mlflow_port}"


def read_settings() -> Settings:
    """The settings of this process; `SettingRefused` names the first variable that is wrong, never a secret's value."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0]).upper()
        raise SettingRefused(
            f"{name if name.startswith('SLACK') else f'NUNCHI_{name}'}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
