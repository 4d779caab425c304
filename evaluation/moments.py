"""Mean and covariance of features: folded block by block, merged, stored, compared.

`Moments.fold` reads features that do not fit into memory, `plus` merges what several processes
folded, `frechet` is the FID of two of them. Blocks are centred before they are squared (Chan,
Golub and LeVeque 1979): sums of raw squares lose the digits when features have a large mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from rarescan.errors import InputError
from rarescan.files import atomic_path

Array = npt.NDArray[np.float64]

_SINGULAR = 1e-5
"""Smallest over largest diagonal of a Cholesky factor below which its product is not trusted."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What a Fréchet distance needs to know of a set of features."""

    n: int
    """Rows, one a person."""
    mean: Array
    """Shape (d,)."""
    scatter: Array
    """Sum of the products of deviations from the mean, shape (d, d)."""

    @property
    def covariance(self) -> Array:
        """Covariance with divisor n - 1, shape (d, d)."""
        covariance: Array = self.scatter / (self.n - 1)
        return covariance

    @classmethod
    def of(cls, rows: npt.NDArray[np.floating]) -> "Moments":
        """Return the moments of rows, shape (n, d); computed in float64."""
        values = rows.astype(np.float64)
        mean = values.mean(axis=0)
        centred = values - mean
        return cls(n=len(values), mean=mean, scatter=centred.T @ centred)

    @classmethod
    def fold(cls, blocks: Iterable[npt.NDArray[np.floating]]) -> "Moments":
        """Return the moments of all rows of blocks, of which one at a time is in memory."""
        return reduce(cls.plus, (cls.of(block) for block in blocks if len(block)))

    def plus(self, other: "Moments") -> "Moments":
        """Return the moments of both sets together."""
        if self.mean.shape != other.mean.shape:
            raise InputError(
                f"Moments of {len(self.mean)} and of {len(other.mean)} features do not add up.",
                remedy="Fold features of one extractor only.",
            )
        n, step = self.n + other.n, other.mean - self.mean
        scatter = np.outer(step, step * (self.n * other.n / n))
        scatter += self.scatter
        scatter += other.scatter
        return Moments(n=n, mean=self.mean + step * (other.n / n), scatter=scatter)

    def save(self, path: Path, *, extractor: str, weights_sha256: str = "") -> None:
        """Write `mean`, `cov`, `n`, `extractor`, `weights_sha256` as an npz file."""
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(
                stream,
                mean=self.mean,
                cov=self.covariance,
                n=np.array(self.n),
                extractor=np.array(extractor),
                weights_sha256=np.array(weights_sha256),
            )


def load_moments(path: Path) -> tuple[Moments, str, str]:
    """Return what `Moments.save` wrote: moments, extractor, SHA-256 of its weights.

    Raises
    ------
    InputError
        The file holds no moments.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            about: dict[str, Any] = dict(stored)
        n = int(about["n"])
        scatter = about["cov"] * (n - 1)
        moments = Moments(n=n, mean=about["mean"], scatter=scatter)
        return moments, str(about["extractor"]), str(about["weights_sha256"])
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path.name} holds no mean and covariance of features.",
            remedy="Name a file that `Moments.save` wrote.",
        ) from error


def frechet(real: Moments, synthetic: Moments) -> float:
    """Return the Fréchet distance of two Gaussians, without the square root of a matrix.

    Notes
    -----
    tr (Sx Sy)^(1/2) is the sum of the roots of the eigenvalues of L^T Sy L with Sx = L L^T
    (Cholesky), or, where Sx is singular, the nuclear norm of H^T K with Sx = H H^T, Sy = K K^T.
    """
    if min(real.n, synthetic.n) < 2:
        raise InputError(
            "A covariance needs at least two persons in each set.", remedy="Add persons."
        )
    shift = real.mean - synthetic.mean
    sx, sy = real.covariance, synthetic.covariance
    traces = np.trace(sx) + np.trace(sy)
    return float(shift @ shift + traces - 2 * _trace_of_root(sx, sy, (real.n, synthetic.n)))


def _trace_of_root(sx: Array, sy: Array, sizes: tuple[int, int]) -> float:
    lower = _cholesky(sx) if sizes[0] > len(sx) else None
    if lower is not None:
        roots = linalg.eigvalsh(lower.T @ sy @ lower, check_finite=False, overwrite_a=True)
        return float(np.sqrt(roots.clip(0)).sum())
    halves = [_half(s, n - 1) for s, n in zip((sx, sy), sizes, strict=True)]
    return float(np.linalg.svd(halves[0].T @ halves[1], compute_uv=False).sum())


def _cholesky(s: Array) -> Array | None:
    """Return the lower factor, or None where the matrix is singular or nearly so."""
    try:
        lower: Array = linalg.cholesky(s, lower=True, check_finite=False)
    except linalg.LinAlgError:
        return None
    diagonal = np.diag(lower)
    return lower if diagonal.min() > _SINGULAR * diagonal.max() else None


def _half(s: Array, rank: int) -> Array:
    """Return H, shape (d, at most rank), with H H^T = s; zero eigenvalues are left out."""
    values, vectors = linalg.eigh(s)
    values, vectors = values[-rank:], vectors[:, -rank:]
    kept = values > len(s) * np.finfo(float).eps * max(values[-1], 0)
    half: Array = vectors[:, kept] * np.sqrt(values[kept])
    return half
