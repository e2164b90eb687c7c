"""The gateway as the page sees it: questions over HTTP, answers as plain records, errors that say what to do.

`Gateway` is asynchronous and shared by all visitors of the page; connections are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from ui.errors import Busy, Failed, GatewayAway, GatewayError, NotAllowed, TextRefused
from ui.settings import Settings

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 20.0  # the gateway gives up after 15
RETRY_SECONDS = 1.0  # where a busy gateway does not say
STAGES = ("tokenization", "queue", "inference", "total")


@dataclass(frozen=True)
class Prediction:
    """One text's answer. ``probabilities`` by label name, in label order; ``label`` is the Korean name."""

    prediction: str
    label: str
    confidence: float
    truncated: bool
    input_tokens: int
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """All predictions come from one version; ``milliseconds`` by stage (STAGES), as the gateway measured."""

    predictions: list[Prediction]
    version: str
    milliseconds: dict[str, float]
    request_id: str


class Gateway:
    """`async with Gateway(settings) as gateway`.

    Raises, in every method: GatewayError, by its subclasses.
    """

    def __init__(self, settings: Settings) -> None:
        headers = {} if settings.api_key is None else {"authorization": f"Bearer {settings.api_key.get_secret_value()}"}
        self.url = settings.gateway_url
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            trust_env=False,  # a proxy of the environment is not for the gateway next door
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def predict(self, text: str, *, version: str | None = None) -> Answer:
        """``version`` asks a certain one, which has to be loaded: the one that serves, or the candidate."""
        return await self._predict("/v1/predict", {"text": whole(text), "return_probs": True}, version)

    async def predict_batch(self, texts: Sequence[str], *, version: str | None = None) -> Answer:
        return await self._predict(
            "/v1/predict/batch", {"texts": list(map(whole, texts)), "return_probs": True}, version
        )

    async def model(self) -> dict[str, Any]:
        """What /v1/model says (gateway/schemas.py, ModelAnswer)."""
        return (await self._ask("GET", "/v1/model")).json()

    async def versions(self) -> list[dict[str, Any]]:
        """The versions of the repository, newest first (gateway/schemas.py, VersionAnswer)."""
        return (await self._ask("GET", "/v1/versions")).json()["versions"]

    async def operate(self, what: str, admin_key: str, **terms: object) -> dict[str, Any]:
        """Begin an operation (promote, rollback, candidate-start, candidate-end); what /v1/operations/<id> says."""
        headers = {"x-admin-key": admin_key}
        return (await self._ask("POST", "/v1/operations", json={"what": what, **terms}, headers=headers)).json()

    async def operation(self, identity: str, admin_key: str) -> dict[str, Any]:
        return (await self._ask("GET", f"/v1/operations/{identity}", headers={"x-admin-key": admin_key})).json()

    async def operations(self, admin_key: str) -> list[dict[str, Any]]:
        """The latest ones first. Also how a key is tried: NotAllowed where it is wrong or none is set there."""
        return (await self._ask("GET", "/v1/operations", headers={"x-admin-key": admin_key})).json()["operations"]

    async def _predict(self, path: str, body: dict[str, Any], version: str | None) -> Answer:
        headers = {} if version is None else {"x-ask-version": version}
        response = await self._ask("POST", path, json=body, headers=headers)
        document = response.json()
        rows = document.get("predictions", [document])
        return Answer(
            predictions=[
                Prediction(
                    row["prediction"],
                    row["label"],
                    row["confidence"],
                    row["truncated"],
                    row["input_tokens"],
                    row["probs"],
                )
                for row in rows
            ],
            version=document["model_version"],
            milliseconds={stage: float(response.headers.get(f"x-{stage}-time", 0.0)) for stage in STAGES},
            request_id=response.headers.get("x-request-id", ""),
        )

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._client.request(method, path, **options)
        except httpx.TimeoutException as exc:
            raise GatewayAway(f"{self.url} did not answer in time") from exc
        except httpx.TransportError as exc:
            raise GatewayAway(f"{self.url} does not answer") from exc
        if response.is_success:
            return response
        raise _problem(response)


def whole(text: str) -> str:
    """With "?" for half a character, as a browser may send and UTF-8 cannot say."""
    return text.encode("utf-8", "replace").decode()


def _problem(response: httpx.Response) -> GatewayError:
    """The error that an answer with a problem document stands for."""
    try:
        document = response.json()
    except ValueError:
        document = {}
    detail = document.get("detail") or f"{response.status_code} {response.reason_phrase}"
    about = {"code": document.get("code", ""), "request_id": response.headers.get("x-request-id", "")}
    match response.status_code:
        case 429 | 503 | 504:
            try:
                retry_after = float(response.headers["retry-after"])
            except (KeyError, ValueError):
                retry_after = RETRY_SECONDS
            return Busy(detail, retry_after=retry_after, **about)
        case 401 | 403:
            return NotAllowed(detail, **about)
        case 413 | 422:
            return TextRefused(detail, row=document.get("row"), **about)
        case _:
            return Failed(detail, **about)
