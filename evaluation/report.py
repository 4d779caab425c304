"""Write a run's report: `report.json` with every number, `report.html` for people.

`write_report` is the way in. The page is one file without script or outside address; its text is
rendered from the content of `report.json` and nothing else, and only the pictures are drawn from
volumes and features. The same run gives the same bytes. It shows scans of persons (pseudonymous,
without face): it stays where the cohort stays.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rarescan.errors import InputError
from rarescan.evaluation import charts
from rarescan.evaluation.collect import collect
from rarescan.evaluation.feedback import FEEDBACK, summarise
from rarescan.evaluation.gallery import pictures
from rarescan.evaluation.page import in_words, render
from rarescan.evaluation.privacy import POWER_NEEDED
from rarescan.files import RECIPE, write_atomic, write_json

_DISTANCES = ("mmd", "kid", "fid", "fid_jackknife")


def write_report(run: Path, feedback: Path | None = None, batch: Path | None = None) -> Path:
    """Write `report.json` and `report.html` of a run, and return the path of the page.

    Parameters
    ----------
    run : Path
        The folder of a run, laid out as in docs/architecture.md. Later parts may be missing; the
        page then says so in words.
    feedback : Path, optional
        CSV of readers' ratings (see `feedback.summarise`); what it says is kept in the run's
        folder, so that later reports have it too.
    batch : Path, optional
        The batch that the readers looked at; the run's own by default.

    Raises
    ------
    InputError
        The folder holds no cohort yet, a step's file or the ratings cannot be read.
    """
    if feedback is not None:
        read = batch or run / "synthetic"
        if not (read / RECIPE).exists():
            raise InputError(
                "There is no batch that the readers can have looked at.",
                remedy="Name it: `rarescan report RUN --feedback FILE --batch SYNTHETIC`.",
            )
        write_json(run / FEEDBACK, summarise(feedback, run / "prepared", read))
    content = collect(run)
    # Matplotlib has escaped the texts inside.
    plots = {name: svg and Markup(svg) for name, svg in _plots(content).items()}
    drawn = pictures(run, content)
    drawn |= {name: drawn[name] and Markup(drawn[name]) for name in ("spectra", "map")}
    page = render("report.html", report=content, pictures=drawn | plots)
    write_json(run / "report.json", content)
    write_atomic(run / "report.html", page)
    return run / "report.html"


def _plots(content: Mapping[str, Any]) -> dict[str, str | None]:
    """Return name -> SVG of every plot that the run has numbers for."""
    return {
        "curves": _curves(content),
        "mmd": _mmd_forest(content),
        "distances": _distances(content),
        "conditions": _conditions(content),
        "regions": _regions(content),
        "power": _power(content),
        "auc": _auc_forest(content),
        "gain": _gain_forest(content),
        "roc": _roc(content),
        "readers": _readers(content),
    }


def _champion(content: Mapping[str, Any]) -> str | None:
    champion = content["champion"]
    return champion["candidate"] if champion else None


def _curves(content: Mapping[str, Any]) -> str | None:
    trained = {name: c["training"] for name, c in content["candidates"].items() if c["training"]}
    curves = {in_words(name, "families"): t["curves"] for name, t in trained.items() if t["curves"]}
    return charts.curve_plot(curves, "curves") if curves else None


def _of_each(content: Mapping[str, Any], *keys: str) -> list[charts.ForestRow]:
    """Return one score a candidate, found by its keys, as rows of a forest plot."""
    rows = []
    for name, found in content["candidates"].items():
        for key in keys:
            found = (found or {}).get(key)
        if found and found["value"] is not None:
            rows.append((in_words(name, "families"), found, name == _champion(content)))
    return rows


def _mmd_forest(content: Mapping[str, Any]) -> str | None:
    rows = _of_each(content, "mmd")
    floor = (content["floor"] or {}).get("mmd")
    label = "squared MMD to the held-out real persons (smaller is closer)"
    return charts.forest_plot(rows, "mmd", axis_label=label, floor=floor) if rows else None


def _distances(content: Mapping[str, Any]) -> str | None:
    """Return every distance of every candidate: a row an extractor, a column a distance."""
    extractors = dict.fromkeys(
        e for c in content["candidates"].values() for e in c["distances"] or ()
    )
    cells = []
    for extractor in extractors:
        floors = content["floor"] if extractor == content["extractor"] else {}
        line = [
            (
                ("" if place else f"{extractor}: ") + in_words(measure, "measures"),
                _of_each(content, "distances", extractor, measure),
                (floors or {}).get(measure),
            )
            for place, measure in enumerate(_DISTANCES)
        ]
        cells.append([cell for cell in line if cell[1]])
    cells = [line for line in cells if line]
    return charts.forest_grid(cells, "distances") if cells else None


def _conditions(content: Mapping[str, Any]) -> str | None:
    """Return how well each candidate shows what was asked of it, and its distance, by diagnosis."""
    diagnoses = list(content["cohort"]["persons"])
    agreed: list[charts.ForestCell] = [
        (f"{name}: shown", _of_each(content, "condition_fidelity", "by_diagnosis", name), None)
        for name in diagnoses
    ]
    ages = _of_each(content, "condition_fidelity", "age", "synthetic")
    agreed.append(("age (correlation)", ages, _first(content, "condition_fidelity", "age", "real")))
    distances: list[charts.ForestCell] = [
        (
            f"{name}: MMD²",
            _of_each(content, "by_diagnosis", name, "scores", "mmd"),
            _first(content, "by_diagnosis", name, "floor", "mmd"),
        )
        for name in diagnoses
    ]
    lines = [[cell for cell in line if cell[1]] for line in (agreed, distances)]
    cells = [line for line in lines if line]
    return charts.forest_grid(cells, "conditions") if cells else None


def _first(content: Mapping[str, Any], *keys: str) -> Mapping[str, Any] | None:
    """Return what is the same for every candidate, from the first that has it."""
    found = [score for _, score, _ in _of_each(content, *keys)]
    return found[0] if found else None


def _regions(content: Mapping[str, Any]) -> str | None:
    regions = content["candidates"].get(_champion(content), {}).get("regions")
    if not regions:
        return None
    return charts.region_plot({k.replace("_", " "): v for k, v in regions.items()}, "regions")


def _power(content: Mapping[str, Any]) -> str | None:
    power = (content["privacy"] or {}).get("canary_power")
    if not power:
        return None
    bars = {
        in_words(kind, "canaries"): (one["found"] / one["planted"], one.get("low", 0.0))
        for kind, one in power.items()
    }
    return charts.power_plot(bars, "power", needed=POWER_NEEDED)


def _auc_forest(content: Mapping[str, Any]) -> str | None:
    arms, judged = content["arms"] or {}, (content["gain"] or {}).get("arm")
    rows = [(_short(arm), scores["auc"], arm == judged) for arm, scores in arms.items()]
    label = "AUC on test persons (0.5: chance, 1: perfect)"
    return charts.forest_plot(rows, "auc", axis_label=label, line_at=0.5) if rows else None


def _gain_forest(content: Mapping[str, Any]) -> str | None:
    named = {
        "gain": "gain (decides)",
        "gain_to_real": "against real scans only",
        "placebo": "placebo",
    }
    rows = [(label, content[key], key == "gain") for key, label in named.items() if content[key]]
    label = "difference in AUC on the same test persons"
    return charts.forest_plot(rows, "gain", axis_label=label, line_at=0.0) if rows else None


def _roc(content: Mapping[str, Any]) -> str | None:
    curves = {_short(arm): curve for arm, curve in (content["roc"] or {}).items()}
    return charts.roc_plot(curves, "roc") if curves else None


def _short(arm: str) -> str:
    return arm.replace("_", " + ")


def _readers(content: Mapping[str, Any]) -> str | None:
    read = content["feedback"] or {"readers": []}
    rows = [(row["reader"], row["auc"], False) for row in read["readers"] if row["auc"]]
    label = "AUC of telling real from synthetic (0.5: cannot be told)"
    return charts.forest_plot(rows, "readers", axis_label=label, line_at=0.5) if rows else None
