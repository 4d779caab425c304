"""Find what of a picture shows the body: the fan of an ultrasound probe, a breast, a brain.

`tissue_mask` is the way in: from all frames of one item together, because text and marks stand
still while tissue moves. What lies outside becomes black, so that no text survives there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from rarescan.imaging.frames import Frame

Mask = npt.NDArray[np.bool_]

_FLOOR = 6
"""Grey levels below which a lossy picture's black ground reaches."""
_STROKE = 1 / 45
"""Width of the thickest letter strokes, as a share of the picture's."""
_LIVE = 2.0
"""Standard deviation over time (grey levels) of tissue; compressed text stays below it."""
_SMALLEST_SHARE, _MOVING_SHARE, _MOST_LOST = 0.05, 0.2, 0.5


def tissue_mask(frames: Sequence[Frame], *, convex: bool) -> Mask | None:
    """Return where the body is seen in frames of one size and one item.

    Parameters
    ----------
    frames : sequence of uint8 arrays, shape (rows, columns)
        Of one clip, or one picture.
    convex : bool
        True for the field of an ultrasound probe (a fan or a box: the convex hull of what is
        bright, since fluid and shadow inside are black); false for one bright object on dark
        ground (the largest one, its holes filled).

    Returns
    -------
    bool array, shape (rows, columns), or None
        None where nothing is seen.
    """
    stack = np.stack([ndimage.gaussian_filter(f.astype(np.float32), 0.7) for f in frames])
    bright = stack.max(axis=0) if convex else stack.mean(axis=0)
    stroke = max(3, round(bright.shape[1] * _STROKE))
    without_text = ndimage.grey_opening(bright, size=(stroke, stroke))
    seen = without_text > (_FLOOR if convex else _object_floor(without_text))
    if convex:
        # Padded, because closing eats into what lies at the border.
        wide = ndimage.binary_closing(np.pad(seen, stroke, mode="edge"), iterations=stroke)
        seen = wide[stroke:-stroke, stroke:-stroke]
    labelled, n_parts = ndimage.label(seen)
    if not n_parts:
        return None
    sizes = np.bincount(labelled.ravel())[1:]
    if not convex:
        return np.asarray(ndimage.binary_fill_holes(labelled == sizes.argmax() + 1))
    return _hull(np.isin(labelled, _living(labelled, sizes, stack) + 1))


def _object_floor(picture: npt.NDArray[np.float32]) -> float:
    """Return the level between dark ground and object: a quarter of Otsu's threshold."""
    if picture.min() == picture.max():
        return _FLOOR
    counts = np.bincount(np.rint(picture).astype(int).ravel(), minlength=256).astype(np.float64)
    levels = np.arange(len(counts))
    below, total = np.cumsum(counts), counts.sum()
    sums = np.cumsum(counts * levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below / total - sums) ** 2 / (below * (total - below))
    return max(float(_FLOOR), 0.25 * float(np.nanargmax(between)))


def _living(
    labelled: npt.NDArray[np.integer[Any]],
    sizes: npt.NDArray[np.int64],
    stack: npt.NDArray[np.float32],
) -> npt.NDArray[np.int64]:
    """Return which parts are tissue: the large ones that move, or the largest where none does."""
    large = sizes >= _SMALLEST_SHARE * sizes.max()
    if len(stack) > 2:
        moves = (stack.std(axis=0) > _LIVE).ravel()
        share = np.bincount(labelled.ravel(), moves)[1:] / sizes
        moving = large & (share > _MOVING_SHARE)
        if sizes[moving].sum() > _MOST_LOST * sizes.max():
            return np.flatnonzero(moving)
    return np.array([sizes.argmax()])


def _hull(seen: Mask) -> Mask:
    """Return the convex hull of a mask."""
    rows, columns = np.nonzero(seen)
    points = np.column_stack([columns, rows])
    try:
        corners = points[ConvexHull(points).vertices]
    except QhullError:
        return seen
    canvas = Image.new("1", (seen.shape[1], seen.shape[0]))
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in corners], fill=1, outline=1)
    return np.array(canvas, dtype=bool)
