"""Near-identical texts: MinHash over pieces of four letters, found by bands, confirmed by counting.

A text's words (training.cleaning.words) are cut into all its pieces of four letters; two texts are near-identical
when the pieces they share are ``near_duplicate`` of all pieces of both (Jaccard). 32 minimal hashes estimate that,
in 8 bands of 4: texts that agree in a band are compared exactly, so no two are joined wrongly, and of those that
share 80 % about 98.5 % are found, of 90 % all but two in ten thousand (Broder 1997; Leskovec et al., Mining of
Massive Datasets, 3.4). The bands lie in the store, so nothing is read again at a start; a library keeps them in
memory or in a server.
"""

import zlib

import numpy as np

PIECE = 4
BANDS, ROWS = 8, 4
PRIME = np.uint64((1 << 31) - 1)

_random = np.random.default_rng(20261130)  # the same on every machine: the bands are kept
FACTORS = _random.integers(1, int(PRIME), (BANDS * ROWS, 1), dtype=np.uint64)
OFFSETS = _random.integers(0, int(PRIME), (BANDS * ROWS, 1), dtype=np.uint64)


def pieces(words: str) -> set[bytes]:
    return {words[at : at + PIECE].encode("utf-8", "replace") for at in range(max(len(words) - PIECE, 0) + 1)}


def bands(words: str) -> list[int]:
    """`BANDS` numbers, INT64; texts with an equal one may be near-identical."""
    hashes = np.fromiter((zlib.crc32(piece) for piece in pieces(words)), np.uint64) % PRIME
    lowest = ((FACTORS * hashes + OFFSETS) % PRIME).min(axis=1).astype("<u4").reshape(BANDS, ROWS)
    # The number of the band is hashed too: only the same band of two texts may meet.
    return [
        int.from_bytes(zlib.crc32(bytes([band]) + row.tobytes()).to_bytes(4) + int(row[0]).to_bytes(4), signed=True)
        for band, row in enumerate(lowest)
    ]


def likeness(one: str, other: str) -> float:
    """Share of all pieces that both have, 0 to 1."""
    first, second = pieces(one), pieces(other)
    return len(first & second) / len(first | second)
