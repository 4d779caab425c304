"""One plain function a verb: what the rooms do together, without Prefect.

Each takes the settings, input folders and one output folder, and returns the output folder. All
of them are steps (`files.run_step`): repeating one finds its folder. Rooms are imported inside,
because a job needs one of them and `--help` none.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rarescan.cohort.store import open_cohort, read_about, require_grid, tables, write_cohort
from rarescan.configs.schema import RunConfig
from rarescan.errors import GateRefusedError, InputError, SettingError
from rarescan.files import Recipe, read_json, require_recipe, run_step, write_json
from rarescan.generative.spec import GeneratorSpec
from rarescan.processes import available_cores

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
        schema=1,
        config={"evaluate": asdict(config.evaluate), "question": asdict(config.question)},
        inputs={name: require_recipe(path).id for name, path in inputs.items()},
        found_at={name: _relative(path, folder) for name, path in inputs.items()},
    )

    def build(work: Path) -> None:
        samples = {
            name: _sample(config, prepared, model, work / "samples" / name)
            for name, model in candidates.items()
        }
        embed = open_network(network).embed
        write_scores(work, prepared, samples, embed, config.evaluate, config.question)

    return run_step(folder, recipe, build, overwrite=overwrite)


def _sample(config: RunConfig, prepared: Path, model: Path, root: Path) -> Path:
    """Fill a synthetic cohort in which ages, sexes and sites occur as among training persons."""
    from rarescan.generative.conditions import draw_conditions
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
        about={"seconds": seconds, "seconds_per_scan": seconds / len(scans)},
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
    from rarescan.flows.records import publish

    recipe = Recipe(
        step="select",
        schema=1,
        config={"select": asdict(config.select), "registry": asdict(config.registry)},
        inputs={"evaluation": require_recipe(evaluation, "evaluate").id},
        found_at={"evaluation": _relative(evaluation, folder)},
    )

    def build(work: Path) -> None:
        scores = decide.read_scores(evaluation)
        seconds = {
            name: float(read_about(evaluation / "samples" / name)["seconds_per_scan"])
            for name in scores["candidates"]
        }
        decision = decide.decide(scores, seconds, read_features(evaluation), config=config.select)
        champion = publish(config, prepared, models, evaluation, decision)
        write_json(work / "decision.json", {**asdict(decision), "champion": champion})

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
        schema=1,
        config={"generate": asdict(config.generate), "model_sha256": champion["model_sha256"]},
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
        scans = write_samples(work, model, conditions, seed=wanted.seed, workers=workers)
    about = {
        "batch_id": batch_id,
        "model_uri": version.model_uri,
        "model_sha256": version.model_sha256,
        "family": version.family,
        "seed": wanted.seed,
        "decision_id": version.decision_id,
        "permitted_use": version.permitted_use,
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
    write_cohort(work, scans=scans, grid=require_grid(prepared), partition={}, about=about)
    write_json(work / "batch.json", {**about, "n": len(scans)})


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
        schema=1,
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
