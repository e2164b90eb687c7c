"""A real MLflow registry, and a checkpoint that is registered in it as often as a test likes."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tests.export.checkpoints import make_tokenizer
from training import tracking
from training.settings import Settings

METRICS = {
    "dataset": "sample test",
    "rows": 1200,
    "accuracy": 0.987,
    "accuracy_interval": [0.98, 0.992],
    "f1": 0.986,
    "confusion": [[593, 7], [9, 591]],
}


@dataclass(frozen=True)
class Register:
    settings: Settings
    checkpoint: Path

    def register(self, stage: str = "Candidate", **tags: str) -> tuple[str, str]:
        """The checkpoint once more; its number and the id of its run."""
        client, model = tracking.connect(self.settings), self.settings.registered_model
        (experiment,) = (each for each in client.search_experiments() if each.name != "Default")
        run = client.create_run(experiment.experiment_id).info.run_id
        uri = tracking.log_model(run, self.checkpoint, self.settings)
        if not client.search_registered_models(f"name='{model}'"):
            client.create_registered_model(model)
        tags = {"metrics": json.dumps(METRICS), "labels": '["negative", "positive"]', "stage": stage, **tags}
        return client.create_model_version(model, uri, run, tags=tags).version, run

    def crown(self, number: str | None = None) -> tuple[str, str]:
        """Move the alias to the version, or to a new one, as MLflow's own page would."""
        number, run = (number, "") if number else self.register("Champion")
        tracking.connect(self.settings).set_registered_model_alias(self.settings.registered_model, "champion", number)
        return number, run


def as_training_leaves_it(trained: Path, folder: Path) -> Path:
    """The checkpoint with its own tokenizer class and a record."""
    shutil.copytree(trained, folder)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), **special).save_pretrained(folder)
    record = {"encoder": "nano", "labels": ["negative", "positive"], "max_length": 24, "dataset": "sample"}
    (folder / "training.json").write_text(json.dumps(record), encoding="utf-8")
    return folder
