"""One plain function a verb: what the rooms do together, without Prefect.

Each takes the settings, input folders and one output folder, and returns the output folder. All
of them are steps (`files.run_step`): repeating one finds its folder. Rooms are imported inside,
because a job needs one of them and `--help` none.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarescan.cohort.contracts import Scan
from rarescan.cohort.store import open_cohort, require_grid, tables, write_cohort
from rarescan.configs.schema import RunConfig
from rarescan.errors import GateRefusedError, InputError, SettingError
from rarescan.files import (
    Recipe,
    read_json,
    require_recipe,
    run_step,
    write_atomic,
    write_json,
)
from rarescan.generative.spec import GeneratorSpec
from rarescan.processes import available_cores

if TYPE_CHECKING:
    from rarescan.evaluation.scan_gate import CopyCheck

_log = logging.getLogger("rarescan")


def phantom(config: RunConfig, folder: Path, *, overwrite: bool = False) -> Path:
    """Write an export of invented persons."""
    from rarescan.phantom.export import write_export

    return write_export(folder, config.phantom, workers=_workers(config), overwrite=overwrite)


def pull(config: RunConfig, folder: Path, *, overwrite: bool = False) -> Path:
    """Fetch series from a PACS; what `ingest` reads is the folder `export` in it."""
    from rarescan.pacs.pull import pull_series

    pulled = pull_series(folder, config.pull, overwrite=overwrite)
    _log.info("%d series with %d files are complete", pulled.n_series, pulled.n_files)
    if pulled.n_incomplete:
        _log.warning("%d series came incomplete; repeat the command later", pulled.n_incomplete)
    if not pulled.n_series + pulled.n_incomplete:
        raise InputError(
            "The archive has no series that matches.",
            remedy="Check pull.from_date, to_date, persons, modality and description, and the "
            "path in pull.address (often it ends in /dicom-web).",
        )
    return folder


def ingest(config: RunConfig, source: Path, folder: Path, *, overwrite: bool = False) -> Path:
    """Make a pseudonymous cohort of an export, a BIDS dataset or a folder of NIfTI files."""
    workers = _workers(config)
    if config.source.kind == "table":
        from rarescan.imaging.adopt import adopt_table

        return adopt_table(source, folder, config.adopt, workers=workers, overwrite=overwrite)
    if config.source.kind == "bids":
        from rarescan.imaging.adopt import adopt_bids

        return adopt_bids(source, folder, config.adopt, workers=workers, overwrite=overwrite)
    from rarescan.imaging.ingest import ingest_export

    return ingest_export(source, folder, config.ingest, workers=workers, overwrite=overwrite)


def prepare(config: RunConfig, cohort: Path, folder: Path, *, overwrite: bool = False) -> Path:
    """Bring a cohort's scans to one grid and divide its persons."""
    from rarescan.imaging.prepare import prepare_cohort

    return prepare_cohort(
        cohort,
        folder,
        config.prepare,
        config.partition,
        workers=_workers(config),
        overwrite=overwrite,
    )


def train(config: RunConfig, prepared: Path, folder: Path, *, overwrite: bool = False) -> Path:
    """Train the candidate that has the folder's name, and log its run."""
    spec = candidate(config, folder.name)
    from rarescan.flows.records import log_training
    from rarescan.generative.families import train_generator

    train_generator(prepared, folder, spec, device=config.device, overwrite=overwrite)
    log_training(config, prepared, folder)
    return folder


def judge(config: RunConfig, prepared: Path, folder: Path, *, overwrite: bool = False) -> Path:
    """Train the network that sees real persons only and judges the synthetic ones."""
    from rarescan.classifiers import domain

    recipe = Recipe(
        step="judge",
        schema=1,
        config={
            "classifier": asdict(config.retrain.classifier),
            "question": asdict(config.question),
        },
        inputs={"prepared": require_recipe(prepared).id},
        found_at={"prepared": _relative(prepared, folder)},
    )

    def build(work: Path) -> None:
        domain.train_network(
            prepared, work, config.retrain.classifier, config.question, device=config.device
        )

    return run_step(folder, recipe, build, overwrite=overwrite)


def evaluate(
    config: RunConfig,
    prepared: Path,
    models: Path,
    folder: Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Sample every candidate below `models` and score it against validation persons."""
    from rarescan.classifiers.domain import open_network
    from rarescan.evaluation.evaluate import write_scores
    from rarescan.flows.standing import sample_champion

    candidates = {
        path.name: path for path in sorted(models.iterdir()) if (path / "recipe.json").exists()
    }
    if not candidates:
        raise SettingError(
            f"{models} holds no trained candidate.",
            remedy=f"Run `rarescan train {prepared} {models}` first.",
        )
    network = judge(config, prepared, folder.parent / "network", overwrite=overwrite)
    inputs = {"prepared": prepared, "network": network, **candidates}
    recipe = Recipe(
        step="evaluate",
        schema=2,
        config={"evaluate": asdict(config.evaluate), "question": asdict(config.question)},
        inputs={name: require_recipe(path).id for name, path in inputs.items()},
        found_at={name: _relative(path, folder) for name, path in inputs.items()},
    )

    def build(work: Path) -> None:
        sample = partial(_sample, config, prepared)
        samples = {n: sample(model, work / "samples" / n) for n, model in candidates.items()}
        samples |= sample_champion(config, prepared, work, candidates, sample)
        embed = open_network(network).embed
        write_scores(work, prepared, samples, embed, config.evaluate, config.question)

    return run_step(folder, recipe, build, overwrite=overwrite)


def _sample(config: RunConfig, prepared: Path, model: Path, root: Path) -> Path:
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
        root, model, conditions, seed=config.evaluate.seed, workers=_workers(config)
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


def select(
    config: RunConfig,
    prepared: Path,
    models: Path,
    evaluation: Path,
    folder: Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Decide which candidate becomes the champion, and register it."""
    from rarescan.evaluation import decide
    from rarescan.evaluation.features import read_features
    from rarescan.flows import records
    from rarescan.flows.standing import standing

    recipe = Recipe(
        step="select",
        schema=2,
        config={"select": asdict(config.select), "registry": asdict(config.registry)},
        inputs={"evaluation": require_recipe(evaluation, "evaluate").id},
        found_at={"evaluation": _relative(evaluation, folder)},
    )

    def build(work: Path) -> None:
        scores, features = decide.read_scores(evaluation), read_features(evaluation)
        met = standing(evaluation) or {}
        decision = decide.decide(
            scores,
            records.entrants(config, evaluation, scores),
            features,
            met.get("candidate"),
            config.select,
            earlier=records.earlier_decisions(config, decide.reference_id(features)),
        )
        records.publish(config, prepared, models, evaluation, decision, work)

    return run_step(folder, recipe, build, overwrite=overwrite)


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
    champion = _champion_of(decision) if decision else _champion_at(config, model_uri)
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
        found_at={"prepared": _relative(prepared, folder)}
        | ({"decision": _relative(decision, folder)} if decision else {}),
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


def _champion_at(config: RunConfig, model_uri: str) -> dict[str, Any]:
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
    wanted, workers = config.generate, _workers(config)
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


def retrain(
    config: RunConfig,
    prepared: Path,
    batch: Path | None,
    folder: Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Train the classifier in every arm, judge it on test persons, and say whether it helped."""
    import pyarrow.parquet as pq

    from rarescan.classifiers.arms import run_arms
    from rarescan.evaluation import gain
    from rarescan.flows.records import log_arms

    inputs = {"prepared": prepared} | ({"batch": batch} if batch else {})
    recipe = Recipe(
        step="retrain",
        schema=2,
        config={"retrain": asdict(config.retrain), "question": asdict(config.question)},
        inputs={name: require_recipe(path).id for name, path in inputs.items()},
        found_at={name: _relative(path, folder) for name, path in inputs.items()},
    )

    def build(work: Path) -> None:
        run_arms(
            work,
            prepared,
            batch,
            config.retrain,
            config.question,
            workers=_workers(config),
            device=config.device,
        )
        write_json(work / "gain.json", gain.summarise(pq.read_table(work / "predictions.parquet")))

    run_step(folder, recipe, build, overwrite=overwrite)
    log_arms(config, folder, recipe.id, batch)
    return folder


def report(_config: RunConfig, run: Path) -> Path:
    """Write `report.html` and `report.json` of a run's folder."""
    from rarescan.evaluation.report import write_report

    return write_report(run)


def candidate(config: RunConfig, name: str) -> GeneratorSpec:
    """Return the settings of one candidate."""
    if name not in config.train:
        raise SettingError(
            f"There is no candidate '{name}' in the settings.",
            remedy=f"Candidates: {', '.join(config.train)}; add it below `train:`.",
        )
    return config.train[name]


VERBS: Mapping[str, Callable[..., Path]] = {
    "phantom": phantom,
    "pull": pull,
    "ingest": ingest,
    "prepare": prepare,
    "train": train,
    "judge": judge,
    "evaluate": evaluate,
    "select": select,
    "generate": generate,
    "retrain": retrain,
    "report": report,
}


def _workers(config: RunConfig) -> int:
    return config.workers or available_cores()


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path.resolve(), folder.resolve())
