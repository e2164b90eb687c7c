"""TorchServe as usually set up: a handler around transformers that pads each batch to its longest text.

Packed with torch-model-archiver; the folder of the checkpoint is ``handler.checkpoint`` of the model's YAML.
"""

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler


class Classifier(BaseHandler):
    def initialize(self, context) -> None:
        settings = context.model_yaml_config["handler"]
        torch.set_num_threads(settings["threads"])
        self.tokenizer = AutoTokenizer.from_pretrained(settings["checkpoint"])
        self.model = AutoModelForSequenceClassification.from_pretrained(settings["checkpoint"]).eval()
        self.initialized = True

    def preprocess(self, requests: list[dict]):
        texts = [request.get("data") or request.get("body") for request in requests]
        texts = [text.decode() if isinstance(text, (bytes, bytearray)) else text for text in texts]
        return self.tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")

    def inference(self, encoded):
        with torch.inference_mode():
            return self.model(**encoded).logits.softmax(-1)

    def postprocess(self, probabilities) -> list[dict]:
        names = self.model.config.id2label
        return [{"label": names[int(row.argmax())], "score": float(row.max())} for row in probabilities]
