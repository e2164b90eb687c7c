"""Where training keeps its state. Read from the environment once, by the command that runs."""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="NUNCHI_", frozen=True)

    var: Path = ROOT / "var"
    """Logs, downloads, checkpoints."""
