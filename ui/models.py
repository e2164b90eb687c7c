"""모델: what answers now and since when, what lies in the repository, and the Champion beside the Candidate.

Read from the gateway when the tab is opened, when somebody asks for it, and when an operation has ended.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any

import gradio as gr
from gradio.context import get_render_context

from ui import operations, side_by_side
from ui.errors import GatewayError
from ui.page import EVENT, Page, explain, notice
from ui.words import Words

WORDS = {
    "refresh": ("새로 고침", "Refresh"),
    "now": ("지금 답하는 모델", "What answers now"),
    "versions": ("저장소에 있는 버전", "Versions in the repository"),
    "read_at": ("{at}에 읽었어요.", "Read at {at}."),
    "ended": (
        "후보 버전 {version}의 시험은 끝났어요. 이유: {reason}",
        "The trial of candidate {version} is over. Reason: {reason}",
    ),
    "fact": ("항목", "Fact"),
    "column_live": ("버전 {version} · 지금 답해요", "Version {version} · answers now"),
    "column_candidate": ("버전 {version} · 후보", "Version {version} · candidate"),
    "since": ("언제부터", "Since"),
    "trial": ("시험 방식", "Trial"),
    "shadow": ("그림자: 요청의 {share:.0%}를 따라 읽어요", "shadow: reads {share:.0%} of the requests too"),
    "canary": ("카나리아: 요청의 {share:.0%}에 답해요", "canary: answers {share:.0%} of the requests"),
    "encoder": ("인코더", "Encoder"),
    "precision": ("정밀도", "Precision"),
    "max_length": ("읽는 길이 (토큰)", "Reads up to (tokens)"),
    "labels": ("답의 종류", "Labels"),
    "created": ("내보낸 때", "Exported"),
    "dataset": ("학습 데이터", "Dataset"),
    "commit": ("코드 (git)", "Code (git)"),
    "run": ("MLflow 실행", "MLflow run"),
    "test": ("시험 데이터", "Test set"),
    "rows": ("{name}, {rows:,}개", "{name}, {rows:,} rows"),
    "accuracy": ("정확도 (95% 구간)", "Accuracy (95 % interval)"),
    "f1": ("F1", "F1"),
    "parity_rows": ("내보내기 검사에 쓴 글", "Texts of the export check"),
    "agreement": ("내보내기 전과 답이 같은 비율", "Same answer as before the export"),
    "exported": ("정확도, 내보내기 전 → 뒤", "Accuracy, before → after the export"),
    "shift": ("확률이 가장 많이 달라진 폭", "Largest shift of a probability"),
    "version": ("버전", "Version"),
    "state": ("상태", "State"),
    "serving": ("지금 답해요", "answers now"),
    "candidate": ("후보", "candidate"),
    "previous": ("되돌리면 이 버전", "a rollback goes here"),
    "broken": ("고장: {reason}", "broken: {reason}"),
    "resting": ("쉬고 있어요", "at rest"),
}
UNKNOWN = "–"

Facts = dict[str, Any]


def build(page: Page) -> None:
    words = page.words.of(WORDS)
    standing = gr.State(None)
    with gr.Row():
        status = gr.HTML(elem_id="models-status")
        refresh = gr.Button(words("refresh"), size="sm", scale=0, min_width=120, elem_id="models-refresh")
    now = gr.Dataframe(
        label=words("now"), datatype="str", interactive=False, wrap=True, max_height=800, elem_id="models-now"
    )
    versions = gr.Dataframe(
        label=words("versions"), datatype="str", interactive=False, wrap=True, elem_id="models-versions"
    )
    side_by_side.build(page, standing)
    ended = operations.build(page, standing)

    async def load() -> dict[Any, Any]:
        try:
            model, listed = await asyncio.gather(page.gateway.model(), page.gateway.versions())
        except GatewayError as error:
            return {status: notice(explain(page.words, error), "alert")}
        return {
            status: notice(_status(words, model)),
            now: facts_table(words, model, listed),
            versions: versions_table(words, listed),
            standing: stand(model, listed),
        }

    shown = [status, now, versions, standing]
    gr.on([get_render_context().select, refresh.click, ended.change], load, None, shown, **EVENT)


def stand(model: Facts, listed: list[Facts]) -> dict[str, str | None]:
    """Who is who: the numbers of the versions ``live``, ``previous`` and ``candidate``; None where there is none.

    ``answering`` is the candidate while it is on trial; once that has ended it is still loaded, but not to be asked.
    """
    candidate = model["candidate"]
    return {
        "live": model["version"],
        "previous": next((each["version"] for each in listed if each["previous"]), None),
        "candidate": candidate["version"] if candidate else None,
        "answering": candidate["version"] if candidate and candidate["ended"] is None else None,
    }


def facts_table(words: Words, model: Facts, listed: list[Facts]) -> dict[str, list]:
    """A gr.Dataframe's value: what answers now, and the candidate beside it while there is one."""
    known = {each["version"]: each for each in listed}
    candidate = model["candidate"]
    columns = {words("column_live", version=model["version"]): model | known.get(model["version"], {})}
    if candidate:
        name = words("column_candidate", version=candidate["version"])
        columns[name] = known.get(candidate["version"], {}) | candidate
    facts = [_facts(words, each) for each in columns.values()]
    return {
        "headers": [words("fact"), *columns],
        "data": [
            [words(key), *(each.get(key, UNKNOWN) for each in facts)]
            for key in dict.fromkeys(key for each in facts for key in each)
        ],
    }


def versions_table(words: Words, listed: list[Facts]) -> dict[str, list]:
    keys = ("created", "encoder", "precision", "test", "accuracy", "f1", "agreement")
    rows = []
    for each in listed:
        facts = _facts(words, each)
        rows.append([each["version"], _state(words, each), *(facts.get(key, UNKNOWN) for key in keys)])
    return {"headers": [words(key) for key in ("version", "state", *keys)], "data": rows}


def shown_time(iso: str) -> str:
    return f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _status(words: Words, model: Facts) -> str:
    candidate = model["candidate"]
    if candidate and candidate["ended"]:
        return words("ended", version=candidate["version"], reason=candidate["ended"])
    return words("read_at", at=f"{datetime.now(UTC):%H:%M:%S} UTC")


def _state(words: Words, version: Facts) -> str:
    states = [words(key) for key in ("serving", "candidate", "previous") if version[key]]
    if version["broken"]:
        states.append(words("broken", reason=version["broken"]))
    return ", ".join(states) or words("resting")


def _facts(words: Words, version: Facts) -> dict[str, str]:
    """What is known of one version, by the key of its name in WORDS, in the order it is shown."""
    source = version.get("source") or {}
    facts: dict[str, str | None] = {
        "since": shown_time(version["since"]) if version.get("since") else None,
        "trial": words(version["mode"], share=version["share"]) if version.get("mode") else None,
        "encoder": version.get("encoder"),
        "precision": version.get("precision"),
        "max_length": version.get("max_length") and f"{version['max_length']:,}",
        "labels": ", ".join(_label(words, each) for each in version.get("labels") or ()),
        **_test_facts(words, version.get("metrics") or {}),
        **_parity_facts(version.get("parity") or {}),
        "created": shown_time(version["created"]) if version.get("created") else None,
        "dataset": source.get("dataset"),
        "run": source.get("mlflow_run"),
        "commit": source.get("git_commit"),
    }
    return {key: str(value) for key, value in facts.items() if value}


def _test_facts(words: Words, metrics: Facts) -> dict[str, str]:
    facts = {}
    if "dataset" in metrics and "rows" in metrics:
        facts["test"] = words("rows", name=metrics["dataset"], rows=metrics["rows"])
    if "accuracy" in metrics:
        low, high = metrics.get("accuracy_interval") or (None, None)
        interval = "" if low is None else f" ({low:.2%} – {high:.2%})"
        facts["accuracy"] = f"{metrics['accuracy']:.2%}{interval}"
    if "f1" in metrics:
        facts["f1"] = f"{metrics['f1']:.4f}"
    return facts


def _parity_facts(parity: Facts) -> dict[str, str]:
    facts = {}
    if "rows" in parity:
        facts["parity_rows"] = f"{parity['rows']:,}"
    if "label_agreement" in parity:
        facts["agreement"] = f"{parity['label_agreement']:.2%}"
    if parity.get("accuracy_reference") is not None and parity.get("accuracy_exported") is not None:
        facts["exported"] = f"{parity['accuracy_reference']:.2%} → {parity['accuracy_exported']:.2%}"
    if "max_probability_shift" in parity:
        facts["shift"] = f"{100 * parity['max_probability_shift']:.2f} %p"
    return facts


def _label(words: Words, label: dict[str, str]) -> str:
    return label["korean"] if words.language == "ko" else label["name"]
