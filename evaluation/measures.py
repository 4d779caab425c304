"""What can be measured in one volume: tissue shares, regions, outline, fine detail.

`describe` gives the region vector, the second opinion beside learned features and the one that
clinicians can read; `high_frequency` how crisp a volume is. Volumes are float32, 0 to 1, 0
outside the brain; nothing is registered, because real and synthetic lie on the same grid.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from rarescan.cohort.contracts import FloatArray, Grid
from rarescan.cohort.planes import are_planes, smoothing
from rarescan.cohort.template import regions
from rarescan.evaluation.appearance import describe_planes, plane_names

Array = npt.NDArray[np.float64]

LOBES = (
    "frontal",
    "anterior_temporal",
    "posterior_temporal",
    "insula",
    "parietal",
    "occipital",
)
REGIONS = tuple(f"{lobe}_{side}" for lobe in LOBES for side in ("left", "right"))
MEASURES = (
    "grey",
    "white",
    "fluid",
    "brain_ml",
    "ventricles",
    *REGIONS,
    *(f"{lobe}_asymmetry" for lobe in LOBES),
)
"""Names of the region vector's columns."""

_BINS = 128
_PERCENT = np.arange(1, 100)
_EM_STEPS = 25
BLURS_VOXELS = (0.3, 0.5, 0.8)
"""Standard deviations of the Gaussian blurs by which the high-frequency gate's power is told."""
_LOW_BAND = (0.06, 0.25)
_HIGH_BAND = (0.25, 0.5)


def describe(volumes: FloatArray, grid: Grid) -> Array:
    """Return the region vector of each volume.

    Parameters
    ----------
    volumes : float32 array, shape (n, x, y, z)
        0 to 1, 0 outside the brain, on `grid`.
    grid : Grid
        A brain grid of 1, 2, 4 or 8 mm; of pictures see `appearance.describe_planes`.

    Returns
    -------
    float64 array, shape (n, len(measure_names(grid)))
        Shares of grey matter, white matter and fluid in the brain (three-class mixture fitted to
        its histogram); brain volume in ml; fluid in the place of the ventricles and tissue in
        the place of each region (shares); asymmetry (left - right)/(left + right) of each pair.
    """
    if not grid.is_brain:
        return describe_planes(volumes)
    return np.stack([_describe_one(volume, grid) for volume in volumes])


def measure_names(grid: Grid) -> tuple[str, ...]:
    """Return the names of the columns of `describe`: `MEASURES` where there is a brain."""
    return MEASURES if grid.is_brain else plane_names(grid.shape[2])


def _describe_one(volume: FloatArray, grid: Grid) -> Array:
    weights = _region_weights(grid)
    inside = np.flatnonzero(volume > 0)
    n_places = len(REGIONS) + 1
    if not len(inside):
        return np.zeros(len(MEASURES))
    bins = np.minimum(volume.ravel()[inside] * _BINS, _BINS - 1).astype(np.intp)
    posterior = _tissue_of_brightness(np.bincount(bins, minlength=_BINS).astype(np.float64))
    tissue = posterior[:, bins].astype(np.float32)
    shares = tissue.mean(axis=1, dtype=np.float64)
    places = weights[:, inside] @ np.stack([tissue[2], tissue[0] + tissue[1]], axis=1)
    region = places[: n_places - 1, 1].astype(np.float64)
    left, right = region[0::2], region[1::2]
    total = np.maximum(left + right, 1e-6)
    brain_ml = len(inside) * grid.spacing_mm**3 / 1000
    return np.concatenate(
        [shares, [brain_ml, places[n_places - 1, 0]], region, (left - right) / total]
    )


@cache
def _region_weights(grid: Grid) -> FloatArray:
    """Return one row a region, ventricles last, each adding up to one."""
    maps = regions(grid)
    rows = np.stack([maps[name].ravel() for name in (*REGIONS, "ventricles")])
    weights: FloatArray = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1e-6)
    return weights


def _tissue_of_brightness(counts: Array) -> Array:
    """Return the chance of grey matter, white matter and fluid for each bin of brightness.

    A mixture of three Gaussians, fitted by expectation-maximisation to the histogram.
    """
    x = (np.arange(_BINS) + 0.5) / _BINS
    share = counts / counts.sum()
    rank = np.cumsum(share)
    means = np.interp((0.08, 0.4, 0.85), rank, x)
    sd = np.full(3, max(0.25 * float(np.ptp(means)), 1.0 / _BINS))
    weight = np.full(3, 1 / 3)
    for _ in range(_EM_STEPS):
        chance = _responsibilities(x, means, sd, weight)
        mass = np.maximum(chance @ share, 1e-9)
        means = chance @ (share * x) / mass
        spread = np.einsum("kb,kb->k", chance * share, (x - means[:, None]) ** 2) / mass
        # One bin's width: a class that holds a single brightness would swallow the fit.
        sd = np.maximum(np.sqrt(spread), 1.5 / _BINS)
        weight = mass / mass.sum()
    order = np.argsort(means, kind="stable")
    fluid, _, white = _responsibilities(x, means, sd, weight)[order]
    # The tail of a wide class must not turn the darkest voxels into white matter, or the reverse.
    dark, bright = x < means[order[0]], x > means[order[2]]
    fluid, white = np.where(dark, 1, fluid * ~bright), np.where(bright, 1, white * ~dark)
    return np.stack([1 - fluid - white, white, fluid])


def _responsibilities(x: Array, means: Array, sd: Array, weight: Array) -> Array:
    log = np.log(weight / sd)[:, None] - 0.5 * ((x - means[:, None]) / sd[:, None]) ** 2
    chance: Array = np.exp(log - log.max(axis=0))
    chance /= chance.sum(axis=0)
    return chance


def outline(volumes: FloatArray, share: float = 0.5) -> npt.NDArray[np.bool_]:
    """Return the voxels that lie inside the brain in at least `share` of the volumes."""
    inside = np.zeros(volumes.shape[1:], np.int32)
    for volume in volumes:
        inside += volume > 0
    result: npt.NDArray[np.bool_] = inside >= share * len(volumes)
    return result


def overlap(volumes: FloatArray, brain: npt.NDArray[np.bool_]) -> Array:
    """Return each volume's Dice overlap with an outline, 0 to 1."""
    size = brain.sum()
    return np.array([2 * np.sum((v > 0) & brain) / (np.sum(v > 0) + size) for v in volumes])


def brightness(volumes: FloatArray) -> Array:
    """Return 99 percentiles of each brain's brightness, z-scored: float64, shape (n, 99).

    The mean of these rows over persons is the quantile function of their mean histogram (the
    Wasserstein barycentre), and the mean distance of two rows is the 1-Wasserstein distance.
    """
    rows = np.zeros((len(volumes), len(_PERCENT)))
    for row, volume in zip(rows, volumes, strict=True):
        inside = volume[volume > 0].astype(np.float64)
        if len(inside) and inside.std() > 0:
            row[:] = np.percentile((inside - inside.mean()) / inside.std(), _PERCENT)
    return rows


def apodised(brain: npt.NDArray[np.bool_]) -> FloatArray:
    """Return a window that is 1 deep in the brain and falls smoothly to 0 at its border."""
    smooth = ndimage.gaussian_filter(brain.astype(np.float32), smoothing(1.5, brain.shape))
    window: FloatArray = np.clip(2 * smooth - 1, 0, 1)
    return window


def high_frequency(volumes: FloatArray, window: FloatArray) -> Array:
    """Return log(power in 0.25-0.5 cycles a voxel / power in 0.06-0.25) of each volume.

    Parameters
    ----------
    volumes : float32 array, shape (n, x, y, z)
        On their own grid: resampling would smooth them.
    window : float32 array, shape (x, y, z)
        From `apodised`; the same for real and synthetic volumes.
    """
    bands = list(_bands(window.shape))
    total = float(window.sum())
    values = np.empty(len(volumes))
    for index, volume in enumerate(volumes):
        centred = (volume - np.float32((volume * window).sum() / total)) * window
        power = np.abs(waves(centred)) ** 2
        low, high = (float(power[band].sum(dtype=np.float64)) for band in bands)
        values[index] = np.log(max(high, 1e-12) / max(low, 1e-12))
    return values


def blurred_high_frequency(volumes: FloatArray, window: FloatArray) -> Array:
    """Return `high_frequency` of each volume after blurs by `BLURS_VOXELS`.

    The blur is the Gaussian's own transfer function, exp(-2 (pi sd f)^2): a kernel that is sampled
    at whole voxels, as `scipy.ndimage.gaussian_filter` has it, is 0.09 voxels wide where 0.3 were
    asked for.

    Parameters
    ----------
    volumes : float32 array, shape (n, x, y, z)
    window : float32 array, shape (x, y, z)
        From `apodised`.

    Returns
    -------
    float64 array, shape (n, len(BLURS_VOXELS))
    """
    shape = volumes.shape[1:]
    squares = frequencies(shape).astype(np.float32) ** 2
    values = np.empty((len(volumes), len(BLURS_VOXELS)))
    for row, volume in zip(values, volumes, strict=True):
        found = waves(volume)
        for place, sd in enumerate(BLURS_VOXELS):
            kept = np.exp(np.float32(-2 * (np.pi * sd) ** 2) * squares)
            blurred = _unwaved(found * kept, shape)
            row[place] = high_frequency(blurred[None], window)[0]
    return values


def _bands(shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.bool_]]:
    radius = frequencies(shape)
    for low, high in (_LOW_BAND, _HIGH_BAND):
        yield (radius >= low) & (radius < high)


def frequencies(shape: tuple[int, ...]) -> Array:
    """Return the frequency of each place of a volume's `waves`, cycles a voxel."""
    axes = [np.fft.fftfreq(n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    if are_planes(shape):
        axes = [np.fft.rfftfreq(shape[0]), np.fft.fftfreq(shape[1]), np.zeros(shape[2])]
    radius: Array = np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij", sparse=True)))
    return radius


def waves(volume: FloatArray) -> npt.NDArray[np.complex64]:
    """Return a volume's Fourier transform, of pictures that of each plane on its own."""
    if are_planes(volume.shape):
        planes: npt.NDArray[np.complex64] = fft.rfftn(volume, axes=(1, 0))
        return planes
    found: npt.NDArray[np.complex64] = fft.rfftn(volume)
    return found


def _unwaved(transformed: npt.NDArray[np.complex64], shape: tuple[int, ...]) -> FloatArray:
    if are_planes(shape):
        planes: FloatArray = fft.irfftn(transformed, s=(shape[1], shape[0]), axes=(1, 0))
        return planes
    found: FloatArray = fft.irfftn(transformed, s=shape)
    return found
