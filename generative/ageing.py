"""A person's scan as it would be at another age.

`fit_ageing` learns from training persons what a year does, `Ageing.apply` does it to a scan. What
a year does to a voxel depends on what the person has there: fluid, grey matter and white matter
brighten or darken each in its own way (sulci open where grey matter and fluid share voxels), and
whatever is there moves. So the effect is a smooth map of six numbers: a change for each
tissue's brightness, and a velocity. It is added as brightness and slope of brightness,
not by resampling: on phantoms at 8 mm a fitted deformation makes twice the change's own size in
interpolation errors, this 0.8 of it, and the mean change has r = 0.78 and slope 0.76 with the
truth (voxelwise slopes: 0.64 and 0.83, and 0.9 of it).

The effect of the diagnosis is a covariate of the fit: ageing adds no disease.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn.functional import avg_pool3d, interpolate

from rarescan.cohort.contracts import BRAIN_BOX_MM, FloatArray
from rarescan.errors import InputError
from rarescan.generative.acquisition import DARKEST, LEVELS
from rarescan.generative.anatomy import to_image
from rarescan.generative.deformation import LATTICE_MM

Array = npt.NDArray[np.float64]

FEWEST = 20
"""Persons from whom the effect of age is learned."""
_LEAST_SPREAD_YEARS = 2.0
_SMOOTH_MM = 12.0
"""Standard deviation of the neighbourhood in which one effect is fitted."""
_SLOPE_MM = 4.0
"""Of the Gaussian under which slopes of brightness are taken."""
_RIDGE = 1e3
_LEAST_VARIANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Ageing:
    """What a year does."""

    effect: FloatArray
    """Shape (6, i, j, k) on the lattice of `deformation`: change of brightness of fluid, grey and
    white matter, and the velocity along x, y, z in steps of the lattice; all a year."""

    def apply(self, volumes: FloatArray, years: Sequence[float]) -> FloatArray:
        """Return scans as they would be so many years later; earlier where that is below 0.

        Parameters
        ----------
        volumes : float32 array, shape (n, x, y, z)
            On a brain grid; 0 to 1, 0 outside the brain.
        years : sequence of float
            One a volume.

        Returns
        -------
        float32 array, same shape
            0 to 1; 0 exactly where the volume is 0.
        """
        aged = np.empty_like(volumes)
        effect = _upsampled(self.effect, volumes.shape[1:])
        for row, (volume, span) in enumerate(zip(volumes, years, strict=True)):
            change = (effect * _features(np.asarray(volume))).sum(0)
            kept = np.clip(volume + np.float32(span) * change, DARKEST, 1)
            aged[row] = np.where(volume > 0, kept, 0)
        return aged


def fit_ageing(
    read: Callable[[int], FloatArray], ages: Sequence[float], groups: Sequence[str]
) -> Ageing:
    """Return what a year does to persons, whatever group they are of.

    Voxel by voxel the brightness is regressed on age, with a mean for each group; the slopes are
    then explained, in neighbourhoods of 12 mm and weighted by their precision, by what the mean
    person has there (ridge regression).

    Parameters
    ----------
    read : callable
        Gives person i's prepared volume, shape (x, y, z); each is read twice.
    ages : sequence of float
        Years, one a person; 20 persons or more.
    groups : sequence of str
        One a person: the diagnosis.

    Raises
    ------
    InputError
        Fewer persons, or ages that hardly differ within the groups.
    """
    centred = _within_groups(ages, groups)
    slope, variance, mean = _slopes(read, centred, groups)
    weight = (mean != 0).any(0) / np.maximum(variance, _LEAST_VARIANCE)
    spread = _SMOOTH_MM / LATTICE_MM

    def nearby(values: Array) -> Array:
        return np.asarray(ndimage.gaussian_filter(_pooled(values), spread, truncate=3))

    n = len(mean)
    products = {(i, j): nearby(weight * mean[i] * mean[j]) for i in range(n) for j in range(i + 1)}
    normal = np.stack(
        [np.stack([products[max(i, j), min(i, j)] for j in range(n)], -1) for i in range(n)], -2
    )
    right = np.stack([nearby(weight * slope * mean[i]) for i in range(n)], -1)
    found = np.linalg.solve(normal + _RIDGE * np.eye(n), right[..., None])[..., 0]
    return Ageing(effect=np.moveaxis(found, -1, 0).astype(np.float32))


def _within_groups(ages: Sequence[float], groups: Sequence[str]) -> Array:
    """Return ages less their group's mean; refuse what shows no effect of age."""
    values, labels = np.asarray(ages, float), np.asarray(groups)
    for group in set(groups):
        values[labels == group] -= values[labels == group].mean()
    spread = float(np.sqrt((values**2).mean())) if len(values) else 0.0
    if len(values) < FEWEST or spread < _LEAST_SPREAD_YEARS:
        raise InputError(
            f"{len(values)} training persons whose ages differ by {spread:.1f} years "
            "(standard deviation within a diagnosis) do not show what a year does.",
            remedy=f"{FEWEST} persons of different ages are needed; set generate.fill.what to "
            "site or none.",
        )
    return values


def _slopes(
    read: Callable[[int], FloatArray], centred: Array, groups: Sequence[str]
) -> tuple[Array, Array, Array]:
    """Return each voxel's change a year, its squared standard error, and the mean features."""
    kinds = sorted(set(groups))
    place = [kinds.index(group) for group in groups]
    shape = read(0).shape
    sums, squares = np.zeros((len(kinds), *shape)), np.zeros(shape)
    cross, features = np.zeros(shape), np.zeros((len(LEVELS) + 3, *shape))
    for i, (filled, volume) in enumerate(_images(read, len(groups))):
        sums[place[i]] += filled
        squares += filled.astype(np.float64) ** 2
        cross += centred[i] * filled
        features += _features(volume)
    sizes = np.bincount(place).reshape(-1, 1, 1, 1)
    total = float((centred**2).sum())
    slope = cross / total
    left = squares - (sums**2 / sizes).sum(0) - slope * cross
    freedom = max(len(groups) - len(kinds) - 1, 1)
    return slope, np.maximum(left, 0) / freedom / total, features / len(groups)


def _images(read: Callable[[int], FloatArray], n: int) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield each person's brightness, continued beyond the brain's edge, and volume."""
    for i in range(n):
        volume = np.asarray(read(i))
        yield to_image(volume)[0], volume


def _features(volume: FloatArray) -> FloatArray:
    """Return shares of fluid, grey and white matter, and slopes; shape (6, x, y, z).

    A voxel between two tissues' brightnesses has a share of each.
    """
    spacing_mm = BRAIN_BOX_MM[0] / volume.shape[0]
    smooth = ndimage.gaussian_filter(to_image(volume)[0], _SLOPE_MM / spacing_mm)
    shares = [np.interp(volume, LEVELS, row) for row in np.eye(len(LEVELS))]
    # A step of the lattice as the unit makes slopes as large as shares, which the ridge needs.
    slopes = np.gradient(smooth, spacing_mm / LATTICE_MM)
    found: FloatArray = np.stack([*shares, *slopes]).astype(np.float32)
    return found * (volume > 0)


def _pooled(values: Array) -> Array:
    """Return means over the lattice's cells."""
    factor = round(LATTICE_MM / (BRAIN_BOX_MM[0] / values.shape[0]))
    return np.asarray(avg_pool3d(torch.from_numpy(values)[None, None], factor)[0, 0].numpy())


def _upsampled(effect: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    size = list(shape)
    field = interpolate(torch.from_numpy(effect)[None], size, mode="trilinear", align_corners=False)
    found: FloatArray = field[0].numpy()
    return found
