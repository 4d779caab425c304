"""What can be measured in a picture that shows no brain: size, brightness, detail, by plane.

`describe_planes` is the way in. It stands where `measures.describe` stands for brains: a second
opinion beside learned features that a person can read. Nothing here knows what an organ is, so
that no effect of a diagnosis on a region is judged on pictures.
"""

import numpy as np
import numpy.typing as npt

from rarescan.cohort.contracts import FloatArray

Array = npt.NDArray[np.float64]

_OF_A_PLANE = (
    *("size", "brightness", "contrast", "dark_tail", "bright_tail"),
    "texture",
    *("upper_left", "upper_right", "lower_left", "lower_right"),
)
_QUIET = 1e-4


def plane_names(n_planes: int) -> tuple[str, ...]:
    """Return the names of the columns of `describe_planes`."""
    if n_planes == 1:
        return _OF_A_PLANE
    return tuple(f"{name}_in_plane_{i + 1}" for i in range(n_planes) for name in _OF_A_PLANE)


def describe_planes(pictures: FloatArray) -> Array:
    """Return what each picture looks like.

    Parameters
    ----------
    pictures : float32 array, shape (n, rows, columns, planes)
        0 to 1, 0 outside the sector, the breast or the brain.

    Returns
    -------
    float64 array, shape (n, 10 * planes)
        Of each plane: the share of it that is not 0; mean, SD, 10th and 90th percentile of what
        is not 0; the logarithm of the mean absolute step between neighbouring means of 4 x 4
        (finer detail has a gate of its own); the mean of each quarter. An empty plane gives 0
        everywhere.
    """
    planes = np.moveaxis(pictures, -1, 1)
    return np.array([np.concatenate([_of_plane(plane) for plane in one]) for one in planes])


def _of_plane(plane: FloatArray) -> Array:
    inside = plane[plane > 0].astype(np.float64)
    if not len(inside):
        return np.zeros(len(_OF_A_PLANE))
    rows, columns = (n // 2 for n in plane.shape)
    quarters = [plane[:rows, :columns], plane[:rows, columns:]]
    quarters += [plane[rows:, :columns], plane[rows:, columns:]]
    return np.array(
        [
            len(inside) / plane.size,
            inside.mean(),
            inside.std(),
            *np.percentile(inside, (10, 90)),
            _texture(_averaged(plane, 4)),
            *(quarter.mean(dtype=np.float64) for quarter in quarters),
        ]
    )


def _texture(plane: FloatArray) -> float:
    """Return the log of the mean absolute step between neighbours that are both inside."""
    steps = []
    for axis in (0, 1):
        both = np.minimum(plane.take(range(1, plane.shape[axis]), axis), plane[_all_but(axis)]) > 0
        steps.append(np.abs(np.diff(plane, axis=axis))[both])
    found = np.concatenate(steps)
    return float(np.log(_QUIET + (found.mean(dtype=np.float64) if len(found) else 0)))


def _all_but(axis: int) -> tuple[slice, ...]:
    """Return what leaves out the last place along an axis."""
    return tuple(slice(0, -1) if a == axis else slice(None) for a in (0, 1))


def _averaged(plane: FloatArray, step: int) -> FloatArray:
    rows, columns = (n // step for n in plane.shape)
    blocks = plane[: rows * step, : columns * step].reshape(rows, step, columns, step)
    means: FloatArray = blocks.mean(axis=(1, 3), dtype=np.float32)
    return means
