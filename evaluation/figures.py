"""Cut volumes into slices and join them into pictures, as WebP text for a page.

`planes` cuts a volume, `sheet` joins slices. Volumes are RAS; axial and coronal slices are shown
as radiologists do, with the patient's left on the right of the picture. Pictures that are no
brains are shown as they are. Brightness is never
stretched: black is 0 and white is 1 in every picture, so that two pictures can be compared.
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from rarescan.cohort.contracts import FloatArray, Grid

Picture = npt.NDArray[np.uint8]

SLICES_MM = {"axial": 12.0, "coronal": 14.0, "sagittal": -8.0}
"""Where each plane is cut, RAS mm of the template."""

_PIXELS_PER_MM = 1.2
_PICTURE_MM = 160.0
_GAP = 6
_WEBP_QUALITY = 80


def planes(volume: FloatArray, grid: Grid) -> dict[str, FloatArray]:
    """Return one axial, one coronal and one sagittal slice, turned as they are looked at.

    Pictures that are no brains have their own planes, row 0 at the top.

    Parameters
    ----------
    volume : float32 array, shape (x, y, z)
        In RAS order on the grid.
    grid : Grid
        Says which slices lie at `SLICES_MM`.

    Returns
    -------
    dict
        Plane -> array, rows from top to bottom of the picture. Axial: top is anterior; coronal:
        top is superior; in both the patient's left is on the right. Sagittal: the face looks left.
    """
    if not grid.is_brain:
        return {f"plane {i + 1}": volume[..., i] for i in range(grid.shape[2])}
    x, y, z = (
        _index(grid, axis, SLICES_MM[plane])
        for axis, plane in enumerate(("sagittal", "coronal", "axial"))
    )
    return {
        "axial": volume[::-1, ::-1, z].T,
        "coronal": volume[::-1, y, ::-1].T,
        "sagittal": volume[x, ::-1, ::-1].T,
    }


def shown_mm(grid: Grid) -> float:
    """Return what `sheet` takes for the edge of a pixel: pictures become as large as brains."""
    return grid.spacing_mm if grid.is_brain else _PICTURE_MM / max(grid.shape[:2])


def _index(grid: Grid, axis: int, position_mm: float) -> int:
    index = round((position_mm - grid.affine[axis][3]) / grid.spacing_mm)
    return min(max(index, 0), grid.shape[axis] - 1)


def sheet(
    rows: Sequence[Sequence[FloatArray]], spacing_mm: float, *, sides: bool = False
) -> Picture:
    """Return slices joined on black, every one at the same scale, centred in its cell.

    Parameters
    ----------
    rows : sequence of sequences of float arrays, shape (height, width), values 0 to 1
        As `planes` gives them.
    spacing_mm : float
        Edge of a pixel of the slices; the picture has 1.2 pixels a millimetre on any grid.
    sides : bool
        Write R and L at the edges of the upper left slice.
    """
    tiles = [[_enlarge(tile, spacing_mm) for tile in row] for row in rows]
    heights = [max(tile.shape[0] for tile in row) for row in tiles]
    widths = [max(tile.shape[1] for tile in column) for column in zip(*tiles, strict=True)]
    size = (sum(heights) + _GAP * (len(heights) - 1), sum(widths) + _GAP * (len(widths) - 1))
    picture = np.zeros(size, np.uint8)
    for top, height, row in zip(_starts(heights), heights, tiles, strict=True):
        for left, width, tile in zip(_starts(widths), widths, row, strict=True):
            y, x = top + (height - tile.shape[0]) // 2, left + (width - tile.shape[1]) // 2
            picture[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return _mark_sides(picture, widths[0]) if sides else picture


def _starts(lengths: Sequence[int]) -> list[int]:
    return [sum(lengths[:index]) + _GAP * index for index in range(len(lengths))]


def _enlarge(tile: FloatArray, spacing_mm: float) -> Picture:
    scale = spacing_mm * _PIXELS_PER_MM
    size = (round(tile.shape[1] * scale), round(tile.shape[0] * scale))
    image = Image.fromarray(np.ascontiguousarray(tile, dtype=np.float32))
    smooth = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    picture: Picture = (np.clip(smooth, 0, 1) * 255).round().astype(np.uint8)
    return picture


def _mark_sides(picture: Picture, width: int) -> Picture:
    image = Image.fromarray(picture)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(18)
    pen.text((3, 0), "R", fill=200, font=font)
    pen.text((width - 3, 0), "L", fill=200, font=font, anchor="ra")
    return np.asarray(image)


def webp(picture: Picture) -> str:
    """Return a picture as a data URI."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "WEBP", quality=_WEBP_QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
