"""The JSON of the API: what comes in is validated with these, what goes out is documented with them.

Requests are validated straight from the bytes of the body (`model_validate_json`): strict types, unknown keys
refused, and nothing is parsed twice.  Answers are written with orjson from plain dictionaries; a test holds them
against the models here.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

EXAMPLE = "다시 보고 싶은 영화"


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    return_probs: Annotated[bool, Field(description="also return the probability of every label")] = False


class PredictRequest(_Request):
    text: Annotated[str, Field(examples=[EXAMPLE], description="raw text; cleaning is the model's work")]


class BatchRequest(_Request):
    texts: Annotated[
        list[str],
        Field(min_length=1, examples=[[EXAMPLE, "시간이 아까워요"]], description="raw texts, answered in this order"),
    ]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Prediction(_Answer):
    prediction: Annotated[str, Field(examples=["positive"], description="name of the likeliest label")]
    label: Annotated[str, Field(examples=["긍정"], description="the same label in Korean")]
    confidence: Annotated[float, Field(ge=0, le=1, examples=[0.95], description="its probability")]
    truncated: Annotated[bool, Field(description="the text was longer than the model reads; its end was left out")]
    input_tokens: Annotated[int, Field(ge=1, description="tokens the model read, start and end marks included")]
    probs: Annotated[
        dict[str, float] | None, Field(description="probability of every label; only when return_probs is true")
    ] = None


class PredictAnswer(Prediction):
    model_version: Annotated[str, Field(examples=["3"])]


class BatchAnswer(_Answer):
    predictions: list[Prediction]
    model_version: Annotated[str, Field(examples=["3"], description="one version answered all rows")]


class LabelAnswer(_Answer):
    name: str
    korean: str


class CandidateAnswer(_Answer):
    version: str
    mode: Literal["shadow", "canary"]
    share: Annotated[float, Field(gt=0, le=1, description="of the traffic it gets")]
    since: str
    ended: Annotated[str | None, Field(description="why the gateway took it off trial; null while it is on trial")]


class ModelAnswer(_Answer):
    name: str
    version: str
    labels: Annotated[list[LabelAnswer], Field(description="in the order of the model's outputs")]
    encoder: str
    precision: str
    max_length: Annotated[int, Field(description="tokens the model reads of a text; the rest is left out")]
    metrics: Annotated[dict | None, Field(description="what the model scored on its test set, when it was exported")]
    since: Annotated[str, Field(description="when this version was put in service (ISO 8601)")]
    candidate: Annotated[CandidateAnswer | None, Field(description="a version on trial beside it")]


class HealthAnswer(_Answer):
    status: Literal["alive"]


class ReadyAnswer(_Answer):
    status: Literal["ready"]
    model_version: str


class Fault(_Answer):
    where: Annotated[str, Field(examples=["texts.3"])]
    what: str


class ProblemAnswer(BaseModel):
    """RFC 9457.  `code` is stable: match on it, not on the sentences."""

    type: Annotated[str, Field(examples=["urn:nunchi:problem:empty_text"])]
    title: str
    status: int
    detail: Annotated[str, Field(description="what was wrong with this request, and the remedy")]
    code: Annotated[str, Field(examples=["empty_text"])]
    instance: Annotated[str, Field(description="id of this request, also in the header x-request-id and in the log")]
    row: Annotated[int | None, Field(description="index of the text in a batch, when it is about one")] = None
    faults: Annotated[list[Fault] | None, Field(description="what does not fit, field by field")] = None
