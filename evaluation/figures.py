"""Draw what the report shows: slices of volumes as WebP, plots as SVG, both as text for a page.

`planes` cuts a volume, `sheet` joins slices into a picture; `forest_plot`, `curve_plot`,
`roc_plot` and `region_plot` draw numbers. Volumes are RAS; axial and coronal slices are shown as
radiologists do, with the patient's left on the right of the picture. Brightness is never
stretched: black is 0 and white is 1 in every picture, so that two pictures can be compared.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from rarescan.cohort.contracts import FloatArray, Grid

Picture = npt.NDArray[np.uint8]

SLICES_MM = {"axial": 12.0, "coronal": 14.0, "sagittal": -8.0}
"""Where each plane is cut, RAS mm of the template."""

_PIXELS_PER_MM = 1.2
_GAP = 6
_WEBP_QUALITY = 80

INK, FAINT = "#26323f", "#8a97a5"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, which readers with colour blindness can tell apart."""
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_STYLES: Sequence[tuple[str, Any]] = tuple(zip(_COLOURS, _DASHES, strict=True))
_FONT = "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # names come from outside and may hold a dollar sign
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
}


def planes(volume: FloatArray, grid: Grid) -> dict[str, FloatArray]:
    """Return one axial, one coronal and one sagittal slice, turned as they are looked at.

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
    x, y, z = (
        _index(grid, axis, SLICES_MM[plane])
        for axis, plane in enumerate(("sagittal", "coronal", "axial"))
    )
    return {
        "axial": volume[::-1, ::-1, z].T,
        "coronal": volume[::-1, y, ::-1].T,
        "sagittal": volume[x, ::-1, ::-1].T,
    }


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


def forest_plot(
    rows: Sequence[tuple[str, Mapping[str, Any], bool]],
    name: str,
    *,
    axis_label: str,
    floor: Mapping[str, Any] | None = None,
    line_at: float | None = None,
) -> str:
    """Return points with their 95 % intervals, one row each, as SVG.

    Parameters
    ----------
    rows : sequence of (label, score, emphasised)
        Score: mapping with `value`, `low`, `high`. Emphasised rows get a filled diamond.
    name : str
        Unique on the page; the SVG's ids are derived from it.
    axis_label : str
        What is measured.
    floor : mapping, optional
        A score drawn as a grey band over the whole height: the distance between real and real.
    line_at : float, optional
        Where a vertical dashed line stands.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 0.75 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        _draw_floor(axes, floor)
        if line_at is not None:
            axes.axvline(line_at, color=FAINT, linestyle="--", linewidth=1)
        for height, (_, score, emphasised) in enumerate(reversed(rows)):
            colour = _COLOURS[1] if emphasised else _COLOURS[0]
            if score["low"] is not None and score["high"] is not None:
                axes.plot([score["low"], score["high"]], [height] * 2, color=colour)
            face = colour if emphasised else "white"
            marker = "D" if emphasised else "o"
            axes.plot(score["value"], height, marker, color=colour, mfc=face, markersize=5.5)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(axis_label)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        return _svg(figure, name)


def _draw_floor(axes: Axes, floor: Mapping[str, Any] | None) -> None:
    if floor is None or floor["value"] is None:
        return
    if floor["low"] is not None and floor["high"] is not None:
        axes.axvspan(floor["low"], floor["high"], color=FAINT, alpha=0.22, linewidth=0)
    axes.axvline(floor["value"], color=INK, linestyle=":", linewidth=1.2)


def curve_plot(curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], name: str) -> str:
    """Return the training curves of several families side by side as SVG.

    Parameters
    ----------
    curves : mapping
        Family -> name of a loss -> [step, value] pairs.
    name : str
        Unique on the page.
    """
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(2.4 * columns, 1.9 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (label, series) in zip(grid.flat, curves.items(), strict=False):
            for style, (loss, points) in zip(_STYLES, series.items(), strict=False):
                # 300 points are as many as the width can show.
                steps, values = zip(*points[:: -(-len(points) // 300)], strict=True)
                axes.plot(steps, values, color=style[0], linestyle=style[1], label=loss)
            axes.set_title(label)
            axes.set_xlabel("step")
            axes.legend(loc="upper right", fontsize=7)
        for axes in grid.flat[len(curves) :]:
            axes.set_axis_off()
        grid[0, 0].set_ylabel("loss")
        return _svg(figure, name)


def roc_plot(curves: Mapping[str, Mapping[str, Sequence[float]]], name: str) -> str:
    """Return ROC curves (label -> `fpr`, `tpr`, each 0 to 1) in one square plot as SVG."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
        for (colour, dashes), (label, curve) in zip(_STYLES, curves.items(), strict=False):
            line = {"color": colour, "linestyle": dashes, "label": label}
            axes.step(curve["fpr"], curve["tpr"], where="post", **line)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_xlabel("1 - specificity (controls called patients)")
        axes.set_ylabel("sensitivity (patients found)")
        axes.legend(loc="lower right", fontsize=7.5)
        return _svg(figure, name)


def region_plot(regions: Mapping[str, Mapping[str, float | None]], name: str) -> str:
    """Return the effect of the diagnosis per region, real beside synthetic, as SVG.

    Parameters
    ----------
    regions : mapping
        Label -> Hedges' g of the diagnosis as `real` and `synthetic`; with `real_se` and
        `synthetic_se`, where they are known, the 95 % interval is drawn.
    name : str
        Unique on the page.
    """
    heights = np.arange(len(regions) - 1, -1, -1)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 0.95 + 0.24 * len(regions)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=FAINT, linestyle="--", linewidth=1)
        for kind, marker, colour, face, shift in (
            ("real", "o", _COLOURS[0], "white", 0.16),
            ("synthetic", "D", _COLOURS[1], _COLOURS[1], -0.16),
        ):
            values = _column(regions, kind)
            half = 1.96 * np.nan_to_num(_column(regions, f"{kind}_se"))
            where = heights + shift
            axes.hlines(where, values - half, values + half, color=colour, linewidth=1)
            axes.plot(values, where, marker, color=colour, mfc=face, label=kind, ms=4.5)
        axes.set_yticks(heights, list(regions))
        axes.set_ylim(-0.6, len(regions) - 0.4)
        axes.set_xlabel("effect of the diagnosis (Hedges' g; below 0: less in patients)")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper right", ncols=2, fontsize=7.5)
        return _svg(figure, name)


def _column(regions: Mapping[str, Mapping[str, float | None]], key: str) -> npt.NDArray[Any]:
    return np.array([effect.get(key) for effect in regions.values()], dtype=np.float64)


def _svg(figure: Figure, name: str) -> str:
    """Return a figure as inline SVG: same bytes every time, ids of its own, width of its place."""
    stream = io.StringIO()
    silent: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata=silent)
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(' width="', ' data-width="', 1)
    text = re.sub(r' data-width="[^"]*" height="[^"]*"', "", text, count=1)
    text = re.sub(r"<style type.*?</style>", "", text, count=1)
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {_FONT}", text)
    return re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", text)
