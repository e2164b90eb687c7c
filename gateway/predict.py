"""From texts to answers: tokenize, wait at the gate, ask Triton, softmax.

One bundle is taken at the start and used to the end, so all rows of one answer come from one version: the Champion's,
or for the requests a canary takes, the candidate's (candidate.py); what that one cannot answer, the Champion answers.
A request that names one of the two gets that one or an error.
A request goes to Triton in chunks of at most `max_batch_size` rows, the rows sorted by length (a chunk costs what its
longest row costs), and is answered in the order asked.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from gateway.admission import BATCHES_AT_TRITON, BULK_AT_TRITON, SMALL, Admission, Gate
from gateway.bundle import Bundle, Tokens
from gateway.candidate import Candidate, Shadow, Trial
from gateway.champion import Champion
from gateway.coalescer import Coalescer
from gateway.envelope import Exchange
from gateway.errors import (
    DeadlineExceeded,
    EmptyText,
    ModelUnavailable,
    RequestError,
    VersionNotLoaded,
    VersionNotReady,
)
from gateway.metrics import Metrics
from gateway.proof import probabilities
from gateway.stages import Stages
from gateway.triton import Triton

CHARACTERS_IN_THE_LOOP = 2_000  # about a millisecond of tokenizing; more goes to the tokenizer thread
CHUNKS_AT_ONCE = 2  # of one request: one being answered, one behind it, and room for others between
CANDIDATE_SHARE_OF_TIME = 0.5  # of what is left for a request; the rest is the Champion's if the candidate stays silent


class Answer(NamedTuple):
    """One text, answered.  `probabilities` in label order."""

    label: int
    probabilities: list[float]
    truncated: bool
    input_tokens: int


class Predictor:
    """Answers texts with the live bundle, or with the candidate's."""

    def __init__(
        self,
        champion: Champion,
        candidate: Candidate,
        triton: Triton,
        admission: Admission,
        metrics: Metrics,
        *,
        deadline_seconds: float,
    ) -> None:
        self._champion = champion
        self._candidate = candidate
        self._shadow = Shadow(lambda: champion.live, triton, admission, metrics)
        self._coalescer = Coalescer(triton, metrics.sent)
        self._admission = admission
        self._gate, self._bulk_gate = Gate(BATCHES_AT_TRITON), Gate(BULK_AT_TRITON)
        self._metrics = metrics
        self._deadline_seconds = deadline_seconds
        self._tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._live_answers = 0

    def close(self) -> None:
        self._shadow.close()
        self._tokenizer_thread.shutdown(wait=False, cancel_futures=True)

    async def answer(
        self, texts: list[str], exchange: Exchange, *, key: str | None, version: str | None
    ) -> tuple[Bundle, list[Answer]]:
        """The answers in the order of `texts`, and the bundle they come from.

        `version` is the one that has to answer, if any; such a request says nothing about a candidate.  Else `key`
        decides whether the candidate gets the request, if there is one; None stands for the first text.
        """
        trial = self._candidate.trial
        taken = trial is not None and version is None and trial.takes(key or texts[0])
        with self._admission.let_in(len(texts)):
            try:
                async with asyncio.timeout(exchange.until - time.monotonic()):
                    if version:
                        return await self._answer_by(version, texts, exchange)
                    if taken and trial.mode == "canary":
                        return await self._answer_on_trial(trial, texts, exchange)
                    bundle, answers = await self._answer_live(texts, exchange)
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"The answer was not there after {self._deadline_seconds:g} s; try again, or send fewer texts"
                ) from error
            except ModelUnavailable:
                self._champion.doubt()
                raise
        if taken:
            labels = [bundle.labels[each.label].name for each in answers]
            self._shadow.send(trial, texts, labels, exchange.stages.inference, exchange.request_id)
        elif trial and trial.mode == "canary":
            trial.champion_answered(sum(map(len, texts)), exchange.stages.inference)
        return bundle, answers

    async def _answer_by(self, version: str, texts: list[str], exchange: Exchange) -> tuple[Bundle, list[Answer]]:
        bundle = self._loaded(version)
        try:
            return bundle, await self._answer_with(bundle, texts, exchange, exchange.until)
        except VersionNotReady:
            await self._champion.refresh()
            self._loaded(version)  # says so if it has gone
            raise

    def _loaded(self, version: str) -> Bundle:
        """The live bundle or the one on trial; VersionNotLoaded when neither is this version."""
        trial = self._candidate.trial
        bundles = [self._champion.live, *([trial.bundle] if trial else [])]
        for bundle in bundles:
            if bundle.version == version:
                return bundle
        there = " and ".join(bundle.version for bundle in bundles)
        raise VersionNotLoaded(
            f"version {version} is neither the one that answers nor one on trial; ask {there}, or leave x-ask-version "
            "out"
        )

    async def _answer_live(self, texts: list[str], exchange: Exchange) -> tuple[Bundle, list[Answer]]:
        bundle = self._champion.live
        try:
            answers = await self._answer_with(bundle, texts, exchange, exchange.until)
        except VersionNotReady:
            await self._champion.refresh()
            if self._champion.live.version == bundle.version:
                raise
            bundle = self._champion.live
            answers = await self._answer_with(bundle, texts, exchange, exchange.until)
        self._live_answers += 1
        return bundle, answers

    async def _answer_on_trial(self, trial: Trial, texts: list[str], exchange: Exchange) -> tuple[Bundle, list[Answer]]:
        """By the candidate; by the Champion where it fails.

        Where both fail, or were silent together, it was not the candidate's fault.
        """
        now, live_answers = time.monotonic(), self._live_answers
        until = now + CANDIDATE_SHARE_OF_TIME * (exchange.until - now)
        try:
            async with asyncio.timeout(until - now):
                answers = await self._answer_with(trial.bundle, texts, exchange, until)
        except (RequestError, TimeoutError) as error:
            silent = isinstance(error, TimeoutError | DeadlineExceeded)
            silent_alone = self._live_answers > live_answers
            answered = await self._answer_live(texts, exchange)
            if silent_alone or not silent:
                self._metrics.candidate_failed(trial.bundle.version)
                trial.failed()
            return answered
        trial.answered(sum(map(len, texts)), exchange.stages.inference)
        return trial.bundle, answers

    async def _answer_with(self, bundle: Bundle, texts: list[str], exchange: Exchange, until: float) -> list[Answer]:
        stages = exchange.stages
        tokens = await self._tokenize(bundle, texts, stages)
        stages.tokenized = ready = time.perf_counter()
        stages.first_sent = 0.0
        try:
            if len(tokens) == 1:
                scores = await self._ask(bundle, tokens, [0], exchange, until)
            else:
                scores = await self._ask_in_chunks(bundle, tokens, exchange, until)
        finally:
            finished = time.perf_counter()
            stages.queue += (stages.first_sent or finished) - ready
            stages.inference += finished - (stages.first_sent or finished)
        winners = scores.argmax(axis=-1).tolist()
        rows = scores.tolist()
        confidences = [row[winner] for row, winner in zip(rows, winners, strict=True)]
        exchange.afterwards.append(partial(self._metrics.read, bundle, tokens, winners, confidences))
        return [
            Answer(winner, row, each.truncated, len(each.ids))
            for winner, row, each in zip(winners, rows, tokens, strict=True)
        ]

    async def _tokenize(self, bundle: Bundle, texts: list[str], stages: Stages) -> list[Tokens]:
        if sum(map(len, texts)) <= CHARACTERS_IN_THE_LOOP:
            started = time.perf_counter()
            tokens = bundle.tokens(texts)
            stages.tokenization += time.perf_counter() - started
        else:
            asked = time.perf_counter()
            started, finished, tokens = await asyncio.get_running_loop().run_in_executor(
                self._tokenizer_thread, _timed, bundle, texts
            )
            stages.queue += started - asked
            stages.tokenization += finished - started
        for row, each in enumerate(tokens):
            if bundle.is_empty(each):
                raise EmptyText("is empty after cleaning; send at least one letter or digit", row=row)
        return tokens

    async def _ask_in_chunks(
        self, bundle: Bundle, tokens: list[Tokens], exchange: Exchange, until: float
    ) -> np.ndarray:
        by_length = sorted(range(len(tokens)), key=lambda row: len(tokens[row].ids))
        size = bundle.max_batch_size
        chunks = iter([by_length[start : start + size] for start in range(0, len(by_length), size)])
        scores = np.empty((len(tokens), len(bundle.labels)))

        async def work() -> None:
            for chunk in chunks:  # one iterator for all workers: each takes the next chunk
                scores[chunk] = await self._ask(bundle, tokens, chunk, exchange, until)

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(CHUNKS_AT_ONCE):
                    workers.create_task(work())
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        return scores

    async def _ask(
        self, bundle: Bundle, tokens: list[Tokens], chunk: list[int], exchange: Exchange, until: float
    ) -> np.ndarray:
        gate = self._gate if len(tokens) <= SMALL else self._bulk_gate
        async with gate.passed(len(chunk), bundle.max_batch_size):
            exchange.stages.first_sent = exchange.stages.first_sent or time.perf_counter()
            logits = await self._coalescer.logits(
                bundle,
                [tokens[row].ids for row in chunk],
                until=until,
                request_id=exchange.request_id,
                metadata=exchange.trace_headers,
            )
        return probabilities(logits)


def _timed(bundle: Bundle, texts: list[str]) -> tuple[float, float, list[Tokens]]:
    started = time.perf_counter()
    tokens = bundle.tokens(texts)
    return started, time.perf_counter(), tokens
