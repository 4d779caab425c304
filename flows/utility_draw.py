"""One draw of the utility benchmark, and what all draws say together; no Prefect here.

`utility_draw` writes one invented cohort, makes the batches that the arms need from its training
persons, trains every arm and keeps what each reached; `utility` compares. What the reader would
get wrong: a draw's folder holds figures, not images and networks, which would be gigabytes.
"""

import logging
import shutil
from collections.abc import Container, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarescan.cohort.store import open_cohort, require_grid, write_cohort
from rarescan.configs.schema import RunConfig
from rarescan.configs.utility_schema import AskedConfig
from rarescan.errors import GateRefusedError, SettingError, nearest
from rarescan.files import Recipe, atomic_path, read_json, require_recipe, run_step, write_json
from rarescan.flows.plan import Places
from rarescan.flows.retrain import harmonised_for
from rarescan.seeds import derive

if TYPE_CHECKING:
    from rarescan.phantom.questions import DrawConfig

_INFORMED = "informed"
FOLDER, DRAWS = "utility", "draws"
RESULT, TABLE, SUMMARY = "result.json", "results.parquet", "utility.json"
_SCHEMA = 1
_log = logging.getLogger("rarescan")
_START_SECONDS, _PERSON_SECONDS, _STEP_SECONDS = 6.0, 0.02, 0.012
_LINEAR_SECONDS, _BATCH_SECONDS, _GENERATOR_STEP_SECONDS = 0.7, 2.0, 0.012
"""At 8 mm; steps and persons are what most of the time goes to."""


def draw_folders(config: RunConfig) -> list[Path]:
    """Return one folder a question, number of patients and draw; draws that choose come first.

    Raises
    ------
    SettingError
        The settings name no question, or an arm needs a batch that nobody makes.
    """
    asked = config.utility.questions
    if not asked:
        raise SettingError(
            "The settings name no question.",
            remedy="Start from the preset `utility`, or fill `utility.questions`.",
        )
    for one in asked.values():
        for batch in one.batches:
            _maker(config, batch)
    root = Places(config.root).root / DRAWS
    return [
        root / f"{name}-{patients}-{number}"
        for number in config.utility.draws
        for name, one in asked.items()
        for patients in one.patients
    ]


def core_seconds(config: RunConfig) -> float:
    """Return about how many seconds of one core all draws take, as measured on a 2.5 GHz core."""
    own = config.utility
    voxels = (8 / own.spacing_mm) ** 3
    seconds = 0.0
    for asked in own.questions.values():
        fits = len(asked.arms) * own.classifier.steps * _STEP_SECONDS * voxels
        fits += (2 + len(asked.batches)) * _LINEAR_SECONDS * voxels
        trained = [config.train[name].steps for name in asked.batches if name in config.train]
        batches = len(asked.batches) * _BATCH_SECONDS * voxels
        batches += sum(trained) * _GENERATOR_STEP_SECONDS
        persons = own.controls + own.test + own.oracle_patients + own.controls
        images = persons * _PERSON_SECONDS * (1 + voxels / 4)
        seconds += len(asked.patients) * (_START_SECONDS + images + fits + batches)
    return seconds * len(own.draws)


def utility_draw(config: RunConfig, folder: Path, *, overwrite: bool = False) -> Path:
    """Train all arms of one question in one draw; the folder's name tells both.

    `folder` gets `result.json`: a row for each arm and model, as `evaluation.utility.Result`.
    """
    name, patients, number = folder.name.rsplit("-", 2)
    asked = config.utility.questions[name]
    draw = _draw(config, asked, int(patients), int(number))
    recipe = Recipe(
        step="utility",
        schema=_SCHEMA,
        config={
            "question": name.partition(".")[0],
            "arms": asked.arms,
            "batches": {batch: _maker(config, batch) for batch in asked.batches},
            "draw": asdict(draw),
            "classifier": asdict(config.utility.classifier),
        },
        seeds={"draw": draw.number},
    )

    def build(work: Path) -> None:
        images, arms = work / "images", work / "arms"
        write_json(work / RESULT, _reached(config, name, draw, images, arms))
        for finished in (images, arms):
            shutil.rmtree(finished)

    return run_step(folder, recipe, build, overwrite=overwrite)


def _draw(config: RunConfig, asked: AskedConfig, patients: int, number: int) -> "DrawConfig":
    from rarescan.phantom.questions import DrawConfig

    own = config.utility
    return DrawConfig(
        question=asked.question,
        number=number,
        patients=patients,
        controls=own.controls,
        oracle_patients=own.oracle_patients,
        test=own.test,
        spacing_mm=own.spacing_mm,
    )


def _maker(config: RunConfig, batch: str) -> dict[str, Any]:
    """Return what makes a batch, as plain values."""
    if batch in config.utility.knowledge:
        return {"knowledge": asdict(config.utility.knowledge[batch])}
    if batch in config.utility.fill:
        return {"fill": asdict(config.utility.fill[batch])}
    if batch in config.train:
        return {"train": asdict(config.train[batch]), "n": config.generate.n}
    raise SettingError(
        f"An arm uses the batch '{batch}', which nothing makes.",
        remedy=nearest(batch, [*config.train, *config.utility.knowledge, *config.utility.fill]),
    )


def _reached(
    config: RunConfig, name: str, draw: "DrawConfig", images: Path, arms: Path
) -> list[dict[str, Any]]:
    """Write the cohort and its batches, train all arms, and return what each reached."""
    import pyarrow.parquet as pq

    from rarescan.classifiers.arm_table import arm_spec
    from rarescan.classifiers.arms import PREDICTIONS, linear_arms, run_arms
    from rarescan.classifiers.spec import RetrainConfig
    from rarescan.evaluation.utility_measures import results_of
    from rarescan.phantom.questions import write_draw

    asked, own = config.utility.questions[name], config.utility
    cohort, oracle = write_draw(images, draw)
    seed = derive(own.classifier.seed, "utility", draw.question, draw.number)
    batches = _batches(config, asked, draw, cohort, seed)
    refused = [a for a in asked.arms if arm_spec(a).batch in {*asked.batches} - {*batches}]
    fitted = [arm for arm in asked.arms if arm not in refused]
    # Arms of knowledge are compared with what is left of them without it.
    fitted += [_base(arm) for arm in asked.arms if arm_spec(arm).batch in own.knowledge]
    retrain = RetrainConfig(
        arms=tuple(dict.fromkeys(fitted)), seeds=1, classifier=replace(own.classifier, seed=seed)
    )
    run_arms(
        arms, cohort, batches, retrain, config.question,
        oracle=oracle, harmonised=harmonised_for(asked.arms, cohort, images / "harmonised"),
        workers=1, device=config.device,
    )  # fmt: skip
    rows = pq.read_table(arms / PREDICTIONS).to_pylist()
    rows += _informed(config, asked, retrain.arms, arms, cohort)
    rows += _left_of(refused, rows, linear_arms(asked.arms))
    names = {row["arm"]: row["arm"].partition("&")[0] for row in rows}
    kinds = {
        n: "free" if of.startswith(_INFORMED) else arm_spec(of).kind for n, of in names.items()
    }
    found = results_of(rows, open_cohort(cohort), kinds, draw.question)
    place = {"question": name.partition(".")[0], "draw": draw.number, "patients": draw.patients}
    return [place | row | {"refused": names[row["arm"]] in refused} for row in found]


def _base(arm: str) -> str:
    return arm.partition("+")[0]


def _left_of(
    refused: Sequence[str], rows: Sequence[dict[str, Any]], linear: Container[str]
) -> list[dict[str, Any]]:
    """Return the predictions of arms whose batch was refused: those of the arm without it."""
    found = []
    for arm in refused:
        base = _base(arm)
        for row in rows:
            alone, _, beside = row["arm"].partition("&")
            if row["model"] == "network" and alone == base:
                found.append({**row, "arm": f"{arm}&{beside}" if beside else arm})
            if row["model"] == "linear" and alone == "real" and arm in linear:
                found.append({**row, "arm": arm})
    return found


def _informed(
    config: RunConfig, asked: AskedConfig, trained: Sequence[str], arms: Path, cohort: Path
) -> list[dict[str, Any]]:
    """Return the predictions of models that know the published maps without a generator.

    They stand alone (`informed`), and are averaged with networks with and without the batch.
    """
    from rarescan.classifiers.arm_table import arm_spec
    from rarescan.classifiers.informed_arms import score_informed
    from rarescan.generative.pattern import read_pattern

    rows = []
    for batch in asked.batches:
        if batch not in config.utility.knowledge:
            continue
        with_batch = [arm for arm in asked.arms if arm_spec(arm).batch == batch]
        beside = [arm for arm in trained if arm in (*with_batch, *map(_base, with_batch))]
        pattern = read_pattern(_map_of(cohort, batch), require_grid(cohort))
        found = score_informed(arms, cohort, pattern, config.question, beside=beside)
        rows += [{**row, "arm": f"{row['arm']}:{batch}"} for row in found]
    return rows


def _map_of(cohort: Path, batch: str) -> Path:
    return cohort.parent / "maps" / f"{batch}.nii.gz"


def _batches(
    config: RunConfig, asked: AskedConfig, draw: "DrawConfig", cohort: Path, seed: int
) -> dict[str, Path]:
    """Make the batches that the arms need from a draw's training persons; refused ones are out."""
    from rarescan.generative.fill import write_filled

    found, fill = {}, config.utility.fill
    for name in asked.batches:
        folder, own = cohort.parent / "batches" / name, derive(seed, "batch", name)
        try:
            if name in config.utility.knowledge:
                found[name] = _write_known(config, draw, cohort, folder, own)
            elif name in fill:
                found[name] = write_filled(open_cohort(cohort), folder, fill[name], own)
            else:
                found[name] = write_trained(config, cohort, folder, own)
        except GateRefusedError as error:
            _log.warning("%s, draw %d: %s", draw.question, draw.number, error.problem)
    return found


def _write_known(
    config: RunConfig, draw: "DrawConfig", cohort: Path, folder: Path, seed: int
) -> Path:
    """Publish a map of the draw's disease and make patients from it."""
    from rarescan.generative.knowledge import write_knowledge
    from rarescan.phantom.published import write_published_map

    known, path = config.utility.knowledge[folder.name], _map_of(cohort, folder.name)
    if not path.exists():
        write_published_map(path, draw, persons=known.study_persons, likeness=known.likeness)
    how = replace(known.how, pattern=str(path), question=config.question)
    return write_knowledge(open_cohort(cohort), folder, how, seed)


def write_trained(config: RunConfig, cohort: Path, folder: Path, seed: int) -> Path:
    """Train a candidate on a cohort and let it draw patients; `folder` has the candidate's name.

    The model lies beside the folder of the batches.
    """
    from rarescan.generative.conditions import balanced_conditions
    from rarescan.generative.families import train_generator
    from rarescan.generative.sample import Means, write_samples

    spec = replace(config.train[folder.name], seed=seed)
    model = train_generator(
        cohort, folder.parents[1] / "models" / folder.name, spec, device=config.device
    )
    real = open_cohort(cohort)
    recipe = Recipe(
        step="generate",
        schema=_SCHEMA,
        config={"n": config.generate.n},
        seeds={"batch": seed},
        inputs={"prepared": real.cohort_id, "model": require_recipe(model).id},
    )

    def build(work: Path) -> None:
        wanted = balanced_conditions(
            real, config.generate.n, seed, diagnoses=[config.question.positive]
        )
        means = Means(workers=1, device=config.device)
        scans = write_samples(work, model, wanted, seed=seed, means=means)
        write_cohort(work, scans=scans, grid=require_grid(cohort), partition={})

    return run_step(folder, recipe, build)


def utility(config: RunConfig, folder: Path, *, overwrite: bool = False) -> Path:
    """Compare the arms over all draws: `results.parquet`, `utility.json`, a page and pictures."""
    import pyarrow.parquet as pq

    from rarescan.evaluation.utility import Result, summarise
    from rarescan.evaluation.utility_page import write_page
    from rarescan.flows.records import log_utility

    draws = draw_folders(config)
    recipe = Recipe(
        step="utility-summary",
        schema=_SCHEMA,
        config={"tuning_draws": config.utility.tuning_draws},
        inputs={draw.name: require_recipe(draw, "utility").id for draw in draws},
    )

    def build(work: Path) -> None:
        rows = [row for draw in draws for row in read_json(draw / RESULT)]
        entries = summarise(
            (Result(**row) for row in rows), tuning_draws=config.utility.tuning_draws
        )
        flat = [{k: v for k, v in row.items() if k != "measures"} | row["measures"] for row in rows]
        with atomic_path(work / TABLE) as temporary:
            pq.write_table(_table(flat), temporary, compression="zstd")
        write_json(work / SUMMARY, {"entries": entries})
        write_page(work / SUMMARY)

    run_step(folder, recipe, build, overwrite=overwrite)
    log_utility(config, folder, recipe.id)
    return folder


def _table(rows: list[dict[str, Any]]) -> Any:
    """Return rows as a table with every column that any of them has."""
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})
