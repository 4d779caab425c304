"""Every verdict that stands in a run's folder: one for each classifier and each question.

`verdicts` is the way in. A batch may help one classifier and not another, a new scanner and not
the known one, ten patients and not forty: each is a verdict of its own, never pooled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rarescan.evaluation.utility_page import read_entries
from rarescan.files import read_json, read_recipe

_BENCHMARKS = ("thinned", "utility")


def verdicts(run: Path) -> list[dict[str, Any]]:
    """Return one entry a verdict, in the order of the folders.

    Results of `rarescan retrain` anywhere in the run's folder, and of benchmarks on the run's own
    prepared cohort.

    Returns
    -------
    list of dict
        `classifier`, `question` (in words), `difference` (value, low, high, n; None where nothing
        was compared), `against`, `verdict`.
    """
    found = [
        _of_gain(read_json(path))
        for path in sorted(run.glob("*/gain.json"))
        if _made_by(path.parent, "retrain")
    ]
    prepared = read_recipe(run / "prepared")
    for name in _BENCHMARKS:
        for path in sorted(run.glob(f"*/{name}.json")):
            made = read_recipe(path.parent)
            if made and prepared and made.inputs.get("prepared") == prepared.id:
                found += [_of_entry(entry) for entry in read_entries(path)]
    return found


def _made_by(folder: Path, step: str) -> bool:
    made = read_recipe(folder)
    return made is not None and made.step == step


def _of_gain(gain: Mapping[str, Any]) -> dict[str, Any]:
    about = gain.get("about") or {}
    unseen = "persons of an unseen site" if about.get("held_out") == "site" else "new persons"
    asked = " against ".join(about[key] for key in ("positive", "negative") if key in about)
    measured = gain["gain"]
    return {
        "classifier": about.get("classifier", "network"),
        "question": ", ".join(filter(None, (asked, unseen))),
        "difference": measured and _interval(measured),
        "against": measured and measured["against"],
        "verdict": gain["verdict"],
    }


def _of_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    best = entry["arms"].get(entry["best_generative"]) if entry["best_generative"] else None
    return {
        "classifier": entry["model"],
        "question": f"{entry['question']}, {entry['patients']} patients train",
        "difference": best and _interval(best["difference"]),
        "against": entry["best_free"],
        "verdict": entry["verdict"],
    }


def _interval(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {key: measured[key] for key in ("value", "low", "high", "n")}
