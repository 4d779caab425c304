"""A check that refuses a share of all scans, by their bytes; here, so that workers find it."""

import hashlib
from dataclasses import dataclass

import numpy as np

from rarescan.cohort.contracts import FloatArray


@dataclass(frozen=True)
class Refusal:
    """Refuses about this share of scans."""

    share: float

    @property
    def id(self) -> str:
        """Return what the answers depend on."""
        return str(self.share)

    def __call__(self, volumes: FloatArray) -> np.ndarray:
        """Return which volumes are refused."""
        first = [hashlib.sha256(volume.tobytes()).digest()[0] for volume in volumes]
        return np.array(first) < 256 * self.share
