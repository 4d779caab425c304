"""What the steps say to the registry: runs, curves, scores, mosaics, versions, the tag `helps`.

Called by `flows.verbs`; each function is idempotent, because the registry finds a run again by
its recipe. Settings are logged without the places of the source, the labels and the key.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rarescan.cohort.contracts import Decision, Grid
from rarescan.cohort.store import VOLUMES, open_cohort, read_about, read_scans, require_grid, tables
from rarescan.configs.schema import RunConfig, plain_config
from rarescan.evaluation.cards import CARD, ModelFacts, interval_of, model_card
from rarescan.evaluation.decide import RankedDecision
from rarescan.evaluation.figures import planes, sheet, shown_mm
from rarescan.evaluation.ranking import Entrant
from rarescan.files import atomic_path, read_json, require_recipe, write_atomic, write_json
from rarescan.flows.standing import standing
from rarescan.registry.scores import score_metrics
from rarescan.registry.store import ModelVersion, Registry, RunRecord, connect

DECISION = "decision.json"
_PERSONS_A_ROW = 4


def log_training(config: RunConfig, prepared: Path, model: Path) -> None:
    """Log a candidate's settings and curves."""
    training = read_json(model / "training.json")
    _registry(config).log(
        RunRecord(
            recipe_id=require_recipe(model, "train").id,
            name=f"{config.name}/{model.name}",
            about="training",
            params=_loggable(config),
            metrics=_curve(training["curve"]),
            tags={
                "family": config.train[model.name].family,
                "prepared_id": require_recipe(prepared).id,
            },
            files={str(model / name): "" for name in ("training.json", "spec.json")},
        )
    )


def entrants(config: RunConfig, evaluation: Path, scores: Mapping[str, Any]) -> dict[str, Entrant]:
    """Return what is known of each scored candidate beside its scores: family and cost."""
    met = standing(evaluation) or {}
    families = {name: spec.family for name, spec in config.train.items()}
    families |= {met["candidate"]: met["family"]} if met.get("candidate") else {}
    return {
        name: Entrant(
            family=families.get(name, ""),
            seconds_per_scan=float(
                read_about(evaluation / "samples" / name).get("seconds_per_scan", math.inf)
            ),
        )
        for name in scores["candidates"]
    }


def earlier_decisions(config: RunConfig, reference: str) -> list[str]:
    """Return the ids of the decisions taken on the same validation persons."""
    return _registry(config).decisions_on(reference)


def publish(
    config: RunConfig,
    prepared: Path,
    models: Path,
    evaluation: Path,
    decision: RankedDecision,
    work: Path,
) -> None:
    """Log every candidate's scores, settle the registry, write the decision and its model card."""
    registry = _registry(config)
    for name in decision.scores:
        if (models / name).is_dir():
            _log_scores(registry, config, prepared, models / name, evaluation, decision)
    version = _settle(registry, config, prepared, models, evaluation, decision)
    champion = None if version is None else {"candidate": decision.chosen, **asdict(version)}
    stored = {**asdict(decision), "champion": champion, "standing": standing(evaluation)}
    write_json(work / DECISION, stored)
    if version is not None:
        scores = read_json(evaluation / "scores.json")
        facts = _model_facts(config, models / str(decision.chosen), version)
        card = model_card(stored, scores, facts, open_cohort(prepared))
        write_atomic(work / CARD, card)
        registry.describe(version, card)
    registry.log_decision(
        RunRecord(
            recipe_id=decision.decision_id,
            name=f"{config.name}/decision",
            about="decision",
            metrics=_ranking_metrics(decision),
            tags={"verdict": decision.verdict, "chosen": decision.chosen or ""},
            files={str(work / name): "" for name in (DECISION, CARD)},
        ),
        decision.selection["reference_id"],
    )


def _settle(
    registry: Registry,
    config: RunConfig,
    prepared: Path,
    models: Path,
    evaluation: Path,
    decision: RankedDecision,
) -> ModelVersion | None:
    """Make the registry say what the decision says; return the champion after it."""
    met = standing(evaluation)
    old = registry.find(met["model_uri"]) if met else None
    if decision.verdict == "register":
        model = models / str(decision.chosen)
        return registry.registered_by(decision.decision_id) or registry.register(
            model,
            grid=require_grid(prepared),
            recipe_id=require_recipe(model, "train").id,
            tags=_version_tags(config, prepared, decision),
        )
    if decision.verdict == "refuse":
        if old is not None and met and met["candidate"] in decision.gates:
            registry.retire(old, decision.decision_id)
        return None
    if old is None:
        return None
    registry.tag(old, "permitted_use", decision.permitted_use)
    registry.tag(old, "confirmed_by", decision.decision_id)
    return registry.find(old.model_uri)


def _version_tags(config: RunConfig, prepared: Path, decision: RankedDecision) -> dict[str, str]:
    ranked = decision.selection
    row = next(row for row in ranked["candidates"] if row["id"] == decision.chosen)
    return {
        "family": config.train[str(decision.chosen)].family,
        "permitted_use": decision.permitted_use,
        "prepared_id": require_recipe(prepared).id,
        "decision_id": decision.decision_id,
        "helps": "undecided",
        "reasons": "; ".join(text for _, text in decision.reasons),
        "mmd": interval_of(row),
        "n_validation_persons": str(ranked["n_persons"]),
        "heldout_uses": str(ranked["heldout_uses"]),
        "could_not_separate": ", ".join(ranked["could_not_separate"]),
        "gates": ", ".join(f"{g.name}: {g.outcome}" for g in decision.gates[str(decision.chosen)]),
    }


def _ranking_metrics(decision: RankedDecision) -> list[tuple[str, float, int]]:
    rows = decision.selection["candidates"]
    against = decision.selection["against_champion"]
    measured = [(f"{row['id']}.{key}", row[key]) for row in rows for key in ("value", "p_holm")]
    measured += [(f"{name}.p_against_champion", test["p"]) for name, test in against.items()]
    measured += [("heldout_uses", decision.selection["heldout_uses"])]
    return [(name, float(value), 0) for name, value in measured if value is not None]


def _model_facts(config: RunConfig, model: Path, version: ModelVersion) -> ModelFacts:
    """Return what the model card says of the model; of an older version, what its tags hold."""
    trained = (model / "training.json").exists()
    training = read_json(model / "training.json") if trained else {}
    return ModelFacts(
        name=config.registry.model_name,
        version=version.version,
        model_uri=version.model_uri,
        model_sha256=version.model_sha256,
        family=version.family,
        trained_on=version.prepared_id,
        settings=read_json(model / "spec.json") if trained else {},
        parameters=training.get("parameters"),
        training_seconds=training.get("seconds"),
    )


def _log_scores(
    registry: Registry,
    config: RunConfig,
    prepared: Path,
    model: Path,
    evaluation: Path,
    decision: Decision,
) -> None:
    scores = read_json(evaluation / "scores.json")
    mosaic = config.root / "pictures" / f"{model.name}.png"
    write_mosaic(mosaic, evaluation / "samples" / model.name, require_grid(prepared))
    registry.log(
        RunRecord(
            recipe_id=require_recipe(model, "train").id,
            name=f"{config.name}/{model.name}",
            about=f"scores {decision.decision_id}",
            metrics=score_metrics(
                decision.scores[model.name], scores["extractors"], scores["floor"]
            ),
            tags={"decision_id": decision.decision_id, "verdict": decision.verdict},
            files={str(mosaic): "", str(evaluation / "scores.json"): ""},
        )
    )


def write_mosaic(path: Path, samples: Path, grid: Grid) -> None:
    """Draw three planes of a few samples, one row a diagnosis, as PNG."""
    volumes = np.load(tables(samples) / VOLUMES, mmap_mode="r")
    by_diagnosis: dict[str, list[int]] = {}
    for index, scan in enumerate(read_scans(samples)):
        by_diagnosis.setdefault(scan.condition.diagnosis, []).append(index)
    rows = [
        [tile for index in found[:_PERSONS_A_ROW] for tile in planes(volumes[index], grid).values()]
        for _, found in sorted(by_diagnosis.items())
    ]
    shortest = min(map(len, rows))
    picture = sheet([row[:shortest] for row in rows], shown_mm(grid), sides=grid.is_brain)
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)


def log_arms(config: RunConfig, classifiers: Path, recipe_id: str, batch: Path | None) -> None:
    """Log the arms' measures and tag the version with the verdict."""
    summary = read_json(classifiers / "gain.json")
    metrics = [
        (f"{arm}.{name}", float(score["value"]), 0)
        for arm, scores in summary["arms"].items()
        for name, score in scores.items()
    ]
    registry = _registry(config)
    registry.log(
        RunRecord(
            recipe_id=recipe_id,
            name=f"{config.name}/classifiers",
            about="arms",
            params=require_recipe(classifiers).config["retrain"],
            metrics=metrics,
            tags={"verdict": summary["verdict"], "sentence": summary["sentence"]},
            files={str(classifiers / "gain.json"): ""},
        )
    )
    version = registry.find(read_json(batch / "batch.json")["model_uri"]) if batch else None
    if version is not None:
        for tag in ("helps", helps_tag(summary["about"])):
            registry.tag(version, tag, summary["verdict"])


def log_utility(config: RunConfig, folder: Path, recipe_id: str) -> None:
    """Log every arm's difference to the best arm that costs nothing, question by question."""
    entries = read_json(folder / "utility.json")["entries"]
    metrics = [
        (re.sub(r"[^\w.\-]", "_", f"{of}.{arm}.{key}"), float(found["difference"][key]), 0)
        for entry in entries
        for of in [f"{entry['question']}.{entry['patients']}.{entry['model']}"]
        for arm, found in entry["arms"].items()
        for key in ("value", "low", "high")
    ]
    verdicts = {
        f"{e['question']}.{e['patients']}": str(e["verdict"])
        for e in entries
        if e["model"] == "network"
    }
    _registry(config).log(
        RunRecord(
            recipe_id=recipe_id,
            name=f"{config.name}/utility",
            about="utility",
            params=asdict(config.utility),
            metrics=metrics,
            tags=verdicts,
            files={str(folder / "utility.json"): ""},
        )
    )


def helps_tag(about: Mapping[str, str]) -> str:
    """Return the tag of one verdict: classifier, question, and what nobody had seen.

    `helps` alone is the last verdict; one batch may help a network and not another, or a new
    scanner and not the known one.
    """
    question = f"{about['positive']}-{about['negative']}"
    unseen = {"person": "new_persons", "site": "new_site"}[about["held_out"]]
    return re.sub(r"[^\w.\- ]", "_", f"helps.{about['classifier']}.{question}.{unseen}")


def _registry(config: RunConfig) -> Registry:
    return connect(config.registry, Path(config.runs))


def _loggable(config: RunConfig) -> dict[str, Any]:
    plain = plain_config(config)
    plain["source"]["path"] = ""
    plain["report"] = plain["monitor"] = {}
    plain["retrain"]["command"] = [Path(word).name for word in config.retrain.command]
    plain["retrain"]["model"] = Path(config.retrain.model).name
    for key in ("labels", "key_file", "confirmed_scans", "confirmed_persons"):
        plain["ingest"][key] = ""
    return plain


def _curve(rows: list[dict[str, Any]]) -> list[tuple[str, float, int]]:
    return [
        (key, float(value), int(row["step"]))
        for row in rows
        for key, value in row.items()
        if key not in ("step", "seconds") and value is not None
    ]
