"""Say how well a classifier tells classes apart, and whether it beats what needs no network.

`summarise` turns the table of `rarescan classify` (scan x model x repeat) into figures, intervals,
differences to every baseline and a verdict in words. Probabilities are averaged from scans to
items (a clip, a film) and on to persons before anything is counted; intervals resample persons,
never scans. What a reader would get wrong: items decide, because a person may have items of two
classes (one ill and one healthy breast); such a person is left out where persons are counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rarescan.evaluation.confusion import PER_CLASS, balanced_accuracy
from rarescan.evaluation.intervals import clopper_pearson
from rarescan.evaluation.page import in_words, interval
from rarescan.evaluation.predictions import NETWORK, Predictions
from rarescan.evaluation.scored import (
    Array,
    Figure,
    Scored,
    calibration_bins,
    confusions,
    draw_weights,
    measure,
)

UNIT, FIGURE = "item", "balanced_accuracy"
"""What the verdict stands on."""
METHOD = (
    "95 % percentile interval of 2,000 resamples of persons within their classes, which take the "
    "same persons in every split; values are means over the splits"
)
_RESAMPLES = 2000
_SEED = 0
_COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
_LIKELY = 0.8
_COMPARED = ("balanced_accuracy", "macro_auc", "accuracy", "brier")
_Figures = dict[str, dict[str, Figure]]


def summarise(predictions: pa.Table, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return every figure of a classifier and its baselines, and the verdict.

    Parameters
    ----------
    predictions : pyarrow.Table
        One row a scan x model x repeat: scan_id, item_id, person_id, source, truth (index of the
        class), model ("network" and baselines), repeat, fold, probabilities (list, sum 1),
        abstained, uncertainty (null where there is none).
    about : mapping
        `classify.json`: modality, classes (in order), ordinal, unit, item_unit, temperature (of
        each fold), settings; `leaky`: persons were allowed on both sides of a split;
        `insufficient`: why nothing was trained (the table is empty then).

    Returns
    -------
    dict
        `verdict` (code beats, does_not_beat, worse, insufficient or leaky; sentence; evidence;
        notes), `models` (model -> unit -> figures: value, low, high, sd over the splits),
        `differences` (baseline -> unit -> network minus baseline), `n`, `power`, `confusion`,
        `roc`, `reliability`, `abstention`, `within_source`, `sources`, `folds`, and what `about`
        says. What could not be measured is None or missing.

    Raises
    ------
    InputError
        A person stands in two folds of one split, models were judged on different scans, an item
        has two labels, or a row is no probability.
    """
    classes = [str(name) for name in about["classes"]]
    told = {key: about.get(key) for key in ("modality", "ordinal", "unit", "item_unit", "settings")}
    leaky = bool(about.get("leaky") or (about.get("settings") or {}).get("leaky"))
    result = {"schema": 1, **told, "classes": classes, "leaky": leaky, "method": METHOD}
    if not len(predictions):
        why = str(about.get("insufficient") or "No scan has a label.")
        return result | {"verdict": _verdict("insufficient", [why], [])}
    rows = Predictions.read(predictions, classes, leaky=leaky)
    levels = {model: rows.levels(model) for model in rows.models}
    network = levels[NETWORK]
    figures = {
        model: _figures(units, bool(about.get("ordinal"))) for model, units in levels.items()
    }
    rarest = {unit: _rarest(units) for unit, units in network.items()}
    result |= {
        "n": {unit: _counts(units, classes) for unit, units in network.items()},
        "n_persons": len(set(rows.person.tolist())),
        "n_splits": len(rows.fold),
        "models": {model: _scores(found, rarest, classes) for model, found in figures.items()},
        "differences": {
            model: _differences(figures[NETWORK], found, rarest)
            for model, found in figures.items()
            if model != NETWORK
        },
        "power": _power(network[UNIT], classes),
        "confusion": {unit: _mean_confusion(units) for unit, units in network.items()},
        "roc": _roc(network[UNIT], classes),
        "reliability": _reliability(rows, network["scan"], about.get("temperature")),
        "calibration": {key: about.get(key) for key in ("temperature", "ece_before", "ece_after")},
        "abstention": _abstention(rows, network[UNIT]),
        "within_source": _within_source(rows, levels, classes),
        "sources": rows.sources(classes),
        "folds": rows.folds(classes),
    }
    code, evidence, notes = _judge(result)
    return result | {"verdict": _verdict("leaky" if leaky else code, evidence, notes)}


def _rarest(units: Scored) -> int:
    return min(units.persons_of(label) for label in units.present)


def _figures(units: Mapping[str, Scored], ordinal: bool) -> _Figures:
    return {
        unit: measure(scored, draw_weights(scored, seed=_SEED, repeats=_RESAMPLES), ordinal=ordinal)
        for unit, scored in units.items()
    }


def _scores(
    found: _Figures, rarest: Mapping[str, int], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return unit -> figures as plain values, those of each class below `classes`."""
    return {
        unit: {n: f.score(rarest[unit]) for n, f in figures.items() if n not in PER_CLASS}
        | {
            "classes": {
                name: {n: figures[n].of_class(k).score(rarest[unit]) for n in PER_CLASS}
                for k, name in enumerate(classes)
            }
        }
        for unit, figures in found.items()
    }


def _differences(
    network: _Figures, baseline: _Figures, rarest: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Return unit -> figure -> network minus baseline, on the same resamples."""
    return {
        unit: {
            name: (figures[name] - baseline[unit][name]).score(rarest[unit], difference=True)
            for name in _COMPARED
            if name in figures and name in baseline[unit]
        }
        for unit, figures in network.items()
    }


def _counts(units: Scored, classes: Sequence[str]) -> dict[str, Any]:
    by_class = {
        name: {"units": int((units.truth == k).sum()), "persons": units.persons_of(k)}
        for k, name in enumerate(classes)
    }
    return {"units": len(units.ids), "persons": units.n_persons, "classes": by_class}


def _power(units: Scored, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return how wide the exact interval of a sensitivity of 0.8 is with each class's persons."""
    return {
        name: {"persons": n, "half_width": half_width(n)}
        for k, name in enumerate(classes)
        if (n := units.persons_of(k))
    }


def half_width(n_persons: int) -> float:
    """Return half the width of the exact 95 % interval where about 80 % of so many are right."""
    low, high = clopper_pearson(round(_LIKELY * n_persons), n_persons)
    return (high - low) / 2


def _mean_confusion(units: Scored) -> list[list[float]]:
    """Return truth x predicted, the mean number of units over the splits."""
    table: Array = confusions(units, np.ones((1, units.n_persons)))[:, 0].mean(axis=0)
    return [[round(float(v), 2) for v in row] for row in table]


def _roc(units: Scored, classes: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Return the curve of each class against the rest in the first split; empty for labels."""
    if not units.has_scores or len(units.present) < 2:
        return {}
    shown = units.present if len(classes) > 2 else units.present[-1:]
    curves = {}
    for label in shown:
        scores, positive = units.probabilities[0, :, label], units.truth == label
        steps = np.unique(scores)[::-1]
        curves[classes[label]] = {
            side: [0.0, *(float((scores[mask] >= step).mean()) for step in steps)]
            for side, mask in (("fpr", ~positive), ("tpr", positive))
        }
    return curves


def _reliability(rows: Predictions, scans: Scored, temperature: Any) -> dict[str, Any]:
    """Return bins of confidence after, and where the temperatures are known before, scaling."""
    found: dict[str, Any] = {"after": _bins(scans), "before": None}
    heats = np.asarray(temperature if isinstance(temperature, list) else [], dtype=object).ravel()
    n_folds = int(rows.fold.max()) + 1
    if len(heats) not in (n_folds, n_folds * len(rows.fold)) or any(h is None for h in heats):
        return found
    table = np.broadcast_to(
        heats.astype(np.float64).reshape(-1, n_folds), (len(rows.fold), n_folds)
    )
    heat = np.take_along_axis(table, rows.fold, axis=1)[..., None]
    logits = heat * np.log(np.maximum(scans.probabilities, 1e-12))
    raw = np.exp(logits - logits.max(axis=2, keepdims=True))
    raw /= raw.sum(axis=2, keepdims=True)
    before = Scored(ids=scans.ids, truth=scans.truth, probabilities=raw, person=scans.person)
    return found | {"before": _bins(before)}


def _bins(units: Scored) -> list[dict[str, float]]:
    """Return the filled bins: share of all units, mean confidence, share that was right."""
    sums = calibration_bins(units).sum(axis=(0, 1))
    return [
        {"share": n / float(sums[:, 0].sum()), "confidence": confidence / n, "right": right / n}
        for n, confidence, right in sums.tolist()
        if n
    ]


def _abstention(rows: Predictions, items: Scored) -> dict[str, Any]:
    """Return balanced accuracy where only the surest items are answered, and as it abstained."""
    doubt = rows.of_items(rows.uncertainty)
    silent = rows.of_items(rows.abstained.astype(np.float64)) > 0.5
    place = doubt.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    n = len(items.ids)
    curve = [
        {"coverage": share, **_answered(items, place < max(1, round(share * n)))}
        for share in _COVERAGES
    ]
    return {
        "curve": curve,
        "abstained": float(silent.mean()),
        "answered": _answered(items, ~silent) if silent.any() and not silent.all() else None,
    }


def _answered(items: Scored, answered: Any) -> dict[str, Any]:
    weights = draw_weights(items, seed=_SEED, repeats=_RESAMPLES)
    seen = balanced_accuracy(confusions(items, weights, answered))
    left = [{k for k in items.present if (items.truth[row] == k).any()} for row in answered]
    persons = int(min(len(set(items.person[row].tolist())) for row in answered))
    return {
        FIGURE: Figure(each=seen[:, 0], mean=seen.mean(axis=0)).score(_rarest(items)),
        "persons": persons,
        "every_class": all(len(found) == len(items.present) for found in left),
    }


def _within_source(
    rows: Predictions, levels: Mapping[str, Mapping[str, Scored]], classes: Sequence[str]
) -> dict[str, Any]:
    """Return the figures inside each source, of several, with two classes of two persons or more.

    Only there can a model not answer with where the scan comes from.
    """
    _, first = np.unique(rows.item, return_index=True)
    source = rows.source[first]
    found: dict[str, Any] = {}
    for name in sorted(set(source.tolist())):
        inside = levels[NETWORK][UNIT].among(source == name)
        both = [k for k in inside.present if inside.persons_of(k) >= 2]
        if len(both) < 2 or (source == name).all():
            continue
        kept = (source == name) & np.isin(levels[NETWORK][UNIT].truth, both)
        asked = {model: units[UNIT].among(kept, both) for model, units in levels.items()}
        n = _counts(asked[NETWORK], [classes[k] for k in both])
        rarest = {UNIT: _rarest(asked[NETWORK])}
        found[name] = {"n": n, "models": {}, "differences": {}}
        figures = {m: _figures({UNIT: units}, False) for m, units in asked.items()}
        for model, figure in figures.items():
            scores = _scores(figure, rarest, [])[UNIT]
            found[name]["models"][model] = {k: scores[k] for k in _COMPARED if k in scores}
            if model != NETWORK:
                difference = _differences(figures[NETWORK], figure, rarest)[UNIT]
                found[name]["differences"][model] = difference
    return found


def _verdict(code: str, evidence: Sequence[str], notes: Sequence[str]) -> dict[str, Any]:
    sentence = in_words(code, "classifier_verdicts")
    return {"code": code, "sentence": sentence, "evidence": list(evidence), "notes": list(notes)}


def item_word(result: Mapping[str, Any]) -> str:
    """Return what an item is called; where every scan is an item of its own, as the scan is."""
    alone = result["n"]["scan"]["units"] == result["n"][UNIT]["units"]
    return str(result.get("unit" if alone else "item_unit") or "scan")


def _judge(result: Mapping[str, Any]) -> tuple[str, list[str], list[str]]:
    """Return code, evidence and notes; the interval of the difference decides, never the point."""
    n, power = result["n"][UNIT], result["power"]
    thin = min(power.values(), key=lambda one: one["persons"])
    rarest = next(name for name, one in power.items() if one is thin)
    notes = [
        f"With {thin['persons']} persons of {rarest} a sensitivity of {_LIKELY:g} has a 95 % "
        f"interval of about ±{thin['half_width']:.2f}."
    ]
    if thin["persons"] < 2 or len(power) < 2:
        return "insufficient", ["A class has fewer than two persons."], notes
    against = {m: found[UNIT][FIGURE] for m, found in result["differences"].items()}
    worst = min(against, key=lambda m: against[m]["value"], default=None)
    mine = result["models"][NETWORK][UNIT][FIGURE]
    evidence = [
        f"Balanced accuracy of the network {interval(mine)}, over {n['units']} "
        f"{item_word(result)}s of "
        f"{n['persons']} persons."
    ]
    if worst is None:
        return "insufficient", [*evidence, "No baseline was trained beside it."], notes
    theirs = result["models"][worst][UNIT][FIGURE]
    evidence.append(
        f"The best baseline ({in_words(worst, 'baselines')}) has {interval(theirs)}: a difference "
        f"of {interval(against[worst], sign=True)}."
    )
    lost = [m for m, one in against.items() if not one["low"] > 0]
    worse = [m for m in lost if against[m]["high"] < 0]
    if lost and len(against) > 1:
        named = "; ".join(in_words(m, "baselines") for m in lost)
        evidence.append(f"Not beaten: {named} ({len(lost)} of {len(against)} baselines).")
    code = "worse" if worse else "does_not_beat" if lost else "beats"
    return code, evidence, notes
