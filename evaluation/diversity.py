"""Are synthetic persons as different from each other as real ones are? Shown, never decides.

`vendi_ratio` counts how many different persons a set is worth by its features, `pair_similarity`
how alike random pairs of its volumes are (MS-SSIM). What a reader would get wrong: only pairs
within one set say something of variety; a synthetic and a real brain side by side do not.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from rarescan.cohort.contracts import FloatArray, Score
from rarescan.cohort.planes import are_planes
from rarescan.evaluation import metrics
from rarescan.evaluation.intervals import Z95
from rarescan.seeds import generator

Array = npt.NDArray[np.float64]

_DRAWS = 20
_MOST_PERSONS = 1000
_MOST_PAIRS = 50
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, finest first (Wang, Simoncelli, Bovik 2003)."""
_KERNEL, _SIGMA = 4, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def vendi_ratio(real: Array, synthetic: Array, *, sigma2: float, seed: int) -> Score:
    """Return how many different persons a set is worth, over real ones at the same number.

    Parameters
    ----------
    real, synthetic : float64 arrays, shape (n, d) and (m, d)
        One row a person.
    sigma2 : float
        The frozen bandwidth of the kernel.
    seed : int
        Draws of equal size.
    """
    n = min(len(real), len(synthetic), _MOST_PERSONS)
    ratios, halves = [], []
    for index in range(_DRAWS):
        draw = generator(seed, "vendi", index)
        a, b = (rows[draw.choice(len(rows), n, replace=False)] for rows in (real, synthetic))
        ratios.append(_vendi(b, sigma2) / _vendi(a, sigma2))
        half = slice(n // 2)  # rows were drawn in random order
        halves.append(_vendi(b[half], sigma2) / _vendi(a[half], sigma2))
    value, se = float(np.mean(ratios)), float(np.std(halves, ddof=1))
    return Score(
        name="vendi_ratio",
        value=value,
        low=max(0.0, value - Z95 * se),
        high=value + Z95 * se,
        better="higher",
        n_real=n,
        n_synthetic=n,
        sufficient=n >= 50,
        method="Vendi scores with the frozen RBF kernel, synthetic over real at equal n; interval "
        "from half samples, which covers 83 to 90 % of true values, not 95 %; does not decide",
    )


def _vendi(rows: Array, sigma2: float) -> float:
    return metrics.vendi(metrics.rbf(rows, rows, sigma2))


def paired(persons: Sequence[str], *, seed: int) -> list[int]:
    """Return places of at most 100 scans of different persons, whose neighbours make pairs.

    Parameters
    ----------
    persons : sequence of str
        Whose scan each is; the first scan of each person counts.
    seed : int
        Who is paired with whom.
    """
    first = list({person: i for i, person in reversed(list(enumerate(persons)))}.values())
    drawn = generator(seed, "pairs").permutation(sorted(first))[: 2 * _MOST_PAIRS]
    return [int(i) for i in drawn[: len(drawn) // 2 * 2]]


def pair_similarity(volumes: FloatArray) -> Array:
    """Return the MS-SSIM of volumes 0 and 1, 2 and 3, and so on.

    Parameters
    ----------
    volumes : float32 array, shape (2 pairs, x, y, z), 0 to 1
        On a grid of about 4 mm (`copies.coarsen`), in the order of `paired`.
    """
    pairs = zip(volumes[0::2], volumes[1::2], strict=True)
    return np.array([ms_ssim(a, b) for a, b in pairs])


def similarity_score(name: str, values: Array, *, synthetic: bool) -> Score | None:
    """Return the mean similarity of pairs with its t interval; None below two pairs.

    Pairs share no person, so that they are independent.
    """
    n = len(values)
    if n < 2:
        return None
    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    mean = float(values.mean())
    return Score(
        name=name,
        value=mean,
        low=max(0.0, mean - half),
        high=min(1.0, mean + half),
        better="neither",
        n_real=0 if synthetic else 2 * n,
        n_synthetic=2 * n if synthetic else 0,
        sufficient=n >= 10,
        method=f"MS-SSIM of {n} disjoint pairs at about 4 mm; lower = more varied, to be compared "
        "with pairs of real persons; t interval over pairs; does not decide",
        extractor="volumes",
    )


def ms_ssim(a: FloatArray, b: FloatArray) -> float:
    """Return the multi-scale structural similarity of two volumes, 0 to 1.

    Parameters
    ----------
    a, b : float32 arrays, shape (x, y, z), 0 to 1
        Of pictures the mean over the planes.

    Notes
    -----
    Wang, Simoncelli, Bovik 2003, as MONAI's `MultiScaleSSIMMetric(spatial_dims=3, data_range=1,
    kernel_size=4)` computes it, with as many of its five scales as fit (the weights of the others
    are shared out). MONAI convolves with whole kernels, which takes longer than separate axes.
    """
    if are_planes(a.shape):
        return float(np.mean([_ms_ssim(a[..., i], b[..., i]) for i in range(a.shape[-1])]))
    return _ms_ssim(a, b)


def _ms_ssim(a: FloatArray, b: FloatArray) -> float:
    """Return the similarity of two arrays with two or three axes of space."""
    n_scales = 1
    while n_scales < len(_WEIGHTS) and min(a.shape) >> n_scales >= _KERNEL:
        n_scales += 1
    weights = np.array(_WEIGHTS[:n_scales]) / sum(_WEIGHTS[:n_scales])
    value = 1.0
    for scale, weight in enumerate(weights):
        whole, contrast = _ssim(a, b)
        value *= max(whole if scale == n_scales - 1 else contrast, 0.0) ** float(weight)
        a, b = _halved(a), _halved(b)
    return value


def _ssim(a: FloatArray, b: FloatArray) -> tuple[float, float]:
    """Return mean similarity and its part that is contrast and structure."""
    mean_a, mean_b, aa, bb, ab = _smoothed(np.stack([a, b, a * a, b * b, a * b]))
    contrast = (2 * (ab - mean_a * mean_b) + _C2) / (aa - mean_a**2 + bb - mean_b**2 + _C2)
    light = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return float((light * contrast).mean()), float(contrast.mean())


def _smoothed(maps: FloatArray) -> FloatArray:
    """Return maps under a Gaussian window of four voxels an edge, where it fits."""
    place = np.arange(_KERNEL) - (_KERNEL - 1) / 2
    window = np.exp(-((place / _SIGMA) ** 2) / 2)
    for axis in range(1, maps.ndim):
        n = maps.shape[axis] - _KERNEL + 1
        band = sum(w * np.eye(n + _KERNEL - 1, n, -i) for i, w in enumerate(window / window.sum()))
        maps = np.moveaxis(np.moveaxis(maps, axis, -1) @ np.float32(band), -1, axis)
    return maps


def _halved(volume: FloatArray) -> FloatArray:
    """Return means of 2 voxels along every axis; what is left over at the ends is dropped."""
    cut = volume[tuple(slice(n // 2 * 2) for n in volume.shape)]
    blocks = cut.reshape([part for n in cut.shape for part in (n // 2, 2)])
    halved: FloatArray = blocks.mean(axis=tuple(range(1, blocks.ndim, 2)), dtype=np.float32)
    return halved
