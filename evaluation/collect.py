"""Gather what the steps of a run wrote into one dictionary: the content of `report.json`.

`collect` is the way in. Nothing is measured here: each number is read from the file of the step
that measured it, so that the page, `report.json` and the steps' own files cannot disagree. What a
run does not have (a refused run has no batch, no arms) is None; nothing is left out silently.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rarescan.cohort.contracts import Cohort
from rarescan.cohort.partition import PARTS
from rarescan.cohort.store import open_cohort, read_about, read_events
from rarescan.errors import InputError
from rarescan.evaluation.feedback import FEEDBACK
from rarescan.evaluation.page import words
from rarescan.evaluation.verdicts import verdicts
from rarescan.files import RECIPE, read_json, read_recipe

_ORDER = ("phantom", "ingest", "prepare", "train", "judge", "evaluate", "select", "generate")
_BEFORE_MODELS = ("phantom", "cohort", "prepared")
_AFTER_MODELS = ("network", "evaluation", "decision", "synthetic", "classifiers")
_MEASURES = ("mmd", "kid", "fid", "is", "fid_jackknife", "precision", "recall", "density")
_PARTS_OF_SCORES = (
    *("condition_fidelity", "by_diagnosis", "diversity", "spread", "high_frequency"),
    *("plausibility", "regions"),
)
_PRIVACY = (
    *("flagged", "n", "outcome", "threshold", "upper_bound", "canary_power", "above_strangers"),
    *("n_validation", "membership", "feature_nearness"),
)
_SELECTION = (
    *("rule", "champion", "n_persons", "heldout_uses", "level", "candidates", "persons_needed"),
    *("could_not_separate", "disagreeing", "against_champion"),
)
_PAPERS = {"card": "decision/MODEL_CARD.md", "datasheet": "synthetic/DATASHEET.md"}
_CHAMPION = ("candidate", "family", "model_uri", "version", "permitted_use")


def collect(run: Path) -> dict[str, Any]:
    """Return everything that the report says, as plain JSON values.

    Parameters
    ----------
    run : Path
        The folder of a run, laid out as in docs/architecture.md. Later parts may be missing.

    Returns
    -------
    dict
        JSON values only, without NaN; None for what the run does not have. Scores keep the
        fields of `rarescan.cohort.contracts.Score`; counts are persons unless the key says
        scans, stacks or files; durations are seconds.

    Raises
    ------
    InputError
        The folder holds no cohort yet, or a step's file cannot be read.
    """
    cohort = _cohort(run)
    scores = _read(run / "evaluation" / "scores.json") or {}
    decision = _read(run / "decision" / "decision.json")
    batch = _read(run / "synthetic" / "batch.json")
    gain = _read(run / "classifiers" / "gain.json") or {}
    candidates = _candidates(run, scores, decision)
    steps = _steps(run)
    champion = _allowed((decision or {}).get("champion"), _CHAMPION)
    linear = gain.get("linear")
    content = {
        "schema": 1,
        "name": run.resolve().name,
        "verdict": _refused(run) or _verdict(gain, decision, batch, bool(scores)),
        "verdicts": verdicts(run),
        "phantom": (run / "phantom").is_dir(),
        "cohort": _cohort_part(run, cohort),
        "extractor": _primary(scores),
        "network": scores.get("network"),
        "floor": scores.get("floor"),
        "candidates": candidates,
        **_of_the_champion(champion, candidates, scores),
        "champion": champion,
        # The batch's own file holds no time, so that the same seed gives the same bytes.
        "batch": batch and {**batch, "seconds": steps.get("generate", {}).get("seconds")},
        "arms": _in_order(gain.get("arms")),
        "roc": _in_order(gain.get("roc")),
        **{key: gain.get(key) for key in ("gain", "gain_to_real", "placebo")},
        "linear": linear and {**linear, "arms": _in_order(linear["arms"])},
        "decision": decision and _decision_part(decision),
        "feedback": _read(run / FEEDBACK),
        "papers": {kind: place for kind, place in _PAPERS.items() if (run / place).exists()},
        "seconds": {name: step.get("seconds") for name, step in steps.items()},
        "peak_memory_mb": _peak_memory(run, steps),
        "memory_mb": {name: step.get("peak_memory_mb") for name, step in steps.items()},
        "versions": _versions(steps),
        "lineage": _lineage(run),
    }
    plain: dict[str, Any] = _finite(content)
    return plain


def _read(path: Path) -> Any:
    """Return a step's JSON file, or None where the step has not run."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        raise InputError(
            f"{path.parent.name}/{path.name} is no valid JSON file.",
            remedy=f"Remove the folder {path.parent.name} of the run and repeat the command.",
        ) from None


def _finite(value: Any) -> Any:
    """Return the value with None in place of NaN and infinities, which JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cohort(run: Path) -> Cohort:
    """Return the prepared cohort, or the native one where nothing is prepared."""
    for folder in (run / "prepared", run / "cohort"):
        if (folder / RECIPE).exists():
            return open_cohort(folder)
    raise InputError(
        f"{run.name} holds no cohort, so there is nothing to report.",
        remedy="Run `rarescan run CONFIG` first, and name the folder of the run.",
    )


def _cohort_part(run: Path, cohort: Cohort) -> dict[str, Any]:
    events = [e for name in ("cohort", "prepared") for e in read_events(run / name)]
    known = {scan.person_id for scan in cohort.scans}
    about = read_about(cohort.root)
    # What a code means is said by the room that gave it, in the cohort that it wrote.
    written = [run / name for name in ("cohort", "prepared") if (run / name / RECIPE).exists()]
    notes: dict[str, Any] = {"reasons": {}, "smallest_group": None}
    for folder in written:
        noted = read_about(folder)
        notes["reasons"] |= noted.get("reasons", {})
        notes["smallest_group"] = noted.get("smallest_group") or notes["smallest_group"]
    return {
        "persons": _count(cohort, lambda scan: scan.person_id),
        "scans": _count(cohort, lambda scan: scan.scan_id),
        "n_persons_in": len(known | {e["person_id"] for e in events if e["person_id"]}),
        "n_persons": len(known),
        "smallest_group": notes["smallest_group"],
        "n_scans": len(cohort.scans),
        "spacing_mm": cohort.grid.spacing_mm if cohort.grid else None,
        "is_brain": cohort.grid is None or cohort.grid.is_brain,
        "rejects": _events((e for e in events if e["action"] != "fix"), notes["reasons"]),
        "repairs": _events((e for e in events if e["action"] == "fix"), notes["reasons"]),
        "sources": {
            "licences": sorted({scan.licence for scan in cohort.scans if scan.licence}),
            "n_sites": len({scan.site for scan in cohort.scans if scan.site}),
            # Only numbers: a free text may hold what no report may show.
            "counts": {k: v for k, v in about.items() if type(v) in (int, float)},
        },
    }


def _count(cohort: Cohort, key: Callable[[Any], str]) -> dict[str, dict[str, int]]:
    """Return diagnosis -> part -> number of different keys, the rarest diagnosis first."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: {part: set() for part in PARTS})
    for scan in cohort.scans:
        part = cohort.partition.get(scan.person_id, "unassigned")
        found[scan.condition.diagnosis].setdefault(part, set()).add(key(scan))
    counts = {
        diagnosis: {part: len(keys) for part, keys in parts.items()}
        | {"total": len(set().union(*parts.values()))}
        for diagnosis, parts in found.items()
    }
    return dict(sorted(counts.items(), key=lambda item: (item[1]["total"], item[0])))


def _events(events: Iterable[Mapping[str, Any]], meanings: Mapping[str, str]) -> dict[str, Any]:
    """Return code -> how often, how many files, what was done and what it means."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        found[event["code"]].append(event)
    return {
        code: {
            "count": len(same),
            "files": sum(event["n_files"] or 0 for event in same),
            "action": same[0]["action"],
            "meaning": meanings.get(code, code.replace("_", " ").lower()),
        }
        for code, same in sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    }


def _primary(scores: Mapping[str, Any]) -> str | None:
    extractors = scores.get("extractors")
    return extractors["primary"] if extractors else None


def _candidates(
    run: Path, scores: Mapping[str, Any], decision: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return family -> scores, gates and training; a family that was not scored has None."""
    scored = scores.get("candidates", {})
    trained = {path.parent.name: _read(path) for path in run.glob("models/*/training.json")}
    decided = (decision or {}).get("gates") or {}
    primary = _primary(scores) or ""
    return {
        name: _candidate(scored.get(name, {}), primary)
        | {
            "gates": decided.get(name) or scored.get(name, {}).get("gates"),
            "training": _training(trained[name]) if name in trained else None,
        }
        for name in [*scored, *sorted(trained.keys() - scored.keys())]
    }


def _training(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a family's training with its curves as series: name -> [[step, value], ...]."""
    series: dict[str, list[list[float]]] = defaultdict(list)
    for point in record.get("curve") or ():
        for name, value in point.items():
            if name not in ("step", "seconds") and value is not None:
                series[name.replace("_loss", "")].append([point["step"], value])
    return {
        **{key: record.get(key) for key in ("seconds", "parameters")},
        "network_kept": (record.get("verdict") or {}).get("network_kept"),
        "recoveries": len(record.get("events") or ()),
        "curves": dict(series),
    }


def _candidate(scored: Mapping[str, Any], primary: str) -> dict[str, Any]:
    by_extractor = scored.get("scores", {})
    measured = by_extractor.get(primary, {})
    return {
        **{measure: measured.get(measure) for measure in (*_MEASURES, "coverage")},
        "regions_mmd": by_extractor.get("regions", {}).get("mmd"),
        "distances": by_extractor or None,
        **{part: scored.get(part) for part in _PARTS_OF_SCORES},
        "privacy": _allowed(scored.get("privacy"), _PRIVACY),
    }


def _allowed(value: Mapping[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the named keys only: pseudonyms and places stay in the steps' own files."""
    return None if value is None else {key: value.get(key) for key in keys}


def _of_the_champion(
    champion: Mapping[str, Any] | None,
    candidates: Mapping[str, Any],
    scores: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what is said of the champion alone, with the real persons' figures beside it."""
    chosen = candidates.get((champion or {}).get("candidate", ""), {})
    fidelity = chosen.get("condition_fidelity")
    network = scores.get("network") or {}
    real = {"real_accuracy": network.get("accuracy"), "real_auc": network.get("auc")}
    return {
        "condition_fidelity": fidelity and {**fidelity, **real},
        "spread": chosen.get("spread"),
        "privacy": chosen.get("privacy"),
    }


def _in_order(arms: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return arms as one reads them: real scans first, the placebo last."""
    if arms is None:
        return None
    known = [*words()["arms"], *arms]
    return {arm: arms[arm] for arm in sorted(arms, key=known.index)}


def _decision_part(decision: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: decision.get(k) for k in ("decision_id", "verdict", "chosen", "permitted_use")}
    reasons = [{"code": code, "text": text} for code, text in decision.get("reasons", ())]
    return kept | {"reasons": reasons, "selection": _allowed(decision.get("selection"), _SELECTION)}


def _refused(run: Path) -> dict[str, Any] | None:
    """Return the answer of a run whose batch was refused."""
    found = _read(run / "recipes" / "refused.json")
    said = {"code": "batch_refused", **words()["verdicts"]["batch_refused"]}
    return found and said | {"evidence": found["problem"]}


def _verdict(
    gain: Mapping[str, Any],
    decision: Mapping[str, Any] | None,
    batch: Mapping[str, Any] | None,
    scored: bool,
) -> dict[str, Any]:
    """Return the run's answer in words: how far it came, and what it found there."""
    code = text = _verdict_code(gain, decision, batch, scored)
    if code == "do_not_use" and (gain["gain"].get("high") or 0) < 0:
        text = "worse"
    measured = bool(gain.get("gain"))
    return {
        "code": code,
        **words()["verdicts"][text],
        "evidence": gain.get("sentence") if measured else None,
    }


def _verdict_code(
    gain: Mapping[str, Any],
    decision: Mapping[str, Any] | None,
    batch: Mapping[str, Any] | None,
    scored: bool,
) -> str:
    if gain.get("gain"):
        return str(gain["verdict"])
    if batch:
        return "not_retrained"
    if decision:
        return "refused" if decision["verdict"] == "refuse" else "not_generated"
    return "not_decided" if scored else "not_evaluated"


def _steps(run: Path) -> dict[str, Any]:
    """Return step -> its record, in the order of the way; other notes have no seconds."""
    stored = {path.stem: _read(path) for path in run.glob("recipes/*.json")}
    records = {name: record for name, record in stored.items() if "seconds" in record}

    def place(name: str) -> tuple[int, str]:
        verb = name.split("-")[0].split("_")[0].split(".")[0]
        return (_ORDER.index(verb) if verb in _ORDER else len(_ORDER), name)

    return {name: records[name] for name in sorted(records, key=place)}


def _peak_memory(run: Path, steps: Mapping[str, Any]) -> float | None:
    """Return the memory of the run with its workers; of its largest step where that is unknown."""
    whole = _read(run / "recipes" / "memory.json")
    values = [step.get("peak_memory_mb") for step in (whole, *steps.values()) if step]
    return max((value for value in values if value is not None), default=None)


def _versions(steps: Mapping[str, Any]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for step in steps.values():
        merged |= step.get("versions") or {}
    return dict(sorted(merged.items()))


def _lineage(run: Path) -> list[dict[str, Any]]:
    """Return the chain of steps: what each is and what it was made from, by id."""
    models = sorted(path.parent for path in run.glob(f"models/*/{RECIPE}"))
    before, after = ([run / name for name in names] for names in (_BEFORE_MODELS, _AFTER_MODELS))
    folders = [*before, *models, *after]
    recipes = [(folder.relative_to(run).as_posix(), read_recipe(folder)) for folder in folders]
    return [
        {"step": recipe.step, "folder": folder, "id": recipe.id, "inputs": dict(recipe.inputs)}
        for folder, recipe in recipes
        if recipe is not None
    ]
