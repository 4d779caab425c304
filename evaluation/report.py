"""Write a run's report: `report.json` with every number, `report.html` for people.

`write_report` is the way in. The page is one file without script or outside address; its text is
rendered from the content of `report.json` and nothing else, and only the pictures are read from
the volumes. The same run gives the same bytes. It shows scans of persons (pseudonymous, without
face): it stays where the cohort stays.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rarescan.cohort.contracts import FloatArray, Grid
from rarescan.cohort.store import VOLUMES, open_cohort, tables
from rarescan.evaluation import figures
from rarescan.evaluation.collect import TEMPLATES, collect, in_words, words
from rarescan.files import RECIPE, read_json, write_atomic, write_json

_PER_DIAGNOSIS = 3
_MOST_DIAGNOSES = 4
_MOST_PAIRS = 5


def write_report(run: Path) -> Path:
    """Write `report.json` and `report.html` of a run, and return the path of the page.

    Parameters
    ----------
    run : Path
        The folder of a run, laid out as in docs/architecture.md. Later parts may be missing; the
        page then says so in words.

    Raises
    ------
    InputError
        The folder holds no cohort yet, or a step's file cannot be read.
    """
    content = collect(run)
    page = _render(content, _pictures(run, content) | _plots(content))
    write_json(run / "report.json", content)
    write_atomic(run / "report.html", page)
    return run / "report.html"


def _render(content: Mapping[str, Any], pictures: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "interval": interval,
        "point": point,
        "span": span,
        "duration": duration,
        "percent": percent,
        "in_words": in_words,
    }
    page = environment.get_template("report.html")
    return page.render(report=content, pictures=pictures, words=words())


def number(value: float | None, decimals: int | None = None, *, sign: bool = False) -> str:
    """Return a number for people: three significant digits unless decimals are given."""
    if value is None:
        return "not measured"
    places = _decimals(3, value) if decimals is None else decimals
    text = f"{value:{'+' if sign else ''},.{places}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _decimals(digits: int, *values: float | None) -> int:
    """Return how many decimals show so many significant digits of the largest value."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return min(max(digits - 1 - math.floor(math.log10(largest)), 0), 9) if largest else 2


def _places(score: Mapping[str, Any], decimals: int | None) -> int:
    """Return the decimals that a score and both ends of its interval share."""
    shown = (score["value"], score.get("low"), score.get("high"))
    return _decimals(2, *shown) if decimals is None else decimals


def point(score: Mapping[str, Any], decimals: int | None = None, *, sign: bool = False) -> str:
    """Return a score's value with as many decimals as its interval."""
    return number(score["value"], _places(score, decimals), sign=sign)


def span(score: Mapping[str, Any], decimals: int | None = None, *, sign: bool = False) -> str:
    """Return a score's interval as `low to high`."""
    low, high = score.get("low"), score.get("high")
    if low is None or high is None:
        return "no interval"
    places = _places(score, decimals)
    return f"{number(low, places, sign=sign)} to {number(high, places, sign=sign)}"


def interval(
    score: Mapping[str, Any] | None, decimals: int | None = None, *, sign: bool = False
) -> str:
    """Return a score as `value (low to high)`."""
    if score is None or score["value"] is None:
        return "not measured"
    return f"{point(score, decimals, sign=sign)} ({span(score, decimals, sign=sign)})"


def duration(seconds: float | None) -> str:
    """Return seconds as `3 min 20 s`."""
    if seconds is None:
        return "not measured"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def percent(share: float | None, decimals: int = 0) -> str:
    """Return a share from 0 to 1 as `92 %`."""
    return "not measured" if share is None else f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def _plots(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return name -> SVG of every plot that the run has numbers for."""
    plots = {
        "curves": _curves(content),
        "mmd": _mmd_forest(content),
        "regions": _regions(content),
        "auc": _auc_forest(content),
        "gain": _gain_forest(content),
        "roc": _roc(content),
    }
    # Matplotlib has escaped the texts inside.
    return {name: Markup(svg) if svg else None for name, svg in plots.items()}


def _family(content: Mapping[str, Any]) -> str | None:
    champion = content["champion"]
    return champion["family"] if champion else None


def _curves(content: Mapping[str, Any]) -> str | None:
    trained = {name: c["training"] for name, c in content["candidates"].items() if c["training"]}
    curves = {in_words(name, "families"): t["curves"] for name, t in trained.items() if t["curves"]}
    return figures.curve_plot(curves, "curves") if curves else None


def _mmd_forest(content: Mapping[str, Any]) -> str | None:
    rows = [
        (in_words(name, "families"), candidate["mmd"], name == _family(content))
        for name, candidate in content["candidates"].items()
        if candidate["mmd"]
    ]
    floor = (content["floor"] or {}).get("mmd")
    label = "squared MMD to the held-out real persons (smaller is closer)"
    return figures.forest_plot(rows, "mmd", axis_label=label, floor=floor) if rows else None


def _regions(content: Mapping[str, Any]) -> str | None:
    regions = content["candidates"].get(_family(content), {}).get("regions")
    if not regions:
        return None
    return figures.region_plot({k.replace("_", " "): v for k, v in regions.items()}, "regions")


def _auc_forest(content: Mapping[str, Any]) -> str | None:
    arms = content["arms"] or {}
    rows = [
        (_short(arm), scores["auc"], arm == "classical_synthetic") for arm, scores in arms.items()
    ]
    label = "AUC on test persons (0.5: chance, 1: perfect)"
    return figures.forest_plot(rows, "auc", axis_label=label, line_at=0.5) if rows else None


def _gain_forest(content: Mapping[str, Any]) -> str | None:
    named = {
        "gain": "gain (decides)",
        "gain_to_real": "against real scans only",
        "placebo": "placebo",
    }
    rows = [(label, content[key], key == "gain") for key, label in named.items() if content[key]]
    label = "difference in AUC on the same test persons"
    return figures.forest_plot(rows, "gain", axis_label=label, line_at=0.0) if rows else None


def _roc(content: Mapping[str, Any]) -> str | None:
    curves = {_short(arm): curve for arm, curve in (content["roc"] or {}).items()}
    return figures.roc_plot(curves, "roc") if curves else None


def _short(arm: str) -> str:
    return arm.replace("_", " + ")


@dataclass(frozen=True, kw_only=True)
class _Shelf:
    """Volumes to cut slices from, with what is known of each."""

    volumes: FloatArray
    diagnoses: tuple[str, ...]
    persons: tuple[str, ...]

    def first(self, diagnosis: str, rows: Sequence[int] | None = None) -> list[FloatArray]:
        """Return the first volumes of a diagnosis: in order, so that none is picked by eye."""
        among = range(len(self.diagnoses)) if rows is None else rows
        chosen = [row for row in among if self.diagnoses[row] == diagnosis][:_PER_DIAGNOSIS]
        return [self.volumes[row] for row in chosen]


def _open_shelf(root: Path, grid: Grid) -> _Shelf | None:
    """Open a folder of volumes; None where it is missing or on another grid."""
    index, volumes = tables(root) / "scans.parquet", tables(root) / VOLUMES
    if not (index.exists() and volumes.exists()):
        return None
    stored = np.load(volumes, mmap_mode="r")
    columns = pq.read_table(index, columns=["condition_diagnosis", "person_id"]).to_pydict()
    if stored.shape[1:] != grid.shape:
        return None
    return _Shelf(
        volumes=stored,
        diagnoses=tuple(columns["condition_diagnosis"]),
        persons=tuple(columns["person_id"]),
    )


def _pictures(run: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return every picture of slices; None where the volumes are not there."""
    nothing: dict[str, Any] = {"champion": [], "candidates": [], "pairs": []}
    if not (run / "prepared" / RECIPE).exists():
        return nothing
    cohort = open_cohort(run / "prepared")
    grid = cohort.grid
    real = _open_shelf(run / "prepared", grid) if grid else None
    if grid is None or real is None:
        return nothing
    held_out = cohort.indices("validation") or cohort.indices()
    shown = list(content["cohort"]["persons"])[:_MOST_DIAGNOSES]
    sets = {
        name: shelf
        for name in content["candidates"]
        if (shelf := _open_shelf(run / "evaluation" / "samples" / name, grid))
    }
    family = _family(content)
    champion = sets.get(family or "") or (_open_shelf(run / "synthetic", grid) if family else None)
    return {
        "champion": _side_by_side(real, held_out, champion, shown, grid) if champion else [],
        "candidates": _one_row_each(real, held_out, sets, shown, grid) if sets else [],
        "pairs": _pairs(run, family, real, sets, grid),
    }


def _side_by_side(
    real: _Shelf, held_out: Sequence[int], synthetic: _Shelf, shown: Sequence[str], grid: Grid
) -> list[dict[str, str | None]]:
    """Return one entry a diagnosis: a picture of real persons and one of synthetic ones."""
    return [
        {
            "diagnosis": diagnosis,
            "real": _columns(real.first(diagnosis, held_out), grid),
            "synthetic": _columns(synthetic.first(diagnosis), grid),
        }
        for diagnosis in shown
    ]


def _columns(volumes: Sequence[FloatArray], grid: Grid) -> str | None:
    """Return a picture with one person a column and one plane a row."""
    if not volumes:
        return None
    cut = [figures.planes(volume, grid) for volume in volumes]
    rows = [[one[plane] for one in cut] for plane in ("axial", "coronal", "sagittal")]
    return figures.webp(figures.sheet(rows, grid.spacing_mm, sides=True))


def _one_row_each(
    real: _Shelf,
    held_out: Sequence[int],
    sets: Mapping[str, _Shelf],
    shown: Sequence[str],
    grid: Grid,
) -> list[dict[str, str]]:
    """Return a row of slices for the real persons and for each candidate."""
    picks = {"real": [real.first(d, held_out)[:1] for d in shown]}
    picks |= {name: [shelf.first(d)[:1] for d in shown] for name, shelf in sets.items()}
    rows = {name: [volume for found in lists for volume in found] for name, lists in picks.items()}
    return [
        {"name": name, "picture": _strip(volumes, grid, sides=True)}
        for name, volumes in rows.items()
        if volumes
    ]


def _pairs(
    run: Path, family: str | None, real: _Shelf, sets: Mapping[str, _Shelf], grid: Grid
) -> list[dict[str, Any]]:
    """Return the champion's scans that lie nearest to a training person, with the difference."""
    path = run / "evaluation" / "scores.json"
    if family is None or family not in sets or not path.exists():
        return []
    scored = read_json(path)["candidates"].get(family, {}).get("privacy") or {}
    pairs = []
    for nearest in scored.get("nearest", [])[:_MOST_PAIRS]:
        if nearest["person_id"] not in real.persons:
            continue
        synthetic = sets[family].volumes[nearest["index"]]
        person = real.volumes[real.persons.index(nearest["person_id"])]
        pairs.append(
            {
                "flagged": nearest["flagged"],
                "score": nearest["score"],
                "synthetic": _strip([synthetic], grid),
                "real": _strip([person], grid),
                "difference": _strip([2 * np.abs(synthetic - person)], grid),
            }
        )
    return pairs


def _strip(volumes: Sequence[FloatArray], grid: Grid, *, sides: bool = False) -> str:
    """Return a picture with three planes of each volume in one row."""
    row = [tile for volume in volumes for tile in figures.planes(volume, grid).values()]
    return figures.webp(figures.sheet([row], grid.spacing_mm, sides=sides))
