"""``python -m loadtest.overhead``: what the gateway adds to one request, at concurrency 1.

The same reviews go to the running gateway by HTTP and straight to its Triton by gRPC (tokenized beforehand, padded as
the gateway pads), in turns, so that noise on the machine meets both. Prints p50 and p99 of each in milliseconds, and
the difference of the medians.
"""

import argparse
import http.client
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from loadtest.settings import ROOT, Settings

WARM_UP = 200


def sample_texts(count: int) -> list[str]:
    lines = (ROOT / "training" / "sample_reviews.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return random.Random(1).choices([line.split("\t")[1] for line in lines], k=count)


def through_gateway(settings: Settings) -> Callable[[str], None]:
    connection = http.client.HTTPConnection(settings.host, settings.gateway_port, timeout=30)

    def ask(text: str) -> None:
        connection.request("POST", "/v1/predict", json.dumps({"text": text}), {"content-type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise OSError(f"{answer.status}: {body.decode()}")

    return ask


def straight_to_triton(settings: Settings) -> Callable[[str], None]:
    serving = json.loads((settings.model_repository / "serving.json").read_text(encoding="utf-8"))
    folder: Path = settings.model_repository / serving["model"] / str(serving["version"])
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=manifest["max_length"], pad_id=manifest["pad_token_id"])
    client = triton.InferenceServerClient(f"{settings.host}:{settings.triton_grpc_port}")
    encoded: dict[str, list[triton.InferInput]] = {}

    def ask(text: str) -> None:
        if text not in encoded:  # tokenizing is the gateway's work, so here it stays outside the clock
            encoding = tokenizer.encode(text)
            encoded[text] = []
            for name, values in (("input_ids", encoding.ids), ("attention_mask", encoding.attention_mask)):
                tensor = triton.InferInput(name, [1, len(values)], "INT64")
                tensor.set_data_from_numpy(np.array([values], np.int64))
                encoded[text].append(tensor)
        client.infer(serving["model"], encoded[text], str(serving["version"])).as_numpy("logits")

    return ask


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000, help="timed requests each way (default 2000)")
    arguments = parser.parse_args(argv)
    settings = Settings()
    ways = {"gateway": through_gateway(settings), "Triton": straight_to_triton(settings)}
    texts = sample_texts(WARM_UP + arguments.requests)
    times: dict[str, list[float]] = {way: [] for way in ways}
    try:
        for ask in ways.values():
            for text in texts:  # the very texts, so that Triton's are tokenized before they are timed
                ask(text)
    except (OSError, InferenceServerException) as exc:
        print(f"error: the stack does not answer ({exc}); start it with make up", file=sys.stderr)
        return 2
    for text in texts[WARM_UP:]:
        for way, ask in ways.items():
            began = time.perf_counter()
            ask(text)
            times[way].append((time.perf_counter() - began) * 1e3)
    for way, values in times.items():
        cuts = statistics.quantiles(values, n=100)
        print(f"{way:<8} p50 {cuts[49]:6.2f} ms   p99 {cuts[98]:6.2f} ms   ({len(values)} requests)")
    print(f"added    p50 {statistics.median(times['gateway']) - statistics.median(times['Triton']):6.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
