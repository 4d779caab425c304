"""What the steps say to the registry: runs, curves, scores, mosaics, versions, the tag `helps`.

Called by `flows.verbs`; each function is idempotent, because the registry finds a run again by
its recipe. Settings are logged without the places of the source, the labels and the key.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rarescan.cohort.contracts import Decision, Grid
from rarescan.cohort.store import VOLUMES, read_scans, require_grid, tables
from rarescan.configs.schema import RunConfig, plain_config
from rarescan.evaluation.figures import planes, sheet
from rarescan.files import atomic_path, read_json, require_recipe
from rarescan.registry.store import Registry, RunRecord, connect

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


def publish(
    config: RunConfig, prepared: Path, models: Path, evaluation: Path, decision: Decision
) -> dict[str, Any] | None:
    """Log every candidate's scores; register the chosen one and say where it is."""
    registry = _registry(config)
    for name in decision.scores:
        _log_scores(registry, config, prepared, models / name, evaluation, decision)
    if decision.chosen is None:
        return None
    model = models / decision.chosen
    grid = require_grid(prepared)
    version = registry.register(
        model,
        grid=grid,
        recipe_id=require_recipe(model, "train").id,
        tags={
            "family": config.train[decision.chosen].family,
            "permitted_use": decision.permitted_use,
            "prepared_id": require_recipe(prepared).id,
            "decision_id": decision.decision_id,
            "helps": "undecided",
            "reasons": "; ".join(text for _, text in decision.reasons),
        },
    )
    return {"candidate": decision.chosen, **asdict(version)}


def _log_scores(
    registry: Registry,
    config: RunConfig,
    prepared: Path,
    model: Path,
    evaluation: Path,
    decision: Decision,
) -> None:
    mosaic = config.root / "pictures" / f"{model.name}.png"
    write_mosaic(mosaic, evaluation / "samples" / model.name, require_grid(prepared))
    registry.log(
        RunRecord(
            recipe_id=require_recipe(model, "train").id,
            name=f"{config.name}/{model.name}",
            about=f"scores {decision.decision_id}",
            metrics=[
                (f"{score.extractor or 'all'}.{score.name}", score.value, 0)
                for score in decision.scores[model.name]
            ],
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
    picture = sheet([row[:shortest] for row in rows], grid.spacing_mm, sides=True)
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
            params=asdict(config.retrain),
            metrics=metrics,
            tags={"verdict": summary["verdict"], "sentence": summary["sentence"]},
            files={str(classifiers / "gain.json"): ""},
        )
    )
    version = registry.find(read_json(batch / "batch.json")["model_uri"]) if batch else None
    if version is not None:
        registry.tag(version, "helps", summary["verdict"])


def _registry(config: RunConfig) -> Registry:
    return connect(config.registry, Path(config.runs))


def _loggable(config: RunConfig) -> dict[str, Any]:
    plain = plain_config(config)
    plain["source"]["path"] = ""
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
