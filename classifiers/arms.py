"""Does it help? The same classifier, trained in several ways on the same persons.

`run_arms` is the way in: every arm and seed is one unit of work, and every unit scores the
validation and test persons. Arms differ in what `arm_table` says and in nothing else: the same
first weights, steps and draws. This module makes no statement; the
predictions go to `evaluation.gain`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rarescan.classifiers import baseline, train
from rarescan.classifiers.adjusted import Adjustment
from rarescan.classifiers.arm_scans import (
    added_scans,
    pools_of,
    real_scans,
    require_apart,
    require_fitting,
    seen_scans,
)
from rarescan.classifiers.arm_table import ArmSpec, arm_spec
from rarescan.classifiers.contract import Classifier, Device, choose_device, person_means
from rarescan.classifiers.examples import Examples, labelled
from rarescan.classifiers.modalities import modality_of
from rarescan.classifiers.recipes import Landmarks, Normalised, with_recipe
from rarescan.classifiers.spec import ClassifierConfig, RecipeName, RetrainConfig, require_used
from rarescan.cohort.contracts import Cohort, Part, Question
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError, SettingError, nearest
from rarescan.files import atomic_path, read_json, write_json
from rarescan.processes import run_parallel
from rarescan.seeds import derive

PREDICTIONS = "predictions.parquet"
CURVES = "curves.json"
_RESULT = "result.json"
_HELD_OUT: tuple[Part, ...] = ("validation", "test")
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
    oracle: Path | None = None
    config: RetrainConfig
    question: Question
    arm: str
    model: Literal["network", "linear"]
    seed: int
    device: Device
    learner: "Learner | None" = None

    @property
    def folder(self) -> Path:
        """Where its weights and its result lie."""
        kind = "networks" if self.model == "network" else "linear"
        return self.work / kind / f"{self.arm.replace(':', ',')}-{self.seed}"

    @property
    def spec(self) -> ArmSpec:
        """What its arm does."""
        return arm_spec(self.arm)


Learner = Callable[[Unit, Cohort], tuple[dict[str, Any], list[dict[str, Any]]]]
"""Another classifier in the place of the network: what is noted of a fit, and a row a person."""


def run_arms(  # noqa: PLR0913 - folders, settings and where to compute
    work: Path,
    prepared: Path,
    batches: Mapping[str, Path],
    config: RetrainConfig,
    question: Question,
    *,
    oracle: Path | None = None,
    harmonised: Path | None = None,
    workers: int | None = None,
    device: Device = "auto",
    learner: Learner | None = None,
) -> None:
    """Train every arm with every seed and score the persons that none of them saw.

    Parameters
    ----------
    work : Path
        Folder of a step. It gets `predictions.parquet` (person_id; part validation or test;
        truth 1 for the positive diagnosis; arm; model network or linear; seed; score: the
        probability of the positive diagnosis, mean over a person's scans), `curves.json`, and
        `networks/<arm>-<seed>/` and `linear/<arm>-<seed>/`. Finished fits are kept and skipped.
        The linear model is fitted once for all arms that are trained on the same scans.
    prepared : Path
        Prepared cohort with a partition; one of the held-out parts may be empty.
    batches : mapping of str to Path
        Synthetic cohorts on the same grid, by the names that the arms give them. What an arm
        takes of one stands in `arm_table.ArmSpec.use`; where only patients are taken, they are as
        many as fill the rare class up to the training controls (one for each real patient at
        least), times `synthetic_share`, or all where there are fewer. Without any batch the arms
        that need one are left out.
    config : RetrainConfig
        Arms, seeds, classifier.
    question : Question
        The positive and the negative diagnosis.
    oracle : Path, optional
        Cohort whose training persons the arms `oracle` and `oracle_strong` are trained on.
    harmonised : Path, optional
        The same cohort as one site would have shown it, which the arm `harmonised` is trained and
        tested on.
    workers : int, optional
        Processes; all cores by default. Results do not depend on it. One on a GPU.
    device : {"auto", "cpu", "cuda"}
        Where networks are trained.
    learner : callable, optional
        Fits and scores in the place of the network (`foreign.run_foreign`).

    Raises
    ------
    InputError
        A class is missing, or a batch is not synthetic, or its model was trained on another
        cohort.
    GridMismatchError
        Cohort and batch are on different grids.
    SettingError
        An arm's batch or the oracle is missing, or its recipe is not for these images.
    """
    cohort = open_cohort(prepared)
    arms = [arm for arm in config.arms if batches or arm_spec(arm).kind != "generative"]
    _require_arms(arms, config, batches, {"oracle": oracle, "harmonised": harmonised})
    _require_classes(cohort, question)
    _require_recipes(cohort, arms, config)
    for name, root in batches.items():
        uses = {spec.use for spec in map(arm_spec, arms) if spec.batch == name}
        if uses:
            require_fitting(cohort, root, question, patients=uses != {"all"})
    if oracle is not None:
        require_apart(cohort, open_cohort(oracle))
    alone = linear_arms(arms)
    units = [
        Unit(
            work=work, prepared=_seen_as(prepared, harmonised, arm),
            batch=batches.get(arm_spec(arm).batch), oracle=oracle, config=config,
            question=question, arm=arm, model=model, seed=seed, device=device,
            learner=learner if model == "network" else None,
        )
        for seed in range(config.seeds)
        for arm in arms
        for model in (("network", "linear") if arm in alone else ("network",))
    ]  # fmt: skip
    if choose_device(device).type == "cuda":
        workers = 1
    results = run_parallel(run_unit, units, what="train classifiers", workers=workers)
    write_predictions(work / PREDICTIONS, results)
    write_json(work / CURVES, {"persons": _counts(cohort, question), "fits": _without(results)})


def _seen_as(prepared: Path, harmonised: Path | None, arm: str) -> Path:
    return harmonised if harmonised is not None and arm_spec(arm).harmonised else prepared


def _require_arms(
    arms: Sequence[str],
    config: RetrainConfig,
    batches: Mapping[str, Path],
    cohorts: Mapping[str, Path | None],
) -> None:
    """Refuse settings that do nothing, and arms that lack what they are trained on."""
    mixes = any(arm_spec(arm).mix != "none" for arm in arms)
    base = config.classifier
    require_used(replace(base, mix="mixup") if mixes else base, "retrain.classifier")
    if base.patience:
        raise SettingError(
            "'retrain.classifier.patience' would give the arms different numbers of steps.",
            remedy="Leave it out: every arm takes `retrain.classifier.steps`.",
        )
    for arm in arms:
        spec = arm_spec(arm)
        if spec.kind == "generative" and spec.batch not in batches:
            raise SettingError(
                f"The arm '{arm}' needs a batch named '{spec.batch}'.",
                remedy=nearest(spec.batch, [*batches]),
            )
        needed = "oracle" if spec.kind == "oracle" else "harmonised" if spec.harmonised else ""
        if needed and cohorts[needed] is None:
            raise SettingError(
                f"The arm '{arm}' needs a cohort of its own, which is not there.",
                remedy="Leave it out of `retrain.arms`: oracles exist for invented draws only, and "
                "programs of your own are given no harmonised cohort.",
            )


def _require_recipes(cohort: Cohort, arms: Sequence[str], config: RetrainConfig) -> None:
    modality = modality_of(cohort)
    for spec in map(arm_spec, arms):
        with_recipe(modality, "tones" if spec.landmarks else _recipe(spec, config.classifier))


def _recipe(spec: ArmSpec, base: ClassifierConfig) -> RecipeName:
    """Return an arm's recipe; most leave the augmentation to the classifier's own settings."""
    own = spec.recipe
    return base.recipe if own == "none" or own == "classical" else own


def linear_arms(arms: Sequence[str]) -> set[str]:
    """Return the first arm of those that are trained on the same scans: a linear model's fits."""
    first: dict[tuple[str, ...], str] = {}
    for arm in arms:
        spec = arm_spec(arm)
        if spec.kind != "placebo" and not spec.landmarks:
            own = f"{spec.adjust} {spec.harmonised}"
            first.setdefault((spec.kind, spec.batch, spec.use, own), arm)
    return set(first.values())


def _require_classes(cohort: Cohort, question: Question) -> None:
    held_out = [part for part in _HELD_OUT if part in cohort.partition.values()]
    for part in ("train", *(held_out or _HELD_OUT)):
        present = set(labelled(cohort, question, part).labels)
        for label, diagnosis in ((1, question.positive), (0, question.negative)):
            if label not in present:
                raise InputError(
                    f"No {part} person has the diagnosis '{diagnosis}' "
                    f"(the cohort has: {', '.join(cohort.diagnoses())}).",
                    remedy="Name two diagnoses of this cohort in `question`, or add persons.",
                )


def run_unit(unit: Unit) -> dict[str, Any]:
    """Return one fit's result, from its folder where it is finished."""
    result = unit.folder / _RESULT
    if not result.exists():
        cohort = open_cohort(unit.prepared)
        if unit.learner is not None:
            about, rows = unit.learner(unit, cohort)
        else:
            classifier, about = _FIT[unit.model](unit, cohort)
            classifier.save(unit.folder)
            adjustment = _adjustment(unit, cohort, classifier)
            scored = (_rows(unit, cohort, part, classifier, adjustment) for part in _HELD_OUT)
            rows = [row for found in scored for row in found]
        write_json(result, {**_names(unit), **about, "predictions": rows})
    found: dict[str, Any] = read_json(result)
    return found


def _fit_network(unit: Unit, cohort: Cohort) -> tuple[Classifier, dict[str, Any]]:
    config, spec = unit_config(unit), unit.spec
    real, added = scans_of(unit, cohort)
    landmarks = None
    watched = labelled(cohort, unit.question, "validation")
    if spec.landmarks:
        controls = [p for p, label in enumerate(real.labels) if label == 0]
        landmarks = Landmarks.of(real.read(controls))
        real, watched = (replace(scans, look=landmarks.apply) for scans in (real, watched))
    trained, looks = train.fit(
        real if added is None else real.joined(added),
        pools_of(spec, real, added, config),
        config,
        modality=modality_of(cohort),
        device=choose_device(unit.device),
        watched=watched,
    )
    about = {"steps": config.steps, "added": len(added or ()), "curve": train.as_rows(looks)}
    if landmarks is not None:
        return Normalised(classifier=trained, landmarks=landmarks), about
    return trained, about


def _fit_linear(unit: Unit, cohort: Cohort) -> tuple[Classifier, dict[str, Any]]:
    real, added = scans_of(unit, cohort)
    spacing_mm = cohort.grid.spacing_mm if cohort.grid and cohort.grid.is_brain else None
    model = baseline.fit_linear(seen_scans(unit.spec, real, added), spacing_mm)
    return model, {"added": len(added or ())}


_FIT = {"network": _fit_network, "linear": _fit_linear}


def unit_config(unit: Unit) -> ClassifierConfig:
    """Return a fit's settings: the same seed in every arm, augmentation where the arm has it."""
    base, spec = unit.config.classifier, unit.spec
    return replace(
        base,
        seed=derive(base.seed, "repeat", unit.seed),
        augmentation=0.0 if spec.recipe == "none" else base.augmentation,
        recipe=_recipe(spec, base),
        mix=base.mix if spec.mix == "none" else spec.mix,
    )


def scans_of(unit: Unit, cohort: Cohort) -> tuple[Examples, Examples | None]:
    """Return the real scans of an arm, and those that it adds."""
    spec = unit.spec
    source = cohort
    if spec.kind == "oracle" and unit.oracle is not None:
        source = open_cohort(unit.oracle)
    real = real_scans(spec, source, unit.question)
    batch = None if unit.batch is None else labelled(open_cohort(unit.batch), unit.question)
    return real, added_scans(spec, real, batch, unit.config, unit.seed)


def _adjustment(unit: Unit, cohort: Cohort, classifier: Classifier) -> Adjustment | None:
    """Return what is taken off scores, learned from the cohort's training controls."""
    if unit.spec.adjust == "none":
        return None
    real = labelled(cohort, unit.question, "train")
    controls = real.take([p for p, label in enumerate(real.labels) if label == 0])
    scores = classifier.score(controls.read())
    found = Adjustment.of(unit.spec.adjust, scores, controls.conditions)
    found.save(unit.folder)
    return found


def _rows(
    unit: Unit,
    cohort: Cohort,
    part: Part,
    classifier: Classifier,
    adjustment: Adjustment | None,
) -> list[dict[str, Any]]:
    held_out = labelled(cohort, unit.question, part)
    if not len(held_out):
        return []
    found = classifier.score(held_out.read())
    if adjustment is not None:
        found = adjustment.apply(found, held_out.conditions)
    scores = person_means(held_out.person_ids, found)
    truth = dict(zip(held_out.person_ids, held_out.labels, strict=True))
    return [
        {"person_id": person, "part": part, "truth": truth[person], "score": score}
        for person, score in scores.items()
    ]


def _names(unit: Unit) -> dict[str, Any]:
    return {"arm": unit.arm, "model": unit.model, "seed": unit.seed}


def write_predictions(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write the predictions of fits as one table."""
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
