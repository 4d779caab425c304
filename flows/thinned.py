"""A disease of real persons is made rare: does generation help, and with how many patients.

`thinned` is the way in. In every fold of persons, and for every number of patients, generators
are trained on the fold's training persons alone, and so are all arms; validation persons choose
the arm to beat; the rest is tested. Of each of these trainings the scores are kept, so that a
command that was killed goes on.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rarescan.cohort.store import TABLES, VOLUMES, open_cohort, write_cohort
from rarescan.configs.schema import RunConfig
from rarescan.files import Recipe, atomic_path, require_recipe, run_step, write_json
from rarescan.flows.plan import Places, relative, source_of, workers_of
from rarescan.processes import run_parallel
from rarescan.seeds import derive

PREDICTIONS, RESULT = "predictions.parquet", "thinned.json"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One training of everything: a repeat, a fold, a number of patients."""

    work: Path
    prepared: Path
    config: RunConfig
    patients: int
    repeat: int
    fold: int

    @property
    def folder(self) -> Path:
        """Where everything of it lies."""
        return self.work / f"{self.patients}-{self.repeat}-{self.fold}"


def thinned(config: RunConfig, folder: Path, *, overwrite: bool = False) -> Path:
    """Prepare the source, train with few patients in every fold, and write what came of it.

    `folder` gets `thinned.json` (see `evaluation.thinned.summarise`), `predictions.parquet`,
    `utility.html` with its pictures, and each training's predictions.
    """
    from rarescan.flows.verbs import ingest, prepare

    places = Places(config.root)
    cohort = ingest(config, source_of(config), places.cohort, overwrite=overwrite)
    prepared = prepare(config, cohort, places.prepared, overwrite=overwrite)
    parts = ("thinned", "classify", "retrain", "train", "generate", "question")
    whole = asdict(config)
    recipe = Recipe(
        step="thinned",
        schema=_SCHEMA,
        config={part: whole[part] for part in parts},
        inputs={"prepared": require_recipe(prepared).id},
        found_at={"prepared": relative(prepared, folder)},
    )
    return run_step(
        folder, recipe, lambda work: _build(work, prepared, config), overwrite=overwrite
    )


def _build(work: Path, prepared: Path, config: RunConfig) -> None:
    from rarescan.classifiers.arm_table import arm_spec
    from rarescan.evaluation.thinned import summarise
    from rarescan.evaluation.utility_page import write_page

    units = [
        Unit(
            work=work, prepared=prepared.absolute(), config=config,
            patients=patients, repeat=repeat, fold=fold,
        )
        for repeat in range(config.classify.repeats)
        for fold in range(config.classify.folds)
        for patients in config.thinned.patients
    ]  # fmt: skip
    found = run_parallel(_run, units, what="train in folds", workers=workers_of(config))
    rows = [row for part in found for row in part]
    _write_rows(work / PREDICTIONS, rows)
    kinds = {arm: arm_spec(arm).kind for arm in config.retrain.arms}
    write_json(work / RESULT, summarise(rows, kinds))
    write_page(work / RESULT)


def _run(unit: Unit) -> list[dict[str, Any]]:
    """Return the predictions of one training; of a finished one nothing else is left."""
    from rarescan.classifiers.arms import PREDICTIONS as OF_ARMS
    from rarescan.classifiers.arms import run_arms
    from rarescan.classifiers.thinned import baseline_rows

    config, done = unit.config, unit.folder.with_suffix(".parquet")
    if not done.exists():
        arms, cohort = unit.folder / "arms", write_thinned(unit)
        batches = {name: write_batch(unit, cohort, name) for name in config.train}
        run_arms(
            arms, cohort, batches, config.retrain, config.question, workers=1, device=config.device
        )
        rows = pq.read_table(arms / OF_ARMS).to_pylist()
        rows += baseline_rows(open_cohort(cohort), config.question)
        where = {"patients": unit.patients, "repeat": unit.repeat, "fold": unit.fold}
        _write_rows(done, [row | where for row in rows])
    # Copies of the cohort and what learned from them are of no more use, and hold persons.
    shutil.rmtree(unit.folder, ignore_errors=True)
    found: list[dict[str, Any]] = pq.read_table(done).to_pylist()
    return found


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    table = pa.Table.from_pylist(list(rows))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_thinned(unit: Unit) -> Path:
    """Write the cohort of one training: the same scans, a partition of its own, an id of its own.

    A batch whose generator learned from another one is refused by every arm.
    """
    from rarescan.classifiers.thinned import thinned_partition

    prepared, config, folder = unit.prepared, unit.config, unit.folder / "cohort"
    cohort = open_cohort(prepared)
    place = (unit.repeat, unit.fold)
    partition = thinned_partition(cohort, config.classify, config.question, unit.patients, place)
    recipe = Recipe(
        step="thin",
        schema=_SCHEMA,
        config={"partition": partition},
        inputs={"prepared": cohort.cohort_id},
        found_at={"prepared": relative(prepared, folder)},
    )

    def build(work: Path) -> None:
        (work / TABLES).mkdir(exist_ok=True)
        for name in (VOLUMES, "metadata.parquet"):
            if (prepared / TABLES / name).exists():
                shutil.copyfile(prepared / TABLES / name, work / TABLES / name)
        write_cohort(work, scans=cohort.scans, grid=cohort.grid, partition=partition)

    return run_step(folder, recipe, build)


def write_batch(unit: Unit, cohort: Path, name: str) -> Path:
    """Train one generator on a training's persons and let it draw patients."""
    from rarescan.flows.utility_draw import write_trained

    seed = derive(unit.config.generate.seed, name, unit.patients, unit.repeat, unit.fold)
    return write_trained(unit.config, cohort, unit.folder / "batches" / name, seed)
