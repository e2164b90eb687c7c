"""docker-compose.yml as Docker Compose itself reads it, for tests: `Compose(folder).services()`."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE = Path(sys.executable).parent / "docker-compose"
FILE = ROOT / "docker-compose.yml"
PAGES = ROOT / "deploy" / "docker" / "pages.yml"
PROFILES = ["cpu", "gpu", "train", "trt-build", "loadtest"]


@dataclass(frozen=True)
class Compose:
    """The real program, with the secrets that secrets.sh has made in `folder`; no engine is asked for anything."""

    folder: Path

    @property
    def secrets(self) -> dict[str, str]:
        lines = (self.folder / ".env").read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def make_secrets(self) -> str:
        """Run secrets.sh on a checkout of its own, so that no .env of the developer is touched; what it says."""
        script = self.folder / "deploy" / "docker" / "secrets.sh"
        script.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "deploy" / "docker" / "secrets.sh", script)
        shutil.copy(FILE, self.folder)
        return subprocess.run([script], capture_output=True, text=True, check=True).stdout

    def run(self, *arguments: str, files: tuple[Path, ...] = (FILE,), **left_out: None) -> subprocess.CompletedProcess:
        kept = {name: value for name, value in self.secrets.items() if name not in left_out}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NUNCHI_", "COMPOSE_"))}
        named = [word for file in files for word in ("--file", str(file))]
        command = [COMPOSE, "--project-directory", str(ROOT), "--env-file", os.devnull, *named, *arguments]
        return subprocess.run(command, env=inherited | kept, capture_output=True, text=True)

    def document(self, *profiles: str, files: tuple[Path, ...] = (FILE,)) -> dict:
        """The whole model, interpolated, with everything the profiles start."""
        chosen = [word for profile in profiles for word in ("--profile", profile)]
        done = self.run(*chosen, "config", "--format", "json", files=files)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
