"""Write what a classifier can and cannot do: `classification.json` for machines, a page for people.

`write_page` is the way in, for a folder that `rarescan classify` filled. The verdict stands first,
baselines beside the network, persons beside every figure. The page is one file without script or
outside address, and gives no advice about a person.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup
from PIL import Image

from rarescan._version import VERSION
from rarescan.errors import InputError
from rarescan.evaluation import charts
from rarescan.evaluation.classification import FIGURE, UNIT, item_word, summarise
from rarescan.evaluation.figures import webp
from rarescan.evaluation.page import in_words, render
from rarescan.evaluation.predictions import NETWORK
from rarescan.files import read_json, write_atomic, write_json

PAGE, RESULT = "classifiers.html", "classification.json"
ABOUT, PREDICTIONS, MAPS = "classify.json", "predictions.parquet", "maps"
_MOST_MAPS = 12
_MAP_PIXELS = 320


def write_page(folder: Path) -> Path:
    """Write `classification.json` and `classifiers.html`, and return the path of the page.

    Parameters
    ----------
    folder : Path
        Holds `predictions.parquet` and `classify.json` (see `classification.summarise`); pictures
        of what a network looked at, `maps/*.png`, are shown where they are.

    Raises
    ------
    InputError
        A file is missing, or the predictions cannot be judged.
    """
    if not (folder / ABOUT).exists() or not (folder / PREDICTIONS).exists():
        raise InputError(
            f"{folder} holds no predictions of a classifier.",
            remedy="Run `rarescan classify PREPARED FOLDER` first.",
        )
    about = read_json(folder / ABOUT)
    result = summarise(pq.read_table(folder / PREDICTIONS), about)
    page = render(
        "classifiers.html",
        found=result,
        about=about,
        units=_units(result),
        calibration=_calibration(result),
        plots={name: svg and Markup(svg) for name, svg in _plots(result).items()},
        maps=_maps(folder / MAPS),
        films=sorted(path.name for path in (folder / MAPS).glob("*.mp4")),
        version=VERSION,
    )
    write_json(folder / RESULT, result)
    write_atomic(folder / PAGE, page)
    return folder / PAGE


def _units(result: Mapping[str, Any]) -> dict[str, str]:
    """Return unit -> its word; items or scans are left out where they are the same things."""
    n = result.get("n") or {}
    if not n:
        return {}
    words = {"scan": str(result.get("unit") or "scan"), "item": item_word(result)}
    if n["scan"]["units"] == n["item"]["units"]:
        del words["scan"]
    return words | ({"person": "person"} if "person" in n else {})


def _calibration(result: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the mean calibration error over folds, before and after temperature scaling."""
    told = result.get("calibration") or {}
    before, after = (np.ravel(told.get(f"ece_{side}") or []) for side in ("before", "after"))
    if not len(before) or len(before) != len(after):
        return None
    return {"before": float(before.mean()), "after": float(after.mean()), "folds": len(before)}


def _plots(result: Mapping[str, Any]) -> dict[str, str | None]:
    """Return name -> SVG of everything that there are numbers for."""
    if "models" not in result:
        return dict.fromkeys(("forest", "auc", "differences", "roc", "reliability", "coverage"))
    word = _units(result)[UNIT]
    classes = result["classes"]
    reliability = {
        label: result["reliability"][key]
        for key, label in (("before", "before temperature scaling"), ("after", "as it answers"))
        if result["reliability"][key]
    }
    roc = result["roc"]
    axes = ("others called so", "found") if len(classes) > 2 else _binary_axes(classes)
    return {
        "forest": _forest(
            result, FIGURE, f"balanced accuracy, one answer a {word}", 1 / len(classes)
        ),
        "auc": _forest(result, "macro_auc", "AUC (0.5: chance, 1: perfect)", 0.5),
        "differences": _differences(result, word),
        "roc": charts.roc_plot(roc, "roc", axes) if roc else None,
        "reliability": charts.reliability_plot(reliability, "reliability"),
        "coverage": _coverage(result, word),
    }


def _binary_axes(classes: list[str]) -> tuple[str, str]:
    return f"{classes[0]} called {classes[1]}", f"{classes[1]} found"


def _forest(result: Mapping[str, Any], figure: str, label: str, chance: float) -> str | None:
    rows = [
        (in_words(model, "baselines"), found[UNIT][figure], model == NETWORK)
        for model, found in result["models"].items()
        if figure in found[UNIT]
    ]
    if not rows:
        return None
    return charts.forest_plot(rows, f"forest-{figure}", axis_label=label, line_at=chance)


def _differences(result: Mapping[str, Any], word: str) -> str | None:
    rows = [
        (
            in_words(model, "baselines"),
            found[UNIT][FIGURE],
            not (found[UNIT][FIGURE]["low"] or 0) > 0,
        )
        for model, found in result["differences"].items()
    ]
    label = f"network minus baseline, balanced accuracy a {word}"
    return charts.forest_plot(rows, "differences", axis_label=label, line_at=0.0) if rows else None


def _coverage(result: Mapping[str, Any], word: str) -> str:
    rows = [
        (f"surest {one['coverage']:.0%}", one[FIGURE], one["coverage"] == 1)
        for one in result["abstention"]["curve"]
    ]
    label = f"balanced accuracy where only the surest {word}s are answered"
    return charts.forest_plot(rows, "coverage", axis_label=label)


def _maps(folder: Path) -> list[dict[str, str]]:
    """Return the first pictures of a folder, small enough for one page."""
    shown = []
    for path in sorted(folder.glob("*.png"))[:_MOST_MAPS]:
        with Image.open(path) as opened:
            small = opened.convert("RGB")
            small.thumbnail((_MAP_PIXELS, _MAP_PIXELS))
            shown.append({"name": path.stem.replace("_", " "), "picture": webp(np.asarray(small))})
    return shown
