"""Which axes of an array are space, where no grid is at hand.

A volume of a brain has three. Pictures (`contracts.plane_grid`) have rows and columns; their last
axis counts planes of one person, which are no neighbours and never mixed.
"""

from collections.abc import Sequence

MOST_PLANES = 3


def are_planes(shape: Sequence[int]) -> bool:
    """Return whether an array of shape (..., x, y, z) holds planes: at most three along z."""
    return shape[-1] <= MOST_PLANES


def spatial_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes of an array of shape (..., x, y, z) along which voxels are neighbours."""
    n = len(shape)
    return (n - 3, n - 2) if are_planes(shape) else (n - 3, n - 2, n - 1)


def smoothing(sd: float, shape: Sequence[int]) -> tuple[float, ...]:
    """Return a Gaussian's standard deviation along x, y and z: none across planes."""
    return (sd, sd, 0.0) if are_planes(shape) else (sd, sd, sd)
