"""Which words an answer hangs on: the text is asked again without each of them, all in one batch."""

import re
from collections.abc import Sequence

from ui.errors import TextRefused
from ui.gateway import Gateway

MAX_CHARACTERS = 1000  # each piece left out is one more copy of the text to be read
MAX_PIECES = 40

Weighted = list[tuple[str, float | None]]


async def weigh(gateway: Gateway, text: str, prediction: str, *, version: str | None = None) -> Weighted:
    """The pieces of ``text`` in order, each with what it adds to the probability of the label ``prediction``, from
    -1 to 1; without it the probability would be so much lower.  None where the rest alone cannot be read.

    Joined, the pieces are the text again.  A text of one piece has nothing to be compared with: its weight is None.
    Raises: GatewayError.
    """
    parts = pieces(text)
    asked = list(range(len(parts))) if len(parts) > 1 else []
    while asked:
        rests = ["".join(parts[:index] + parts[index + 1 :]) for index in asked]
        try:
            answer = await gateway.predict_batch([text, *rests], version=version)
        except TextRefused as refusal:
            if not refusal.row:  # about the request, or the text itself
                raise
            del asked[refusal.row - 1]
            continue
        whole, *without = [row.probabilities[prediction] for row in answer.predictions]
        weights = {index: whole - rest for index, rest in zip(asked, without, strict=True)}
        return [(part, weights.get(index)) for index, part in enumerate(parts)]
    return [(part, None) for part in parts]


def pieces(text: str, limit: int = MAX_PIECES) -> Sequence[str]:
    """The words of ``text`` with the space after them; in a long one, runs of words, so that there are at most
    ``limit``.
    """
    words = re.findall(r"\s*\S+\s*", text)
    run = -(-len(words) // limit) if words else 1
    return ["".join(words[start : start + run]) for start in range(0, len(words), run)]
