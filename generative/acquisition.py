"""A scan as another scanner would have seen it: contrast, blur, shading and noise.

`rerender` applies an `Acquisition` to volumes, real or generated; `rerender_batch` to a batch on
the disk. Which acquisitions a batch gets is said by `scanners`. The site, a condition of the
prior, is something else: it asks for a scanner that training persons were seen by, as the
generator has learned it. An acquisition is applied on top of that, to the finished volume, and may
be one that nobody was seen by.

The order is the physical one: contrast, blur, shading, the receiver's noise; then the scaling that
preparation does. Everything is relative: a generated scan has its cohort's blur and noise already,
and neither can be undone, so `blur_mm`, `noise` and `bias` are what comes on top.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import fft, ndimage
from scipy.interpolate import PchipInterpolator

from rarescan.cohort.contracts import BRAIN_BOX_MM, FloatArray
from rarescan.cohort.store import VOLUMES, tables
from rarescan.errors import SettingError
from rarescan.generative.code_store import stored
from rarescan.seeds import generator

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEVELS = (0.25, 0.5, 0.75)
"""About fluid, grey and white matter of a prepared T1 scan."""
NEUTRAL_CONTRAST = (0.25, 0.5)
FWHM = 2.3548
DARKEST = 1e-3
"""Least value inside the brain, whose mask is where a volume is above 0: 33 steps of 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """What one scanner does to a scan, on top of what was done to it already."""

    contrast: tuple[float, float] = NEUTRAL_CONTRAST
    """What 0.25 and 0.5 become, while 0, 0.75 and 1 stay: about fluid and grey matter where white
    matter is 0.75. The monotone curve through these points (Fritsch and Carlson 1980)."""
    blur_mm: float = 0.0
    """Full width at half maximum of a Gaussian, in mm."""
    noise: float = 0.0
    """Standard deviation in each of the receiver's two channels, in stored units (0 to 1)."""
    bias: float = 0.0
    """Standard deviation, over the brain, of the logarithm of the shading."""

    def __post_init__(self) -> None:
        low, middle = self.contrast
        if not 0 < low < middle < LEVELS[2]:
            raise SettingError(
                f"A contrast of {low:g} and {middle:g} is no rising curve.",
                remedy=f"Give two rising numbers between 0 and {LEVELS[2]:g}; 0.25 and 0.5 "
                "change nothing.",
            )
        if min(self.blur_mm, self.noise, self.bias) < 0:
            raise SettingError(
                "Blur, noise and bias of an acquisition cannot be below 0.",
                remedy="Give 0 for what should stay as it is.",
            )


def rerender(
    volumes: FloatArray, acquisitions: Sequence[Acquisition], seeds: Sequence[int]
) -> FloatArray:
    """Return volumes as other scanners would have seen them.

    Parameters
    ----------
    volumes : float32 array, shape (n, x, y, z)
        On a brain grid of any spacing; 0 to 1, 0 outside the brain.
    acquisitions : sequence of Acquisition
        One a volume. A neutral one returns the volume's own bytes.
    seeds : sequence of int
        One a volume: its noise and the shape of its shading depend on nothing else.

    Returns
    -------
    float32 array, shape (n, x, y, z)
        0 to 1; 0 exactly where the volume is 0, above 0 elsewhere. Bright tissue keeps the mean
        brightness that the volume has, because preparation scales by it.
    """
    seen = np.empty_like(volumes)
    for row, (volume, how, seed) in enumerate(zip(volumes, acquisitions, seeds, strict=True)):
        seen[row] = _seen(np.asarray(volume), how, seed)
    return seen


def _seen(volume: FloatArray, how: Acquisition, seed: int) -> FloatArray:
    mask = volume > 0
    if how == Acquisition() or not mask.any():
        return volume
    spacing_mm = BRAIN_BOX_MM[0] / volume.shape[0]
    picture = tone_curve(how.contrast)(volume).astype(np.float32)
    picture = _blurred(picture, mask, how.blur_mm / FWHM / spacing_mm)
    picture *= np.exp(how.bias * _shading(mask, seed))
    if how.noise:
        random = generator(seed, "acquisition", "noise")
        noise = how.noise * random.standard_normal((2, *volume.shape), dtype=np.float32)
        # The magnitude of a complex signal: Rician (Gudbjartsson and Patz 1995), so that noise
        # lifts what is dark.
        picture = np.hypot(picture + noise[0], noise[1])
    picture *= _bright_mean(volume[mask]) / _bright_mean(picture[mask])
    kept: FloatArray = np.where(mask, np.clip(picture, DARKEST, 1), np.float32(0))
    return kept


def tone_curve(contrast: tuple[float, float]) -> PchipInterpolator:
    """Return the rising curve from 0 to 1 through the points of a contrast."""
    return PchipInterpolator((0.0, *LEVELS, 1.0), (0.0, *contrast, LEVELS[2], 1.0))


def _blurred(picture: FloatArray, mask: Mask, sigma_voxels: float) -> FloatArray:
    """Return a picture blurred within the brain: the empty outside does not darken its rim."""
    if sigma_voxels < 1e-3:
        return picture
    # By its transform: a Gaussian of half a voxel, sampled, is a third too narrow.
    parts = [np.where(mask, picture, 0).astype(np.float32), mask.astype(np.float32)]
    waves = [ndimage.fourier_gaussian(fft.rfftn(p), sigma_voxels, mask.shape[2]) for p in parts]
    values, weight = (fft.irfftn(wave, mask.shape) for wave in waves)
    blurred: FloatArray = np.where(mask, values / np.maximum(weight, 1e-3), 0)
    return blurred.astype(np.float32)


def _shading(mask: Mask, seed: int) -> FloatArray:
    """Return a smooth random field of mean 0 and standard deviation 1 over the brain."""
    smooth = polynomials(mask)[:, 1:]
    random = generator(seed, "acquisition", "shading")
    weights = random.standard_normal((smooth.shape[1], 1))[:, 0]
    field = np.zeros(mask.shape, dtype=np.float32)
    field[mask] = smooth @ weights * (len(smooth) / (weights**2).sum()) ** 0.5
    return field


def polynomials(mask: Mask) -> Array:
    """Return orthonormal polynomials of the place in the brain, one a column, constant first.

    Up to the second order. Shading is modelled so (Van Leemput et al. 1999, up to the fourth);
    the third order already puts most of a random field's size into the brain's corners.
    """
    x, y, z = (np.argwhere(mask) / np.array(mask.shape) - 0.5).T
    powers = [p for p in product(range(3), repeat=3) if sum(p) <= 2]
    columns = [x**i * y**j * z**k for i, j, k in sorted(powers, key=sum)]
    return np.asarray(np.linalg.qr(np.stack(columns, axis=1))[0])


def _bright_mean(values: FloatArray) -> float:
    """Return the mean of bright tissue, by which preparation scales a scan."""
    return float(values[values > 0.35 * np.quantile(values, 0.98)].mean(dtype=np.float64))


def rerender_batch(
    drawn: Path,
    root: Path,
    acquisitions: Sequence[Acquisition],
    seeds: Sequence[int],
    *,
    workers: int = 1,
) -> None:
    """Write the volumes of one cohort folder, seen anew, into another's.

    Killed and repeated it goes on; the bytes do not depend on the number of workers.

    Parameters
    ----------
    drawn : Path
        Folder whose `rarescan/volumes.npy` is read.
    root : Path
        Folder that gets its own.
    acquisitions, seeds : sequence
        One a volume; see `rerender`.
    workers : int
        Processes.
    """
    source, target = tables(drawn) / VOLUMES, tables(root) / VOLUMES
    shape = np.load(source, mmap_mode="r").shape
    rows_of = partial(_rows_seen, source, tuple(acquisitions), tuple(seeds))
    stored(target, shape, rows_of, workers=workers)
    shutil.rmtree(target.with_suffix(".done"))


def _rows_seen(
    source: Path,
    acquisitions: Sequence[Acquisition],
    seeds: Sequence[int],
    rows: Sequence[int],
) -> torch.Tensor:
    volumes = np.load(source, mmap_mode="r")[list(rows)]
    how, mine = [acquisitions[row] for row in rows], [seeds[row] for row in rows]
    return torch.from_numpy(rerender(volumes, how, mine))
