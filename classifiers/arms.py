"""Does it help? The same classifier, trained in several ways on the same persons.

`run_arms` is the way in: every arm and seed is one unit of work, and every unit scores the
validation and test persons. Arms differ in what is added and in nothing else: the same first
weights, steps, order of real scans and augmentation. This module makes no statement; the
predictions go to `evaluation.gain`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rarescan.classifiers import baseline, train
from rarescan.classifiers.contract import Classifier, Device, choose_device, person_means
from rarescan.classifiers.examples import Examples, balanced_pools, labelled, plain_pools
from rarescan.classifiers.modalities import modality_of
from rarescan.classifiers.spec import Arm, ClassifierConfig, RetrainConfig, require_used
from rarescan.cohort.contracts import Cohort, Part, Question
from rarescan.cohort.store import open_cohort, require_same_grid
from rarescan.errors import InputError, SettingError
from rarescan.files import atomic_path, read_json, write_json
from rarescan.processes import run_parallel
from rarescan.seeds import derive, generator

PREDICTIONS = "predictions.parquet"
CURVES = "curves.json"
_RESULT = "result.json"
_HELD_OUT: tuple[Part, ...] = ("validation", "test")
_AUGMENTED: tuple[Arm, ...] = ("classical", "classical_synthetic", "placebo")
_LINEAR_ARMS: tuple[Arm, ...] = ("real", "classical_synthetic")
_SCHEMA = pa.schema(
    [
        ("person_id", pa.string()),
        ("part", pa.string()),
        ("truth", pa.int8()),
        ("arm", pa.string()),
        ("model", pa.string()),
        ("seed", pa.int64()),
        ("score", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One fit: small and picklable, because it crosses to a worker process."""

    work: Path
    prepared: Path
    batch: Path | None
    config: RetrainConfig
    question: Question
    arm: Arm
    model: Literal["network", "linear"]
    seed: int
    device: Device

    @property
    def folder(self) -> Path:
        """Where its weights and its result lie."""
        kind = "networks" if self.model == "network" else "linear"
        return self.work / kind / f"{self.arm}-{self.seed}"


def run_arms(  # noqa: PLR0913 - three folders, two settings and where to compute
    work: Path,
    prepared: Path,
    batch: Path | None,
    config: RetrainConfig,
    question: Question,
    *,
    workers: int | None = None,
    device: Device = "auto",
) -> None:
    """Train every arm with every seed and score the persons that none of them saw.

    Parameters
    ----------
    work : Path
        Folder of a step. It gets `predictions.parquet` (person_id; part validation or test;
        truth 1 for the positive diagnosis; arm; model network or linear; seed; score: the
        probability of the positive diagnosis, mean over a person's scans), `curves.json`, and
        `networks/<arm>-<seed>/` and `linear/<arm>-<seed>/`. Finished fits are kept and skipped.
    prepared : Path
        Prepared cohort with a partition.
    batch : Path, optional
        Synthetic cohort on the same grid. Only its patients are used: as many as fill the rare
        class up to the training controls (one for each real patient at least), times
        `synthetic_share`, or all where there are fewer. They take half of the positive places
        of a batch. Without it there is no arm `classical_synthetic`.
    config : RetrainConfig
        Arms, seeds, classifier.
    question : Question
        The positive and the negative diagnosis.
    workers : int, optional
        Processes; all cores by default. Results do not depend on it. One on a GPU.
    device : {"auto", "cpu", "cuda"}
        Where networks are trained.

    Raises
    ------
    InputError
        A class is missing, or the batch is not synthetic, or its model was trained on another
        cohort.
    GridMismatchError
        Cohort and batch are on different grids.
    """
    _require_same_steps(config)
    cohort = open_cohort(prepared)
    _require_classes(cohort, question)
    if batch is not None:
        _require_fitting(cohort, open_cohort(batch), batch, question)
    arms = [a for a in config.arms if batch is not None or a != "classical_synthetic"]
    units = [
        Unit(
            work=work, prepared=prepared, batch=batch, config=config, question=question,
            arm=arm, model=model, seed=seed, device=device,
        )
        for seed in range(config.seeds)
        for arm in arms
        for model in (("network", "linear") if arm in _LINEAR_ARMS else ("network",))
    ]  # fmt: skip
    if choose_device(device).type == "cuda":
        workers = 1
    results = run_parallel(run_unit, units, what="train classifiers", workers=workers)
    _write_predictions(work / PREDICTIONS, results)
    write_json(work / CURVES, {"persons": _counts(cohort, question), "fits": _without(results)})


def _require_same_steps(config: RetrainConfig) -> None:
    require_used(config.classifier, "retrain.classifier")
    if config.classifier.patience:
        raise SettingError(
            "'retrain.classifier.patience' would give the arms different numbers of steps.",
            remedy="Leave it out: every arm takes `retrain.classifier.steps`.",
        )


def _require_classes(cohort: Cohort, question: Question) -> None:
    for part in ("train", *_HELD_OUT):
        present = set(labelled(cohort, question, part).labels)
        for label, diagnosis in ((1, question.positive), (0, question.negative)):
            if label not in present:
                raise InputError(
                    f"No {part} person has the diagnosis '{diagnosis}' "
                    f"(the cohort has: {', '.join(cohort.diagnoses())}).",
                    remedy="Name two diagnoses of this cohort in `question`, or add persons.",
                )


def _require_fitting(cohort: Cohort, batch: Cohort, root: Path, question: Question) -> None:
    """Refuse scans that would let a held-out person into training."""
    require_same_grid(cohort.grid, batch.grid, ("the cohort", "the batch"))
    if any(scan.origin != "synthetic" for scan in batch.scans):
        raise InputError(
            "The batch holds scans that are not synthetic.",
            remedy="Name a folder that `rarescan generate` wrote.",
        )
    trained_on = _trained_on(batch, root)
    if trained_on not in (None, cohort.cohort_id):
        raise InputError(
            "The batch's model was trained on another cohort or partition, so it may have seen "
            "persons who are held out here.",
            remedy="Generate the batch with a model trained on this prepared cohort.",
        )
    if not labelled(batch, question).persons(1):
        raise InputError(
            f"The batch holds nobody with the diagnosis '{question.positive}'.",
            remedy="Ask `rarescan generate` for persons with this diagnosis.",
        )


def _trained_on(batch: Cohort, root: Path) -> str | None:
    """Return the id of the cohort that the batch's model was trained on, where it is known."""
    try:
        stored = read_json(root / "batch.json").get("prepared_id")
    except FileNotFoundError:
        stored = None
    known: str | None = stored or batch.recipe.get("inputs", {}).get("prepared")
    return known


def run_unit(unit: Unit) -> dict[str, Any]:
    """Return one fit's result, from its folder where it is finished."""
    result = unit.folder / _RESULT
    if not result.exists():
        cohort = open_cohort(unit.prepared)
        classifier, about = _FIT[unit.model](unit, cohort)
        classifier.save(unit.folder)
        rows = [row for part in _HELD_OUT for row in _rows(unit, cohort, part, classifier)]
        write_json(result, {**_names(unit), **about, "predictions": rows})
    found: dict[str, Any] = read_json(result)
    return found


def _fit_network(unit: Unit, cohort: Cohort) -> tuple[Classifier, dict[str, Any]]:
    config = unit_config(unit)
    real = labelled(cohort, unit.question, "train")
    added = added_patients(unit, real)
    if unit.arm == "real":
        pools = plain_pools(real, config.batch_size)
    else:
        pools = balanced_pools(real, config.batch_size, added)
    trained, looks = train.fit(
        real if added is None else real.joined(added),
        pools,
        config,
        modality=modality_of(cohort),
        device=choose_device(unit.device),
        watched=labelled(cohort, unit.question, "validation"),
    )
    about = {"steps": config.steps, "added": len(added or ()), "curve": train.as_rows(looks)}
    return trained, about


def _fit_linear(unit: Unit, cohort: Cohort) -> tuple[Classifier, dict[str, Any]]:
    real = labelled(cohort, unit.question, "train")
    added = added_patients(unit, real)
    spacing_mm = cohort.grid.spacing_mm if cohort.grid and cohort.grid.is_brain else None
    model = baseline.fit_linear(real if added is None else real.joined(added), spacing_mm)
    return model, {"added": len(added or ())}


_FIT = {"network": _fit_network, "linear": _fit_linear}


def unit_config(unit: Unit) -> ClassifierConfig:
    """Return a fit's settings: the same seed in every arm, augmentation where the arm has it."""
    base = unit.config.classifier
    return replace(
        base,
        seed=derive(base.seed, "repeat", unit.seed),
        augmentation=base.augmentation if unit.arm in _AUGMENTED else 0.0,
    )


def added_patients(unit: Unit, real: Examples) -> Examples | None:
    """Return the patients that an arm adds: synthetic ones, or controls called patients.

    Both arms add the same number, chosen by the repeat's seed.
    """
    if unit.arm not in ("classical_synthetic", "placebo"):
        return None
    synthetic = None
    if unit.batch is not None:
        batch = labelled(open_cohort(unit.batch), unit.question)
        synthetic = batch.take([p for person in batch.persons(1) for p in person])
    n_wanted = n_added(unit.config, real, synthetic)
    source = real if unit.arm == "placebo" or synthetic is None else synthetic
    persons = source.persons(0 if source is real else 1)
    random = generator(unit.config.classifier.seed, "added", unit.seed)
    chosen = random.permutation(len(persons))[:n_wanted]
    return source.take([p for i in sorted(chosen) for p in persons[i]], label=1)


def n_added(config: RetrainConfig, real: Examples, synthetic: Examples | None) -> int:
    """Return how many patients an arm adds."""
    n_controls, n_patients = len(real.persons(0)), len(real.persons(1))
    wanted = round(config.synthetic_share * max(n_controls - n_patients, n_patients))
    available = wanted if synthetic is None else len(synthetic.persons())
    return max(1, min(wanted, available))


def _rows(unit: Unit, cohort: Cohort, part: Part, classifier: Classifier) -> list[dict[str, Any]]:
    held_out = labelled(cohort, unit.question, part)
    scores = person_means(held_out.person_ids, classifier.score(held_out.read()))
    truth = dict(zip(held_out.person_ids, held_out.labels, strict=True))
    return [
        {"person_id": person, "part": part, "truth": truth[person], "score": score}
        for person, score in scores.items()
    ]


def _names(unit: Unit) -> dict[str, Any]:
    return {"arm": unit.arm, "model": unit.model, "seed": unit.seed}


def _write_predictions(path: Path, results: Sequence[dict[str, Any]]) -> None:
    rows = [
        {**row, **{name: result[name] for name in ("arm", "model", "seed")}}
        for result in results
        for row in result["predictions"]
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), temporary, compression="zstd")


def _counts(cohort: Cohort, question: Question) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for part in ("train", *_HELD_OUT):
        persons = labelled(cohort, question, part)
        counts[part] = {
            "patients": len(persons.persons(1)),
            "controls": len(persons.persons(0)),
        }
    return counts


def _without(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results without their predictions, which are in the table."""
    return [{k: v for k, v in result.items() if k != "predictions"} for result in results]
