"""Find where a native head lies in the template's space, and bring its voxels there.

`register` gives the affine map template -> native, `to_grid` uses it for the one interpolation
that a scan goes through. Registration is rigid, then affine: nothing here deforms anatomy.

The trap: the template is skull-stripped. Without a metric mask the affine stretches it to the
skull (a third too large on a real head), so the metric sees the template's brain dilated 2 mm
and nothing else. And the optimiser says "converged" for wrong results too: look at
`rarescan.imaging.qc`, which judges every result.
"""

from functools import cache
from itertools import product
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from rarescan.cohort.contracts import FloatArray, Grid
from rarescan.cohort.template import load_template

Matrix = npt.NDArray[np.float64]
Map = TypeVar("Map")

# NIfTI axes point right-anterior-superior, ITK's left-posterior-superior. Turned here, nowhere
# else.
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_METRIC_MASK_MM = 2.0
_BINS = 24
_SEED = 1
_START_ANGLES_DEGREES = (-30.0, 0.0, 30.0)
_KEPT_STARTS = 3
_BLUR_MM = 3.0
_FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))
_CROP_MARGIN_VOXELS = 12


class NoFitError(Exception):
    """No start of the registration led anywhere: the image is no head."""


def one_thread() -> None:
    """Make ITK use one thread: results then repeat, and workers do not fight for the cores."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def to_image(values: FloatArray, affine: Matrix) -> sitk.Image:
    """Return an ITK image of an array, shape (x, y, z), with its affine voxel -> RAS mm."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((_RAS_TO_LPS @ (affine[:3, :3] / spacing)).ravel().tolist())
    image.SetOrigin((_RAS_TO_LPS @ affine[:3, 3]).tolist())
    return image


def to_array(image: sitk.Image) -> tuple[FloatArray, Matrix]:
    """Return an ITK image's voxels, shape (x, y, z), and its affine voxel -> RAS mm."""
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = _RAS_TO_LPS @ direction * np.array(image.GetSpacing())
    affine[:3, 3] = _RAS_TO_LPS @ np.array(image.GetOrigin())
    return sitk.GetArrayFromImage(image).T, affine


def ras_matrix(transform: sitk.AffineTransform) -> Matrix:
    """Return a transform as a 4 x 4 matrix, template RAS mm -> native RAS mm.

    Its determinant is native volume over template volume.
    """
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    centre, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3] = _RAS_TO_LPS @ linear @ _RAS_TO_LPS
    matrix[:3, 3] = _RAS_TO_LPS @ (shift + centre - linear @ centre)
    return matrix


def register(image: sitk.Image, *, starts: int, target_spacing_mm: float) -> sitk.AffineTransform:
    """Return the affine map from the template's space to a head's own.

    Mattes mutual information inside the template's brain dilated 2 mm; regular-step gradient
    descent with scales from physical shift, rigid from the centroid of the Otsu foreground, then
    affine from the best rigid results (the three best of 27, or the only one).

    Parameters
    ----------
    image : sitk.Image of float32
        The native head, bias corrected.
    starts : int
        1 finds heads turned up to 15 degrees; 27 (turned -30, 0 and 30 degrees around each axis)
        any that a scanner can hold.
    target_spacing_mm : float
        Voxel edge that the scan is prepared for. Below 4 mm the affine map is found once more on
        2 mm voxels with three times the samples.

    Raises
    ------
    NoFitError
        Every start ended outside the image.
    """
    coarse = _shrunk(image, 4.0)
    blurred = sitk.SmoothingRecursiveGaussian(coarse, _BLUR_MM)
    centroid = _foreground_centroid(coarse)
    angles = (0.0,) if starts == 1 else _START_ANGLES_DEGREES
    rigid = [_fit_rigid(blurred, centroid, turn) for turn in product(angles, repeat=3)]
    best = sorted((fit for fit in rigid if fit is not None), key=lambda fit: fit[0])
    moving = _shrunk(image, 3.0)
    affine = [_fit_affine(moving, fit[1], fine=False) for fit in best[:_KEPT_STARTS]]
    fitted = sorted((fit for fit in affine if fit is not None), key=lambda fit: fit[0])
    if not fitted:
        raise NoFitError
    if target_spacing_mm >= 4:
        return fitted[0][1]
    finer = _fit_affine(_shrunk(image, 2.0), fitted[0][1], fine=True)
    return (finer or fitted[0])[1]


def _shrunk(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """Average whole voxels until they are about `spacing_mm` large."""
    factors = [max(1, round(spacing_mm / s)) for s in image.GetSpacing()]
    return sitk.Cast(sitk.BinShrink(image, factors), sitk.sitkFloat32)


def _foreground_centroid(image: sitk.Image) -> npt.NDArray[np.float64]:
    foreground = sitk.GetArrayFromImage(sitk.OtsuThreshold(image, 0, 1))
    if not foreground.any():
        raise NoFitError
    centre = ndimage.center_of_mass(foreground)[::-1]
    return np.array(image.TransformContinuousIndexToPhysicalPoint([float(c) for c in centre]))


@cache
def _fixed(spacing_mm: float, blur_mm: float) -> tuple[sitk.Image, sitk.Image]:
    """Return the template and its metric mask, on voxels of 2 or 4 mm."""
    template = load_template(2.0)
    factors = [round(spacing_mm / 2.0)] * 3
    distance = ndimage.distance_transform_edt(template.brain < 0.5) * template.grid.spacing_mm
    inside = (distance <= _METRIC_MASK_MM).astype(np.float32)
    affine = template.grid.matrix()
    t1 = sitk.BinShrink(to_image(template.t1, affine), factors)
    mask = sitk.BinShrink(to_image(inside, affine), factors) > 0.5
    return (sitk.SmoothingRecursiveGaussian(t1, blur_mm) if blur_mm else t1), mask


@cache
def _template_centroid() -> npt.NDArray[np.float64]:
    template = load_template(2.0)
    voxel = np.array([*ndimage.center_of_mass(template.brain), 1.0])
    centroid: npt.NDArray[np.float64] = _RAS_TO_LPS @ (template.grid.matrix() @ voxel)[:3]
    return centroid


def _method(mask: sitk.Image, samples: float) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(samples, _SEED)
    method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _descend(
    method: sitk.ImageRegistrationMethod, *, step: float, smallest_step: float, iterations: int
) -> None:
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step,
        minStep=smallest_step,
        numberOfIterations=iterations,
        relaxationFactor=0.5,
        gradientMagnitudeTolerance=1e-6,
    )
    method.SetOptimizerScalesFromPhysicalShift()


def _fit_rigid(
    moving: sitk.Image, centroid: npt.NDArray[np.float64], turn_degrees: tuple[float, ...]
) -> tuple[float, sitk.Euler3DTransform] | None:
    """Return the metric and the rigid map that one start leads to; None where it leads out."""
    fixed, mask = _fixed(4.0, _BLUR_MM)
    transform = sitk.Euler3DTransform()
    transform.SetCenter(_template_centroid().tolist())
    transform.SetTranslation((centroid - _template_centroid()).tolist())
    transform.SetRotation(*np.deg2rad(turn_degrees).tolist())
    method = _method(mask, 0.1)
    _descend(method, step=2.0, smallest_step=1e-2, iterations=60)
    return _executed(method, fixed, moving, transform)


def _fit_affine(
    moving: sitk.Image, start: sitk.Euler3DTransform | sitk.AffineTransform, *, fine: bool
) -> tuple[float, sitk.AffineTransform] | None:
    """Return the metric and the affine map that a rigid or affine one leads to."""
    fixed, mask = _fixed(2.0, 0.0)
    transform = sitk.AffineTransform(3)
    transform.SetCenter(start.GetCenter())
    transform.SetMatrix(start.GetMatrix())
    transform.SetTranslation(start.GetTranslation())
    method = _method(mask, 0.15 if fine else 0.05)
    if fine:
        _descend(method, step=0.5, smallest_step=1e-3, iterations=200)
    else:
        _descend(method, step=1.0, smallest_step=1e-2, iterations=60)
    return _executed(method, fixed, moving, transform)


def _executed(
    method: sitk.ImageRegistrationMethod, fixed: sitk.Image, moving: sitk.Image, transform: Map
) -> tuple[float, Map] | None:
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # ITK's only way to say that the samples left the image
        return None
    return method.GetMetricValue(), transform


def to_grid(
    image: sitk.Image, transform: sitk.AffineTransform, grid: Grid, *, spline: bool = True
) -> FloatArray:
    """Return a native image on a template grid, interpolated once.

    Where the target is coarser the native voxels are smoothed first, so that nothing aliases:
    sigma = sqrt(target^2 - source^2) / 2.355 along each native axis (Cardoso et al., MICCAI
    2015: the two point-spread functions match in full width at half maximum). Then cubic
    B-spline, or linear where the smoothing has left nothing for a spline to gain.

    Parameters
    ----------
    image : sitk.Image of float32
        Native voxels.
    transform : sitk.AffineTransform
        Template -> native.
    grid : Grid
        The target.
    spline : bool
        False for masks and working copies: always linear, ten times faster.

    Returns
    -------
    float32 array, shape grid.shape
        In the image's intensity unit, at least 0; 0 outside the image.
    """
    near = _cropped(image, transform, grid)
    if near is None:
        return np.zeros(grid.shape, np.float32)
    target_mm = grid.spacing_mm * float(np.cbrt(np.linalg.det(ras_matrix(transform)[:3, :3])))
    spacing = np.array(near.GetSpacing())
    sigma = np.sqrt(np.clip(target_mm**2 - spacing**2, 0, None)) / _FWHM_PER_SIGMA / spacing
    if sigma.max() > 0.1:
        values, affine = to_array(near)
        near = to_image(ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3), affine)
    sharp = spline and target_mm < 1.99 * spacing.max()
    kind = sitk.sitkBSpline if sharp else sitk.sitkLinear
    reference = to_image(np.zeros(grid.shape, np.float32), grid.matrix())
    moved = sitk.Resample(near, reference, transform, kind, 0.0, sitk.sitkFloat32)
    values_on_grid: FloatArray = np.maximum(sitk.GetArrayFromImage(moved).T, np.float32(0))
    return values_on_grid


def _cropped(image: sitk.Image, transform: sitk.AffineTransform, grid: Grid) -> sitk.Image | None:
    """Return the part of an image that the grid's box reaches; None where they do not meet."""
    edges = [(-0.5, n - 0.5) for n in grid.shape]
    corners = np.array([[*corner, 1.0] for corner in product(*edges)])
    template_mm = (corners @ grid.matrix().T)[:, :3] @ _RAS_TO_LPS
    voxels = np.array(
        [
            image.TransformPhysicalPointToContinuousIndex(transform.TransformPoint(p.tolist()))
            for p in template_mm
        ]
    )
    low = np.floor(voxels.min(axis=0)).astype(int) - _CROP_MARGIN_VOXELS
    high = np.ceil(voxels.max(axis=0)).astype(int) + _CROP_MARGIN_VOXELS + 1
    low, high = np.maximum(low, 0), np.minimum(high, image.GetSize())
    if (high <= low).any():
        return None
    return sitk.RegionOfInterest(image, (high - low).tolist(), low.tolist())
