"""Draw numbers as SVG text for a page: intervals, curves, maps, spectra.

Every plot has the same bytes each time, ids of its own and the width of its place; texts inside
are escaped. Colours are those that readers with colour blindness tell apart, and never the only
sign: shapes or dashes differ too.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]
ForestRow = tuple[str, Mapping[str, Any], bool | str]
"""Label, score, whether it stands out; or of which kind it is (`KINDS`)."""
ForestCell = tuple[str, Sequence[ForestRow], Mapping[str, Any] | None]
"""Title, rows, floor."""

INK, FAINT = "#26323f", "#8a97a5"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, which readers with colour blindness can tell apart."""
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_STYLES: Sequence[tuple[str, Any]] = tuple(zip(_COLOURS, _DASHES, strict=True))
KINDS: Mapping[bool | str, tuple[str, str, bool]] = {
    False: ("o", _COLOURS[0], False),
    True: ("D", _COLOURS[1], True),
    "free": ("o", _COLOURS[0], False),
    "generative": ("D", _COLOURS[1], True),
    "placebo": ("X", _COLOURS[6], True),
    "oracle": ("^", _COLOURS[2], False),
    "baseline": ("s", _COLOURS[3], False),
}
"""Sign, colour and whether it is filled."""
_SIGNS = tuple(zip(("#000000", "#0072B2", "#D55E00"), ("o", "^", "x"), strict=True))
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


def forest_plot(
    rows: Sequence[ForestRow],
    name: str,
    *,
    axis_label: str,
    floor: Mapping[str, Any] | None = None,
    line_at: float | None = None,
) -> str:
    """Return points with their 95 % intervals, one row each, as SVG.

    Parameters
    ----------
    rows : sequence of (label, score, emphasised or kind)
        Score: mapping with `value`, `low`, `high`. Emphasised rows get a filled diamond, kinds
        the sign that `KINDS` has for them.
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
        _draw_rows(axes, rows)
        axes.set_xlabel(axis_label)
        return _svg(figure, name)


def forest_grid(cells: Sequence[Sequence[ForestCell]], name: str) -> str:
    """Return a table of forest plots as SVG; rows and floors as in `forest_plot`.

    Every cell has its own scale; all cells of a row have the same labels in the same order.
    """
    height = sum(0.7 + 0.24 * max((len(rows) for _, rows, _ in line), default=0) for line in cells)
    columns = max(len(line) for line in cells)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.2 + 1.7 * columns, height), layout="constrained")
        grid = figure.subplots(len(cells), columns, squeeze=False)
        for line, panels in zip(cells, grid, strict=True):
            for (title, rows, floor), axes in zip(line, panels, strict=False):
                _draw_floor(axes, floor)
                _draw_rows(axes, rows)
                axes.set_title(title)
                axes.locator_params(axis="x", nbins=3)
            for axes in panels[1:]:
                axes.tick_params(labelleft=False)
            for axes in panels[len(line) :]:
                axes.set_axis_off()
        return _svg(figure, name)


def _draw_rows(axes: Axes, rows: Sequence[ForestRow]) -> None:
    """Draw one point with its interval a row, the first at the top."""
    for height, (_, score, kind) in enumerate(reversed(rows)):
        marker, colour, filled = KINDS[kind]
        if score["low"] is not None and score["high"] is not None:
            axes.plot([score["low"], score["high"]], [height] * 2, color=colour)
        face = colour if filled else "white"
        axes.plot(score["value"], height, marker, color=colour, mfc=face, markersize=5.5)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _draw_floor(axes: Axes, floor: Mapping[str, Any] | None) -> None:
    if floor is None or floor["value"] is None:
        return
    if floor["low"] is not None and floor["high"] is not None:
        axes.axvspan(floor["low"], floor["high"], color=FAINT, alpha=0.22, linewidth=0)
    axes.axvline(floor["value"], color=INK, linestyle=":", linewidth=1.2)


def span_plot(
    series: Mapping[str, Mapping[float, Mapping[str, float]]], name: str, labels: tuple[str, str]
) -> str:
    """Return scores over a number on a logarithmic axis, with their 95 % intervals, as SVG.

    Parameters
    ----------
    series : mapping
        Label -> number -> score with `value`, `low`, `high`; seven labels at most.
    name : str
        Unique on the page.
    labels : (str, str)
        What the axes are.
    """
    numbers = sorted({number for points in series.values() for number in points})
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=FAINT, linestyle="--", linewidth=1)
        for place, ((label, points), (colour, dashes)) in enumerate(
            zip(series.items(), _STYLES, strict=False)
        ):
            # Beside each other, so that intervals at one number do not hide each other.
            at = [number * 1.03 ** (place - len(series) / 2) for number in sorted(points)]
            low, value, high = (
                [points[number][key] for number in sorted(points)]
                for key in ("low", "value", "high")
            )
            look: dict[str, Any] = {"color": colour, "marker": "os^DXvP"[place], "markersize": 5}
            axes.plot(at, value, linestyle=dashes, label=label, **look)
            axes.vlines(at, low, high, color=colour, linewidth=1)
        axes.set_xscale("log")
        axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
        axes.minorticks_off()
        axes.set(xlabel=labels[0], ylabel=labels[1])
        figure.legend(loc="outside upper right", ncols=4, fontsize=7.5)
        return _svg(figure, name)


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
            axes.legend(loc="best", fontsize=7)
        for axes in grid.flat[len(curves) :]:
            axes.set_axis_off()
        grid[0, 0].set_ylabel("loss")
        return _svg(figure, name)


_ROC_AXES = ("1 - specificity (controls called patients)", "sensitivity (patients found)")


def roc_plot(
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    name: str,
    labels: tuple[str, str] = _ROC_AXES,
) -> str:
    """Return ROC curves (label -> `fpr`, `tpr`, each 0 to 1) in one square plot as SVG."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
        for (colour, dashes), (label, curve) in zip(_STYLES, curves.items(), strict=False):
            line = {"color": colour, "linestyle": dashes, "label": label}
            axes.step(curve["fpr"], curve["tpr"], where="post", **line)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.legend(loc="lower right", fontsize=7.5)
        return _svg(figure, name)


def reliability_plot(series: Mapping[str, Sequence[Mapping[str, float]]], name: str) -> str:
    """Return how often a classifier is right at each confidence as SVG.

    Parameters
    ----------
    series : mapping
        Label -> filled bins, each `confidence`, `right` and `share` of all units (0 to 1), which
        is the area of its sign.
    name : str
        Unique on the page.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
        for (label, bins), (colour, sign) in zip(series.items(), _SIGNS[1:], strict=False):
            at, right, share = (
                [one[key] for one in bins] for key in ("confidence", "right", "share")
            )
            axes.plot(at, right, color=colour, linewidth=0.8)
            look: dict[str, Any] = {"marker": sign, "color": colour, "label": label}
            axes.scatter(at, right, [20 + 200 * s for s in share], alpha=0.8, **look)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xlabel="confidence (largest probability)", ylabel="share that was right")
        axes.legend(loc="upper left", fontsize=7.5)
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


def power_plot(power: Mapping[str, tuple[float, float]], name: str, *, needed: float) -> str:
    """Return bars of shares found (label -> share, lower 95 % bound) as SVG.

    A dashed line stands where the lower bounds, drawn as whiskers, must begin.
    """
    heights = np.arange(len(power) - 1, -1, -1)
    shares, bounds = np.array(list(power.values()), dtype=np.float64).T
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 0.75 + 0.3 * len(power)), layout="constrained")
        axes = figure.subplots()
        axes.barh(heights, shares, 0.55, color=_COLOURS[4])
        axes.hlines(heights, bounds, shares, color=INK, linewidth=1.5)
        axes.plot(bounds, heights, "|", color=INK, markersize=8)
        axes.axvline(needed, color=_COLOURS[1], linestyle="--", linewidth=1.2)
        axes.set(xlim=(0, 1.02), xlabel="share of planted copies that was found")
        axes.set_yticks(heights, list(power))
        axes.tick_params(axis="y", length=0)
        return _svg(figure, name)


def map_plot(panels: Mapping[str, Mapping[str, Array]], name: str, labels: tuple[str, str]) -> str:
    """Return scattered persons as SVG: one panel a diagnosis, one sign an origin, equal axes.

    Parameters
    ----------
    panels : mapping
        Diagnosis -> origin -> places, shape (persons, 2).
    labels : (str, str)
        What the axes are.
    """
    everyone = np.concatenate([places for sets in panels.values() for places in sets.values()])
    low, high = everyone.min(axis=0), everyone.max(axis=0)
    slack = 0.05 * np.maximum(high - low, 1e-9)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(max(3.4, 2.7 * len(panels)), 3.0), layout="constrained")
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, sets) in zip(row, panels.items(), strict=True):
            for (origin, places), (colour, sign) in zip(sets.items(), _SIGNS, strict=False):
                look = {"color": colour, "mfc": "none", "markersize": 4, "label": origin}
                axes.plot(places[:, 0], places[:, 1], sign, linestyle="none", mew=0.9, **look)
            axes.set(xlim=(low[0] - slack[0], high[0] + slack[0]), xlabel=labels[0], title=title)
            axes.set(ylim=(low[1] - slack[1], high[1] + slack[1]))
        row[0].set_ylabel(labels[1])
        handles = {
            text: h for a in row for h, text in zip(*a.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, loc="outside upper right", ncols=3, fontsize=7.5)
        return _svg(figure, name)


def spectrum_plot(
    cycles: Array, groups: Mapping[str, Array], name: str, unit: str = "millimetre"
) -> str:
    """Return mean power against spatial frequency, with 95 % bands, as SVG.

    Parameters
    ----------
    cycles : float array, shape (bands,)
        In each millimetre, or in each of another unit.
    groups : mapping
        Label -> power in decibel, shape (volumes, bands).
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.8, 2.8), layout="constrained")
        axes = figure.subplots()
        for (colour, dashes), (label, power) in zip(_STYLES, groups.items(), strict=False):
            mean, n = power.mean(axis=0), len(power)
            half = 1.96 * power.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else 0 * mean
            band: dict[str, Any] = {"color": colour, "alpha": 0.25, "linewidth": 0}
            axes.fill_between(cycles, mean - half, mean + half, **band)
            axes.plot(cycles, mean, color=colour, linestyle=dashes, label=label)
        axes.set(xlabel=f"cycles a {unit} (right: finer detail)", ylabel="power, dB")
        axes.legend(loc="upper right", fontsize=7.5)
        return _svg(figure, name)


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
