"""One plain function a verb: what the rooms do together, without Prefect.

Each takes the settings, input folders and one output folder, and returns the output folder. All
of them are steps (`files.run_step`): repeating one finds its folder. Rooms are imported inside,
because a job needs one of them and `--help` none. `batch` and `monitor` hold the larger verbs.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rarescan.configs.schema import RunConfig
from rarescan.errors import InputError, SettingError
from rarescan.files import Recipe, require_recipe, run_step
from rarescan.flows.anomaly import anomaly
from rarescan.flows.batch import generate, sample_candidate
from rarescan.flows.classify import classify
from rarescan.flows.compress import compress
from rarescan.flows.grid import classify_grid
from rarescan.flows.monitor import monitor
from rarescan.flows.plan import relative, workers_of
from rarescan.flows.retrain import retrain
from rarescan.flows.thinned import thinned
from rarescan.flows.utility_draw import utility, utility_draw
from rarescan.generative.spec import GeneratorSpec

_log = logging.getLogger("rarescan")


def phantom(config: RunConfig, folder: Path, *, overwrite: bool = False) -> Path:
    """Write an export of invented persons."""
    from rarescan.phantom.export import write_export

    return write_export(folder, config.phantom, workers=workers_of(config), overwrite=overwrite)


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
    """Make a pseudonymous cohort of an export, a BIDS dataset, or a folder of NIfTI or pictures."""
    workers = workers_of(config)
    if config.source.kind == "pictures":
        from rarescan.imaging.pictures import adopt_pictures

        return adopt_pictures(source, folder, config.pictures, workers=workers, overwrite=overwrite)
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
    if config.source.kind == "pictures":
        from rarescan.imaging.planes import prepare_planes

        return prepare_planes(cohort, folder, config.planes, config.partition, overwrite=overwrite)
    from rarescan.imaging.prepare import prepare_cohort

    return prepare_cohort(
        cohort,
        folder,
        config.prepare,
        config.partition,
        workers=workers_of(config),
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
        found_at={"prepared": relative(prepared, folder)},
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
    from rarescan.evaluation.external import require_weights
    from rarescan.flows.standing import sample_champion

    candidates = {
        path.name: path for path in sorted(models.iterdir()) if (path / "recipe.json").exists()
    }
    if not candidates:
        raise SettingError(
            f"{models} holds no trained candidate.",
            remedy=f"Run `rarescan train {prepared} {models}` first.",
        )
    for extractor in config.evaluate.extractors:
        require_weights(extractor)
    network = judge(config, prepared, folder.parent / "network", overwrite=overwrite)
    inputs = {"prepared": prepared, "network": network, **candidates}
    recipe = Recipe(
        step="evaluate",
        schema=4,
        config={"evaluate": asdict(config.evaluate), "question": asdict(config.question)},
        inputs={name: require_recipe(path).id for name, path in inputs.items()},
        found_at={name: relative(path, folder) for name, path in inputs.items()},
    )

    def build(work: Path) -> None:
        sample = partial(sample_candidate, config, prepared)
        samples = {n: sample(model, work / "samples" / n) for n, model in candidates.items()}
        samples |= sample_champion(config, prepared, work, candidates, sample)
        embed = open_network(network).embed
        write_scores(work, prepared, samples, embed, config.evaluate, config.question)

    return run_step(folder, recipe, build, overwrite=overwrite)


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
        found_at={"evaluation": relative(evaluation, folder)},
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


def report(config: RunConfig, run: Path) -> Path:
    """Write `report.html` and `report.json` of a run's folder."""
    from rarescan.evaluation.report import write_report

    read, batch = config.report.feedback, config.report.batch
    return write_report(run, Path(read) if read else None, Path(batch) if batch else None)


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
    "classify": classify,
    "anomaly": anomaly,
    "compress": compress,
    "classify_grid": classify_grid,
    "utility_draw": utility_draw,
    "utility": utility,
    "thinned": thinned,
    "report": report,
    "monitor": monitor,
}
