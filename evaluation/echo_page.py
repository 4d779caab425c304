"""The page of measured echocardiograms: fractions, beats, area curves, contours.

`write_page` is the way in. The page holds pictures of the tissue region only, needs no network,
and says nothing that a value does not say by itself.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rarescan.evaluation.page import render

_MOST_PICTURES = 60
"""Clips shown with a picture and a curve, so that the page stays below 5 MB."""


def write_page(
    figures: Mapping[str, Any],
    curves: Mapping[str, tuple[Sequence[float | None], float | None]],
    pictures: Mapping[str, Path],
) -> str:
    """Return the page.

    Parameters
    ----------
    figures : mapping
        `studies`, `clips`, `classes`, `scheme`, `agreement` as in `figures.json`.
    curves : mapping
        Clip -> the ventricle's area in each frame, and the time between frames in ms (or None).
    pictures : mapping
        Clip -> its picture (PNG); one that does not exist is left out.
    """
    measured = [clip for clip in figures["clips"] if clip["refused"] is None]
    # What needs a look comes first: it must not be the part that is cut off.
    shown = sorted(measured, key=lambda clip: (not clip["flags"], clip["clip_id"]))[:_MOST_PICTURES]
    films = [
        {
            **clip,
            "curve": _curve(*curves[clip["clip_id"]], clip["beats"]),
            "picture": _embedded(pictures[clip["clip_id"]]),
        }
        for clip in shown
    ]
    return render(
        "echo.html",
        figures=figures,
        films=films,
        n_measured=len(measured),
        refused=[clip for clip in figures["clips"] if clip["refused"] is not None],
    )


def _embedded(path: Path) -> str | None:
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _curve(
    area: Sequence[float | None], frame_time_ms: float | None, beats: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return what the template draws: points in a box of 300 x 90, and the beats' phases."""
    values = np.array([np.nan if v is None else v for v in area], dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).any():
        return None
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    across = 300 * np.arange(len(values)) / (len(values) - 1)
    down = 85 - 80 * (values - low) / max(high - low, 1e-9)
    every = max(len(values) // 600, 1)
    seen = np.flatnonzero(np.isfinite(values))[::every]

    def places(phase: str) -> list[tuple[float, float]]:
        frames = sorted({beat[phase] for beat in beats})
        return [(round(float(across[f]), 1), round(float(down[f]), 1)) for f in frames]

    return {
        "line": " ".join(f"{across[f]:.1f},{down[f]:.1f}" for f in seen),
        "ed": places("ed"),
        "es": places("es"),
        "seconds": None if frame_time_ms is None else frame_time_ms * (len(values) - 1) / 1000,
        "share": 1 - low / high if high else 0.0,
    }
