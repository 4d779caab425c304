"""Synthetic cohorts: the samples that a candidate is scored by, and the batch of the champion.

`generate` is the verb; `sample_candidate` serves `evaluate`. Both compose rooms without Prefect,
as `flows.verbs` does.
"""

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarescan.cohort.contracts import Scan
from rarescan.cohort.store import open_cohort, require_grid, tables, write_cohort
from rarescan.configs.schema import RunConfig
from rarescan.errors import GateRefusedError
from rarescan.files import Recipe, read_json, require_recipe, run_step, write_atomic, write_json
from rarescan.flows.plan import relative, workers_of

if TYPE_CHECKING:
    from rarescan.evaluation.scan_gate import CopyCheck

_log = logging.getLogger("rarescan")


def sample_candidate(config: RunConfig, prepared: Path, model: Path, root: Path) -> Path:
    """Fill a synthetic cohort in which ages, sexes and sites occur as among training persons."""
    from rarescan.generative.conditions import draw_conditions
    from rarescan.generative.exposure import person_losses
    from rarescan.generative.sample import write_samples

    if (tables(root) / "cohort.json").exists():
        return root
    cohort = open_cohort(prepared)
    conditions = draw_conditions(
        cohort, config.evaluate.n_synthetic, config.evaluate.seed, parts=("train",)
    )
    start = time.monotonic()
    scans = write_samples(
        root, model, conditions, seed=config.evaluate.seed, workers=workers_of(config)
    )
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
    from the alias `champion`.
    """
    champion = _champion_of(decision) if decision else champion_at(config, model_uri)
    recipe = Recipe(
        step="generate",
        schema=2,
        config={
            "generate": asdict(config.generate),
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
    from rarescan.evaluation.cards import DATASHEET, datasheet
    from rarescan.evaluation.scan_gate import copy_check
    from rarescan.generative.conditions import balanced_conditions
    from rarescan.generative.sample import write_samples
    from rarescan.imaging.bids import write_derivative
    from rarescan.registry.store import ModelVersion, connect

    version = ModelVersion(**{k: v for k, v in champion.items() if k != "candidate"})
    wanted, workers = config.generate, workers_of(config)
    conditions = balanced_conditions(
        open_cohort(prepared), wanted.n, wanted.seed, diagnoses=wanted.diagnoses
    )
    with tempfile.TemporaryDirectory() as temporary:
        registry = connect(config.registry, Path(config.runs))
        model = registry.download(version, Path(temporary) / "generator")
        check = copy_check(prepared, config.evaluate)
        scans = write_samples(
            work, model, conditions, seed=wanted.seed, workers=workers, check=check
        )
    copies = _require_few_copies(check, scans)
    about = {
        "batch_id": batch_id,
        "model_uri": version.model_uri,
        "model_sha256": version.model_sha256,
        "family": version.family,
        "seed": wanted.seed,
        "decision_id": version.decision_id,
        # Scans were compared with this cohort's persons, who may not be those that it learned from.
        "permitted_use": version.permitted_use
        if version.prepared_id == require_recipe(prepared).id
        else "inside_controller",
        "prepared_id": require_recipe(prepared).id,
    }
    scans = write_derivative(
        work,
        scans=scans,
        grid=require_grid(prepared),
        name=f"{config.name}: synthetic persons",
        model=about,
        workers=workers,
    )
    about = {**about, "copies": copies}
    write_cohort(work, scans=scans, grid=require_grid(prepared), partition={}, about=about)
    batch = {**about, "n": len(scans)}
    write_json(work / "batch.json", batch)
    write_atomic(work / DATASHEET, datasheet(batch, scans, require_grid(prepared)))


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
