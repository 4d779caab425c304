"""Copies of persons in disguise, of random strength: what a search for copies must see through.

`DISGUISES` maps a name to a function (volume, mm, draw) -> volume. Other code than the product's
planted copies, so that the search is not measured on what calibrates it. Lengths are in mm.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from rarescan.cohort.contracts import FloatArray

Disguise = Callable[[FloatArray, float, np.random.Generator], FloatArray]

SHIFT_MM = 8.0
DEFORMATION_MM = 2.0
DEFORMATION_SMOOTH_MM = 16.0


def exact(volume: FloatArray, mm: float, draw: np.random.Generator) -> FloatArray:
    """Return the volume itself."""
    del mm, draw
    return volume


def noisy(volume: FloatArray, mm: float, draw: np.random.Generator) -> FloatArray:
    """Return the volume with 2 to 5 % noise, slightly smoothed."""
    del mm
    smooth = ndimage.gaussian_filter(volume, draw.uniform(0, 0.6))
    noise = draw.uniform(0.02, 0.05) * draw.standard_normal(volume.shape)
    return (np.clip(smooth + noise, 0.01, 1) * (volume > 0)).astype(np.float32)


def flipped(volume: FloatArray, mm: float, draw: np.random.Generator) -> FloatArray:
    """Return left for right."""
    del mm, draw
    return volume[::-1]


def shifted(volume: FloatArray, mm: float, draw: np.random.Generator) -> FloatArray:
    """Return the volume moved by whole voxels, up to 8 mm along each axis."""
    most = round(SHIFT_MM / mm)
    steps = draw.integers(-most, most + 1, 3)
    return ndimage.shift(volume, steps, order=0)


def shifted_between_voxels(volume: FloatArray, mm: float, draw: np.random.Generator) -> FloatArray:
    """Return the volume moved by any distance up to 8 mm along each axis."""
    steps = draw.uniform(-SHIFT_MM, SHIFT_MM, 3) / mm
    return ndimage.shift(volume, steps, order=1)


def reintensified(volume: FloatArray, mm: float, draw: np.random.Generator) -> FloatArray:
    """Return the volume with another gamma, gain and shading."""
    shading = np.exp(0.15 * smooth_field(volume.shape, 40 / mm, draw))
    gamma = np.exp(draw.uniform(-0.5, 0.5))
    changed = draw.uniform(0.6, 1.0) * volume**gamma * shading
    return np.clip(changed, 0, 1).astype(np.float32)


def deformed(volume: FloatArray, mm: float, draw: np.random.Generator) -> FloatArray:
    """Return the volume warped smoothly; the displacement has an SD of 2 mm in length."""
    places = np.indices(volume.shape, dtype=np.float32)
    for axis in range(3):
        field = smooth_field(volume.shape, DEFORMATION_SMOOTH_MM / mm, draw)
        places[axis] += DEFORMATION_MM / 3**0.5 / mm * field
    return ndimage.map_coordinates(volume, places, order=1)


def turned(volume: FloatArray, mm: float, draw: np.random.Generator) -> FloatArray:
    """Return the volume turned by up to 3 degrees about each axis and scaled by up to 2 %."""
    del mm
    return affine(volume, degrees=3.0, scale=0.02, draw=draw)


def all_at_once(volume: FloatArray, mm: float, draw: np.random.Generator) -> FloatArray:
    """Return the volume mirrored, re-intensified, moved and deformed."""
    moved = shifted_between_voxels(volume[::-1], mm, draw)
    return deformed(reintensified(moved, mm, draw), mm, draw)


def affine(
    volume: FloatArray, *, degrees: float, scale: float, draw: np.random.Generator
) -> FloatArray:
    """Return the volume turned and scaled about its centre by uniform amounts up to those given."""
    x, y, z = np.deg2rad(draw.uniform(-degrees, degrees, 3))
    turn = np.eye(3)
    for i, j, angle in ((1, 2, x), (0, 2, y), (0, 1, z)):
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    matrix = turn * (1 + draw.uniform(-scale, scale))
    centre = (np.array(volume.shape) - 1) / 2
    return ndimage.affine_transform(volume, matrix, centre - matrix @ centre, order=1)


def smooth_field(
    shape: tuple[int, ...], smooth_voxels: float, draw: np.random.Generator
) -> FloatArray:
    """Return a random field of mean zero and SD one."""
    field = ndimage.gaussian_filter(draw.standard_normal(shape), smooth_voxels, mode="reflect")
    return ((field - field.mean()) / field.std()).astype(np.float32)


DISGUISES: dict[str, Disguise] = {
    "exact": exact,
    "noisy": noisy,
    "flipped": flipped,
    "shifted": shifted,
    "shifted between voxels": shifted_between_voxels,
    "re-intensified": reintensified,
    "deformed": deformed,
    "turned": turned,
    "all at once": all_at_once,
}
