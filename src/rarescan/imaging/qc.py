"""Judge prepared scans: measures, gates that refuse, outliers.

`measure` gives the figures of one scan, `refusal` the reason code that keeps it out (or None),
`outliers` what stands out among the accepted (`pages` shows it). Nothing here trusts the
optimiser: a registration is judged by the image that it produced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from rarescan.cohort.contracts import FloatArray
from rarescan.cohort.template import load_template
from rarescan.imaging.register import Matrix, to_array
from rarescan.imaging.strip import Mask, surface_distance_mm

LOOK_MM = 2.0
"""Voxel edge of the working copy that every measure is taken on."""
WORST_METRIC, DOUBTFUL_METRIC = -0.22, -0.30
"""Above the first it is no head, above the second a person should look. Measured: a real head
-0.49, the same 4 mm off -0.32, 8 mm off -0.17 to -0.25; 88 stripped brains -0.51 to -0.31 but
for three that the scanner cut off (-0.24 at worst); fruit -0.19, a sphere -0.18, noise 0."""
_BINS = 24
_DETERMINANT = (0.5, 1.35)
_SINGULAR_VALUES = (0.75, 1.3)
_BRAIN_ML = (800.0, 2200.0)
_PURE_TISSUE = 0.8
_OUTER_VOXELS = 3
_ROBUST_Z = 3.0
_WATCHED = ("metric", "determinant", "brain_ml", "snr", "cjv", "wrap")


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The figures of one scan. None where it has nothing to measure it on."""

    metric: float
    """Minus the mutual information with the template, in nats; lower is better."""
    determinant: float
    """Native volume over template volume."""
    smallest_stretch: float
    """Smallest singular value of the affine map."""
    largest_stretch: float
    brain_ml: float
    """Volume of the brain mask in the native head, in millilitres."""
    contrast_ordered: bool
    """White matter is brighter than grey matter, and that brighter than fluid."""
    snr: float | None
    """Mean of the brain's core over the standard deviation of the darkest air corner."""
    cjv: float | None
    """Coefficient of joint variation, (sd white + sd grey) / |mean white - mean grey|."""
    wrap: float
    """Mean of the outer three voxels of all faces but the lowest, over the core's mean."""


def alignment(look: FloatArray) -> float:
    """Return minus the mutual information of a head and the template, in nats.

    Inside the template's brain dilated 2 mm, 24 x 24 bins, intensities cut at their 0.5th and
    99.5th percentile, after a Gaussian of 1 mm. Invariant to the intensity unit.

    Parameters
    ----------
    look : float32 array, shape brain_grid(2).shape
        The head on the template's 2 mm grid.
    """
    inside = surface_distance_mm(LOOK_MM) <= LOOK_MM
    pair = (ndimage.gaussian_filter(look, 1.0 / LOOK_MM), load_template(LOOK_MM).t1)
    bins = [_binned(volume[inside]) for volume in pair]
    counts = np.bincount(bins[0] * _BINS + bins[1], minlength=_BINS**2).reshape(_BINS, _BINS)
    joint = counts / counts.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    filled = joint > 0
    return -float((joint[filled] * np.log(joint[filled] / independent[filled])).sum())


def _binned(values: FloatArray) -> npt.NDArray[np.int64]:
    low, high = np.percentile(values, [0.5, 99.5])
    scaled = (values - low) / max(high - low, np.finfo(np.float32).tiny)
    bins: npt.NDArray[np.int64] = np.clip((scaled * _BINS).astype(np.int64), 0, _BINS - 1)
    return bins


def measure(image: sitk.Image, matrix: Matrix, look: FloatArray, mask: Mask) -> Measures:
    """Return the figures of one scan.

    Parameters
    ----------
    image : sitk.Image of float32
        The native scan, bias corrected.
    matrix : float64 array, shape (4, 4)
        Template RAS mm -> native RAS mm.
    look : float32 array, shape brain_grid(2).shape
        The scan on the template's 2 mm grid.
    mask : bool array, same shape
        The brain.
    """
    stretches = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    determinant = float(np.linalg.det(matrix[:3, :3]))
    native, affine = to_array(image)
    core_mask = mask & (surface_distance_mm(LOOK_MM) < -4)
    core = float(look[core_mask].mean()) if core_mask.any() else 0.0
    noise = _air_noise(native)
    ordered, cjv = _contrast(look, mask)
    return Measures(
        metric=alignment(look),
        determinant=determinant,
        smallest_stretch=float(stretches[-1]),
        largest_stretch=float(stretches[0]),
        brain_ml=float(mask.sum()) * LOOK_MM**3 * determinant / 1000,
        contrast_ordered=ordered,
        snr=core / noise if noise > 0 else None,
        cjv=cjv,
        wrap=_outer_mean(native, affine) / core if core > 0 else 0.0,
    )


def _air_noise(native: FloatArray) -> float:
    """Return the standard deviation of the darkest corner that is not filled with one value."""
    edges = [max(2, n // 10) for n in native.shape]
    ends = [(slice(None, edge), slice(-edge, None)) for edge in edges]
    corners = [native[x, y, z] for x in ends[0] for y in ends[1] for z in ends[2]]
    noisy = [corner for corner in corners if corner.std() > 0]
    return float(min(noisy, key=lambda corner: float(corner.mean())).std()) if noisy else 0.0


def _contrast(look: FloatArray, mask: Mask) -> tuple[bool, float | None]:
    """Return whether white > grey > fluid, and the coefficient of joint variation."""
    template = load_template(LOOK_MM)
    white, grey, fluid = (
        look[mask & (share > _PURE_TISSUE)] for share in (template.wm, template.gm, template.csf)
    )
    if min(white.size, grey.size) == 0:
        return False, None
    difference = float(abs(white.mean() - grey.mean()))
    dark = float(fluid.mean()) if fluid.size else 0.0
    ordered = bool(white.mean() > grey.mean() > dark)
    return ordered, float(white.std() + grey.std()) / difference if difference > 0 else None


def _outer_mean(native: FloatArray, affine: Matrix) -> float:
    """Return the mean of the outer voxels of every face but the one where the neck leaves."""
    axis = int(np.argmax(np.abs(affine[2, :3]) / np.linalg.norm(affine[:3, :3], axis=0)))
    lowest = (axis, slice(None, _OUTER_VOXELS) if affine[2, axis] > 0 else slice(-3, None))
    faces = [
        (i, part)
        for i in range(3)
        for part in (slice(None, _OUTER_VOXELS), slice(-_OUTER_VOXELS, None))
    ]
    outer = [
        native[(slice(None),) * i + (part,)].mean() for i, part in faces if (i, part) != lowest
    ]
    return float(np.mean(outer))


def refusal(measures: Measures) -> str | None:
    """Return the code of the first gate that a scan fails; None where it passes all.

    `NOT_HEAD` the registration found nothing that looks like the template; `BRAIN_VOLUME` the
    mask is no brain's size; `CONTRAST` the tissues are not ordered as in a T1 image.
    """
    in_range = (
        measures.metric <= WORST_METRIC,
        _DETERMINANT[0] <= measures.determinant <= _DETERMINANT[1],
        _SINGULAR_VALUES[0] <= measures.smallest_stretch,
        measures.largest_stretch <= _SINGULAR_VALUES[1],
    )
    if not all(in_range):
        return "NOT_HEAD"
    if not _BRAIN_ML[0] <= measures.brain_ml <= _BRAIN_ML[1]:
        return "BRAIN_VOLUME"
    return None if measures.contrast_ordered else "CONTRAST"


def outliers(scans: Sequence[Measures]) -> list[tuple[str, ...]]:
    """Return for each scan what stands out: measures with a robust z beyond 3, `doubtful_fit`.

    z = 0.6745 (value - median) / MAD over the scans given (Iglewicz and Hoaglin 1993).
    """
    flags: list[list[str]] = [
        ["doubtful_fit"] if scan.metric > DOUBTFUL_METRIC else [] for scan in scans
    ]
    for name in _WATCHED:
        values = np.array([_number(getattr(scan, name)) for scan in scans])
        known = values[np.isfinite(values)]
        if known.size == 0:
            continue
        centre = np.median(known)
        spread = np.median(np.abs(known - centre)) / 0.6745
        for index in np.flatnonzero(np.abs(values - centre) > _ROBUST_Z * max(spread, 1e-9)):
            flags[index].append(name)
    return [tuple(names) for names in flags]


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def worst_first(scans: Sequence[Measures], flags: Sequence[Sequence[str]]) -> list[int]:
    """Return the scans' positions, those that stand out most first, then by metric."""
    return sorted(range(len(scans)), key=lambda i: (-len(flags[i]), -scans[i].metric))


def as_row(measures: Measures) -> dict[str, Any]:
    """Return the measures as plain values."""
    return asdict(measures)


def from_row(row: Mapping[str, Any]) -> Measures:
    """Return what `as_row` gave."""
    return Measures(**{name: row[name] for name in Measures.__dataclass_fields__})
