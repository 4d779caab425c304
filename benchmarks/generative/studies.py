"""The cohorts that generators are compared on: phantoms, and real T1 persons.

`phantom` and `real_t1` are the ways in. A `Study` is a prepared cohort with its partition and its
judge; everything is built once (`files.run_step`) and found again.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rarescan.classifiers.domain import DomainNetwork, open_network, train_network
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.cohort.contracts import Cohort, Part, Question
from rarescan.cohort.partition import PartitionConfig
from rarescan.cohort.store import VOLUMES, open_cohort, tables, write_cohort
from rarescan.files import Recipe, require_recipe, run_step
from rarescan.imaging.adopt import adopt_table
from rarescan.imaging.prepare import prepare_cohort
from rarescan.imaging.spec import AdoptConfig, PrepareConfig
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import write_prepared
from rarescan.seeds import generator

N_HELD_OUT = 22
"""Persons of ds002748 whom no generator of any size sees; 50 of the 72 are left to learn from."""
_DEPRESSION = Question(positive="depression", negative="healthy")


@dataclass(frozen=True, kw_only=True)
class Study:
    """One cohort, and where everything about it lies."""

    name: str
    root: Path
    prepared: Path
    question: Question
    judge: Path
    others: bool
    """Whether there are real persons beside those that train and those that validate (the test
    persons): they are what a perfect generator would draw, and say what the floor is."""

    def cohort(self) -> Cohort:
        """Return the prepared cohort."""
        return open_cohort(self.prepared)

    def recipe(self, step: str, config: dict[str, Any]) -> Recipe:
        """Return the recipe of one of the benchmark's cells."""
        inputs = {"prepared": require_recipe(self.prepared).id}
        return Recipe(step=f"benchmark-{step}", schema=1, config=config, inputs=inputs)

    def network(self) -> DomainNetwork:
        """Return the judge: a network trained on real training persons only."""
        return open_network(self.judge, device="cpu")


def phantom(folder: Path, *, patients: int, spacing_mm: float) -> Study:
    """Return the `easy` phantom: so many patients and twice as many controls train.

    Of seven persons two train, as many less a few validate, and three are the floor.
    """
    root = folder / f"phantom-{patients}-{spacing_mm:g}mm"
    population = PhantomConfig(
        preset="easy", patients=patients * 7 // 2, controls=patients * 7, seed=5
    )
    partition = PartitionConfig(validation=0.22, test=0.49)
    prepared = write_prepared(
        root / "prepared", population, spacing_mm=spacing_mm, partition=partition
    )
    return _judged("phantom", root, prepared, Question(), others=True)


def real_t1(folder: Path, source: Path, *, n_train: int, spacing_mm: float) -> Study:
    """Return ds002748 with so many of its 72 persons to train on, the same 22 held out.

    Smaller training sets are part of larger ones. The judge is the one of all 50 in every size,
    or their distances would not compare.
    """
    root = folder / f"t1-{spacing_mm:g}mm"
    config = AdoptConfig(
        table="labels.csv",
        columns={"diagnosis": "group", "age_years": "age"},
        where={"dataset": "ds002748"},
        already=("stripped", "template_space", "bias_corrected"),
        licence="CC0",
        name="ds002748 T1",
    )
    native = adopt_table(source, root / "native", config, workers=1)
    prepared = prepare_cohort(
        native,
        root / "prepared",
        PrepareConfig(spacing_mm=spacing_mm),
        PartitionConfig(validation=0.28, test=0.28),
        workers=1,
    )
    everybody = open_cohort(prepared)
    most = len(everybody.scans) - N_HELD_OUT
    whole = _of_size(everybody, root / "persons-all", most)
    judge = _judged("t1", root, whole, _DEPRESSION, others=False).judge
    own = _of_size(everybody, root / f"persons-{n_train}", n_train)
    return Study(
        name=f"t1-{n_train}",
        root=root / f"n{n_train}",
        prepared=own,
        question=_DEPRESSION,
        judge=judge,
        others=False,
    )


def _judged(name: str, root: Path, prepared: Path, question: Question, *, others: bool) -> Study:
    config = ClassifierConfig()
    recipe = Recipe(
        step="judge",
        schema=1,
        config={"classifier": asdict(config), "question": asdict(question)},
        inputs={"prepared": require_recipe(prepared).id},
    )

    def build(work: Path) -> None:
        train_network(prepared, work, config, question, device="cpu")

    judge = run_step(root / "judge", recipe, build)
    return Study(
        name=name, root=root, prepared=prepared, question=question, judge=judge, others=others
    )


def _of_size(cohort: Cohort, folder: Path, n_train: int) -> Path:
    sizes = {"n_train": n_train, "n_held_out": N_HELD_OUT}
    return divided(cohort, folder, _nested(cohort, n_train), sizes)


def divided(
    cohort: Cohort, folder: Path, parts: Mapping[str, Part], config: Mapping[str, int]
) -> Path:
    """Return the cohort with the persons of these parts, and nobody else."""
    kept = [i for i, scan in enumerate(cohort.scans) if scan.person_id in parts]
    recipe = Recipe(
        step="prepare",
        schema=1,
        config=dict(config),
        inputs={"prepared": cohort.cohort_id},
        found_at={"prepared": os.path.relpath(cohort.root, folder)},
    )

    def build(work: Path) -> None:
        scans = [cohort.scans[i] for i in kept]
        write_cohort(work, scans=scans, grid=cohort.grid, partition=dict(parts))
        volumes = np.load(tables(cohort.root) / VOLUMES, mmap_mode="r")
        np.save(tables(work) / VOLUMES, volumes[kept])

    return run_step(folder, recipe, build)


def _nested(cohort: Cohort, n_train: int) -> Mapping[str, Part]:
    """Return person -> part, diagnoses in the cohort's proportion, in one order for every size."""
    by_diagnosis: dict[str, list[str]] = {}
    for scan in cohort.scans:
        by_diagnosis.setdefault(str(scan.condition.diagnosis), []).append(scan.person_id)
    total, parts = len(cohort.scans), {}
    shares = {d: len(persons) / total for d, persons in by_diagnosis.items()}
    for diagnosis, persons in sorted(by_diagnosis.items()):
        order = generator(0, "learning-curve", diagnosis).permutation(len(persons))
        named = [sorted(persons)[i] for i in order]
        n_held = round(N_HELD_OUT * shares[diagnosis])
        wanted: dict[Part, list[str]] = {
            "validation": named[:n_held],
            "train": named[n_held : n_held + round(n_train * shares[diagnosis])],
        }
        parts.update({person: part for part, those in wanted.items() for person in those})
    return parts
