"""The one reading of the test part: a model's answer to each test row, kept so that nobody has to read test again.

Columns: ``row`` (first 16 hex digits of sha256 over the text), ``label`` and ``predicted`` (index of the label),
``probabilities`` (FP32 per label, in index order). The texts themselves stay in the dataset.
"""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow import MlflowClient

from training.behaviour import Predictor

FILE = "test_predictions.parquet"


def examine(predictor: Predictor, test: pd.DataFrame) -> pd.DataFrame:
    """Every row of ``test`` (document, label) answered by the model."""
    probabilities = predictor.probabilities(test.document.tolist())
    return pd.DataFrame(
        {
            "row": [hashlib.sha256(text.encode()).hexdigest()[:16] for text in test.document],
            "label": test.label.to_numpy(),
            "predicted": probabilities.argmax(1),
            "probabilities": list(probabilities.astype(np.float32)),
        }
    )


def keep(client: MlflowClient, run_id: str, answers: pd.DataFrame) -> None:
    """As an artifact of the model's run."""
    with tempfile.TemporaryDirectory() as scratch:
        answers.to_parquet(Path(scratch) / FILE, index=False)
        client.log_artifact(run_id, str(Path(scratch) / FILE))


def read_kept(client: MlflowClient, run_id: str) -> pd.DataFrame | None:
    """None when the model of that run was never asked."""
    if FILE not in {artifact.path for artifact in client.list_artifacts(run_id)}:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        return pd.read_parquet(client.download_artifacts(run_id, FILE, scratch))


def same_rows(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Whether two examinations were over the same texts with the same labels, in the same order."""
    return first.row.tolist() == second.row.tolist() and first.label.tolist() == second.label.tolist()


def names(labels: tuple[str, ...], indices: pd.Series) -> np.ndarray:
    """STR [rows]: two models may have the same labels in another order, so they are compared by name."""
    return np.array(labels)[indices.to_numpy()]
