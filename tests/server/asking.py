"""Asks a running Triton for logits, as a test does: one request, or many at once."""

import asyncio

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.grpc.aio import InferenceServerClient as AsyncClient

from tests.triton_process import TritonProcess


def tensors(ids: object, mask: object) -> list[InferInput]:
    inputs = []
    for name, value in (("input_ids", ids), ("attention_mask", mask)):
        array = np.asarray(value, np.int64)
        inputs.append(InferInput(name, array.shape, "INT64"))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def ask(triton: TritonProcess, ids: object, mask: object = None, version: int = 1, seconds: float = 5) -> np.ndarray:
    """Logits for `ids`, with a mask of ones unless given."""
    mask = np.ones_like(ids) if mask is None else mask
    with InferenceServerClient(f"127.0.0.1:{triton.grpc_port}") as client:
        result = client.infer("sentiment", tensors(ids, mask), model_version=str(version), client_timeout=seconds)
    return result.as_numpy("logits")


async def ask_all(triton: TritonProcess, requests: list[tuple], version: int = 1, seconds: float = 10) -> list:
    """Logits or the exception for each `(ids, mask)`, all asked at once."""
    async with AsyncClient(f"127.0.0.1:{triton.grpc_port}") as client:
        answers = await asyncio.gather(
            *(
                client.infer("sentiment", tensors(*request), model_version=str(version), client_timeout=seconds)
                for request in requests
            ),
            return_exceptions=True,
        )
    return [answer if isinstance(answer, Exception) else answer.as_numpy("logits") for answer in answers]
