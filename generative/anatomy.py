"""A volume as two smooth channels, intensity and shape, and back.

`to_image` and `to_volume` are the ways in. A skull-stripped volume has a hard edge to zero at a
different place in every person; whatever mixes persons linearly then shows double contours.
Here the intensities are continued a little beyond the edge and the edge is a channel of its own:
the signed distance to it. A sample so brings its own brain mask, and nobody's mask is copied.

Pictures (`contracts.plane_grid`) have the sector, the breast or the slice of a brain in place of
the brain. Their planes are no neighbours in space, so that each is treated on its own.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rarescan.cohort.contracts import FloatArray
from rarescan.cohort.planes import are_planes

CHANNELS = 2
_REACH_VOXELS = 3.0
"""Distances are cut here, and intensities fade to zero this far outside."""
_SHAPE_UNIT_VOXELS = 8.0
"""One voxel of displaced edge weighs as much as 1/8 of the intensity range."""

_SMOOTH_VOXELS = 1.0
_PIECE = 0.1
_LEAST = 0.02
"""Smallest distance from the edge, in voxels: above the rounding of a code."""


def to_image(volume: FloatArray) -> FloatArray:
    """Return intensity and shape, float32, shape (2, x, y, z).

    Parameters
    ----------
    volume : float32 array, shape (x, y, z)
        Values 0 to 1, 0 outside the brain.

    Returns
    -------
    float32 array, shape (2, x, y, z)
        Intensities, continued beyond the edge; signed distance to the edge, positive inside.
    """
    if are_planes(volume.shape):
        return np.stack([_image(plane) for plane in np.moveaxis(volume, -1, 0)], axis=-1)
    return _image(volume)


def _image(volume: FloatArray) -> FloatArray:
    """Return both channels of one volume or one plane, in which the edge is looked for."""
    if not (volume > 0).any():
        return np.stack([volume, np.full_like(volume, -_REACH_VOXELS / _SHAPE_UNIT_VOXELS)])
    mask = ndimage.binary_fill_holes(volume > 0)
    inside = ndimage.distance_transform_edt(mask)
    outside, nearest = ndimage.distance_transform_edt(~mask, return_indices=True)
    fade = np.clip(1 - (outside - 1) / _REACH_VOXELS, 0, 1)
    filled = np.where(mask, volume, volume[tuple(nearest)] * fade)
    # Half a voxel, so that the distance changes its sign between two voxels and not on one.
    signed = np.where(mask, inside - 0.5, 0.5 - outside)
    smooth = ndimage.gaussian_filter(np.clip(signed, -_REACH_VOXELS, _REACH_VOXELS), _SMOOTH_VOXELS)
    # Smoothing takes the voxel steps out of the outline; the sign stays that of the mask.
    shape = np.where(mask, np.maximum(smooth, _LEAST), np.minimum(smooth, -_LEAST))
    shape = shape / _SHAPE_UNIT_VOXELS
    return np.stack([filled, shape]).astype(np.float32)


def to_volume(image: FloatArray) -> FloatArray:
    """Return the volume of an image: float32, shape (x, y, z), 0 to 1, 0 outside the brain."""
    mask = brain_mask(image[1])
    volume: FloatArray = np.where(mask, np.clip(image[0], 0, 1), 0).astype(np.float32)
    return volume


def brain_mask(shape: FloatArray) -> npt.NDArray[np.bool_]:
    """Return what lies inside the edge, without holes: the largest connected part.

    In pictures, which shadows cut in pieces, every part of a tenth of the largest or more.
    """
    if are_planes(shape.shape):
        return np.stack([_parts(plane, _PIECE) for plane in np.moveaxis(shape, -1, 0)], axis=-1)
    return _parts(shape, 1.0)


def _parts(shape: FloatArray, least: float) -> npt.NDArray[np.bool_]:
    """Return the connected parts with at least this share of the largest one's size."""
    labels, n_parts = ndimage.label(shape > 0)
    if n_parts == 0:
        return np.zeros(shape.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())[1:]
    largest = 1 + int(np.argmax(sizes))
    kept = labels == largest
    if least < 1:
        kept = np.isin(labels, 1 + np.flatnonzero(sizes >= least * sizes[largest - 1]))
    mask: npt.NDArray[np.bool_] = ndimage.binary_fill_holes(kept)
    return mask
