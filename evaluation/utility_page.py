"""Where generation helps and where it does not: one page and its pictures, verdicts first.

`write_page` is the way in, for what `utility.summarise` and `thinned.summarise` found. The page
is one file without script or outside address; each picture also stands beside it as SVG.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy import stats

from rarescan._version import VERSION
from rarescan.errors import InputError
from rarescan.evaluation import charts
from rarescan.evaluation.page import in_words, render
from rarescan.files import read_json, write_atomic

PAGE, PICTURES = "utility.html", "pictures"
_ORDER = ("free", "generative", "placebo", "oracle", "baseline")
_MODELS = {"network": "network", "linear": "linear model"}
_COLUMNS = 4
_ZERO: Mapping[str, Any] = {"value": 0.0, "low": None, "high": None}
_NOWHERE: Mapping[str, Any] = {"value": float("nan"), "low": None, "high": None}
_Entry = Mapping[str, Any]


def write_page(result: Path) -> Path:
    """Write `utility.html` and `pictures/*.svg` beside a result, and return the page's path.

    Parameters
    ----------
    result : Path
        JSON with the entries of `utility.summarise` or `thinned.summarise`: a list, or below the
        key `entries`.

    Raises
    ------
    InputError
        The file is missing or holds no entry.
    """
    entries = read_entries(result)
    questions = {name: _question(name, found) for name, found in _by_question(entries).items()}
    for shown in questions.values():
        for name, svg in shown["plots"].items():
            write_atomic(result.parent / PICTURES / f"utility-{name}.svg", str(svg))
    page = render("utility.html", questions=questions, name=result.name, version=VERSION)
    write_atomic(result.parent / PAGE, page)
    return result.parent / PAGE


def read_entries(result: Path) -> list[dict[str, Any]]:
    """Return the entries of a result, networks before linear models."""
    try:
        found = read_json(result)
    except (FileNotFoundError, ValueError):
        found = []
    entries = found.get("entries", []) if isinstance(found, dict) else found
    if not entries:
        raise InputError(
            f"{result} holds no result.",
            remedy="Run `rarescan bench utility` or `rarescan bench thinned` first.",
        )
    return sorted(entries, key=lambda e: (e["model"] != "network", e["patients"]))


def _by_question(entries: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        found.setdefault(entry["question"], []).append(entry)
    return found


def _question(name: str, entries: Sequence[_Entry]) -> dict[str, Any]:
    """Return what the page shows of one question."""
    return {
        "verdicts": [
            {"of": title(entry), "code": entry["verdict"], "sentence": entry["sentence"]}
            for entry in entries
        ],
        "tables": [{"title": title(entry), "rows": rows_of(entry)} for entry in entries],
        "chosen": {title(entry): entry.get("chosen") for entry in entries if entry.get("chosen")},
        "toothless": [title(entry) for entry in entries if entry.get("bites") is False],
        "measures": _measures(entries),
        "plots": {f"{name}-{kind}": Markup(svg) for kind, svg in _plots(name, entries).items()},
    }


def title(entry: _Entry) -> str:
    """Return what an entry is of."""
    return f"{entry['patients']} patients, {_MODELS.get(entry['model'], entry['model'])}"


def rows_of(entry: _Entry) -> list[dict[str, Any]]:
    """Return an entry's arms in the order of their kinds and of their AUC, the largest first."""
    arms = [{"arm": name, **arm} for name, arm in entry["arms"].items()]
    arms.sort(key=lambda a: (_ORDER.index(a["kind"]), -a["measures"]["auc"]["mean"]))
    best = (entry["best_free"], entry["best_generative"])
    return [
        {"refused": 0, **arm, "best": arm["arm"] in best, "label": _label(arm["arm"])}
        for arm in arms
    ]


def _label(arm: str) -> str:
    return arm.replace("+", " + ").replace(":", ", ").replace("_", " ")


def _measures(entries: Sequence[_Entry]) -> list[str]:
    """Return the names of what was measured beside the AUC."""
    names = {n for e in entries for arm in e["arms"].values() for n in arm["measures"]}
    return sorted(names - {"auc"})


def _plots(name: str, entries: Sequence[_Entry]) -> dict[str, str]:
    found = {"forest": _forest(name, entries)}
    networks = [entry for entry in entries if entry["model"] == "network"]
    if len({entry["patients"] for entry in networks}) > 1:
        found["curve"] = _curve(name, networks)
    beside = _beside(name, networks)
    return found | ({"beside": beside} if beside else {})


def _forest(name: str, entries: Sequence[_Entry]) -> str:
    """Return all arms' differences to the best free arm: a panel an entry, arms in one order."""
    label = f"utility-{name}-forest"
    if len(entries) == 1:
        rows = [(r["label"], r["difference"], r["kind"]) for r in rows_of(entries[0])]
        axis = f"AUC minus the best arm that costs nothing ({title(entries[0])})"
        return charts.forest_plot(rows, label, axis_label=axis, line_at=0.0)
    order: dict[str, dict[str, Any]] = {}
    for entry in sorted(entries, key=lambda e: -len(e["arms"])):
        for row in rows_of(entry):
            order.setdefault(row["arm"], row)
    cells: list[charts.ForestCell] = [
        (
            title(entry),
            [
                (row["label"], entry["arms"].get(arm, {}).get("difference", _NOWHERE), row["kind"])
                for arm, row in sorted(order.items(), key=lambda r: _ORDER.index(r[1]["kind"]))
            ],
            _ZERO,
        )
        for entry in entries
    ]
    lines = [cells[i : i + _COLUMNS] for i in range(0, len(cells), _COLUMNS)]
    return charts.forest_grid(lines, label)


def _curve(name: str, entries: Sequence[_Entry]) -> str:
    """Return the best generative arm, the placebo and the oracle over the number of patients."""
    series: dict[str, dict[float, Mapping[str, float]]] = {}
    for entry in entries:
        for row in rows_of(entry):
            label = in_words(row["kind"], "utility_kinds").partition(":")[0]
            if (row["best"] and row["kind"] == "generative") or row["kind"] in (
                "placebo",
                "oracle",
            ):
                series.setdefault(label, {}).setdefault(entry["patients"], row["difference"])
    labels = ("patients who train", "AUC minus the best arm that costs nothing")
    return charts.span_plot(series, f"utility-{name}-curve", labels)


def _beside(name: str, entries: Sequence[_Entry]) -> str | None:
    """Return what else was measured (shortcuts, fairness): a line an entry, a panel a measure."""
    lines: list[list[charts.ForestCell]] = [
        [
            (
                in_words(measure, "utility_measures").partition(":")[0],
                [
                    (row["label"], _mean(row["measures"].get(measure), entry["draws"]), row["kind"])
                    for row in rows_of(entry)
                ],
                None,
            )
            for measure in _measures([entry])
        ]
        for entry in entries
    ]
    lines = [line for line in lines if line]
    return charts.forest_grid(lines, f"utility-{name}-beside") if lines else None


def _mean(measure: Mapping[str, float] | None, draws: int) -> Mapping[str, Any]:
    """Return a mean over draws with Student's 95 % interval."""
    if measure is None:
        return _NOWHERE
    half = float(stats.t.ppf(0.975, draws - 1) * measure["sd"] / np.sqrt(draws))
    value = measure["mean"]
    return {"value": value, "low": value - half, "high": value + half}
