"""Changes to the registry in processes of their own, which can be made to die, as by kill -9, between any two steps.

A step is a write to MLflow or the replacement of a file. The processes are forked from a server that has imported
MLflow and opened nothing, so that one costs a fraction of a second.
"""

import multiprocessing
import os
import signal
from pathlib import Path

from mlflow import MlflowClient

from training.errors import RegistryError
from training.ledger import Ledger
from training.settings import Settings

WRITES = [
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "delete_model_version_tag",
]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        __name__,
        "mlflow.store.tracking.sqlalchemy_workspace_store",  # imported at first use otherwise: a second each time
        "mlflow.store.model_registry.sqlalchemy_workspace_store",
        "alembic.command",
    ]
)


def run_until(step: int, var: Path, operation: str, *arguments, **options) -> bool:
    """Call a method of the Ledger in a process that dies before its ``step``-th change; whether it came to its end."""
    process = SERVER.Process(target=_run_until, args=(step, var, operation, arguments, options))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def run_at_once(var: Path, calls: list[tuple[str, tuple, dict]]) -> list[str | None]:
    """Each call in a process of its own, all let go at one moment; what each was refused with, None for success."""
    barrier, answers = SERVER.Barrier(len(calls)), SERVER.SimpleQueue()
    processes = [SERVER.Process(target=_run_at_once, args=(barrier, answers, var, call)) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(calls)
    return [answers.get() for _ in calls]


def _run_until(step: int, var: Path, operation: str, arguments: tuple, options: dict) -> None:
    done = 0

    def counted(change):
        def changed(*args, **kwargs):
            nonlocal done
            done += 1
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return changed

    ledger = Ledger(Settings(var=var))
    _ = ledger.client  # connecting is no change of the registry
    for name in WRITES:
        setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
    os.replace = counted(os.replace)
    getattr(ledger, operation)(*arguments, **options)


def _run_at_once(barrier, answers, var: Path, call: tuple[str, tuple, dict]) -> None:
    operation, arguments, options = call
    ledger = Ledger(Settings(var=var))
    ledger.versions()
    barrier.wait()
    try:
        getattr(ledger, operation)(*arguments, **options)
        answers.put(None)
    except RegistryError as refusal:
        answers.put(str(refusal))
