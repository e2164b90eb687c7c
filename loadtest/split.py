"""The gateway's time split: what its x-…-time headers say about where the milliseconds of a request went."""

from collections.abc import Callable

STAGES = ("tokenization", "queue", "inference", "total")


def split_of(header: Callable[[str], str | bytes | None]) -> dict[str, float] | None:
    """Milliseconds by stage of an answer whose headers ``header`` looks up; None where it carries no split."""
    found = {stage: header(f"x-{stage}-time") for stage in STAGES}
    return None if None in found.values() else {stage: float(value) for stage, value in found.items()}
