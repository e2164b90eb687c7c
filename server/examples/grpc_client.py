"""`python -m server.examples.grpc_client "다시 보고 싶은 영화" "돈이 아깝다"` asks Triton itself over gRPC, no gateway.

Prints one line per sentence: label, Korean label, confidence, sentence.  Needs tokenizers, numpy and
tritonclient[grpc]; nothing of this project but the model repository, from which the tokenizer and the labels of the
served version are read.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput


def main() -> None:
    parser = argparse.ArgumentParser(description="sentiment of Korean sentences, straight from Triton over gRPC")
    parser.add_argument("sentences", nargs="+")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--address", default="127.0.0.1:8001", help="host:port of Triton's gRPC service")
    options = parser.parse_args()

    # The version that answers, and with it the one tokenizer and the labels that belong to it.
    version = json.loads((options.repository / "serving.json").read_text(encoding="utf-8"))["version"]
    folder = options.repository / "sentiment" / str(version)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    # Padded to the model's full width: requests of one shape share a batch, and the padding costs next to nothing.
    tokenizer.enable_padding(length=manifest["max_length"], pad_id=manifest["pad_token_id"])
    encodings = tokenizer.encode_batch(options.sentences)
    tensors = {
        "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
    }
    inputs = []
    for name, tensor in tensors.items():
        inputs.append(InferInput(name, tensor.shape, "INT64"))
        inputs[-1].set_data_from_numpy(tensor)

    with InferenceServerClient(options.address) as client:
        result = client.infer(
            "sentiment",
            inputs,
            model_version=str(version),  # never leave it out: during a promotion two versions are loaded
            outputs=[InferRequestedOutput("logits")],
            client_timeout=5,
        )
    logits = result.as_numpy("logits")
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    for sentence, row in zip(options.sentences, probabilities, strict=True):
        label = manifest["labels"][row.argmax()]
        print(label["name"], label["korean"], f"{row.max():.3f}", sentence)


if __name__ == "__main__":
    main()
