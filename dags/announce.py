"""What Slack is told, as Block Kit: a registration, the figures on test, a promotion, a refusal, a rollback, a failure.

Messages go through the connection ``slack_webhook``, which ``python -m dags`` makes of SLACK_WEBHOOK_TOKEN or _URL.
Without one nothing is sent, and the log has what would have been.
"""

import logging
from typing import Any

from dags.settings import Settings, read_settings

log = logging.getLogger(__name__)

CONNECTION = "slack_webhook"
TIMEOUT_SECONDS = 15
HEADER, SECTION, FIELD = 150, 3000, 2000  # characters that Slack takes


def registered(version: dict) -> dict:
    """``version`` is what ``training.registry register --json`` prints."""
    number, settings = version["version"], read_settings()
    return message(
        f"🌱 Candidate {number} is registered",
        fields={
            "search": version.get("search"),
            "trial": version.get("trial"),
            "encoder": version.get("encoder"),
            "trained and tested on": version["metrics"]["dataset"],
        },
        links=_model(settings, number),
    )


def tested(version: dict) -> dict:
    """The figures of the same version on test, which was read once."""
    number, metrics, settings = version["version"], version["metrics"], read_settings()
    low, high = metrics["accuracy_interval"]
    return message(
        f"📏 Candidate {number} on test: macro F1 {metrics['f1']:.4f}",
        fields={
            "accuracy": f"{metrics['accuracy']:.4f} (95 % interval {low:.4f}-{high:.4f})",
            "macro F1": f"{metrics['f1']:.4f}",
            "reviews": f"{metrics['rows']:,}",
            "test": metrics["dataset"],
        },
        links=_model(settings, number),
    )


def promoted(version: dict, bundle: int, smoke: dict) -> dict:
    """``bundle`` is the version that answers now, ``smoke`` what ``loadtest.traffic --json`` saw of it."""
    number, settings = version["version"], read_settings()
    return message(
        f"🏆 Version {number} is the Champion and answers",
        fields={
            "macro F1": f"{version['metrics']['f1']:.4f}",
            "compared with": version.get("judged_against"),
            "answers as version": str(bundle),
            "smoke test": f"{smoke['right']} of {smoke['sent']} right, {smoke['refused']} refused; "
            f"p50 {smoke['p50_ms']} ms, p99 {smoke['p99_ms']} ms",
        },
        text=_gates(version),
        links={**_model(settings, number), "gateway": f"{settings.gateway_url}/v1/model"},
    )


def refused(version: dict) -> dict:
    number, settings = version["version"], read_settings()
    closed = [name for name, said in version["gates"].items() if said.startswith("failed")]
    return message(
        f"✋ Version {number} is refused: {' and '.join(closed)}",
        fields={"compared with": version.get("judged_against"), "macro F1": f"{version['metrics']['f1']:.4f}"},
        text=f"{_gates(version)}\nThe Champion stays, and goes on answering.",
        links=_model(settings, number),
    )


def rolled_back(version: dict, bundle: int | None, said: object) -> dict:
    """``bundle`` is None when the version was never exported; ``said`` is the last line of the rollback."""
    number, settings = version["version"], read_settings()
    what = "its export failed" if bundle is None else f"it failed its smoke test as version {bundle}"
    return message(
        f"↩️ Version {number} is rolled back: {what}",
        text=str(said),
        links={**_model(settings, number), "gateway": f"{settings.gateway_url}/v1/model"},
    )


def failed(context: dict[str, Any]) -> None:
    """Airflow's ``on_failure_callback``: after the last try of a task."""
    instance, settings = context["ti"], read_settings()
    where = f"{settings.airflow_url}/dags/{instance.dag_id}/runs/{instance.run_id}/tasks/{instance.task_id}"
    send(
        message(
            f"🔥 {instance.dag_id}: {instance.task_id} failed",
            fields={"run": instance.run_id, "tries": str(instance.try_number)},
            text=str(context.get("exception") or "it said nothing"),
            links={"log": where},
        )
    )


def message(title: str, fields: dict[str, str | None] | None = None, text: str = "", *, links: dict[str, str]) -> dict:
    """A message with ``text`` for notifications and ``blocks`` for the channel, within the sizes that Slack takes."""
    blocks: list[dict] = [
        {"type": "header", "text": {"type": "plain_text", "text": _cut(title, HEADER), "emoji": True}}
    ]
    pairs = [(name, value) for name, value in (fields or {}).items() if value]
    if pairs:
        shown = [_markdown(f"*{name}*\n{_escaped(value)}", FIELD) for name, value in pairs]
        blocks.append({"type": "section", "fields": shown})
    if text:
        blocks.append({"type": "section", "text": _markdown(_escaped(text), SECTION)})
    addresses = "  ·  ".join(f"<{address}|{name}>" for name, address in links.items())
    blocks.append({"type": "context", "elements": [_markdown(addresses, FIELD)]})
    return {"text": _cut(title, SECTION), "blocks": blocks}


def send(message: dict) -> None:
    """Raises:
    AirflowException: Slack does not take it, or cannot be reached.
    """
    from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook  # slow to import: not while a DAG is read
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        SlackWebhookHook(slack_webhook_conn_id=CONNECTION, timeout=TIMEOUT_SECONDS).send(**message)
    except AirflowNotFoundException:
        log.info("no SLACK_WEBHOOK_TOKEN in .env, so Slack is not told: %s", as_text(message))


def as_text(message: dict) -> str:
    lines = [message["text"]]
    for block in message["blocks"][1:]:
        lines += [part["text"] for part in block.get("fields") or block.get("elements") or [block["text"]]]
    return "\n".join(lines)


def _gates(version: dict) -> str:
    return "\n".join(f"• {name} {said}" for name, said in version["gates"].items())


def _model(settings: Settings, number: int) -> dict[str, str]:
    return {"model": f"{settings.mlflow_url}/#/models/{settings.registered_model}/versions/{number}"}


def _markdown(text: str, most: int) -> dict:
    return {"type": "mrkdwn", "text": _cut(text, most)}


def _escaped(text: str) -> str:
    """As Slack asks for: nothing in a reason becomes a link, a mention or a channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
