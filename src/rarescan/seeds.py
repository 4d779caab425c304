"""Where every random number comes from: one formula.

A seed is the hash of a base seed and names, never `base + index` (neighbouring batches would
share scans). Whoever knows the names can draw the same numbers again, in any order and in any
process, so no generator state needs to be stored.
"""

import hashlib

import numpy as np


def derive(base: int, *names: int | str) -> int:
    """Return the 63-bit seed of one purpose, for example `derive(7, scan_index, "noise")`.

    Formula: the first 8 bytes, big-endian, of SHA-256("base:name:name..."), without the top bit.
    """
    text = ":".join(str(part) for part in (base, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(base: int, *names: int | str) -> np.random.Generator:
    """Return a numpy generator of its own for one purpose."""
    return np.random.default_rng(derive(base, *names))
