"""The model as MLflow serves it: raw Korean texts in, a row of feelings per text out.

    mlflow.pyfunc.load_model("models:/sentiment@champion").predict(["다시 보고 싶은 영화"])

MLflow stores this file with the checkpoint and runs it wherever the model is loaded, so it imports nothing of the
project: the cleaning lies in the checkpoint's tokenizer, what else it must know in its ``training.json``.
"""

import json
from pathlib import Path

import mlflow
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

KOREAN = {"negative": "부정", "neutral": "중립", "positive": "긍정"}
BATCH = 64


class Sentiment(PythonModel):
    """Takes a list or Series of texts, or a DataFrame of one column. No text is too long: it is cut to max_length."""

    def load_context(self, context):
        transformers_logging.disable_progress_bar()
        folder = Path(context.artifacts["checkpoint"])
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.labels = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        self.max_length = json.loads((folder / "training.json").read_text(encoding="utf-8"))["max_length"]

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        """One row per text, in order: prediction, label (its Korean name), confidence, probs by name.

        MLflow has made a frame of whatever was given, and has refused what is not text.
        """
        texts = model_input.iloc[:, 0].tolist()
        for row, text in enumerate(texts, 1):
            if not isinstance(text, str):
                raise ValueError(f"text {row} of {len(texts)} is {text!r}; a text is a string")
        probabilities = self._probabilities(texts)
        chosen = probabilities.argmax(1).tolist()
        predictions = [self.labels[index] for index in chosen]
        return pd.DataFrame(
            {
                "prediction": predictions,
                "label": [KOREAN.get(name, name) for name in predictions],
                "confidence": [row[index] for row, index in zip(probabilities.tolist(), chosen, strict=True)],
                "probs": [dict(zip(self.labels, row, strict=True)) for row in probabilities.tolist()],
            }
        )

    @torch.inference_mode()
    def _probabilities(self, texts: list[str]) -> torch.Tensor:
        """FP32 [texts, labels]; batches are cut from texts of like length, as padding is work too."""
        probabilities = torch.empty(len(texts), len(self.labels))
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = self.tokenizer(
                [texts[row] for row in rows],
                truncation=True,
                max_length=self.max_length,
                padding=True,
                return_token_type_ids=False,
                return_tensors="pt",
            )
            probabilities[rows] = self.model(**batch).logits.float().softmax(1)
        return probabilities


mlflow.models.set_model(Sentiment())
