"""Where the time of a request goes: what the x-…-time headers and the stage histograms say."""

from dataclasses import dataclass


@dataclass(slots=True)
class Stages:
    """Where the time of one request went, in seconds; 0 where a stage did not run.

    tokenization  cleaning and tokenizing, without the wait for the tokenizer thread
    queue         waiting inside the gateway: for the tokenizer thread, then at the gate until the first chunk leaves
    inference     from the first chunk leaving to the last logits: the round trips to Triton, its own queue included,
                  and the waits of later chunks of a large batch
    """

    tokenization: float = 0.0
    queue: float = 0.0
    inference: float = 0.0
    tokenized: float = 0.0  # time.perf_counter() when tokenization was over
    first_sent: float = 0.0  # and of the first chunk leaving
