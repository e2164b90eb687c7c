"""Answers of Triton that must not become ours.  The real server refuses to give most of them, so they are made here."""

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from gateway.bundle import read_bundle
from gateway.errors import ModelUnavailable
from gateway.triton import checked_logits


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
        checked_logits(wrong, read_bundle(repository), 2)
