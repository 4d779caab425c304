"""A classifier of your own in the same arms: a function, a program, or a model that only scores.

`run_foreign` trains it as often as there are arms and repeats; `score_foreign` serves a model that
cannot be trained here. Arms are those of `arms.run_arms`, made into tables of scans: what a step
of our own training draws is a line of the table, with an augmented image of its own where the arm
augments.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rarescan.classifiers.arm_scans import pools_of, require_fitting
from rarescan.classifiers.arm_table import ArmSpec, arm_spec
from rarescan.classifiers.arms import (
    PREDICTIONS,
    Unit,
    run_arms,
    scans_of,
    unit_config,
    write_predictions,
)
from rarescan.classifiers.compression.runtime import open_session, require_runtime
from rarescan.classifiers.contract import Device, person_means
from rarescan.classifiers.examples import Examples, draw, labelled
from rarescan.classifiers.foreign_command import Command
from rarescan.classifiers.modalities import modality_of
from rarescan.classifiers.recipes import with_recipe
from rarescan.classifiers.scan_dataset import Augment, ScanDataset, dataset_of
from rarescan.classifiers.spec import ClassifierConfig, RetrainConfig
from rarescan.cohort.contracts import Cohort, FloatArray, Question
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError, SettingError
from rarescan.seeds import generator

Score = Callable[[ScanDataset], Sequence[float] | npt.NDArray[Any]]
"""A data set without labels -> the probability of the positive diagnosis of each scan, in order."""
Fit = Callable[[ScanDataset], Score]
"""A labelled data set -> the trained classifier."""

AS_IT_IS = "as_it_is"
"""The only arm of a model that is not trained here."""
_VIEWS = 4
"""Augmented images of each place in a table."""
_CHUNK = 16
_log = logging.getLogger("rarescan")


def run_foreign(  # noqa: PLR0913 - what `run_arms` takes, and the classifier
    work: Path,
    prepared: Path,
    batches: Mapping[str, Path],
    fit: Fit | Command,
    config: RetrainConfig,
    question: Question,
    *,
    workers: int | None = None,
    device: Device = "auto",
) -> None:
    """Train a foreign classifier in every arm and score the persons whom it has not seen.

    Parameters
    ----------
    work : Path
        Folder of a step; it gets what `run_arms` writes, the foreign classifier in the place of
        the network (`model` is "network" in the table), the linear baseline beside it.
    prepared, batches, config, question
        As in `run_arms`; of `config.classifier` only augmentation, recipe, batch_size (places are
        drawn in such batches) and seed are used.
    fit : callable or Command
        A function is called in this process, one fit after the other, with a `ScanDataset`;
        `.images()` and `.labels` are arrays. A `Command` may run in several processes.
    workers : int, optional
        Commands at the same time.
    device : {"auto", "cpu", "cuda"}
        On a GPU one command runs at a time.

    Raises
    ------
    InputError
        As `run_arms`, or the scores are no probabilities.
    SettingError
        No arm is left that can be made into a table.
    """
    refused = {arm: why for arm in config.arms if (why := _why_not(arm_spec(arm)))}
    for arm, why in refused.items():
        _log.warning("the arm '%s' is left out: %s", arm, why)
    arms = tuple(arm for arm in config.arms if arm not in refused)
    if not arms:
        raise SettingError(
            "None of the arms can be made into a table for a classifier of your own.",
            remedy="Set retrain.arms to arms such as real, oversampled, classical, "
            "classical_synthetic and placebo.",
        )
    run_arms(
        work,
        prepared,
        batches,
        replace(config, arms=arms),
        question,
        workers=workers if isinstance(fit, Command) else 1,
        device=device,
        learner=_Learner(fit),
    )


def _why_not(spec: ArmSpec) -> str:
    """Return why an arm cannot be told by a table of scans; nothing where it can."""
    if spec.class_weights or spec.mix != "none":
        return "its loss is the network's own."
    if spec.use == "pretrain":
        return "it changes the scans in the middle of the training."
    if spec.adjust != "none":
        return "it needs the scores of training controls."
    return "it changes the tested scans too." if spec.landmarks or spec.harmonised else ""


@dataclass(frozen=True)
class _Learner:
    """Trains and scores one unit; picklable where its classifier is a command."""

    fit: Fit | Command

    def __call__(self, unit: Unit, cohort: Cohort) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return what is noted of the fit, and a row for each held-out person."""
        train, n_added = training_table(unit, cohort)
        scans = labelled(cohort, unit.question, "validation", "test")
        # The order of a cohort may tell diagnoses.
        order = generator(unit.seed, "held out").permutation(len(scans)).tolist()
        scans = scans.take(order)
        held_out = dataset_of(scans, [cohort], hide_labels=True)
        if isinstance(self.fit, Command):
            unit.folder.mkdir(parents=True, exist_ok=True)
            found: Any = self.fit.learn(train, held_out, unit.folder, unit.seed)
        else:
            found = self.fit(train)(held_out)
        rows = _rows(cohort, scans, probabilities(found, len(scans)))
        return {"rows": len(train), "added": n_added}, rows


def training_table(unit: Unit, cohort: Cohort) -> tuple[ScanDataset, int]:
    """Return what one fit is trained on, and how many of its scans are added ones.

    `real` holds every scan once. The others hold what our own training would draw: twice as many
    places as the larger class has persons, and four times that where each place has an augmented
    image of its own.
    """
    config, spec = unit_config(unit), unit.spec
    real, added = scans_of(unit, cohort)
    cohorts = [cohort] if unit.batch is None else [cohort, open_cohort(unit.batch)]
    augment = _augment_of(cohort, config)
    if spec.cells == "none" and added is None:
        positions = generator(config.seed, "order").permutation(len(real)).tolist()
    else:
        places = 2 * max(len(real.persons(label)) for label in (0, 1))
        steps = ceil(places * (_VIEWS if augment else 1) / config.batch_size)
        pools = pools_of(spec, real, added, config)
        positions = [p for step in range(steps) for p in draw(pools, config.seed, step)]
    joined = real if added is None else real.joined(added)
    table = dataset_of(joined, cohorts, positions, augment=augment, seed=config.seed)
    return table, len(added or ())


def _augment_of(cohort: Cohort, config: ClassifierConfig) -> Augment | None:
    if not config.augmentation:
        return None
    modality = with_recipe(modality_of(cohort), config.recipe)
    return partial(_augmented, modality.augment, config.augmentation)


def _augmented(
    augment: Callable[[torch.Tensor, float, torch.Generator], torch.Tensor],
    strength: float,
    image: torch.Tensor,
    random: torch.Generator,
) -> torch.Tensor:
    return augment(image, strength, random)


def _rows(cohort: Cohort, scans: Examples, scores: FloatArray) -> list[dict[str, Any]]:
    truth = dict(zip(scans.person_ids, scans.labels, strict=True))
    return [
        {
            "person_id": person,
            "part": cohort.partition.get(person, "synthetic"),
            "truth": truth[person],
            "score": score,
        }
        for person, score in sorted(person_means(scans.person_ids, scores).items())
    ]


def score_foreign(
    work: Path,
    prepared: Path,
    batch: Path | None,
    score: Callable[[FloatArray], Any],
    question: Question,
) -> None:
    """Score held-out and synthetic persons with a model that is not trained here.

    Parameters
    ----------
    work : Path
        Gets `predictions.parquet` with the one arm `as_it_is`; part `synthetic` for the batch.
    prepared, batch : Path
        As in `run_arms`.
    score : callable
        Images, float32, shape (n, x, y, z), values 0 to 1 -> probabilities of the positive
        diagnosis, shape (n,), (n, 1) or (n, 2) with the positive one last.
    question : Question
        The positive and the negative diagnosis.
    """
    cohort = open_cohort(prepared)
    scans = [(cohort, labelled(cohort, question, "validation", "test"))]
    if batch is not None:
        synthetic = require_fitting(cohort, batch, question, patients=True)
        scans.append((synthetic, labelled(synthetic, question)))
    rows = []
    for home, examples in scans:
        parts = [
            probabilities(score(examples.read(range(start, stop))), stop - start)
            for start in range(0, len(examples), _CHUNK)
            for stop in (min(start + _CHUNK, len(examples)),)
        ]
        rows += _rows(home, examples, np.concatenate(parts))
    about = {"arm": AS_IT_IS, "model": "network", "seed": 0}
    write_predictions(work / PREDICTIONS, [{**about, "predictions": rows}])


def open_onnx(path: Path) -> Callable[[FloatArray], Any]:
    """Return what scores images with an ONNX model: one input, (n, 1, x, y, z) or (n, x, y, z).

    Raises
    ------
    InputError
        The file is no ONNX model, or takes something else.
    """
    require_runtime()
    if not path.is_file():
        raise InputError(f"There is no model {path}.", remedy="Correct `retrain.model`.")
    try:
        session = open_session(path.read_bytes())
    except Exception as error:  # onnxruntime's exceptions have no parent of their own
        raise InputError(
            f"{path.name} is no model that ONNX Runtime can open.", remedy="Export it again."
        ) from error
    given = session.get_inputs()
    if len(given) != 1 or len(given[0].shape) not in (4, 5):
        raise InputError(
            f"{path.name} does not take one image of three dimensions.",
            remedy="Export it with one input, (n, 1, x, y, z) or (n, x, y, z), float32.",
        )

    def score(images: FloatArray) -> Any:
        shaped = images[:, None] if len(given[0].shape) == 5 else images
        values = np.ascontiguousarray(shaped, np.float32)
        return session.run(None, {given[0].name: values})[0]

    return score


def probabilities(found: Any, n: int) -> FloatArray:
    """Return the scores of n scans, float32, shape (n,).

    Raises
    ------
    InputError
        They are not one probability for each scan.
    """
    values = np.asarray(found, dtype=np.float64)
    if values.ndim == 2 and values.shape[1] in (1, 2):
        values = values[:, -1]
    if values.shape != (n,) or not (np.isfinite(values) & (values >= 0) & (values <= 1)).all():
        raise InputError(
            "The classifier's scores are not one probability for each scan.",
            remedy="Let it give numbers from 0 to 1, the probability of the positive diagnosis, "
            "in the order of the scans.",
        )
    scores: FloatArray = values.astype(np.float32)
    return scores
