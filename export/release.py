"""How a version comes to answer, in steps that callers do not notice and that a kill at any moment leaves in order.

    1. verify             the staged files read back as they were written
    2. rename in          the folder is there whole; nothing names it
    3. load               Triton loads it beside the others, by a configuration of its own
    4. golden rows        through Triton, pinned to the new version
    5. config.pbtxt       names it: it has been proven, and a Triton that restarts loads it
    6. serving.json       the gateways turn to it, tokenizer, labels and version together
    7. the gateway        says that it answers with it
    8. soak               the version before stays loaded, so that a rollback takes no time
    9. let go             the version before is released

Until step 6 the version before serves and is all that config.pbtxt names. A step that fails undoes those before it.
A version that a rollback could turn to stays loaded as long as config.pbtxt names it: it is taken out of there first,
under the lock of serving.json, and released by Triton afterwards.
After a kill the next release clears up: it loads exactly the versions that serve, and its own. Where neither Triton nor
a gateway runs, steps 3, 4, 7, 8 and 9 have nobody to be done with.
"""

import dataclasses
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from export import publish
from export.bundle import read_manifest, verify_bundle
from export.errors import BundleBroken, ExportError, ReleaseRefused, RepositoryAway, RepositoryBusy, TritonAway
from export.gateway import Gateway
from export.manifest import Manifest
from export.publish import Stage
from export.serving import (
    MODEL,
    Candidate,
    Serving,
    alone,
    changed,
    locked,
    move_durably,
    now,
    read_serving,
    replace_serving,
    serving_file,
    version_folder,
    write_durably,
)
from export.settings import Settings
from export.triton import Triton
from export.triton_config import named_versions

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.5  # gateways look at serving.json twenty times a second, and end what they have sent
BUSY_SECONDS = 0.5  # between two looks whether another command has left the repository
RETURN_SECONDS = 5.0  # for the gateway to go back to the version before, when the new one is refused


@dataclass(frozen=True)
class Running:
    """What serves the repository at this moment; None where nothing listens."""

    triton: Triton | None
    gateway: Gateway | None


@dataclass(frozen=True)
class Released:
    """What serving.json says now, and whether somebody serves from it, so that a soak makes sense."""

    serving: Serving
    live: bool


def release(stage: Stage, settings: Settings) -> Released:
    """Let the staged version answer.

    Raises:
        BundleBroken, ReleaseRefused, TritonAway, RepositoryError: it does not; all is as it was before.
    """
    manifest = _verify_staged(stage)
    before = read_serving(stage.repository)
    after = _succession(stage.repository, before, stage.version)
    live = _bring_in(stage, settings, manifest, before, after, _in_service(stage.repository, before), staged=True)
    return Released(after, live)


def serve_again(
    repository: Path,
    version: int,
    settings: Settings,
    *,
    known: bool = False,
    roll_back_from: Serving | None = None,
) -> Released:
    """Let a version that was published before answer once more; nothing is copied.

    Raises:
        As `release`.
        RepositoryBusy: another command was faster: it serves, or what is to be rolled back does not serve any more.
    """
    with publish.open_stage(repository, known=known) as stage:
        before = read_serving(repository)
        if roll_back_from and before != roll_back_from:
            raise RepositoryBusy(changed(repository, before))
        if before and before.version == version:
            raise RepositoryBusy(f"version {version} serves already: another command was faster")
        manifest = verify_bundle(version_folder(repository, version))
        publish.check_labels(repository, len(manifest.labels))
        after = _succession(repository, before, version)
        if roll_back_from:
            after = dataclasses.replace(after, rolled_back=before.version)
        live = _bring_in(stage, settings, manifest, before, after, _in_service(repository, before), staged=False)
        return Released(after, live)


def load_beside(stage: Stage, settings: Settings, mode: str, share: float) -> None:
    """Load the staged version as the candidate, which answers as ``mode`` says and does not serve.

    Raises:
        As `release`.
    """
    manifest = _verify_staged(stage)
    before = read_serving(stage.repository)
    refuse_second_candidate(before)
    after = dataclasses.replace(before, candidate=Candidate(stage.version, mode, share, now()))
    _bring_in(stage, settings, manifest, before, after, named_versions(stage.repository), staged=True)


def refuse_second_candidate(serving: Serving) -> None:
    """Raises:
    ReleaseRefused: there is a candidate.
    """
    if serving.candidate:
        raise ReleaseRefused(f"version {serving.candidate.version} is the candidate already; promote or end it first")


def take_candidate_out(repository: Path, settings: Settings) -> int:
    """Remove the candidate from serving.json and from Triton; its folder stays. Returns its number.

    Raises:
        ReleaseRefused: there is none.
    """
    with publish.open_stage(repository) as stage:
        before = read_serving(repository)
        if before is None or before.candidate is None:
            raise ReleaseRefused(f"{serving_file(repository)} names no candidate, so there is none to end")
        replace_serving(repository, before, dataclasses.replace(before, candidate=None))
        time.sleep(SETTLE_SECONDS)
        with alone(repository) as found:  # a rollback may have come
            kept = {found.version, *named_versions(repository)} - ({before.candidate.version} - {found.version})
            config = _name_only(stage, kept)
        _keep_only(stage, settings, found, config)
        return before.candidate.version


def let_go(repository: Path, settings: Settings, serving: Serving) -> bool:
    """Release the version before ``serving``, which has proven itself; False if somebody has changed it meanwhile.

    config.pbtxt first, under the lock of serving.json: from then on a rollback does not take the version before for
    loaded, and a Triton that restarts in between has what it needs either way.

    Raises:
        RepositoryBusy: another command is at work.
        RepositoryAway: it cannot be reached.
    """
    with publish.open_stage(repository, known=True) as stage:
        with alone(repository) as found:
            if not is_same(found, serving):
                return False
            config = _name_only(stage, {found.version, *([found.candidate.version] if found.candidate else [])})
        done = _keep_only(stage, settings, found, config)
    if done and serving.previous:
        log.info("version %d is released; make rollback loads it again", serving.previous)
    return done


def soak(repository: Path, settings: Settings, serving: Serving, seconds: float) -> None:
    """Keep the version before loaded for so long, then let it go. Holds no lock, so that a rollback can come."""
    if serving.previous is None:
        return
    tell = sys.stderr.isatty()
    until = time.monotonic() + seconds
    next_word = time.monotonic()
    log.info("version %d stays loaded for %.0f s, for make rollback", serving.previous, seconds)
    try:
        while (left := until - time.monotonic()) > 0:
            if not serves_still(repository, serving):
                log.info("serving.json has changed; the soak of version %d ends", serving.version)
                return
            if tell and time.monotonic() >= next_word:
                print(f"\r  {left:4.0f} s left ", end="", file=sys.stderr, flush=True)
                next_word += 1.0
            time.sleep(min(left, 0.1))
        _let_go_in_the_end(repository, settings, serving)
    except KeyboardInterrupt:
        log.info("versions %d and %d both stay loaded until the next release", serving.version, serving.previous)
        return
    finally:
        if tell:
            print("\r" + " " * 20 + "\r", end="", file=sys.stderr)


def _let_go_in_the_end(repository: Path, settings: Settings, serving: Serving) -> None:
    """However long another command holds the repository, unless it changes what serves."""
    waits = False
    while serves_still(repository, serving):
        try:
            let_go(repository, settings, serving)
            return
        except RepositoryBusy as exc:
            if not waits:
                log.info("version %d stays loaded a while longer: %s", serving.previous, exc)
            waits = True
            time.sleep(BUSY_SECONDS)


def serves_still(repository: Path, serving: Serving) -> bool:
    """Raises:
    RepositoryAway: it is not there any more, or cannot be read.
    """
    found = read_serving(repository)
    if found is None:
        raise RepositoryAway(publish.gone(repository))
    return is_same(found, serving)


def is_serving(repository: Path, version: int) -> bool:
    serving = read_serving(repository)
    return serving is not None and serving.version == version


def is_same(found: Serving | None, serving: Serving) -> bool:
    """Whether the same version serves since the same moment; a candidate may have come or gone."""
    return found is not None and (found.version, found.since) == (serving.version, serving.since)


@contextmanager
def look_around(settings: Settings, serving: Serving | None) -> Iterator[Running]:
    """What runs now. A repository that names no version cannot be served by anybody.

    Raises:
        TritonAway: a gateway listens, and Triton does not answer within 30 s.
    """
    gateway = Gateway(settings)
    with Triton(settings) as triton:
        there = gateway.listens()
        if serving is None or not (there or triton.listens()):
            yield Running(None, None)
            return
        triton.wait()
        yield Running(triton, gateway if there else None)


def _verify_staged(stage: Stage) -> Manifest:
    manifest = verify_bundle(stage.version_folder)
    if manifest.version != stage.version:
        raise BundleBroken(f"the manifest says version {manifest.version}, it is to be published as {stage.version}")
    publish.check_labels(stage.repository, len(manifest.labels))
    return manifest


def _succession(repository: Path, before: Serving | None, version: int) -> Serving:
    """What serving.json says when ``version`` takes over; a candidate goes on, unless it is the one that takes over."""
    if before is None:
        return Serving(version, None, now())
    previous = before.version if version_folder(repository, before.version).is_dir() else None
    candidate = before.candidate if before.candidate and before.candidate.version != version else None
    return Serving(version, previous, now(), candidate=candidate)


def _in_service(repository: Path, serving: Serving | None) -> list[int]:
    """What must stay loaded until the switch: the version that serves, and the one a rollback may go to meanwhile."""
    if serving is None:
        return []
    return [serving.version, *({serving.previous} & set(named_versions(repository)))]


def _bring_in(
    stage: Stage,
    settings: Settings,
    manifest: Manifest,
    before: Serving | None,
    after: Serving,
    beside: list[int],
    *,
    staged: bool,
) -> bool:
    """Steps 2 to 7 for the version of ``manifest``, loaded with those ``beside`` it; undone if one fails.

    Returns whether anybody serves the repository.
    """
    repository, version = stage.repository, manifest.version
    candidate = [after.candidate.version] if after.candidate else []
    wanted = sorted({*beside, *candidate, version})
    with look_around(settings, before) as running:
        if running.triton:
            _check_it_is_ours(running.triton, repository, before)
        with _undone_on_failure(stage, running, before, after, version):
            if staged:
                publish.rename_in(stage)
            there = [number for number in wanted if version_folder(repository, number).is_dir()]
            config = publish.configuration(repository, len(manifest.labels), there)
            if running.triton:
                running.triton.load(config)
                log.info("Triton has loaded version %d beside %s", version, _shown(set(there) - {version}))
                running.triton.check_golden_rows(manifest, config.max_batch_size)
                log.info("Triton gives the %d golden answers of version %d", len(manifest.golden), version)
            publish.write_config(stage, config)
            replace_serving(repository, before, after)
            if running.gateway and after.version == version:
                seconds = running.gateway.wait_for(version)
                log.info("the gateway answers with version %d, %.2f s after serving.json named it", version, seconds)
        if after.version == version:
            _let_the_oldest_go(stage, running)
        return running.triton is not None


@contextmanager
def _undone_on_failure(
    stage: Stage, running: Running, before: Serving | None, after: Serving, version: int
) -> Iterator[None]:
    """All as before if the block fails. What that needs is written first, as the disk may be full by then."""
    named = named_versions(stage.repository)
    config = stage.repository / MODEL / "config.pbtxt"
    kept_config, kept_serving = stage.folder / "config.before", stage.folder / "serving.before"
    if config.exists():
        write_durably(kept_config, config.read_text(encoding="utf-8"))
    if before:
        # It was seen to answer, if only for a moment: the number is not used again.
        marked = dataclasses.replace(before, rolled_back=version) if after.version == version else before
        write_durably(kept_serving, marked.to_json())
    try:
        yield
    except BaseException as exc:
        with suppress(RepositoryBusy, FileNotFoundError):  # it never named the new version, or a rollback came first
            with locked(stage.repository, after):
                _put_back(kept_serving, serving_file(stage.repository))
            if running.gateway and before:
                with suppress(ReleaseRefused):
                    running.gateway.wait_for(before.version, RETURN_SECONDS)
        serves = False
        with suppress(FileNotFoundError), alone(stage.repository) as found:
            serves = found is not None and found.version == version
            if not serves:
                _put_back(kept_config, config)
        if serves:  # somebody rolled back and forth meanwhile
            raise
        _unload(stage, running, named)
        publish.take_out(stage)
        if isinstance(exc, ExportError) and before:
            raise type(exc)(f"version {version} was not released: {exc}; version {before.version} serves on") from exc
        raise


def _put_back(kept: Path, file: Path) -> None:
    """The file as it was; gone, if there was none."""
    if kept.exists():
        move_durably(kept, file)
    else:
        file.unlink(missing_ok=True)


def _unload(stage: Stage, running: Running, named: list[int]) -> None:
    """Have Triton keep what config.pbtxt names. If it cannot be told, the next release tells it."""
    there = [version for version in named if version_folder(stage.repository, version).is_dir()]
    if running.triton is None or not there:
        return
    try:
        running.triton.load(publish.configuration(stage.repository, 0, there))
    except (ReleaseRefused, TritonAway) as exc:
        log.warning("Triton was not told to unload what was refused, which the next release does: %s", exc)


def _let_the_oldest_go(stage: Stage, running: Running) -> None:
    """After a switch, what neither serves nor could be rolled back to; else the next release does it."""
    try:
        with alone(stage.repository) as found:  # a rollback may have come
            named = set(named_versions(stage.repository))
            kept = named & {found.version, found.previous, found.candidate and found.candidate.version}
            if kept == named:
                return
            config = _name_only(stage, kept)
        if running.triton:
            running.triton.load(config)
    except (ExportError, OSError) as exc:  # the new version serves, whatever becomes of the oldest
        log.warning("what is not needed any more stays loaded until the next release: %s", exc)


def _name_only(stage: Stage, versions: set[int]) -> ModelConfig:
    """Have config.pbtxt name these."""
    config = publish.configuration(stage.repository, 0, sorted(versions))
    publish.write_config(stage, config)
    return config


def _keep_only(stage: Stage, settings: Settings, serving: Serving, config: ModelConfig) -> bool:
    """Unload all but these; False when Triton cannot be told, which then keeps the others until the next release."""
    try:
        with look_around(settings, serving) as running:
            if running.triton:
                _check_it_is_ours(running.triton, stage.repository, serving)
                running.triton.load(config)
    except (ReleaseRefused, TritonAway) as exc:
        log.warning("what is not needed any more stays loaded until the next release: %s", exc)
        return False
    return True


def _check_it_is_ours(triton: Triton, repository: Path, before: Serving) -> None:
    """To load our versions into the Triton of another repository would unload what it serves.

    Raises:
        ReleaseRefused: it serves another repository.
    """
    ready = triton.ready_versions()
    if before.version in ready:
        try:
            manifest = read_manifest(version_folder(repository, before.version))
        except BundleBroken:  # it is for the new version to mend
            return
        stranger = None if triton.answers_as(manifest) else before.version
    else:  # a folder may be missing here too, but then what serves has answered
        stranger = next((number for number in sorted(ready) if not version_folder(repository, number).is_dir()), None)
    if stranger:
        raise ReleaseRefused(
            f"Triton at {triton.address} serves another repository, as its version {stranger} is not the one of "
            f"{repository}; set NUNCHI_TRITON_GRPC_PORT and NUNCHI_GATEWAY_PORT to where this one is served"
        )


def _shown(versions: set[int]) -> str:
    return " and ".join(map(str, sorted(versions))) or "nothing"
