"""What each arm is trained on: whose scans, how often, and what is refused.

`real_scans`, `added_scans` and `pools_of` are the ways in; `require_fitting` says whether a batch
may be used with a cohort at all. Only training persons come here.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rarescan.classifiers.arm_table import ArmSpec
from rarescan.classifiers.examples import (
    Examples,
    Feed,
    Phase,
    balanced_pools,
    cell_pools,
    labelled,
    only_pools,
    plain_pools,
)
from rarescan.classifiers.spec import ClassifierConfig, RetrainConfig
from rarescan.cohort.contracts import Cohort, Question
from rarescan.cohort.store import open_cohort, require_same_grid
from rarescan.errors import InputError
from rarescan.files import read_json
from rarescan.seeds import generator


def require_fitting(
    cohort: Cohort, root: Path, question: Question, *, patients: bool = True
) -> Cohort:
    """Open a batch, unless it would let a held-out person into training.

    Parameters
    ----------
    cohort : Cohort
        Prepared, with a partition.
    root : Path
        Folder of the batch: a synthetic cohort.
    question : Question
    patients : bool
        Somebody of the batch must have its positive diagnosis; one of its two suffices without.

    Raises
    ------
    InputError
        Scans are not synthetic, the batch's model was trained on another cohort or partition, or
        nobody has a diagnosis of the question.
    GridMismatchError
        Cohort and batch are on different grids.
    """
    batch = open_cohort(root)
    require_same_grid(cohort.grid, batch.grid, ("the cohort", "the batch"))
    if any(scan.origin != "synthetic" for scan in batch.scans):
        raise InputError(
            "The batch holds scans that are not synthetic.",
            remedy="Name a folder that `rarescan generate` wrote.",
        )
    if _trained_on(batch, root) not in (None, cohort.cohort_id):
        raise InputError(
            "The batch's model was trained on another cohort or partition, so it may have seen "
            "persons who are held out here.",
            remedy="Generate the batch with a model trained on this prepared cohort.",
        )
    labels = labelled(batch, question).labels
    if not labels or (patients and 1 not in labels):
        raise InputError(
            f"The batch holds nobody with the diagnosis '{question.positive}'.",
            remedy="Ask `rarescan generate` for persons with this diagnosis.",
        )
    return batch


def _trained_on(batch: Cohort, root: Path) -> str | None:
    """Return the id of the cohort that the batch's model was trained on, where it is known."""
    try:
        stored = read_json(root / "batch.json").get("prepared_id")
    except FileNotFoundError:
        stored = None
    known: str | None = stored or batch.recipe.get("inputs", {}).get("prepared")
    return known


def require_apart(cohort: Cohort, oracle: Cohort) -> None:
    """Raise where somebody who trains the oracle is held out in the cohort."""
    require_same_grid(cohort.grid, oracle.grid, ("the cohort", "the oracle's cohort"))
    held_out = {person for person, part in cohort.partition.items() if part != "train"}
    if held_out & {person for person, part in oracle.partition.items() if part == "train"}:
        raise InputError(
            "Persons who are tested in the cohort would train the oracle.",
            remedy="Write both with one draw (`phantom.questions.write_draw`).",
        )


def real_scans(spec: ArmSpec, cohort: Cohort, question: Question) -> Examples:
    """Return the training persons' scans, with the weight of patients that the arm asks for."""
    real = labelled(cohort, question, "train")
    if not spec.class_weights:
        return real
    return replace(real, positive_weight=len(real.persons(0)) / len(real.persons(1)))


def added_scans(
    spec: ArmSpec, real: Examples, batch: Examples | None, config: RetrainConfig, repeat: int
) -> Examples | None:
    """Return what an arm adds to the real scans: synthetic ones, or controls called patients.

    Patients alone are as many as `n_added` says, chosen by the repeat's seed: so many placebo
    patients as synthetic ones.
    """
    if spec.use == "placebo" or (batch is not None and spec.use == "patients"):
        return _added_patients(spec, real, batch, config, repeat)
    return batch


def _added_patients(
    spec: ArmSpec, real: Examples, batch: Examples | None, config: RetrainConfig, repeat: int
) -> Examples:
    synthetic = None
    if batch is not None:
        synthetic = batch.take([p for person in batch.persons(1) for p in person])
    n_wanted = n_added(config, real, synthetic)
    source = real if spec.use == "placebo" or synthetic is None else synthetic
    persons = source.persons(0 if source is real else 1)
    random = generator(config.classifier.seed, "added", repeat)
    chosen = random.permutation(len(persons))[:n_wanted]
    return source.take([p for i in sorted(chosen) for p in persons[i]], label=1)


def n_added(config: RetrainConfig, real: Examples, synthetic: Examples | None) -> int:
    """Return how many patients an arm adds."""
    n_controls, n_patients = len(real.persons(0)), len(real.persons(1))
    wanted = round(config.synthetic_share * max(n_controls - n_patients, n_patients))
    available = wanted if synthetic is None else len(synthetic.persons())
    return max(1, min(wanted, available))


def pools_of(
    spec: ArmSpec, real: Examples, added: Examples | None, config: ClassifierConfig
) -> tuple[Feed, ...]:
    """Return which scans of `real.joined(added)` each step takes.

    Raises
    ------
    InputError
        Somebody's site or age is not known, and the arm balances it.
    """
    joined = real if added is None else real.joined(added)
    if spec.cells == "none":
        return plain_pools(joined, config.batch_size)
    if added is None or spec.use not in ("only", "pretrain"):
        return _together(spec, real, added, config.batch_size)
    alone = only_pools(joined, config.batch_size, len(real))
    if spec.use == "only":
        return alone
    half = config.steps // 2
    return (
        *(Phase(pool=pool, until=half) for pool in alone),
        *(Phase(pool=pool, since=half) for pool in _together(spec, real, None, config.batch_size)),
    )


def _together(
    spec: ArmSpec, real: Examples, added: Examples | None, batch_size: int
) -> tuple[Feed, ...]:
    share = spec.real_share
    if spec.cells == "class" and spec.use != "all" and share is not None:
        return balanced_pools(real, batch_size, added, share)
    joined = real if added is None else real.joined(added)
    cells = _cells(spec, joined, len(real))
    return cell_pools(joined, cells, batch_size, n_real=len(real), real_share=share)


def _cells(spec: ArmSpec, joined: Examples, n_real: int) -> list[str]:
    """Return the cell of each scan within its class."""
    if spec.cells == "class":
        return [""] * len(joined)
    if spec.cells == "site":
        sites = [condition.site for condition in joined.conditions]
        return [site for site in sites if site] if all(sites) else _unknown("site")
    ages = [condition.age_years for condition in joined.conditions]
    known = [age for age in ages if age is not None]
    if len(known) < len(ages):
        return _unknown("age")
    split = np.mean([np.mean(_of(known[:n_real], joined.labels, label)) for label in (0, 1)])
    return ["old" if age >= split else "young" for age in known]


def _of(ages: Sequence[float], labels: Sequence[int], label: int) -> list[float]:
    """Return the ages of one class; halves part midway between the classes' means."""
    return [age for age, own in zip(ages, labels, strict=False) if own == label]


def _unknown(what: str) -> list[str]:
    raise InputError(
        f"An arm balances the {what}, and the {what} of some training scans is not known.",
        remedy=f"Add the {what} of all scans to the labels, or leave `{what}_balanced` out.",
    )


def seen_scans(spec: ArmSpec, real: Examples, added: Examples | None) -> Examples:
    """Return all scans that an arm is fitted on, for a model that sees them at once."""
    if added is None:
        return real
    if spec.use != "only":
        return real.joined(added)
    kept = [p for p, label in enumerate(real.labels) if label not in added.labels]
    return real.take(kept).joined(added) if kept else added
