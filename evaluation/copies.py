"""Is a scan a copy of a training person? The image-space assay.

`Assay.of` is built once from the training persons; `Assay.match` finds, for each scan, the
training person whose fine anatomy it repeats best, in both left-right orientations and at every
small shift. What is compared is what tells one person from another: low frequencies are removed,
the rest is divided by its local strength, and the ways in which all training persons vary
together (their mean and leading components) are projected out. Otherwise "all brains look alike"
would count as a match. Volumes finer than 4 mm are averaged to about 4 mm first (`coarsen`).

Pictures are searched in the same way, along rows and columns; their planes move together and are
never mixed. They have no common millimetre: a pixel of the search, of which the longer edge has
about 64, counts as 4 mm, and a mirror turns columns round.

Nothing is registered: of copies that are turned by up to 3 degrees a tenth is missed, of those
turned by up to 6 most, and those of inverted contrast are not found at all (`benchmarks/copies.py`
counts them).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import fft

from rarescan.cohort.contracts import FloatArray
from rarescan.cohort.planes import are_planes, spatial_axes
from rarescan.errors import InputError
from rarescan.evaluation.measures import outline

Array = npt.NDArray[np.float64]

_ASSAY_MM = 4.0
_COARSE_MM = 8.0
_PIXELS = 64
_LOW_PASS_MM = 6.0
_COMMON_COMPONENTS = 25
_FINALISTS = 8
_CHUNK = 64


@dataclass(frozen=True)
class Matches:
    """The best match of each scan among training persons."""

    score: Array
    """How far the nearest training person stands out, shape (n,): its correlation, minus the mean
    of the other persons' with what the nearest leaves unexplained, over their SD. A mixture of all
    persons resembles everybody a little, and no one stands out; what a copy has beside its donor
    resembles nobody. Without taking the donor's part away, a quarter of the exact copies of 22
    real persons stood out no more than strangers."""
    correlation: Array
    """With the nearest training person, -1 to 1, shape (n,)."""
    person: npt.NDArray[np.intp]
    """Position of the nearest person in `Assay.person_ids`, shape (n,)."""


def details(volumes: FloatArray, voxel_mm: float) -> FloatArray:
    """Return high-pass, locally normalised volumes; shifts and flips pass through unchanged."""
    brain = (volumes > 0).astype(np.float32)
    weight = np.maximum(_smooth(brain, voxel_mm), np.float32(1e-3)).astype(np.float32)
    rest: FloatArray = (volumes - _smooth(volumes, voxel_mm) / weight) * brain
    strength = np.sqrt(np.maximum(_smooth(rest**2, voxel_mm) / weight, 0))
    inside = np.maximum(brain.sum(axis=(1, 2, 3), keepdims=True), 1)
    typical = strength.sum(axis=(1, 2, 3), keepdims=True) / inside
    normalised: FloatArray = (rest / (strength + 0.1 * typical + 1e-6)).astype(np.float32)
    return normalised


def _smooth(volumes: FloatArray, voxel_mm: float) -> FloatArray:
    """Return volumes smoothed by a Gaussian of 6 mm SD; small matrix products along each axis."""
    for axis in spatial_axes(volumes.shape):
        place = np.arange(volumes.shape[axis]) * voxel_mm / _LOW_PASS_MM
        kernel = np.exp(-0.5 * (place[:, None] - place[None]) ** 2).astype(np.float32)
        volumes = np.moveaxis(np.moveaxis(volumes, axis, -1) @ kernel, -1, axis)
    return volumes


@dataclass(frozen=True)
class Assay:
    """The training persons, ready for comparison."""

    person_ids: tuple[str, ...]
    voxel_mm: float
    shift_voxels: int
    """The largest shift looked for."""
    mask: npt.NDArray[np.bool_]
    common: FloatArray
    """Orthonormal columns: how all training persons vary together, shape (mask voxels, k)."""
    person_of_scan: npt.NDArray[np.intp]
    own: FloatArray
    """What is each training scan's own, length one, shape (scans, mask voxels)."""
    spectra: npt.NDArray[np.complex64]
    coarse: FloatArray

    @classmethod
    def of(
        cls,
        volumes: FloatArray,
        persons: Sequence[str],
        *,
        voxel_mm: float,
        shift_mm: float,
    ) -> "Assay":
        """Build the assay from training scans.

        Parameters
        ----------
        volumes : float32 array, shape (n, x, y, z)
            From `coarsen`: 0 to 1, 0 outside the brain.
        persons : sequence of str
            Whose scan each volume is.
        voxel_mm : float
            Edge of a voxel, `coarse_voxel_mm` of the cohort's.
        shift_mm : float
            Copies shifted by up to this much along each axis are found.

        Raises
        ------
        InputError
            Fewer than two training persons: nothing could be nearest of several.
        """
        person_ids = tuple(sorted(set(persons)))
        if len(person_ids) < 2:
            raise InputError(
                "The search for copies needs at least two training persons.",
                remedy="Add persons to the cohort and run `rarescan prepare` again.",
            )
        mask = outline(volumes, share=0.9)
        rows = details(volumes, voxel_mm)[:, mask]
        common = _common(rows)
        own = _own(rows, common)
        patterns = np.zeros(volumes.shape, np.float32)
        patterns[:, mask] = own
        return cls(
            person_ids=person_ids,
            voxel_mm=voxel_mm,
            shift_voxels=round(shift_mm / voxel_mm),
            mask=mask,
            common=common,
            person_of_scan=np.array([person_ids.index(p) for p in persons], dtype=np.intp),
            own=own,
            spectra=np.stack([fft.rfftn(pattern) for pattern in patterns]),
            coarse=_block_average(patterns, _coarse_factor(voxel_mm)),
        )

    def match(self, volumes: FloatArray) -> Matches:
        """Return each scan's best match, searched coarsely among all, finely among eight.

        Parameters
        ----------
        volumes : float32 array, shape (n, x, y, z)
            From `coarsen`, on the grid of the training scans.
        """
        found = []
        for start in range(0, len(volumes), _CHUNK):
            scans = details(volumes[start : start + _CHUNK], self.voxel_mm)
            found += [self._match_one(scan) for scan in scans]
        score, correlation, person = (np.array(column) for column in zip(*found, strict=True))
        return Matches(score, correlation, person.astype(np.intp))

    def _coarse_search(self, scan: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Return the similarity of a scan with every training scan, and where it is mirrored.

        One scan at a time, so that the last bits do not depend on what else is searched.
        """
        training = self.coarse.reshape(len(self.coarse), -1)
        both = [(self._moved(side) @ training.T).max(axis=0) for side in (scan, mirrored(scan))]
        return np.maximum(*both), both[1] > both[0]

    def _moved(self, scan: FloatArray) -> FloatArray:
        """Return a scan in large voxels at shifts of whole ones and, between those, of halves.

        Halves move all three axes at once, so that no shift is farther than one small voxel from
        one of these; with whole ones only, 2 % of shifted copies were lost here.
        """
        factor, axes = _coarse_factor(self.voxel_mm), spatial_axes(scan.shape)
        farthest, half = -(-self.shift_voxels // factor), factor // 2
        whole = list(range(-farthest, farthest + 1))
        found = []
        for start, steps in ((0, whole), (half, whole[:-1])) if half else ((0, whole),):
            begun = np.roll(scan, (start,) * len(axes), axis=axes)
            small = _block_average(begun[None], factor)[0]
            moves = product(steps, repeat=len(axes))
            found += [np.roll(small, move, axis=axes).ravel() for move in moves]
        return np.stack(found)

    def _match_one(self, scan: FloatArray) -> tuple[float, float, int]:
        """Return score, correlation and person of the best of the finalists."""
        similarity, flipped = self._coarse_search(scan)
        sides = {False: scan, True: mirrored(scan)}
        spectra = {side: fft.rfftn(volume) for side, volume in sides.items()}
        candidates = []
        for index in self._finalists(similarity):
            side = bool(flipped[index])
            shift = self._best_shift(spectra[side] * self.spectra[index].conj())
            placed = np.roll(sides[side], shift, axis=(0, 1, 2))[self.mask]
            unique = _own(placed, self.common)
            candidates.append((float(unique @ self.own[index]), index, unique))
        correlation, index, unique = max(candidates, key=lambda one: one[0])
        return (
            self._standing_out(unique, correlation, index),
            correlation,
            int(self.person_of_scan[index]),
        )

    def _standing_out(self, unique: FloatArray, correlation: float, index: int) -> float:
        """Return the score of `Matches` of a scan whose nearest training scan is `index`."""
        # Without the donor's part: rivals resemble the donor by chance, and so would its copies.
        rest = unique - correlation * self.own[index]
        rivals = self.person_of_scan != self.person_of_scan[index]
        others = np.sort((self.own @ rest)[rivals])
        # The two nearest rivals may be copied too (a mixture of few persons) and are left out.
        others = others[: max(1, len(others) - 2)]
        # Few rivals have no spread of their own; chance correlations have about this one.
        spread = max(float(others.std()), float(1 / np.sqrt(self.mask.sum())))
        return (correlation - float(others.mean())) / spread

    def _finalists(self, similarity: FloatArray) -> list[int]:
        """Return the most similar scan of each of the most similar persons."""
        chosen: dict[int, int] = {}
        for scan in np.argsort(-similarity, kind="stable"):
            chosen.setdefault(int(self.person_of_scan[scan]), int(scan))
            if len(chosen) == min(_FINALISTS, len(self.person_ids)):
                break
        return list(chosen.values())

    def _best_shift(self, product_of_spectra: npt.NDArray[np.complex64]) -> tuple[int, ...]:
        """Return the shift of the scan, within the limit, that correlates best."""
        correlation = fft.irfftn(product_of_spectra, s=self.mask.shape)
        window = np.arange(-self.shift_voxels, self.shift_voxels + 1)
        windows = [window, window, np.zeros(1, int) if are_planes(correlation.shape) else window]
        near = correlation[np.ix_(*windows)]
        best = np.unravel_index(near.argmax(), near.shape)
        return tuple(-int(shifts[i]) for shifts, i in zip(windows, best, strict=True))


def _common(rows: FloatArray) -> FloatArray:
    """Return an orthonormal basis of the mean and of the leading components of the scans."""
    k = min(_COMMON_COMPONENTS, len(rows) // 4)
    mean = rows.mean(axis=0)
    leading = np.linalg.svd(rows - mean, full_matrices=False)[2][:k]
    basis: FloatArray = np.linalg.qr(np.vstack([mean, leading]).T)[0].astype(np.float32)
    return basis


def _own(rows: FloatArray, common: FloatArray) -> FloatArray:
    """Return what is not common, at length one."""
    rest = rows - (rows @ common) @ common.T
    length = np.linalg.norm(rest, axis=-1, keepdims=True)
    unit: FloatArray = (rest / np.maximum(length, 1e-9)).astype(np.float32)
    return unit


def _coarse_factor(voxel_mm: float) -> int:
    return max(1, round(_COARSE_MM / voxel_mm))


def mirrored(volume: FloatArray) -> FloatArray:
    """Return a volume with left and right exchanged, a picture with its columns turned round."""
    return volume[:, ::-1] if are_planes(volume.shape) else volume[::-1]


def coarsen(volumes: FloatArray, spacing_mm: float) -> FloatArray:
    """Return volumes averaged to about 4 mm, pictures to about 64 pixels; coarser ones as they are.

    `spacing_mm` does not count for pictures.
    """
    if are_planes(volumes.shape):
        return _block_average(volumes, max(1, round(max(volumes.shape[1:3]) / _PIXELS)))
    return _block_average(volumes, _factor(spacing_mm))


def coarse_voxel_mm(spacing_mm: float, *, planes: bool = False) -> float:
    """Return the edge of a voxel after `coarsen`; what a pixel of pictures counts as."""
    return _ASSAY_MM if planes else spacing_mm * _factor(spacing_mm)


def _factor(spacing_mm: float) -> int:
    return max(1, round(_ASSAY_MM / spacing_mm))


def _block_average(volumes: FloatArray, factor: int) -> FloatArray:
    n, *shape = volumes.shape
    deep = 1 if are_planes(volumes.shape) else factor
    whole = [size // step for size, step in zip(shape, (factor, factor, deep), strict=True)]
    cut = volumes[:, : whole[0] * factor, : whole[1] * factor, : whole[2] * deep]
    blocks = cut.reshape(n, whole[0], factor, whole[1], factor, whole[2], deep)
    averaged: FloatArray = blocks.mean(axis=(2, 4, 6), dtype=np.float32)
    return averaged
