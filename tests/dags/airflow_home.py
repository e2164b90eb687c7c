"""An Airflow with a state of its own, run by the commands of a user; what it did is read from its database."""

import json
import os
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-airflow" / "bin" / "python"
SECONDS = 900  # for a command on a busy machine


@dataclass(frozen=True)
class Run:
    """One run of a DAG: what it printed, the state of each task, and what each handed on."""

    id: str
    state: str
    output: str
    tasks: dict[str, str]
    handed_on: dict[str, object]


@dataclass
class Airflow:
    var: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        ours = ("NUNCHI_", "AIRFLOW", "SLACK_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {**inherited, "NUNCHI_VAR": str(self.var), "NUNCHI_AIRFLOW_RETRY_SECONDS": "0.1", **self.settings}

    @property
    def database(self) -> Path:
        return self.var / "airflow" / "airflow.db"

    def command(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [PYTHON, "-m", "dags", *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True,
            timeout=SECONDS,
        )  # fmt: skip

    def test(self, dag: str, *arguments: str, **settings: str) -> Run:
        """``airflow dags test``: every task of the DAG for real, one after the other."""
        done = Airflow(self.var, self.settings | settings).command("dags", "test", dag, *arguments)
        output = done.stdout + done.stderr
        assert "DagRun Finished" in output, output[-4000:]
        return self.last_run(dag, output)

    def last_run(self, dag: str, output: str = "") -> Run:
        [(run, state)] = self.ask("SELECT run_id, state FROM dag_run WHERE dag_id = ? ORDER BY id DESC LIMIT 1", dag)
        tasks = dict(self.ask("SELECT task_id, state FROM task_instance WHERE dag_id = ? AND run_id = ?", dag, run))
        values = self.ask(
            "SELECT task_id, value FROM xcom WHERE dag_id = ? AND run_id = ? AND key = 'return_value'", dag, run
        )
        return Run(run, state, output, tasks, {task: json.loads(str(value)) for task, value in values})

    def ask(self, question: str, *values: object) -> list[tuple]:
        with closing(sqlite3.connect(self.database, timeout=60)) as database:
            return database.execute(question, values).fetchall()

    def everything_it_wrote(self) -> bytes:
        """Its database and its logs."""
        files = [file for file in (self.var / "airflow").rglob("*") if file.is_file()]
        return b"\n".join(file.read_bytes() for file in files)
