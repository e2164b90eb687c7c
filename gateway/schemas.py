"""The JSON of the API: what comes in is validated with these, what goes out is documented with them.

Requests are validated straight from the bytes of the body (`model_validate_json`): strict types, unknown keys
refused, and nothing is parsed twice.  Answers are written with orjson from plain dictionaries; a test holds them
against the models here.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

EXAMPLE = "다시 보고 싶은 영화"


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Question(_Request):
    return_probs: Annotated[bool, Field(description="also return the probability of every label")] = False


class PredictRequest(_Question):
    text: Annotated[str, Field(examples=[EXAMPLE], description="raw text; cleaning is the model's work")]


class BatchRequest(_Question):
    texts: Annotated[
        list[str],
        Field(min_length=1, examples=[[EXAMPLE, "시간이 아까워요"]], description="raw texts, answered in this order"),
    ]


class OperationRequest(_Request):
    what: Literal["promote", "rollback", "candidate-start", "candidate-end"]
    mode: Annotated[Literal["shadow", "canary"] | None, Field(description="only of candidate-start")] = None
    share: Annotated[float | None, Field(gt=0, le=1, description="of the traffic; only of candidate-start")] = None

    @model_validator(mode="after")
    def terms_are_those_of_a_candidate(self) -> Self:
        given = [name for name in ("mode", "share") if getattr(self, name) is not None]
        wanted = ["mode", "share"] if self.what == "candidate-start" else []
        if given != wanted:
            raise ValueError(f"{self.what} takes {' and '.join(wanted) or 'neither mode nor share'}")
        return self


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


class VersionAnswer(_Answer):
    version: Annotated[str, Field(examples=["3"])]
    serving: Annotated[bool, Field(description="it answers here")]
    previous: Annotated[bool, Field(description="a rollback goes back to it")]
    candidate: Annotated[bool, Field(description="serving.json has it on trial; /v1/model says how it does")]
    encoder: str | None
    precision: str | None
    max_length: int | None
    labels: list[LabelAnswer] | None
    created: str | None
    source: Annotated[dict | None, Field(description="where it comes from: run, registry version, commit, dataset")]
    metrics: Annotated[dict | None, Field(description="what the model scored on its test set")]
    parity: Annotated[dict | None, Field(description="what the exported file was measured to lose by the export")]
    broken: Annotated[str | None, Field(description="what is wrong with its files; then the fields above may be null")]


class VersionsAnswer(_Answer):
    versions: Annotated[list[VersionAnswer], Field(description="the newest first")]


class OperationAnswer(_Answer):
    id: Annotated[str, Field(examples=["9f86d081884c7d65"])]
    what: str
    state: Literal["running", "done", "failed"]
    began: Annotated[str, Field(description="ISO 8601")]
    ended: str | None
    lines: Annotated[list[str], Field(description="what the command has said so far")]
    result: Annotated[str | None, Field(description="the last of what it came to so far")]


class OperationsAnswer(_Answer):
    operations: Annotated[list[OperationAnswer], Field(description="the newest first, 20 at most")]


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
