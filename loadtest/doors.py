"""How a system is asked: HTTP with JSON, or Triton's gRPC. Every question is built before its clock runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import httptools
import orjson
from tritonclient.grpc import service_pb2, service_pb2_grpc

from loadtest.client import Client
from loadtest.served import Served
from loadtest.split import split_of

TIMEOUT_SECONDS = 60.0
JSON = {"content-type": "application/json"}

Split = dict[str, float] | None


class Failed(Exception):
    """No answer, or one that is not a success; the message is the status, or the kind of the loss."""


@dataclass(frozen=True)
class Door:
    """``texts`` are those in one question."""

    name: str
    questions: list
    texts: int = 1


@dataclass(frozen=True)
class HttpDoor(Door):
    """``questions`` are bodies."""

    url: str = ""
    headers: dict[str, str] = field(default_factory=lambda: JSON)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Callable[[bytes], Awaitable[Split]]]:
        async with Client(self.url, self.headers) as client:

            async def ask(body: bytes) -> Split:
                try:
                    answer = await client.post(body, TIMEOUT_SECONDS)
                except (OSError, TimeoutError, httptools.HttpParserError) as exc:
                    raise Failed(type(exc).__name__) from exc
                if answer.status != 200:
                    raise Failed(str(answer.status))
                return split_of(lambda name: answer.headers.get(name.encode()))

            yield ask


@dataclass(frozen=True)
class GrpcDoor(Door):
    """``questions`` are ModelInferRequests."""

    address: str = ""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Callable[[service_pb2.ModelInferRequest], Awaitable[Split]]]:
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

            async def ask(request: service_pb2.ModelInferRequest) -> Split:
                try:
                    await stub.ModelInfer(request, timeout=TIMEOUT_SECONDS)
                except grpc.aio.AioRpcError as exc:
                    raise Failed(exc.code().name) from exc
                return None

            yield ask


def gateway(url: str, texts: list[str], key: str | None = None) -> HttpDoor:
    headers = JSON | ({"authorization": f"Bearer {key}"} if key else {})
    bodies = [orjson.dumps({"text": text}) for text in texts]
    return HttpDoor("gateway", bodies, url=f"{url}/v1/predict", headers=headers)


def gateway_batch(url: str, texts: list[str], size: int, key: str | None = None) -> HttpDoor:
    headers = JSON | ({"authorization": f"Bearer {key}"} if key else {})
    batches = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]
    bodies = [orjson.dumps({"texts": batch}) for batch in batches]
    return HttpDoor(f"gateway, {size} texts a request", bodies, size, f"{url}/v1/predict/batch", headers)


def triton(address: str, served: Served, texts: list[str]) -> GrpcDoor:
    return GrpcDoor("Triton, gRPC", list(_infer_requests(served, texts)), address=address)


def _infer_requests(served: Served, texts: list[str]) -> Iterator[service_pb2.ModelInferRequest]:
    for text in texts:
        request = service_pb2.ModelInferRequest(model_name=served.model, model_version=served.version)
        for name, values in served.encode(text).items():
            request.inputs.add(name=name, datatype="INT64", shape=values.shape)
            request.raw_input_contents.append(values.tobytes())
        request.outputs.add(name="logits")
        yield request


async def answers(door: Door) -> bool:
    """Whether the first question of ``door`` is answered."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), door.opened() as ask:
            await ask(door.questions[0])
    except (Failed, TimeoutError):
        return False
    return True
