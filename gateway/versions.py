"""The versions of the model repository, as their manifests describe them.

A manifest is read again only when a file of its version has changed.  Files are compared with it by their size alone:
the sha256 of each is looked at by whoever brings a version up (bundle.py).
"""

import asyncio
import os
import re
from pathlib import Path

from gateway.bundle import BUNDLE_FILES, Serving, read_manifest
from gateway.errors import BundleBroken, ModelUnavailable

NUMBER = re.compile(r"[1-9][0-9]{0,17}")
DESCRIBED = ("encoder", "precision", "max_length", "labels", "created", "source", "metrics", "parity")

Signature = tuple[tuple[int, int, int] | None, ...]


class Versions:
    """Of one repository; the file system is looked at in a thread, by one caller at a time."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._known: dict[int, tuple[Signature, dict[str, object]]] = {}
        self._reading = asyncio.Lock()

    async def listed(self, model: str, answering: str | None, serving: Serving | None) -> list[dict[str, object]]:
        """All versions of `model`, the newest first, as VersionAnswer (schemas.py) documents them.

        `answering` is the version that answers here, `serving` what serving.json says of the others.
        Raises ModelUnavailable when the repository cannot be read.
        """
        async with self._reading:
            described = await asyncio.to_thread(self._describe_all, model)
        previous = serving.previous if serving else None
        candidate = serving.candidate.version if serving and serving.candidate else None
        return [
            {
                "version": str(number),
                "serving": str(number) == answering,
                "previous": number == previous,
                "candidate": number == candidate,
                **facts,
            }
            for number, facts in described
        ]

    def _describe_all(self, model: str) -> list[tuple[int, dict[str, object]]]:
        root = self._repository / model
        try:
            with os.scandir(root) as entries:
                numbers = [int(each.name) for each in entries if NUMBER.fullmatch(each.name) and each.is_dir()]
        except OSError as error:
            raise ModelUnavailable(
                "The model repository cannot be read now; try again in a moment", cause=f"{root}: {error.strerror}"
            ) from error
        self._known = {number: self._known_or_read(root, number) for number in sorted(numbers, reverse=True)}
        return [(number, facts) for number, (_, facts) in self._known.items()]

    def _known_or_read(self, root: Path, number: int) -> tuple[Signature, dict[str, object]]:
        signature = tuple(_status(root / str(number) / name) for name in ("manifest.json", *BUNDLE_FILES))
        known = self._known.get(number)
        return known if known and known[0] == signature else (signature, self._describe(root, number))

    def _describe(self, root: Path, number: int) -> dict[str, object]:
        folder = root / str(number)
        facts: dict[str, object] = dict.fromkeys(DESCRIBED)
        try:
            manifest = read_manifest(folder, root.name, number)
            facts |= manifest.model_dump(include=set(DESCRIBED))
            for name in BUNDLE_FILES:
                _check_size(folder / name, manifest.files[name].bytes if name in manifest.files else None)
        except BundleBroken as error:  # its sentence is for the operator; callers need not know where we are
            return facts | {"broken": str(error).replace(f"{self._repository}{os.sep}", "")}
        return facts | {"broken": None}


def _check_size(file: Path, expected: int | None) -> None:
    status = _status(file)
    if status is None or status[2] != expected:
        found = "is not there" if status is None else f"has {status[2]} bytes"
        raise BundleBroken(
            f"{file} {found}, its manifest says {expected} bytes; publish the version again under a new number"
        )


def _status(file: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
