"""Fill the cells that a cohort leaves empty: its persons at another site, or at another age.

`write_filled` is the way in. Where all patients are of one site or of one age, a classifier learns
the site or the age. The batch holds every training person once for each other site (`swap`), or
once at an age of the other half (`ageing`); the diagnosis stays. No person is new: every scan is a
near copy of a real one, is flagged so, and never leaves the controller.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import torch

from rarescan.cohort.contracts import Cohort, Condition, FloatArray, Scan
from rarescan.cohort.store import VOLUMES, open_volumes, tables, write_cohort
from rarescan.errors import SettingError
from rarescan.files import Recipe, run_step
from rarescan.generative.ageing import Ageing, fit_ageing
from rarescan.generative.code_store import first_scans, stored
from rarescan.generative.counterfactual import NEAR_COPY
from rarescan.generative.spec import FillConfig
from rarescan.generative.swap import fit_look, shown_sites
from rarescan.seeds import derive, generator

_SCHEMA = 1
IN_WORDS = {
    "site": "Every scan is a training person's, as another site of the cohort would have shown it: "
    "tone curve, brightness of the tissues and noise were learned from training persons of both.",
    "age": "Every scan is a training person's, as it would be at an age of the other half of the "
    "training persons: what a year does was learned from all of them, diagnosis held constant.",
}


Change = Callable[[FloatArray, Sequence[int]], FloatArray]
"""Volumes, shape (n, x, y, z), and a seed for each -> volumes. Small and picklable."""


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """One scan of the batch."""

    position: int
    """Of the person's scan in the cohort's volumes."""
    condition: Condition
    """What is asked for."""
    change: Change
    """What is done to the person's scan."""


def write_filled(cohort: Cohort, folder: Path, config: FillConfig, seed: int) -> Path:
    """Write a batch of training persons at other sites or at other ages.

    Parameters
    ----------
    cohort : Cohort
        Prepared, with a partition; training persons only are read, one scan a person.
    folder : Path
        Gets a synthetic cohort on the same grid. A finished one is kept.
    config : FillConfig
        `site` or `age`.
    seed : int
        Noise, and who gets which age.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        No two sites have 5 training persons of one diagnosis, or fewer than 20 training persons
        of known and different ages.
    SettingError
        The cohort holds no brains, or nothing is asked for.
    """
    recipe = Recipe(
        step="fill",
        schema=_SCHEMA,
        config=asdict(config),
        seeds={"batch": seed},
        inputs={"prepared": cohort.cohort_id},
    )

    def build(work: Path) -> None:
        scans = fill_scans(cohort, work, config, seed)
        about = {"near_copy_of_a_person": True, "prepared_id": cohort.cohort_id}
        write_cohort(work, scans=scans, grid=cohort.grid, partition={}, about=about)

    return run_step(folder, recipe, build)


def fill_scans(
    cohort: Cohort, work: Path, config: FillConfig, seed: int, *, workers: int = 1
) -> list[Scan]:
    """Write the volumes of a batch into a working folder and return its scans.

    See `write_filled`; killed and repeated it goes on, and the bytes do not depend on `workers`.
    """
    if config.what == "none" or cohort.grid is None or not cohort.grid.is_brain:
        raise SettingError(
            "Only brains can be shown at another site or at another age.",
            remedy="Set generate.fill.what to none for this cohort; to site or age for brains.",
        )
    persons = first_scans(cohort, "train")
    if config.what == "site":
        wishes = _other_sites(cohort, persons)
    else:
        wishes = _other_ages(cohort, persons, seed)
    rows_of = partial(_rows, cohort, wishes, seed)
    path = tables(work) / VOLUMES
    volumes = stored(path, (len(wishes), *cohort.grid.shape), rows_of, workers=workers)
    shutil.rmtree(path.with_suffix(".done"), ignore_errors=True)
    return [
        _scan(row, wish.condition, hashlib.sha256(volume.numpy().tobytes()).hexdigest())
        for row, (wish, volume) in enumerate(zip(wishes, volumes, strict=True))
    ]


def _other_sites(cohort: Cohort, persons: Mapping[int, Scan]) -> list[_Wish]:
    """Return every person at every other site whose look can be learned."""
    shown, volumes = shown_sites(persons), open_volumes(cohort)
    looks = {
        (a, b): fit_look(volumes[shown[a]], volumes[shown[b]])
        for a, b in permutations(sorted(shown), 2)
    }
    return [
        _Wish(position=position, condition=replace(scan.condition, site=b), change=look.apply)
        for (a, b), look in looks.items()
        for position, scan in persons.items()
        if scan.site == a
    ]


def _other_ages(cohort: Cohort, persons: Mapping[int, Scan], seed: int) -> list[_Wish]:
    """Return every person whose age is known at an age of the other half."""
    known = {p: age for p, s in persons.items() if (age := s.condition.age_years) is not None}
    positions, ages = list(known), np.array(list(known.values()))
    volumes = open_volumes(cohort)
    diagnoses = [persons[p].condition.diagnosis for p in positions]
    ageing = fit_ageing(lambda i: volumes[positions[i]], ages.tolist(), diagnoses)
    middle = np.median(ages)
    old = ages > middle if (ages > middle).any() else ages >= middle
    random = generator(seed, "fill", "ages")
    asked = np.where(old, random.choice(ages[~old], len(ages)), random.choice(ages[old], len(ages)))
    return [
        _Wish(
            position=position,
            condition=replace(persons[position].condition, age_years=float(new)),
            change=partial(_aged, ageing, float(new - age)),
        )
        for position, age, new in zip(positions, ages, asked, strict=True)
    ]


def _aged(ageing: Ageing, years: float, volumes: FloatArray, seeds: Sequence[int]) -> FloatArray:
    """Return volumes so many years later; nothing in that is random."""
    del seeds
    return ageing.apply(volumes, [years] * len(volumes))


def _rows(cohort: Cohort, wishes: Sequence[_Wish], seed: int, rows: Sequence[int]) -> torch.Tensor:
    volumes = open_volumes(cohort)
    made = [
        wishes[row].change(np.asarray(volumes[[wishes[row].position]]), [derive(seed, "fill", row)])
        for row in rows
    ]
    return torch.from_numpy(np.concatenate(made))


def _scan(row: int, condition: Condition, sha256: str) -> Scan:
    person = f"SYN{row + 1:06d}"
    return Scan(
        scan_id=f"{person}_ses-01_T1w",
        person_id=person,
        origin="synthetic",
        sha256=sha256,
        condition=condition,
        target=condition.diagnosis,
        site=condition.site,
        flags=(NEAR_COPY,),
    )
