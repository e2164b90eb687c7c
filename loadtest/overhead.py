"""``python -m loadtest.overhead``: what the gateway adds to one request, at concurrency 1.

The same reviews go to the running gateway by HTTP and straight to its Triton by gRPC (tokenized beforehand, padded as
the gateway pads), in turns, so that noise on the machine meets both. Prints p50 and p99 of each in milliseconds, and
the difference of the medians.
"""

import argparse
import http.client
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from loadtest.served import Served
from loadtest.settings import Settings
from loadtest.texts import read_texts


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
    served = Served.of(settings.model_repository)
    client = triton.InferenceServerClient(f"{settings.host}:{settings.triton_grpc_port}")
    inputs: dict[str, list[triton.InferInput]] = {}

    def ask(text: str) -> None:
        if text not in inputs:  # tokenizing is the gateway's work, so here it stays outside the clock
            inputs[text] = []
            for name, values in served.encode(text).items():
                tensor = triton.InferInput(name, list(values.shape), "INT64")
                tensor.set_data_from_numpy(values)
                inputs[text].append(tensor)
        client.infer(served.model, inputs[text], served.version).as_numpy("logits")

    return ask


def measure(settings: Settings, texts: list[str]) -> dict[str, list[float]]:
    """Milliseconds of each text by way, after all of them were asked once.

    Raises:
        OSError, InferenceServerException: a part of the stack does not answer.
    """
    ways = {"gateway": through_gateway(settings), "Triton": straight_to_triton(settings)}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for ask in ways.values():
        for text in texts:  # the very texts, so that Triton's are tokenized before they are timed
            ask(text)
    for text in texts:
        for way, ask in ways.items():
            began = time.perf_counter()
            ask(text)
            times[way].append((time.perf_counter() - began) * 1e3)
    return times


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000, help="timed requests each way (default 2000)")
    arguments = parser.parse_args(argv)
    texts = list(itertools.islice(itertools.cycle(read_texts()), arguments.requests))
    try:
        times = measure(Settings(), texts)
    except (OSError, InferenceServerException) as exc:
        print(f"error: the stack does not answer ({exc}); start it with make up", file=sys.stderr)
        return 2
    for way, values in times.items():
        cuts = statistics.quantiles(values, n=100)
        print(f"{way:<8} p50 {cuts[49]:6.2f} ms   p99 {cuts[98]:6.2f} ms   ({len(values)} requests)")
    print(f"added    p50 {statistics.median(times['gateway']) - statistics.median(times['Triton']):6.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
