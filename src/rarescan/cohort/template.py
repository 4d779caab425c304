"""The brain that everything is compared with: the ICBM 2009a symmetric template, cut to the box.

`load_template` gives its maps on a brain grid, `regions` soft weights of thirteen regions drawn
by geometry, `world_coordinates` the millimetres of every voxel. `load_lattice` gives the maps on
the template's own 1 mm voxels, for those who calculate before they average (the phantom).

The template is exactly mirror-symmetric, and so are its maps on the grid: reversing the first
axis mirrors the anatomy. It cannot tell left from right.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rarescan.cohort.contracts import BRAIN_BOX_LOW_MM, BRAIN_BOX_MM, FloatArray, Grid, brain_grid
from rarescan.errors import MissingExtraError

Coordinates = tuple[FloatArray, FloatArray, FloatArray]

_FILE = "datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_FIRST_VOXEL_MM = (-98, -134, -72)
_RIM_MM = 4
_RIM_FULL_MM = 2
_SHARPENING_FLOOR = 1e-4


@dataclass(frozen=True, kw_only=True)
class Template:
    """Maps of the template on one grid; every array is float32, 0 to 1, read-only."""

    grid: Grid
    t1: FloatArray
    """Brightness; grey matter about 0.65, white 0.87, fluid 0.25."""
    gm: FloatArray
    """Share of grey matter."""
    wm: FloatArray
    """Share of white matter."""
    csf: FloatArray
    """Share of fluid, with the rim of 2 to 4 mm around the brain."""
    brain: FloatArray
    """Share of the voxel inside the brain's 1 mm mask (the rim is not in it)."""


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """The maps on the template's own voxels: 161 x 193 x 161, centres on whole millimetres.

    The first voxel's centre is the brain box's low corner, the last one's its high corner.
    """

    t1: FloatArray
    gm: FloatArray
    wm: FloatArray
    csf: FloatArray
    mask: npt.NDArray[np.bool_]
    """The brain without the rim."""
    extent: FloatArray
    """Brain and rim: 1 in the mask and to 2 mm outside it, gone at 4 mm."""

    def sharpened(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return grey matter, white matter and fluid as crisp maps that add up to `extent`.

        The template is the mean of 152 brains, and without this its cortex is a smear.
        """
        # The floor decides ties where every map is nearly empty, so it stands inside the square.
        squares = [(p + np.float32(_SHARPENING_FLOOR)) ** 2 for p in (self.gm, self.wm, self.csf)]
        scale = self.extent / (squares[0] + squares[1] + squares[2])
        return squares[0] * scale, squares[1] * scale, squares[2] * scale


@cache
def load_template(spacing_mm: float = 1.0) -> Template:
    """Return the template's maps on `brain_grid(spacing_mm)`, averaged over each voxel.

    Parameters
    ----------
    spacing_mm : float
        1, 2, 4 or 8.

    Raises
    ------
    MissingExtraError
        The package that carries the template is not installed.
    """
    grid, lattice = brain_grid(spacing_mm), load_lattice()
    maps = {name: getattr(lattice, name) for name in ("t1", "gm", "wm", "csf")}
    maps["brain"] = lattice.mask.astype(np.float32)
    averaged = {name: block_average(volume, spacing_mm) for name, volume in maps.items()}
    for volume in averaged.values():
        volume.flags.writeable = False
    return Template(grid=grid, **averaged)


def load_lattice() -> Lattice:
    """Read the three files and return the maps on the template's own voxels (0.3 CPU s).

    Raises
    ------
    MissingExtraError
        The package that carries the template is not installed.
    """
    t1, gm, wm = (_read(name) for name in ("t1", "gm", "wm"))
    # 0.2 is the threshold of nilearn's own brain mask.
    mask = (t1 > 0.2) | (gm + wm > 0.2)
    total = np.maximum(gm + wm, 1)
    gm, wm = np.where(mask, gm / total, np.float32(0)), np.where(mask, wm / total, np.float32(0))
    ramp = (_RIM_MM - _distance_mm(mask, _RIM_MM)) / np.float32(_RIM_MM - _RIM_FULL_MM)
    extent = np.clip(ramp, 0, 1).astype(np.float32)
    csf = np.clip(extent - gm - wm, 0, 1)
    return Lattice(t1=t1, gm=gm, wm=wm, csf=csf, mask=mask, extent=extent)


@cache
def depth_mm() -> FloatArray:
    """Return each lattice voxel's distance to the outside of the brain, mm, 0 outside (1.3 CPU s).

    Some template voxels inside the ventricles are too dark for the brain's mask; they count as
    outside.
    """
    depth = ndimage.distance_transform_edt(load_lattice().mask).astype(np.float32)
    depth.flags.writeable = False
    return depth


def block_average(volume: FloatArray, spacing_mm: float) -> FloatArray:
    """Return a lattice volume averaged over the voxels of `brain_grid(spacing_mm)`.

    The grid's voxels begin half a template voxel late, so the outer template voxels of each
    block count half: the exact average of the template seen as little cubes.

    Parameters
    ----------
    volume : float32 array, shape (161, 193, 161)
        On the template's own voxels.
    spacing_mm : float
        A whole number that divides the brain box.
    """
    factor = int(spacing_mm)
    shape = brain_grid(spacing_mm).shape
    if factor != spacing_mm:
        raise ValueError(f"the template is averaged over whole millimetres, not {spacing_mm} mm")
    for axis, n in enumerate(shape):
        volume = np.moveaxis(volume, axis, 0)
        halves = (volume[:-1] + volume[1:]) * np.float32(0.5)
        blocks = halves.reshape(n, factor, *halves.shape[1:])
        volume = np.moveaxis(blocks.mean(axis=1, dtype=np.float32), 0, axis)
    return np.ascontiguousarray(volume)


def _read(name: str) -> FloatArray:
    """Return one map on the lattice, 0 to 1."""
    image = nibabel.Nifti1Image.from_filename(_data_folder() / _FILE.format(name))
    low = np.array(BRAIN_BOX_LOW_MM, dtype=int) - _FIRST_VOXEL_MM
    high = low + BRAIN_BOX_MM + 1
    inside = tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))
    values = np.asanyarray(image.dataobj)[inside]
    # The box reaches 4 mm below the template's lowest slice, where there is nothing.
    empty = [(int(-min(a, 0)), 0) for a in low]
    return np.pad(values, empty).astype(np.float32) / np.float32(255)


def _data_folder() -> Path:
    """Find nilearn's folder without importing it (2 CPU s)."""
    found = importlib.util.find_spec("nilearn")
    for location in (found.submodule_search_locations or ()) if found else ():
        if (Path(location) / _FILE.format("t1")).is_file():
            return Path(location)
    raise MissingExtraError(
        "The ICBM152 template is missing: it comes with the package nilearn.",
        remedy="Run `pip install 'nilearn>=0.14'`.",
    )


def _distance_mm(mask: npt.NDArray[np.bool_], reach_mm: int) -> FloatArray:
    """Return the Euclidean distance to the mask, exact up to `reach_mm`, larger beyond.

    Ten times faster than a full distance transform, whose far values nobody needs.
    """
    square = np.where(mask, np.uint8(0), np.uint8(255 - reach_mm**2))
    for axis in range(3):
        before = np.moveaxis(square.copy(), axis, 0)
        after = np.moveaxis(square, axis, 0)
        for shift in range(1, reach_mm + 1):
            cost = np.uint8(shift**2)
            np.minimum(after[shift:], before[:-shift] + cost, out=after[shift:])
            np.minimum(after[:-shift], before[shift:] + cost, out=after[:-shift])
    return np.sqrt(square, dtype=np.float32)


def world_coordinates(grid: Grid) -> Coordinates:
    """Return x, y and z of the voxel centres in mm, shaped to broadcast over the grid.

    Returns
    -------
    tuple of float32 arrays, shapes (x, 1, 1), (1, y, 1), (1, 1, z)
        Right, anterior and superior are positive.
    """
    affine = grid.matrix()
    axes = [affine[i, 3] + affine[i, i] * np.arange(n) for i, n in enumerate(grid.shape)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return x.astype(np.float32), y.astype(np.float32), z.astype(np.float32)


@cache
def regions(grid: Grid) -> dict[str, FloatArray]:
    """Return soft region weights on a brain grid, drawn by geometry (no atlas is needed).

    Parameters
    ----------
    grid : Grid
        A brain grid of 1, 2, 4 or 8 mm.

    Returns
    -------
    dict of float32 arrays, 0 to 1, read-only
        `frontal`, `anterior_temporal`, `posterior_temporal`, `insula`, `parietal`, `occipital`,
        each with `_left` and `_right`, and `ventricles`. They say where a voxel lies, not what
        tissue it holds; cerebellum and brain stem belong to none. `ventricles` is a share of
        fluid.
    """
    x, y, z = world_coordinates(grid)
    weights: dict[str, FloatArray] = {}
    for name, both_sides in _lobes(np.abs(x), y, z):
        weights[f"{name}_left"] = both_sides * _rise(-x / 4)
        weights[f"{name}_right"] = both_sides * _rise(x / 4)
    lattice = load_lattice()
    depth = block_average(depth_mm(), grid.spacing_mm)
    fluid = block_average(lattice.sharpened()[2], grid.spacing_mm)
    weights["ventricles"] = fluid * ventricle_place(depth, (x, y, z))
    for volume in weights.values():
        volume.flags.writeable = False
    return weights


def _rise(value: npt.NDArray[Any]) -> FloatArray:
    """Return the logistic function, 0 to 1; this form cannot overflow."""
    return (0.5 + 0.5 * np.tanh(value / 2)).astype(np.float32)


def _lobes(x: FloatArray, y: FloatArray, z: FloatArray) -> Iterator[tuple[str, FloatArray]]:
    """Yield the lobes of both sides from the distance to the midline and from y and z, in mm."""
    central_y = 5 - 0.25 * (z - 20)  # 10 mm before the central sulcus: the motor strip is spared
    sylvian_z = -6 - 0.3 * y
    lateral, before = _rise((x - 16) / 3), _rise((22 - y) / 3)
    below = _rise((sylvian_z - z) / 3) * lateral * before
    medial = (0.65 + 0.35 * np.exp(-(x**2) / (2 * 18**2))).astype(np.float32)
    yield "frontal", _rise((y - central_y) / 5) * (1 - below) * _rise((z + 32) / 3) * medial
    temporal = below * _rise((y + 45) / 4) * _rise((z + 60) / 3)
    anterior = temporal * _rise((y + 12) / 7)
    yield "anterior_temporal", anterior
    yield "posterior_temporal", temporal - anterior
    insula = np.exp(-0.5 * (((x - 36) / 7) ** 2 + ((y - 6) / 13) ** 2 + (z / 9) ** 2))
    yield "insula", insula.astype(np.float32)
    yield (
        "parietal",
        _rise((central_y - 18 - y) / 5) * _rise((z - sylvian_z - 12) / 4) * _rise((y + 78) / 5),
    )
    yield "occipital", _rise((-72 - y + 0 * x + 0 * z) / 5)


def ventricle_place(depth_mm: FloatArray, world: Coordinates) -> FloatArray:
    """Return how surely fluid at a place belongs to the ventricles, 0 to 1.

    Parameters
    ----------
    depth_mm : float32 array
        Distance to the outside of the brain.
    world : tuple of three float32 arrays
        Coordinates of the same voxels, mm.
    """
    x, y, z = world
    deep = _rise((depth_mm - 16) / 2)
    front_back = _rise((38 - y) / 3) * _rise((y + 62) / 3)
    return deep * _rise((30 - np.abs(x)) / 2) * front_back * _rise((z + 16) / 3)
