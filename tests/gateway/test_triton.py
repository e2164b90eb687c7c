"""Answers of Triton that must not become ours.  The real server refuses to give most of them, so they are made here.

And several servers behind one name, as in a cluster.
"""

import asyncio
import re
import time

import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from gateway.bundle import read_bundle
from gateway.errors import ModelUnavailable
from gateway.triton import Triton, checked_logits, finite
from tests.triton_process import TritonProcess, running_triton


def answer(logits: np.ndarray, *, version: str = "1", datatype: str = "FP32") -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse(model_name="sentiment", model_version=version)
    response.outputs.add(name="logits", datatype=datatype, shape=logits.shape)
    response.raw_output_contents.append(logits.tobytes())
    return response


GOOD = np.array([[1, -1], [0.5, 2]], np.float32)


def with_value(value: float) -> np.ndarray:
    return np.array([[1, -1], [value, 2]], np.float32)


def test_good_logits_are_passed_on(repository):
    assert checked_logits(answer(GOOD), read_bundle(repository), 2).tolist() == GOOD.tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        answer(GOOD[:1]),
        answer(np.zeros((2, 3), np.float32)),
        answer(np.zeros((3, 2), np.float32)),
        answer(GOOD.astype(np.float64)),
        answer(GOOD, datatype="INT32"),
        answer(GOOD, version="2"),
        answer(with_value(np.nan)),
        answer(with_value(np.inf)),
        answer(with_value(-np.inf)),
        service_pb2.ModelInferResponse(model_version="1"),
    ],
    ids=[
        "a row less",
        "a label more",
        "a row more",
        "doubles",
        "whole numbers",
        "version",
        "NaN",
        "inf",
        "-inf",
        "none",
    ],
)
def test_a_wrong_answer_is_a_503(repository, wrong):
    with pytest.raises(ModelUnavailable):
        finite(checked_logits(wrong, read_bundle(repository), 2))


def asked(triton: TritonProcess) -> int:
    page = httpx.get(f"http://127.0.0.1:{triton.metrics_port}/metrics", timeout=10).text
    return int(re.search(r"^nv_inference_request_success\{.*\} (\d+)", page, re.MULTILINE)[1])


def test_requests_are_spread_over_all_servers_that_a_name_stands_for(shared_repository, shared_triton, tmp_path):
    bundle = read_bundle(shared_repository)

    async def ask(address: str, times: int) -> None:
        async with Triton(address) as triton:
            for _ in range(times):
                await triton.logits(bundle, [[2, 4, 3]], until=time.monotonic() + 30)

    with running_triton(shared_repository, tmp_path / "var") as other:
        both = (shared_triton, other)
        before = [asked(each) for each in both]
        address = ",".join(f"127.0.0.1:{each.grpc_port}" for each in both)
        asyncio.run(ask(f"ipv4:{address}", 200))
        assert all(asked(each) - count >= 90 for each, count in zip(both, before, strict=True))
