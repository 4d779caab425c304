"""Where a disease takes tissue, as a file says, and a brain in which so much of it has gone.

`read_pattern` reads a published map or a table of regions, `directions` makes of it what happens
to each side of the brain, `reduced` does it to a scan. Sulci open where the scan has them: the
log-odds of the share of fluid in a voxel grow, so that a voxel of white matter stays what it is.
Tissue may shrink beside (`shrinkage`): a velocity whose divergence follows the pattern, with the
fluid nearby taking the room.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.processing import resample_from_to
from nibabel.wrapstruct import WrapStructError
from scipy import fft, ndimage
from scipy.special import expit, logit
from torch.nn.functional import interpolate

from rarescan.cohort.contracts import FloatArray, Grid
from rarescan.cohort.template import Template, load_template, regions, world_coordinates
from rarescan.errors import SettingError, nearest
from rarescan.generative.anatomy import to_image, to_volume
from rarescan.generative.deformation import exponentiate, lattice_shape, moved

_NOISE_SHARE = 0.15
"""Of the pattern's largest loss: what lies below is taken for a map's noise."""
_BLUR_MM = 4.0
_SINK_MM = 16.0
_FLUID_QUANTILE = 0.02
_SURE = 0.02
"""Shares of fluid are kept this far from 0 and 1, where log-odds end."""
_COLUMNS = ("region", "effect")


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What the disease does to one side of the brain at amplitude 1."""

    opening: FloatArray
    """Growth of the log-odds of fluid, shape (x, y, z); its mean over the pattern is 1."""
    velocity: torch.Tensor
    """Shrinking of tissue, mm, on the lattice of `deformation`."""


def read_pattern(path: Path, grid: Grid) -> FloatArray:
    """Return a pattern on a brain grid.

    Parameters
    ----------
    path : Path
        A NIfTI map in the template's (MNI) space, on any voxels: a t map, an effect size, a
        change of volume. Or a table (`.csv`) with the columns `region` and `effect`: regions of
        `cohort.template.regions`, with or without `_left` and `_right`. Any unit; negative where
        patients have less tissue.
    grid : Grid
        Of the cohort.

    Returns
    -------
    float32 array, shape of the grid
        0 where the file says nothing.

    Raises
    ------
    SettingError
        The file is missing, no such file, names no region, or has nothing below 0.
    """
    if not path.is_file():
        raise SettingError(
            f"There is no pattern file {path.name}.",
            remedy="Name a NIfTI map or a table of regions in `pattern`.",
        )
    values = _from_table(path, grid) if path.suffix == ".csv" else _from_map(path, grid)
    if not (values < 0).any():
        raise SettingError(
            f"The pattern {path.name} has nothing below 0 inside the brain.",
            remedy="Tissue that patients lack is negative: turn the map's sign round.",
        )
    return values


def _from_map(path: Path, grid: Grid) -> FloatArray:
    try:
        image = nibabel.funcs.squeeze_image(nibabel.Nifti1Image.from_filename(path))
        on_grid = resample_from_to(image, (grid.shape, grid.matrix()), order=1)
    except (ImageFileError, WrapStructError, ValueError, OSError):
        raise SettingError(
            f"The pattern {path.name} is no NIfTI volume of three dimensions.",
            remedy="Name one map in the template's space.",
        ) from None
    values: FloatArray = np.nan_to_num(on_grid.get_fdata()).astype(np.float32)
    return values


def _from_table(path: Path, grid: Grid) -> FloatArray:
    places = {k: v for k, v in regions(grid).items() if k != "ventricles"}
    values = np.zeros(grid.shape, np.float32)
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            name, effect = _region_row(path, row)
            found = [v for k, v in places.items() if k in (name, f"{name}_left", f"{name}_right")]
            if not found:
                valid = sorted({k.rpartition("_")[0] for k in places} | set(places))
                raise SettingError(
                    f"The pattern {path.name} names a region that does not exist: '{name}'.",
                    remedy=nearest(name, valid),
                )
            values += np.float32(effect) * sum(found)
    return values


def _region_row(path: Path, row: dict[str, str]) -> tuple[str, float]:
    try:
        name, effect = (row[column] for column in _COLUMNS)
        return name.strip(), float(effect)
    except (KeyError, TypeError, ValueError):
        raise SettingError(
            f"The pattern {path.name} is no table with the columns region and effect.",
            remedy="Write lines like `insula_left,-0.2`; negative where patients have less tissue.",
        ) from None


def directions(pattern: FloatArray, grid: Grid, shrinkage: float) -> tuple[Direction, Direction]:
    """Return what a pattern does to the left and to the right side.

    Parameters
    ----------
    pattern : float32 array, shape of the grid
        As `read_pattern` returns it; what is above 0 is left out.
    grid : Grid
        A brain grid of 1, 2, 4 or 8 mm.
    shrinkage : float
        Loss of tissue's log volume for a growth of 1 in the log-odds of fluid.
    """
    loss = np.maximum(-pattern, 0)
    loss = np.maximum(loss - _NOISE_SHARE * loss.max(), 0)
    x = world_coordinates(grid)[0]
    right = expit(x / 4).astype(np.float32)
    template = load_template(grid.spacing_mm)
    left, other = (_direction(loss * side, template, shrinkage) for side in (1 - right, right))
    return left, other


def _direction(loss: FloatArray, template: Template, shrinkage: float) -> Direction:
    tissue = template.gm + 0.5 * template.wm
    at_work = float((loss**2 * tissue).sum() / max(float((loss * tissue).sum()), 1e-12))
    loss = loss / np.float32(max(at_work, 1e-12))
    spacing_mm = template.grid.spacing_mm
    velocity = torch.zeros(3, *lattice_shape())
    if shrinkage:
        source = loss * tissue
        near = template.csf * ndimage.gaussian_filter(source, _SINK_MM / spacing_mm)
        sink = near * (source.sum() / max(float(near.sum()), 1e-12))
        velocity = shrinkage * _flow(source - sink, spacing_mm)
    opening = ndimage.gaussian_filter(loss, _BLUR_MM / spacing_mm)
    return Direction(opening=opening, velocity=velocity)


def _flow(divergence: FloatArray, spacing_mm: float) -> torch.Tensor:
    """Return the velocity without curl, mm, of this divergence; nothing crosses the box's walls."""
    spectrum = fft.dctn(divergence.astype(np.float64))
    laplacian = np.zeros(spectrum.shape)
    for axis, n in enumerate(spectrum.shape):
        wave = 2 * np.cos(np.pi * np.arange(n) / n) - 2
        laplacian += wave.reshape([-1 if axis == other else 1 for other in range(3)])
    laplacian[0, 0, 0] = np.inf  # what the whole box gains or loses
    potential = fft.idctn(spectrum / laplacian) * spacing_mm
    slopes = [np.gradient(potential, axis=axis) for axis in range(3)]
    flow = torch.from_numpy(np.stack(slopes).astype(np.float32))
    lattice = interpolate(flow[None], size=lattice_shape(), mode="trilinear", align_corners=False)
    return lattice[0]


def reduced(
    volume: FloatArray, sides: Sequence[Direction], amplitudes: Sequence[float]
) -> FloatArray:
    """Return a scan in which the pattern has gone as far as the amplitudes say.

    Parameters
    ----------
    volume : float32 array, shape (x, y, z)
        A prepared T1 scan, 0 to 1, 0 outside the brain.
    sides : sequence of Direction
        Of left and right, on the scan's grid.
    amplitudes : sequence of float
        One a direction; negative ones close sulci.
    """
    image = to_image(volume)
    velocity = sum(
        (a * s.velocity for a, s in zip(amplitudes, sides, strict=True)), torch.zeros(())
    )
    if velocity.any():
        image = moved(image, exponentiate(velocity))
    growth = sum(a * s.opening for a, s in zip(amplitudes, sides, strict=True))
    fluid, grey = _brightness(volume)
    share = np.clip((grey - image[0]) / (grey - fluid), _SURE, 1 - _SURE)
    gained = (expit(logit(share) + growth) - share) * (grey - fluid)
    image[0] = np.where(image[0] > fluid, np.maximum(image[0] - gained, fluid), image[0])
    return to_volume(image)


def _brightness(volume: FloatArray) -> tuple[float, float]:
    """Return the brightness of fluid and of grey matter in a scan.

    Fluid is what hardly a voxel is darker than. Grey matter is what the template's tissues,
    fitted to the brain, say: at 8 mm no voxel is of one tissue.
    """
    template = load_template(160 / volume.shape[0])
    inside = volume > 0
    tissues = np.stack([template.gm, template.wm, template.csf], axis=-1)[inside]
    values = volume[inside]
    grey = float(np.linalg.lstsq(tissues, values, rcond=None)[0][0])
    fluid = float(np.quantile(values, _FLUID_QUANTILE))
    return fluid, max(grey, fluid + 0.05)
