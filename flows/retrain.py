"""Does the batch help: the arms of our network, of a program of yours, or a model that only scores.

`retrain` is the verb; `hold_out` makes the cohort that its held-out-site variant needs. Both
compose rooms without Prefect, as `flows.verbs` does.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rarescan.cohort.store import TABLES, VOLUMES, open_cohort, read_about, write_cohort
from rarescan.configs.schema import RunConfig
from rarescan.files import Recipe, require_recipe, run_step, sha256_file, write_json
from rarescan.flows.plan import relative, workers_of

GAIN = "gain.json"
_METADATA = "metadata.parquet"


def retrain(
    config: RunConfig,
    prepared: Path,
    batch: Path | None,
    folder: Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Train the classifier in every arm, judge it on test persons, and say whether it helped."""
    from rarescan.classifiers.held_out import require_unseen_sites
    from rarescan.flows.records import log_arms

    inputs = {"prepared": prepared} | ({"batch": batch} if batch else {})
    if batch:
        require_recipe(batch, "generate")
    if config.retrain.held_out == "site":
        require_unseen_sites(open_cohort(prepared))
    recipe = Recipe(
        step="retrain",
        schema=2,
        config={"retrain": _asked(config), "question": asdict(config.question)},
        inputs={name: require_recipe(path).id for name, path in inputs.items()},
        found_at={name: relative(path, folder) for name, path in inputs.items()},
    )

    def build(work: Path) -> None:
        write_json(work / GAIN, {**_found(config, prepared, batch, work), "about": _about(config)})

    run_step(folder, recipe, build, overwrite=overwrite)
    log_arms(config, folder, recipe.id, batch)
    return folder


def _asked(config: RunConfig) -> dict[str, Any]:
    """Return the settings of the result: of a program or a model what it is, not where it lies."""
    asked, own = asdict(config.retrain), config.retrain
    del asked["command_minutes"]
    if own.command:
        from rarescan.classifiers.foreign_command import Command

        asked["command"] = Command(words=own.command, minutes=own.command_minutes).identity()
    elif Path(own.model).is_file():
        asked["model"] = sha256_file(Path(own.model))
    return asked


def _about(config: RunConfig) -> dict[str, str]:
    """Return which classifier and which question the verdict is for."""
    own = config.retrain
    kind = "command" if own.command else "model" if own.model else own.classifier.network
    return {
        "classifier": kind,
        "positive": config.question.positive,
        "negative": config.question.negative,
        "held_out": own.held_out,
    }


def _found(config: RunConfig, prepared: Path, batch: Path | None, work: Path) -> dict[str, Any]:
    """Train or score; return the summary with its verdict."""
    import pyarrow.parquet as pq

    from rarescan.classifiers.arms import PREDICTIONS, run_arms
    from rarescan.evaluation import gain

    own, batches = config.retrain, {"synthetic": batch} if batch else {}
    if own.model:
        from rarescan.classifiers.foreign import score_foreign

        score_foreign(work, prepared, batch, _scorer(config), config.question)
        return gain.summarise_scored(pq.read_table(work / PREDICTIONS))
    how: Mapping[str, Any] = {"workers": workers_of(config), "device": config.device}
    if own.command:
        from rarescan.classifiers.foreign import run_foreign
        from rarescan.classifiers.foreign_command import Command

        command = Command(words=own.command, minutes=own.command_minutes)
        run_foreign(work, prepared, batches, command, own, config.question, **how)
    else:
        harmonised = harmonised_for(own.arms, prepared, work / "harmonised")
        run_arms(work, prepared, batches, own, config.question, harmonised=harmonised, **how)
    found = gain.summarise(pq.read_table(work / PREDICTIONS))
    if own.held_out == "site":
        found["sentence"] = f"At sites that nothing here had seen: {found['sentence']}"
    return found


def harmonised_for(arms: Sequence[str], prepared: Path, folder: Path) -> Path | None:
    """Write the cohort as its largest site would have shown it, where an arm needs it."""
    from rarescan.classifiers.arm_table import arm_spec

    if not any(arm_spec(arm).harmonised for arm in arms):
        return None
    from rarescan.generative.harmonise import write_harmonised

    return write_harmonised(open_cohort(prepared), folder)


def _scorer(config: RunConfig) -> Any:
    """Return what scores images: an ONNX file, or a model of MLflow."""
    if Path(config.retrain.model).suffix == ".onnx":
        from rarescan.classifiers.foreign import open_onnx

        return open_onnx(Path(config.retrain.model))
    from rarescan.registry.foreign import open_pyfunc

    return open_pyfunc(config.registry, Path(config.runs), config.retrain.model)


def hold_out(prepared: Path, folder: Path, site: str, *, overwrite: bool = False) -> Path:
    """Write a prepared cohort again with all persons of one site as its test persons.

    Persons of other sites keep their part, but for their test persons, who have none. The volumes
    are the same file where the disk allows it. Whatever is trained from it has not seen the site.
    """
    from rarescan.classifiers.held_out import site_partition

    cohort = open_cohort(prepared)
    partition = site_partition(cohort, site)
    recipe = Recipe(
        step="hold-out",
        schema=1,
        config={"site": site},
        inputs={"prepared": cohort.cohort_id},
        found_at={"prepared": relative(prepared, folder)},
    )

    def build(work: Path) -> None:
        (work / TABLES).mkdir(exist_ok=True)
        for name in (VOLUMES, _METADATA):
            if (prepared / TABLES / name).exists():
                _link(prepared / TABLES / name, work / TABLES / name)
        write_cohort(
            work,
            scans=cohort.scans,
            grid=cohort.grid,
            partition=partition,
            about=read_about(prepared),
        )

    return run_step(folder, recipe, build, overwrite=overwrite)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
