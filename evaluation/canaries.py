"""Copies planted on purpose, which the search for copies must find in every run.

`plant` makes seven kinds of copies of training persons, from exact ones to copies that are
mirrored, re-intensified and deformed at once. A search that misses a kind is blind to it, and
the gate then says `insufficient`, never `pass`.
"""

import numpy as np
from scipy import ndimage

from rarescan.cohort.contracts import FloatArray
from rarescan.cohort.planes import smoothing, spatial_axes
from rarescan.evaluation.copies import mirrored
from rarescan.seeds import generator

KINDS = ("exact", "smoothed", "flipped", "shifted", "intensity", "deformed", "combined")
_NOISE = 0.03
_GAMMA = 0.6
_BIAS = 0.15
_DEFORMATION_VOXELS = 0.5 / 3**0.5  # along each axis, so that the length has SD 0.5
_NODES = 5


def plant(volumes: FloatArray, *, shift_voxels: int, seed: int) -> dict[str, FloatArray]:
    """Return altered copies of each volume, by kind.

    Parameters
    ----------
    volumes : float32 array, shape (n, x, y, z)
        Training scans on the grid of the search, 0 to 1, 0 outside the brain.
    shift_voxels : int
        The largest shift that the search promises to find.
    seed : int
        Noise, bias fields and deformations.
    """
    kinds: dict[str, list[FloatArray]] = {kind: [] for kind in KINDS}
    shift = (shift_voxels, -((shift_voxels + 1) // 2), 0)
    for index, volume in enumerate(volumes):
        draw = generator(seed, "canary", index)
        kinds["exact"].append(volume)
        kinds["smoothed"].append(_smoothed(volume, draw))
        kinds["flipped"].append(mirrored(volume))
        kinds["shifted"].append(np.roll(volume, shift, axis=(0, 1, 2)))
        kinds["intensity"].append(_reintensified(volume, draw))
        kinds["deformed"].append(_deformed(volume, draw))
        kinds["combined"].append(_deformed(_reintensified(mirrored(volume), draw), draw))
    return {kind: np.stack(copies).astype(np.float32) for kind, copies in kinds.items()}


def _smoothed(volume: FloatArray, draw: np.random.Generator) -> FloatArray:
    noise = _NOISE * draw.standard_normal(volume.shape)
    smooth = (ndimage.gaussian_filter(volume, smoothing(0.6, volume.shape)) + noise) * (volume > 0)
    clipped: FloatArray = np.clip(smooth, 0, 1).astype(np.float32)
    return clipped


def _reintensified(volume: FloatArray, draw: np.random.Generator) -> FloatArray:
    bias = 1 + _BIAS * _smooth_field(volume.shape, draw)
    changed: FloatArray = np.clip(volume**_GAMMA * bias, 0, 1)
    return changed


def _deformed(volume: FloatArray, draw: np.random.Generator) -> FloatArray:
    places = np.indices(volume.shape, dtype=np.float64)
    for axis in spatial_axes(volume.shape):
        places[axis] += _DEFORMATION_VOXELS * _smooth_field(volume.shape, draw)
    moved: FloatArray = ndimage.map_coordinates(volume, places, order=1)
    return moved


def _smooth_field(shape: tuple[int, ...], draw: np.random.Generator) -> FloatArray:
    """Return a random field of SD one that changes over about a fifth of the volume."""
    nodes = draw.standard_normal((_NODES, _NODES, _NODES))
    for size in shape:
        place = (np.arange(size) + 0.5) * _NODES / size - 0.5
        bump = np.exp(-0.5 * ((place[:, None] - np.arange(_NODES)) / 0.7) ** 2)
        nodes = np.moveaxis(np.tensordot(nodes, bump, axes=(0, 1)), -1, 2)
    normed: FloatArray = ((nodes - nodes.mean()) / nodes.std()).astype(np.float32)
    return normed
