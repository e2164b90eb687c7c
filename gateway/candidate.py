"""The Candidate beside the Champion: a version on trial with a share of the requests, ended when it does badly.

serving.json names it with its terms, the Champion's watcher hands them on, and it is proven like a Champion before it
gets anything.  In shadow it reads what was answered already (`Shadow`), in canary it answers (predict.py); whom it gets
is decided by a stable hash of the request's key.  `Trial` keeps the window it is judged by.  A candidate that was ended
stays so until serving.json names one with another `since`.  Each gateway process judges what it saw itself, and
forgets it when it ends.
"""

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable

from gateway.admission import Admission
from gateway.bundle import Bundle, Serving, Terms
from gateway.errors import BundleBroken, EmptyText, GatewayError, ModelMismatch, RequestError
from gateway.metrics import Metrics
from gateway.proof import check_golden_row
from gateway.shelf import Shelf
from gateway.triton import Triton

RETRY_SECONDS = 1.0  # how soon a candidate that Triton would not confirm is tried again
REREAD_SECONDS = 5.0  # how soon one whose files are broken is read again

WINDOW = 200  # requests: recent enough to mean now, and four times the least that is judged
LEAST = 50  # requests before errors are judged: one in fifty can be bad luck
ERROR_SHARE = 0.02  # of the window; a version that serves has none
LEAST_PAIRS = 100  # before the 95th percentile is judged: it leaves out the five slowest of them
SLOWER = 2.0  # times the Champion's p95: what a release may cost at most, too
SLOWER_BY_SECONDS = 0.05  # and this on top: a busy machine halts a process as long as that whatever its version

SHADOW_TEXTS = 16  # in flight at one time: a fraction of a batch, so that the Champion's batches hardly wait for it
SHADOW_SECONDS = 15.0  # then the candidate has failed

log = logging.getLogger(__name__)


class Trial:
    """A proven candidate, whom it gets, and how it has done of late.

    `end(code, sentence)` is called when it leaves the limits, once, and not when the trial is over already.
    """

    def __init__(self, bundle: Bundle, terms: Terms, end: Callable[[str, str], None]) -> None:
        self.bundle = bundle
        self.mode = terms.mode
        self.over = False
        self._below = terms.share * 2**64
        self._end = end
        self._failed: deque[bool] = deque(maxlen=WINDOW)
        self._seconds: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # of the Champion and of the candidate
        self._alone: dict[int, float] = {}  # the candidate's seconds that wait for the Champion's, by size

    def takes(self, key: str) -> bool:
        """Whether requests with this key are the candidate's: the same in every process, others for each version."""
        digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8, salt=self.bundle.version.encode())
        return int.from_bytes(digest.digest()) < self._below

    def failed(self) -> None:
        """The candidate did not answer where the Champion did."""
        self._count(failed=True)

    def succeeded(self) -> None:
        self._count(failed=False)

    def compare(self, live_seconds: float, seconds: float) -> None:
        """The same request, or one like it, took the Champion `live_seconds` and the candidate `seconds`."""
        self._seconds.append((live_seconds, seconds))
        if len(self._seconds) < LEAST_PAIRS:
            return
        live, candidate = (percentile_95(side) for side in zip(*self._seconds, strict=True))
        limit = SLOWER * live + SLOWER_BY_SECONDS
        if candidate > limit:
            self._finish(
                "latency",
                f"the p95 of its last {len(self._seconds)} requests is {1000 * candidate:.1f} ms, the limit is "
                f"{1000 * limit:.1f} ms ({SLOWER:g} x the {1000 * live:.1f} ms of the version that answers + "
                f"{1000 * SLOWER_BY_SECONDS:g} ms)",
            )

    def answered(self, characters: int, seconds: float) -> None:
        """It answered a caller's request of so many characters: compared with the Champion's next one like it."""
        self.succeeded()
        self._alone[characters.bit_length()] = seconds

    def champion_answered(self, characters: int, seconds: float) -> None:
        """Compared with the last one of the candidate within a factor of two in length, unless another was already.

        So both sides of the comparison are of the same time and of the same sizes, whatever the share.
        """
        alone = self._alone.pop(characters.bit_length(), None)
        if alone is not None:
            self.compare(seconds, alone)

    def _count(self, *, failed: bool) -> None:
        self._failed.append(failed)
        count, of = sum(self._failed), len(self._failed)
        if of >= LEAST and count > ERROR_SHARE * of:
            self._finish("errors", f"{count} of its last {of} requests failed, the limit is {ERROR_SHARE:.0%}")

    def _finish(self, code: str, sentence: str) -> None:
        if not self.over:
            self.over = True
            self._end(code, sentence)


class Candidate:
    """Which version is on trial.  `trial` is read once per request; it is None while no candidate gets anything."""

    def __init__(self, shelf: Shelf, metrics: Metrics) -> None:
        self.trial: Trial | None = None
        self._shelf = shelf
        self._metrics = metrics
        self._terms: Terms | None = None
        self._serves = False  # the version that serving.json puts on trial is the one it says answers
        self._ended = ""
        self._work: asyncio.Task[None] | None = None

    @property
    def shown(self) -> dict[str, str | float | None] | None:
        """For /v1/model: the candidate on trial or ended, and why; None also while one waits to be proven."""
        terms = self._terms
        if terms is None or not (self.trial or self._ended):
            return None
        return {
            "version": str(terms.version),
            "mode": terms.mode,
            "share": terms.share,
            "since": terms.since.isoformat(),
            "ended": self._ended or None,
        }

    def follow(self, serving: Serving) -> None:
        """What serving.json says now."""
        before, self._terms = self._terms, serving.candidate
        served_before, self._serves = self._serves, bool(self._terms and self._terms.version == serving.version)
        if (self._terms, self._serves) == (before, served_before):
            return
        self.close()
        if self._ended and before and self._terms and _identity(before) == _identity(self._terms):
            log.info("candidate version %s stays ended: %s", self._terms.version, self._ended)
            return
        self._ended = ""
        self._metrics.candidate_is(None, "", 0.0, "")
        if self._serves:
            self._end("serves already", f"version {serving.version} is the one that answers; name another one")
        elif self._terms:
            self._work = asyncio.create_task(self._bring_up(serving.model, self._terms))

    def close(self) -> None:
        """No more requests for the candidate."""
        if self.trial:
            self.trial.over = True  # what is still under way for it counts no more
            self.trial = None
        if self._work:
            self._work.cancel()
            self._work = None

    async def _bring_up(self, model: str, terms: Terms) -> None:
        """Read and prove the candidate, again and again until it is; then it is on trial."""
        said = ""
        while True:
            pause = RETRY_SECONDS
            try:
                bundle = await self._shelf.fetch(model, terms.version)
                await self._shelf.prove(bundle)
                break
            except BundleBroken as error:
                pause, sentence = REREAD_SECONDS, f"candidate version {terms.version} gets nothing: {error}"
            except ModelMismatch as error:
                sentence = f"candidate version {terms.version} gets nothing: {error}"
            except RequestError as error:
                sentence = (
                    f"candidate version {terms.version} is waiting for Triton at {self._shelf.triton.address}: "
                    f"{error.cause or error}"
                )
            except Exception:
                pause, sentence = REREAD_SECONDS, said
                log.exception("candidate version %s could not be brought up; trying again", terms.version)
            if sentence != said:
                log.error(sentence)
                said = sentence
            await asyncio.sleep(pause)
        self.trial = Trial(bundle, terms, self._end)
        self._metrics.candidate_is(bundle.version, terms.mode, terms.share, "")
        log.info("candidate version %s is on trial: %s of %g of the requests", bundle.version, terms.mode, terms.share)

    def _end(self, code: str, sentence: str) -> None:
        terms = self._terms
        self.trial = None
        self._ended = sentence
        self._metrics.candidate_is(str(terms.version), terms.mode, terms.share, code)
        log.error(
            "candidate version %s (%s of %g of the requests) is ended: %s",
            terms.version,
            terms.mode,
            terms.share,
            sentence,
        )


class Shadow:
    """Asks the candidate again what the Champion has answered, behind the caller's back and only where there is room.

    Room is SHADOW_TEXTS at one time, and none while the gateway is more than half full: both versions share the
    processors.  Requests that find none, and batches of more texts than that, are dropped and counted.
    """

    def __init__(self, live: Callable[[], Bundle], triton: Triton, admission: Admission, metrics: Metrics) -> None:
        self._live = live
        self._triton = triton
        self._admission = admission
        self._metrics = metrics
        self._texts = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, trial: Trial, texts: list[str], labels: list[str], live_seconds: float, request_id: str) -> None:
        """`labels` are the names the Champion gave, in `live_seconds` at Triton."""
        room = min(SHADOW_TEXTS, trial.bundle.max_batch_size) - self._texts
        if len(texts) > room or 2 * self._admission.texts > self._admission.limit:
            self._metrics.shadow_dropped(len(texts))
            return
        alone = self._texts == 0
        self._texts += len(texts)
        task = asyncio.create_task(self._ask(trial, texts, labels, live_seconds, request_id, alone=alone))
        self._tasks.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _ask(
        self,
        trial: Trial,
        texts: list[str],
        labels: list[str],
        live_seconds: float,
        request_id: str,
        *,
        alone: bool,
    ) -> None:
        version = trial.bundle.version
        try:
            found, seconds = await self._read_again(trial.bundle, texts, request_id)
        except RequestError:
            if await self._champion_answers():
                self._metrics.candidate_failed(version)
                trial.failed()
        else:
            agreeing = sum(one == other for one, other in zip(found, labels, strict=True))
            self._metrics.shadowed(version, len(texts), agreeing, live_seconds, seconds)
            trial.succeeded()
            if alone:  # callers wait for a Champion that halts, shadows pile up: one halt is to count once
                trial.compare(live_seconds, seconds)
        finally:
            self._texts -= len(texts)

    async def _read_again(self, bundle: Bundle, texts: list[str], request_id: str) -> tuple[list[str], float]:
        """The names of the labels, and the seconds at Triton."""
        tokens = await asyncio.to_thread(bundle.tokens, texts)
        if any(bundle.is_empty(each) for each in tokens):
            raise EmptyText("is empty after the candidate's cleaning")
        asked = time.perf_counter()
        logits = await self._triton.logits(
            bundle,
            [each.ids for each in tokens],
            until=time.monotonic() + SHADOW_SECONDS,
            request_id=f"{request_id}.shadow" if request_id else "",
        )
        seconds = time.perf_counter() - asked
        return [bundle.labels[winner].name for winner in logits.argmax(axis=-1)], seconds

    async def _champion_answers(self) -> bool:
        """Whether a failure was the candidate's own: when Triton is away, nobody answers."""
        try:
            await check_golden_row(self._triton, self._live())
        except GatewayError:
            return False
        return True


def percentile_95(values: tuple[float, ...]) -> float:
    return sorted(values)[int(0.95 * len(values))]


def _identity(terms: Terms) -> tuple[int, object]:
    return terms.version, terms.since
