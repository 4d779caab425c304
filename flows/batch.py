"""Synthetic cohorts: the samples that a candidate is scored by, and the batch of the champion.

`generate` is the verb; `sample_candidate` serves `evaluate`. Both compose rooms without Prefect,
as `flows.verbs` does.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarescan.cohort.contracts import Cohort, Grid, Scan
from rarescan.cohort.store import open_cohort, require_grid, tables, write_cohort
from rarescan.configs.schema import RunConfig
from rarescan.errors import GateRefusedError, SettingError
from rarescan.files import Recipe, read_json, require_recipe, run_step, write_atomic, write_json
from rarescan.flows.plan import relative, workers_of

if TYPE_CHECKING:
    from rarescan.evaluation.scan_gate import CopyCheck
    from rarescan.generative.scanners import Applied
    from rarescan.registry.store import ModelVersion

_log = logging.getLogger("rarescan")
_DRAWN = ".drawn"
"""Folder of a batch's scans before they are seen anew; gone when the batch is whole."""


def sample_candidate(config: RunConfig, prepared: Path, model: Path, root: Path) -> Path:
    """Fill a synthetic cohort in which ages, sexes and sites occur as among training persons."""
    from rarescan.generative.conditions import draw_conditions
    from rarescan.generative.exposure import person_losses
    from rarescan.generative.sample import Means, write_samples

    if (tables(root) / "cohort.json").exists():
        return root
    cohort = open_cohort(prepared)
    conditions = draw_conditions(
        cohort, config.evaluate.n_synthetic, config.evaluate.seed, parts=("train",)
    )
    start = time.monotonic()
    means = Means(workers=workers_of(config), device=config.device)
    scans = write_samples(root, model, conditions, seed=config.evaluate.seed, means=means)
    seconds = time.monotonic() - start
    write_cohort(
        root,
        scans=scans,
        grid=cohort.grid,
        partition={},
        about={
            "seconds": seconds,
            "seconds_per_scan": seconds / len(scans),
            "person_losses": person_losses(model, prepared),
        },
    )
    return root


def generate(
    config: RunConfig,
    prepared: Path,
    folder: Path,
    *,
    decision: Path | None = None,
    model_uri: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a batch of synthetic persons as a BIDS derivative.

    The champion comes from a decision folder, or from the registry by address; without either,
    from the alias `champion`. With `generate.fill` none is needed.
    """
    if config.generate.fill.what != "none":
        return _fill(config, prepared, folder, overwrite=overwrite)
    champion = _champion_of(decision) if decision else champion_at(config, model_uri)
    recipe = Recipe(
        step="generate",
        schema=2,
        config={
            "generate": _asked(config),
            "model_sha256": champion["model_sha256"],
            "evaluate": asdict(config.evaluate),
        },
        seeds={"batch": config.generate.seed},
        inputs={"prepared": require_recipe(prepared).id, "decision": champion["decision_id"]},
        found_at={"prepared": relative(prepared, folder)}
        | ({"decision": relative(decision, folder)} if decision else {}),
    )

    def build(work: Path) -> None:
        _write_batch(config, prepared, work, champion, batch_id=recipe.id)

    return run_step(folder, recipe, build, overwrite=overwrite)


def _asked(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a batch; scans as they are generated need no word of acquisition."""
    asked = asdict(config.generate)
    if config.generate.acquisition.how == "none":
        del asked["acquisition"]
    del asked["fill"]
    return asked


def _fill(config: RunConfig, prepared: Path, folder: Path, *, overwrite: bool) -> Path:
    """Write training persons at other sites or ages: near copies, which never leave."""
    wanted = config.generate
    if wanted.acquisition.how != "none":
        raise SettingError(
            "generate.fill and generate.acquisition cannot be combined.",
            remedy="Set one of them to none.",
        )
    recipe = Recipe(
        step="generate",
        schema=2,
        config={"fill": asdict(wanted.fill)},
        seeds={"batch": wanted.seed},
        inputs={"prepared": require_recipe(prepared).id},
        found_at={"prepared": relative(prepared, folder)},
    )

    def build(work: Path) -> None:
        from rarescan.generative.fill import IN_WORDS, fill_scans

        cohort, workers = open_cohort(prepared), workers_of(config)
        scans = fill_scans(cohort, work, wanted.fill, wanted.seed, workers=workers)
        about = {
            "batch_id": recipe.id,
            "model_uri": "",
            "model_sha256": "",
            "family": "fill",
            "seed": wanted.seed,
            "decision_id": "",
            "permitted_use": "inside_controller",
            "near_copy_of_a_person": True,
            "prepared_id": cohort.cohort_id,
        }
        scans = _sidecars(config, prepared, work, scans, about)
        _close(prepared, work, scans, {**about, "in_words": IN_WORDS[wanted.fill.what]})

    return run_step(folder, recipe, build, overwrite=overwrite)


def _champion_of(decision: Path) -> dict[str, Any]:
    require_recipe(decision, "select")
    champion: dict[str, Any] | None = read_json(decision / "decision.json")["champion"]
    if (decision / "erased.json").exists():
        raise GateRefusedError(
            "The champion learned from a person who was erased since.",
            remedy="Run the whole way again with --overwrite; it trains without that person.",
        )
    if champion is None:
        raise GateRefusedError(
            "No candidate passed the gates, so there is no champion to generate from.",
            remedy="Read the reasons in decision.json or the report; train longer, or with "
            "another family or codec.",
        )
    return champion


def champion_at(config: RunConfig, model_uri: str) -> dict[str, Any]:
    """Return what the registry says of a version; of the champion where none is named."""
    from rarescan.registry.store import connect

    registry = connect(config.registry, Path(config.runs))
    found = registry.find(model_uri) if model_uri else registry.champion()
    if found is None:
        raise GateRefusedError(
            f"The registry holds no {model_uri or 'champion'}.",
            remedy="Run `rarescan select` first, or name a version with --model.",
        )
    return asdict(found)


def _write_batch(
    config: RunConfig, prepared: Path, work: Path, champion: Mapping[str, Any], batch_id: str
) -> None:
    from rarescan.registry.store import ModelVersion

    version = ModelVersion(**{k: v for k, v in champion.items() if k != "candidate"})
    scans, copies, seen = _drawn_scans(config, prepared, work, version)
    about = {
        "batch_id": batch_id,
        "model_uri": version.model_uri,
        "model_sha256": version.model_sha256,
        "family": version.family,
        "seed": config.generate.seed,
        "decision_id": version.decision_id,
        # Scans were compared with this cohort's persons, who may not be those that it learned from.
        "permitted_use": version.permitted_use
        if version.prepared_id == require_recipe(prepared).id
        else "inside_controller",
        "prepared_id": require_recipe(prepared).id,
    }
    scans = _sidecars(config, prepared, work, scans, about)
    about = {**about, "copies": copies}
    if seen:
        about["acquisition"] = seen.about
        _note_acquisitions(work, scans, seen)
    _close(prepared, work, scans, about)
    shutil.rmtree(work / _DRAWN, ignore_errors=True)


def _sidecars(
    config: RunConfig, prepared: Path, work: Path, scans: Sequence[Scan], about: Mapping[str, Any]
) -> list[Scan]:
    """Write a batch's files; every sidecar says what `about` says."""
    name = f"{config.name}: synthetic persons"
    if about.get("near_copy_of_a_person"):
        name = f"{config.name}: real persons' scans, changed: not for release"
    how = {"name": name, "model": about, "workers": workers_of(config)}
    return _write_files(work, _as_in(open_cohort(prepared), scans), require_grid(prepared), how)


def _close(prepared: Path, work: Path, scans: Sequence[Scan], about: Mapping[str, Any]) -> None:
    """Write a batch's tables, `batch.json` and datasheet."""
    from rarescan.evaluation.cards import DATASHEET, datasheet

    grid = require_grid(prepared)
    write_cohort(work, scans=scans, grid=grid, partition={}, about=about)
    batch = {**about, "n": len(scans)}
    write_json(work / "batch.json", batch)
    write_atomic(work / DATASHEET, datasheet(batch, scans, grid))


def _drawn_scans(
    config: RunConfig, prepared: Path, work: Path, version: "ModelVersion"
) -> tuple[list[Scan], dict[str, Any], "Applied | None"]:
    """Fill the batch's volumes; return its scans, the search for copies and the acquisitions.

    Copies are searched among the scans as they are generated; those lie in a folder of their own
    until the batch is whole where other scanners are asked for.
    """
    from rarescan.evaluation.scan_gate import copy_check
    from rarescan.generative.acquisition import rerender_batch
    from rarescan.generative.conditions import balanced_conditions
    from rarescan.generative.sample import Means, write_samples
    from rarescan.generative.scanners import acquisitions_of
    from rarescan.registry.store import connect

    wanted, workers = config.generate, workers_of(config)
    cohort = open_cohort(prepared)
    conditions = balanced_conditions(cohort, wanted.n, wanted.seed, diagnoses=wanted.diagnoses)
    seen = acquisitions_of(wanted.acquisition, cohort, wanted.n, wanted.seed)
    drawn = work / _DRAWN if seen else work
    with tempfile.TemporaryDirectory() as temporary:
        registry = connect(config.registry, Path(config.runs))
        model = registry.download(version, Path(temporary) / "generator")
        check = copy_check(prepared, config.evaluate)
        scans = write_samples(
            drawn,
            model,
            conditions,
            seed=wanted.seed,
            check=check,
            means=Means(workers=workers, device=config.device),
        )
    copies = _require_few_copies(check, scans)
    if seen:
        rerender_batch(drawn, work, seen.acquisitions, seen.seeds, workers=workers)
    return scans, copies, seen


def _note_acquisitions(work: Path, scans: Sequence[Scan], seen: "Applied") -> None:
    """Say in every sidecar as which scanner would have seen it the scan was written."""
    for scan, acquisition in zip(scans, seen.acquisitions, strict=True):
        beside = work / scan.path.replace(".nii.gz", ".json")
        write_json(beside, {**read_json(beside), "Acquisition": asdict(acquisition)})


def _write_files(
    work: Path, scans: Sequence[Scan], grid: Grid, how: Mapping[str, Any]
) -> list[Scan]:
    """Write what others open: a BIDS derivative of brains, PNG files of pictures."""
    if grid.is_brain:
        from rarescan.imaging.bids import write_derivative

        return write_derivative(work, scans=scans, grid=grid, **how)
    from rarescan.imaging.picture_batch import write_pictures

    return write_pictures(work, scans=scans, **how)


def _as_in(cohort: Cohort, scans: Sequence[Scan]) -> list[Scan]:
    """Return synthetic scans of the modality and unit that the cohort's scans have."""
    kinds = {(scan.modality, scan.unit) for scan in cohort.scans}
    if len(kinds) != 1 or cohort.grid is None or cohort.grid.is_brain:
        return list(scans)
    modality, unit = kinds.pop()
    return [
        replace(scan, modality=modality, unit=unit, target=scan.condition.diagnosis)
        for scan in scans
    ]


def _require_few_copies(check: "CopyCheck", scans: Sequence[Scan]) -> dict[str, Any]:
    """Return what the search for copies said of a batch; refuse one with many replaced scans."""
    from rarescan.generative.sample import REDRAWN

    replaced = sum(scan.flags.count(REDRAWN) for scan in scans)
    if check.too_many(len(scans) + replaced, replaced):
        raise GateRefusedError(
            f"{replaced} copies of training persons came with {len(scans)} synthetic scans.",
            remedy="Do not use this generator: evaluate it again, or train another family.",
        )
    if replaced:
        _log.warning("%d synthetic scans were copies and were drawn again", replaced)
    return check.statement(len(scans) + replaced, replaced)
