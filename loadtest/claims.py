"""What the project promises of its speed, and what a run of the bench says to it."""

from typing import TypedDict

KCBERT_LAYERS = 85_054_464  # parameters: the promises about other servers were made for this shape
FEW = 32  # callers


class Claim(TypedDict):
    """``met`` is None where nothing was promised for this model."""

    what: str
    value: float
    wanted: str
    met: bool | None


def claims(document: dict) -> list[Claim]:
    """Everything that the rows of one run, perhaps cut short, allow to say; ratios are of medians of that run."""
    rows = {(row["door"], row["callers"]): row for row in document["rows"]}
    most = max((callers for door, callers in rows if door == "gateway"), default=0)
    speed = {door: row["texts_per_second"] for (door, callers), row in rows.items() if callers == most}
    ours = speed.get("gateway")
    if ours is None:
        return []
    is_kcbert = document["model"]["layer_parameters"] == KCBERT_LAYERS
    is_shipped = document["model"]["checkpoint"] is None
    found: list[Claim] = []

    def say(what: str, value: float, wanted: float, at_least: bool, promised: bool) -> None:
        met = (value >= wanted if at_least else value <= wanted) if promised and most >= FEW else None
        found.append(Claim(what=what, value=value, wanted=f"{'≥' if at_least else '≤'} {wanted:g}", met=met))

    for door, wanted in (("infinity, int8", 2.0), ("TorchServe", 8.0), ("FastAPI + transformers", 10.0)):
        if speed.get(door):
            say(f"gateway ÷ {door}, {most} callers", ours / speed[door], wanted, True, is_kcbert)
    roof = document["roofline"]["texts_per_second"]
    say(f"gateway ÷ int8 roofline ({roof:.0f} texts/s)", ours / roof, 0.55, True, is_kcbert)
    if speed.get("Triton, gRPC"):
        cost = 1 - ours / speed["Triton, gRPC"]
        say(f"cost of the gateway: 1 - gateway ÷ Triton, {most} callers", cost, 0.12, False, is_kcbert)
    if document["overhead"]:
        say("p50 added by the gateway at one caller, ms", document["overhead"]["added_ms"], 1.5, False, is_kcbert)
    alone, half = rows.get(("gateway", 1)), document["half"]
    if alone and half and half["milliseconds"]["p99"]:
        ratio = half["milliseconds"]["p99"] / alone["milliseconds"]["p50"]
        say("p99 at half of capacity ÷ p50 at one caller", ratio, 3.0, False, is_kcbert)
    say(f"single texts per second, {most} callers", ours, 800, True, is_shipped)
    batch = next((row for row in document["rows"] if row["texts_per_request"] > 1), None)
    if batch:
        what = f"texts per second, {batch['texts_per_request']} a request"
        say(what, batch["texts_per_second"], 5000, True, is_shipped)
    return found
