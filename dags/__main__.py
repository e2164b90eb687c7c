"""Airflow on loopback, with a state, an account and a Slack connection of its own: ``python -m dags`` (make airflow).

    .venv-airflow/bin/python -m dags                                  its pages and its scheduler, in the foreground
    .venv-airflow/bin/python -m dags dags unpause collect_reviews     any command of airflow, in the same environment
    .venv-airflow/bin/python -m dags backfill create --dag-id collect_reviews --from-date 2026-11-01 --to-date …

Nothing runs before its DAG is unpaused. The state is under var/airflow.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from dags.announce import CONNECTION
from dags.command import on_a_leash
from dags.settings import ROOT, SettingRefused, Settings, read_settings

PASSWORD = "NUNCHI_AIRFLOW_PASSWORD"
DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
PARTS = {"api-server": [], "scheduler": ["--skip-serve-logs"], "dag-processor": []}
BUSY_SECONDS = 120  # SQLite has one writer at a time, and on a busy machine the others wait longer than its usual five
POLL_SECONDS = 0.5
STOP_SECONDS = 30.0


def main(arguments: list[str]) -> int:
    try:
        settings = read_settings()
    except SettingRefused as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    password = settings.airflow_password.get_secret_value() if settings.airflow_password else None
    if not arguments and password is None:
        password = keep_new_password(ROOT / ".env")
        print(f"the account {settings.airflow_user!r} has a new password, {PASSWORD} in .env", flush=True)
    variables = environment(settings)
    settings.airflow_home.mkdir(parents=True, exist_ok=True)
    if password:
        write_secret(password_file(settings), json.dumps({settings.airflow_user: password}))
    airflow = str(Path(sys.executable).with_name("airflow"))
    if arguments:
        if not (settings.airflow_home / "airflow.db").is_file() and DATABASE not in os.environ:
            migrate(airflow, variables)
        os.execve(airflow, [airflow, *arguments], variables)
    migrate(airflow, variables)
    return serve(airflow, variables, settings)


def migrate(airflow: str, variables: dict[str, str]) -> None:
    """Make the database, or bring it to the installed release.

    Raises:
        SystemExit: with what Airflow said.
    """
    done = subprocess.run([airflow, "db", "migrate"], env=variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: Airflow cannot make its database: {done.stderr.strip()[-2000:]}")


def environment(settings: Settings) -> dict[str, str]:
    """What Airflow runs with: on loopback, with the DAGs of this checkout; an AIRFLOW__… that is set already stands."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLACK_", PASSWORD))}
    chosen = {name: value for name, value in inherited.items() if name.startswith("AIRFLOW__")}
    airflow = {
        "AIRFLOW_HOME": settings.airflow_home,
        DATABASE: f"sqlite:///{settings.airflow_home}/airflow.db?timeout={BUSY_SECONDS}",
        "AIRFLOW__CORE__DAGS_FOLDER": ROOT / "dags",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DEFAULT_TIMEZONE": "Asia/Seoul",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{settings.airflow_user}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": password_file(settings),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{settings.airflow_url}/execution/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": settings.airflow_port,
        "AIRFLOW__API__BASE_URL": settings.airflow_url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "PYTHONPATH": ROOT,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
    }
    webhook = settings.slack_webhook
    if webhook:
        connection = {"conn_type": "slackwebhook", "password": webhook.get_secret_value()}
        airflow[f"AIRFLOW_CONN_{CONNECTION.upper()}"] = json.dumps(connection)
    return inherited | {name: str(value) for name, value in airflow.items()} | chosen


def password_file(settings: Settings) -> Path:
    return settings.airflow_home / "passwords.json"


def keep_new_password(file: Path) -> str:
    """Made once, and added to ``file``, which nobody but its owner may read from then on."""
    password = secrets.token_urlsafe(24)
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    write_secret(file, f"{before}{PASSWORD}={password}\n")
    return password


def write_secret(file: Path, text: str) -> None:
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
    part.replace(file)


def serve(airflow: str, variables: dict[str, str], settings: Settings) -> int:
    """The parts of Airflow until one of them ends or this process is told to; they end together.

    Not ``airflow standalone``: its scheduler and its triggerer serve logs on every address of the machine, which no
    setting changes. Here the pages read them from the disk, and no task is ever deferred to a triggerer.
    """
    told = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: told.set())
    parts = {}
    try:
        for name, options in PARTS.items():
            parts[name] = start(airflow, [name, *options], variables, settings)
        ready = False
        while not told.wait(POLL_SECONDS):
            if ended := [name for name, part in parts.items() if part.poll() is not None]:
                print(f"error: {ended[0]} has ended; {log_file(settings, ended[0])} says why", file=sys.stderr)
                return 2
            if not ready and (ready := is_healthy(settings)):
                print(f"ready: {settings.airflow_url}   account {settings.airflow_user}, password in .env", flush=True)
        return 0
    finally:
        stop(list(parts.values()))


def start(airflow: str, command: list[str], variables: dict[str, str], settings: Settings) -> subprocess.Popen:
    file = log_file(settings, command[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"starting {command[0]:13}  log: {os.path.relpath(file, ROOT)}", flush=True)
    with file.open("ab") as log:
        return subprocess.Popen(
            on_a_leash([airflow, *command]), cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def stop(parts: list[subprocess.Popen]) -> None:
    """Running tasks with them, whose commands die with them."""
    for part in parts:
        part.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for part in parts:
        with suppress(subprocess.TimeoutExpired):
            part.wait(max(deadline - time.monotonic(), 0))
        with suppress(ProcessLookupError):
            os.killpg(part.pid, signal.SIGKILL)
        part.wait()


def is_healthy(settings: Settings) -> bool:
    with suppress(OSError, ValueError, KeyError):
        with urllib.request.urlopen(f"{settings.airflow_url}/api/v2/monitor/health", timeout=5) as response:
            health = json.load(response)
        return {health[part]["status"] for part in ("scheduler", "dag_processor")} == {"healthy"}
    return False


def log_file(settings: Settings, part: str) -> Path:
    return settings.var / "log" / f"airflow-{part}.log"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
