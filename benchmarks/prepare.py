"""Say what preparing one scan costs, stage by stage, beside plain SimpleITK doing a part of it.

    python benchmarks/prepare.py [SCAN.nii.gz] [--strip deepbet]

Without a file it is an invented head of 240 x 240 x 240 voxels of 1 mm. Printed are CPU seconds
with one thread, after one warm-up of everything that is loaded once a process. "Bare" is N4 at a
shrink factor of 4 with SimpleITK's default iterations, and one rigid and one affine registration
of three resolutions from the centres, on all the voxels that 1 mm gives: no search, no mask.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from registration import scanned

from rarescan.cohort.contracts import brain_grid
from rarescan.cohort.template import load_template
from rarescan.imaging import qc
from rarescan.imaging.pages import picture
from rarescan.imaging.register import one_thread, ras_matrix, register, to_grid, to_image
from rarescan.imaging.scan import correct_bias, prepare_scan, read_native, scale
from rarescan.imaging.spec import PrepareConfig
from rarescan.imaging.strip import brain_mask, resolve, surface_distance_mm

GRID, LOOK = brain_grid(1.0), brain_grid(qc.LOOK_MM)


def main() -> None:
    """Prepare one scan in stages and whole, and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", nargs="?", type=Path)
    parser.add_argument("--strip", choices=("auto", "deepbet", "template"), default="auto")
    given = parser.parse_args()
    one_thread()
    config = resolve(PrepareConfig(spacing_mm=1.0, strip=given.strip))
    image = (
        read_native(given.scan) if given.scan else scanned(0, 15.0, voxel_mm=1.0, edge_mm=240.0)[0]
    )
    _warm_up(image, config)
    print(f"{' x '.join(map(str, image.GetSize()))} voxels, brain mask by {config.strip}")
    _stages(image, config)
    _, whole = _timed("prepare_scan, whole", prepare_scan, image, (), config)
    corrected, bias = _timed("bare N4", _bare_n4, image)
    _, fit = _timed("bare registration", _bare_registration, corrected)
    print(f"ratio to bare: {whole / (bias + fit):.2f}")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _warm_up(image: sitk.Image, config: PrepareConfig) -> None:
    for spacing_mm in (1.0, 2.0):
        surface_distance_mm(spacing_mm)
    small = sitk.BinShrink(image, [4, 4, 4])
    brain_mask(small, register(small, starts=1, target_spacing_mm=4.0), LOOK, config)


def _stages(image: sitk.Image, config: PrepareConfig) -> None:
    corrected, _ = _timed("N4", correct_bias, image, "full")
    transform, _ = _timed(
        "registration", register, corrected, starts=27, target_spacing_mm=config.spacing_mm
    )
    mask, _ = _timed("brain mask", brain_mask, corrected, transform, GRID, config)
    head, _ = _timed("interpolation", to_grid, corrected, transform, GRID)
    _timed("scale", scale, head, mask)
    look, _ = _timed("look at 2 mm", to_grid, corrected, transform, LOOK, spline=False)
    coarse = mask[::2, ::2, ::2]
    _timed("measures", qc.measure, corrected, ras_matrix(transform), look, coarse)
    _timed("picture", picture, head, mask, GRID)


def _timed(name: str, function: Callable[..., Any], *given: Any, **named: Any) -> tuple[Any, float]:
    start = time.process_time()
    result = function(*given, **named)
    seconds = time.process_time() - start
    print(f"{seconds:6.2f} s  {name}", flush=True)
    return result, seconds


def _bare_n4(image: sitk.Image) -> sitk.Image:
    small = sitk.Cast(sitk.Shrink(image, [4, 4, 4]), sitk.sitkFloat32)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(small, sitk.OtsuThreshold(small, 0, 1))
    field = sitk.Cast(n4.GetLogBiasFieldAsImage(image), sitk.sitkFloat32)
    return sitk.Cast(image / sitk.Exp(field), sitk.sitkFloat32)


def _bare_registration(image: sitk.Image) -> sitk.AffineTransform:
    template = load_template(1.0)
    fixed = to_image(template.t1, template.grid.matrix())
    rigid = sitk.Euler3DTransform(
        sitk.CenteredTransformInitializer(
            fixed, image, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
        )
    )
    _fit(fixed, image, rigid)
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    _fit(fixed, image, affine)
    return affine


def _fit(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> None:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.05, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)


if __name__ == "__main__":
    main()
