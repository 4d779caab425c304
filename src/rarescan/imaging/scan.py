"""Bring one native scan to the brain grid.

`read_native` and `prepare_scan` are the way in: N4, registration, brain mask, one interpolation
from the corrected native voxels, one scaling of the intensities. A scan that cannot be used
raises `RefusedScanError` with the reason code of the events table.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError

from rarescan.cohort.contracts import FloatArray, brain_grid
from rarescan.imaging import qc
from rarescan.imaging.register import (
    Matrix,
    NoFitError,
    one_thread,
    ras_matrix,
    register,
    to_grid,
    to_image,
)
from rarescan.imaging.spec import PrepareConfig
from rarescan.imaging.strip import Mask, NoBrainError, brain_mask


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One look of N4 for the bias field."""

    voxel_mm: float
    iterations: tuple[int, ...]
    """A level each; every level halves the spline's knots."""
    sharpening: float = 0.15
    """Full width at half maximum of the field's histogram. 0.15 is N4's own; twice that needs a
    third of the iterations on large voxels."""


_N4 = {
    "coarse": (_Pass(voxel_mm=14.0, iterations=(20, 20), sharpening=0.3),),
    # Strong shading goes on large voxels, where an iteration costs an eighth. Measured in white
    # matter: of 17 % there remain 2.1, of 4.7 % 1.1, as after one pass of 40, 40, 20, 5 on 4 mm;
    # a third level on 8 mm leaves 2.7 of both, half of the iterations on 4 mm alone 7.8.
    "full": (
        _Pass(voxel_mm=8.0, iterations=(50, 50)),
        _Pass(voxel_mm=4.0, iterations=(20, 20, 10, 5)),
    ),
}


class RefusedScanError(Exception):
    """A scan that cannot be used; `code` says why, `measures` what was found until then."""

    def __init__(self, code: str, measures: Mapping[str, Any] | None = None) -> None:
        super().__init__(code)
        self.code, self.measures = code, dict(measures or {})


@dataclass(frozen=True, kw_only=True)
class PreparedScan:
    """One scan on the brain grid."""

    volume: FloatArray
    """Shape of the grid, 0 to 1, 0 outside the brain."""
    matrix: Matrix
    """4 x 4, template RAS mm -> native RAS mm."""
    measures: qc.Measures
    head: FloatArray
    """The same before the brain was cut out and scaled, in the native unit; it has a face."""
    mask: Mask
    """Where the brain is on the grid."""


def prepare_scan(
    image: sitk.Image, flags: Sequence[str], config: PrepareConfig, *, scratch: Path | None = None
) -> PreparedScan:
    """Bring one native scan to the brain grid.

    Parameters
    ----------
    image : sitk.Image of float32
        Native voxels, any unit.
    flags : sequence of str
        What is done already: `stripped`, `template_space`, `bias_corrected`.
    config : PrepareConfig
        Grid and effort; `strip` may not be `auto` (see `strip.resolve`).
    scratch : Path, optional
        Where the head lies while a strip command works on it.

    Raises
    ------
    RefusedScanError
        With a code of `reasons`.
    SettingError
        The strip command cannot be started.
    """
    one_thread()
    _require_alive(image)
    if "bias_corrected" not in flags and config.bias_correction != "none":
        image = correct_bias(image, config.bias_correction)
    transform = _transform(image, flags, config)
    look = to_grid(image, transform, brain_grid(qc.LOOK_MM), spline=False)
    matrix = ras_matrix(transform)
    try:
        fine, coarse = _masks(image, transform, flags, config, scratch)
    except NoBrainError as error:
        raise RefusedScanError(error.code, {"metric": qc.alignment(look)}) from None
    measures = qc.measure(image, matrix, look, coarse)
    code = qc.refusal(measures)
    if code:
        raise RefusedScanError(code, qc.as_row(measures))
    head = to_grid(image, transform, brain_grid(config.spacing_mm))
    volume = scale(head, fine)
    return PreparedScan(volume=volume, matrix=matrix, measures=measures, head=head, mask=fine)


def _require_alive(image: sitk.Image) -> None:
    values = sitk.GetArrayFromImage(image)
    top = values.max()
    if values.min() == top or (values == top).mean() > 0.5:
        raise RefusedScanError("PIXELS_DEAD")


def correct_bias(image: sitk.Image, effort: Literal["coarse", "full"]) -> sitk.Image:
    """Return the image without its slow change of brightness (N4, Tustison et al. 2010).

    The logarithm of the field is found on large voxels inside the Otsu foreground and carried to
    every voxel by linear interpolation.
    """
    field: sitk.Image | None = None
    for look in _N4[effort]:
        factors = [max(1, round(look.voxel_mm / s)) for s in image.GetSpacing()]
        small = sitk.Cast(sitk.BinShrink(image, factors), sitk.sitkFloat32)
        known = _carried(field, small) if field is not None else small * 0.0
        small = small / sitk.Exp(known)
        n4 = sitk.N4BiasFieldCorrectionImageFilter()
        n4.SetMaximumNumberOfIterations(look.iterations)
        n4.SetBiasFieldFullWidthAtHalfMaximum(look.sharpening)
        n4.SetConvergenceThreshold(1e-3)
        n4.Execute(small, sitk.OtsuThreshold(small, 0, 1))
        field = sitk.Cast(n4.GetLogBiasFieldAsImage(small), sitk.sitkFloat32) + known
    return sitk.Cast(image / sitk.Exp(_carried(field, image)), sitk.sitkFloat32)


def _carried(field: sitk.Image, to: sitk.Image) -> sitk.Image:
    """Return a field on another image's voxels."""
    carry = sitk.ResampleImageFilter()
    carry.SetReferenceImage(to)
    carry.SetInterpolator(sitk.sitkLinear)
    carry.UseNearestNeighborExtrapolatorOn()
    return carry.Execute(field)


def _transform(
    image: sitk.Image, flags: Sequence[str], config: PrepareConfig
) -> sitk.AffineTransform:
    if "template_space" in flags:
        return sitk.AffineTransform(3)
    try:
        return register(
            image, starts=config.registration_starts, target_spacing_mm=config.spacing_mm
        )
    except NoFitError:
        raise RefusedScanError("NOT_HEAD") from None


def _masks(
    image: sitk.Image,
    transform: sitk.AffineTransform,
    flags: Sequence[str],
    config: PrepareConfig,
    scratch: Path | None,
) -> tuple[Mask, Mask]:
    """Return the brain on the target grid and on the 2 mm grid of the measures."""
    if "stripped" in flags:
        inside = sitk.Cast(image > 0, sitk.sitkFloat32)
        wanted = (config.spacing_mm, qc.LOOK_MM)
        target, look = (
            to_grid(inside, transform, brain_grid(mm), spline=False) >= 0.5 for mm in wanted
        )
        return target, look
    fine_mm = min(config.spacing_mm, qc.LOOK_MM)
    fine = brain_mask(image, transform, brain_grid(fine_mm), config, scratch=scratch)
    return (
        _blocks(fine, round(config.spacing_mm / fine_mm)),
        _blocks(fine, round(qc.LOOK_MM / fine_mm)),
    )


def _blocks(mask: Mask, factor: int) -> Mask:
    """Return which blocks of `factor` voxels an edge lie in the mask by half or more."""
    x, y, z = (n // factor for n in mask.shape)
    shares = mask.reshape(x, factor, y, factor, z, factor).mean(axis=(1, 3, 5))
    return np.asarray(shares >= 0.5)


def scale(volume: FloatArray, mask: Mask) -> FloatArray:
    """Return a volume's intensities on the scale that every room expects.

    Divided by 1.6 times the mean of the voxels above 0.35 x the 98th percentile of the brain,
    cut to 0-1, 0 outside the brain. White matter comes out near 0.8; any unit gives the same.

    Parameters
    ----------
    volume : float32 array, at least 0
        Any unit.
    mask : bool array, same shape
        The brain.
    """
    inside = volume[mask]
    tissue = inside[inside > 0.35 * np.percentile(inside, 98)]
    unit = 1.6 * float(tissue.mean(dtype=np.float64))
    return np.where(mask, np.clip(volume / unit, 0, 1), 0).astype(np.float32)


def read_native(path: Path) -> sitk.Image:
    """Return a native NIfTI scan as an ITK image of float32.

    Raises
    ------
    RefusedScanError
        `READ_FAILED`: damaged, not three-dimensional, not finite, or without usable geometry.
    """
    try:
        stored: Any = nibabel.load(path)
        values = np.asarray(stored.dataobj, dtype=np.float32)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error):
        raise RefusedScanError("READ_FAILED") from None
    affine = np.asarray(stored.affine, dtype=np.float64)
    usable = values.ndim == 3 and min(values.shape) >= 8 and np.isfinite(affine).all()
    if not usable or not np.isfinite(values).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise RefusedScanError("READ_FAILED")
    return to_image(values, affine)
