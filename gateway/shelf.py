"""The bundles at hand: read once and proven once, so that a switch back to one of them needs neither.

A switch forth reads, hashes and proves a bundle, which takes a second or more for a large model; it happens in a thread
while the old version answers.  A switch back finds its bundle here and asks Triton for one golden row.
"""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from gateway.bundle import BUNDLE_FILES, Bundle, read_bundle
from gateway.proof import check_golden_row, prove
from gateway.triton import Triton

KEPT = 4  # the version that answers, the one before it, a candidate, and one on its way

Signature = tuple[tuple[int, int, int], ...] | None


@dataclass
class _Kept:
    bundle: Bundle
    signature: Signature
    proven: bool = False


class Shelf:
    """Bundles of one repository, proven through one Triton; the least recently asked for goes first."""

    def __init__(self, repository: Path, triton: Triton, bundle: Bundle) -> None:
        self.repository = repository
        self.triton = triton
        self._kept: dict[str, _Kept] = {}
        self._put(_Kept(bundle, self._signature(bundle.model, bundle.version)))

    async def fetch(self, model: str, version: int) -> Bundle:
        """The bundle of a version, read and checked unless the one at hand was made of the same files.

        The number alone does not tell: a release that failed at its last step leaves its number to the next one.
        """
        signature = await asyncio.to_thread(self._signature, model, str(version))
        kept = self._kept.pop(str(version), None)
        if kept is None or kept.signature is None or kept.signature != signature:
            kept = _Kept(await asyncio.to_thread(read_bundle, self.repository, version), signature)
        self._put(kept)
        return kept.bundle

    async def prove(self, bundle: Bundle) -> None:
        """In full the first time (`proof.prove`), by one golden row after that; the errors of both are the same."""
        kept = self._kept.get(bundle.version)
        if kept and kept.bundle is bundle and kept.proven:
            await check_golden_row(self.triton, bundle)
            return
        await prove(self.triton, bundle)
        if kept and kept.bundle is bundle:
            kept.proven = True

    def distrust(self, bundle: Bundle) -> None:
        """Triton may have been replaced: the next proof of this bundle is a full one."""
        if kept := self._kept.get(bundle.version):
            kept.proven = False

    def _put(self, kept: _Kept) -> None:
        self._kept[kept.bundle.version] = kept
        while len(self._kept) > KEPT:
            self._kept.pop(next(iter(self._kept)))

    def _signature(self, model: str, version: str) -> Signature:
        """Changes whenever a file of the bundle is replaced or written; None when one is missing."""
        folder = self.repository / model / version
        try:
            statuses = [os.stat(folder / name) for name in ("manifest.json", *BUNDLE_FILES)]
        except OSError:
            return None
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in statuses)
