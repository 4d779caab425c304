"""Invented cohorts for four questions at which synthetic persons could help, and one at which not.

`write_draw` is the way in: one draw of one question is a cohort (training and test persons) and
an oracle's training persons beside it. Every draw has its own persons and its own disease: the
regions that it hits are drawn anew, so that knowing this simulator is worth nothing.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at
import numpy as np

from rarescan.cohort.contracts import Part, Scan, brain_grid
from rarescan.cohort.store import create_volumes, write_cohort
from rarescan.files import Recipe, run_step, write_atomic
from rarescan.phantom.anatomy import prepared_volume
from rarescan.phantom.persons import REGIONS, Person, Site, draw_person, draw_site, is_patient
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import NOTICE, scan_of
from rarescan.progress import Progress
from rarescan.seeds import derive, generator
from rarescan.settings import STRICT
from rarescan.threads import one_thread

QuestionName = Literal["few", "scanner", "confounded", "age", "none"]

_SCHEMA = 1
_POPULATION = 4000
_YOUNG_BELOW, _OLD_FROM = 62.0, 66.0
_STRENGTH = 1.57
"""Root sum of squares of the standard pattern of a middle subtype: all patterns are as strong."""
_TRAINING = {
    "T1": Site(grey=0.65, white=0.87, fluid=0.25, blur_mm=2.0, noise=0.04, bias=0.10),
    "T2": Site(grey=0.66, white=0.87, fluid=0.26, blur_mm=3.0, noise=0.04, bias=0.10),
}
_UNSEEN = {
    "U1": Site(grey=0.78, white=0.87, fluid=0.40, blur_mm=3.0, noise=0.05, bias=0.10),
    "U2": Site(grey=0.45, white=0.87, fluid=0.05, blur_mm=0.0, noise=0.03, bias=0.10),
    "U3": Site(grey=0.62, white=0.87, fluid=0.20, blur_mm=2.0, noise=0.05, bias=0.45),
}
_CONFOUNDED = {
    "A": Site(grey=0.65, white=0.87, fluid=0.25, blur_mm=2.0, noise=0.04, bias=0.10),
    "B": Site(grey=0.77, white=0.87, fluid=0.45, blur_mm=5.0, noise=0.06, bias=0.15),
}


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """One draw of one question."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    question: QuestionName = "few"
    """`few`: few patients, same scanners. `scanner`: the test persons come from scanners that
    nobody trained on. `confounded`: most patients from site A, most controls from site B, which
    is not so in the test persons. `age`: training patients are old and controls young. `none`:
    patients are controls by another name, so that nothing can be learned."""
    number: Annotated[int, at.Ge(0)] = 0
    """Which draw: its persons, its disease."""
    patients: Annotated[int, at.Ge(4), at.Le(500)] = 12
    """Training patients."""
    controls: Annotated[int, at.Ge(20), at.Le(500)] = 120
    """Training controls."""
    oracle_patients: Annotated[int, at.Ge(4), at.Le(500)] = 120
    """Training patients of the oracle in `few`."""
    test: Annotated[int, at.Ge(20), at.Le(1000)] = 400
    """Test persons, half of them patients."""
    spacing_mm: Literal[4, 8] = 4
    """Edge of a voxel."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One person as one scanner sees them."""

    person: Person
    site: str
    part: Part | None = None
    scanner: Site | None = None


@dataclass
class _Population:
    """Persons of one draw, handed out once each."""

    config: PhantomConfig
    pattern: tuple[float, ...]
    severity: float | None
    _left: dict[bool, Iterator[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        indices = range(2 * _POPULATION)
        for patient in (True, False):
            kept = partial(self._is, patient)
            self._left[patient] = filter(kept, indices)

    def _is(self, patient: bool, index: int) -> bool:
        return is_patient(self.config, index) is patient

    def take(
        self, n: int, *, patient: bool, fits: Callable[[Person], bool] = lambda _: True
    ) -> list[Person]:
        """Return the next persons of one diagnosis that fit."""
        taken: list[Person] = []
        while len(taken) < n:
            index = next(self._left[patient])
            person = draw_person(self.config, index, severity=self.severity, pattern=self.pattern)
            if fits(person):
                taken.append(person)
        return taken


def draw_pattern(config: DrawConfig) -> tuple[float, ...]:
    """Return the weight of each of `REGIONS` in the disease of one draw.

    Independent and uniform, scaled to the strength of the standard pattern.
    """
    rng = generator(0, "utility", config.question, config.number, "pattern")
    weights = rng.uniform(0, 1, len(REGIONS))
    scaled = weights * (_STRENGTH / np.sqrt((weights**2).sum()))
    return tuple(float(w) for w in scaled)


def write_draw(folder: Path, config: DrawConfig) -> tuple[Path, Path]:
    """Write one draw and return the folders of its cohort and of the oracle's training persons.

    Parameters
    ----------
    folder : Path
        Gets `cohort` (parts train and test) and `oracle` (part train only: what the cohort could
        have been: more patients, or the same persons at the test persons' scanners or at both
        sites, or persons of any age). Finished ones are kept.
    config : DrawConfig
        Question, number, sizes.
    """
    cohort, oracle = draw_persons(config)
    return _write(folder / "cohort", config, cohort), _write(folder / "oracle", config, oracle)


def draw_persons(config: DrawConfig) -> tuple[list[Seen], list[Seen]]:
    """Return who is in the cohort and who trains the oracle, before any image exists."""
    population = _Population(
        config=_population(config),
        pattern=draw_pattern(config),
        severity=0.0 if config.question == "none" else None,
    )
    return _PERSONS[config.question](config, population)


def _population(config: DrawConfig) -> PhantomConfig:
    seed = derive(0, "utility", config.question, config.number, "persons")
    return PhantomConfig(preset="hard", patients=_POPULATION, controls=_POPULATION, seed=seed)


def _halves(
    population: _Population, config: DrawConfig, fits: Callable[[Person], bool] = lambda _: True
) -> list[Person]:
    half = config.test // 2
    return [
        *population.take(half, patient=True, fits=fits),
        *population.take(config.test - half, patient=False, fits=fits),
    ]


def _few(config: DrawConfig, population: _Population) -> tuple[list[Seen], list[Seen]]:
    patients = population.take(max(config.oracle_patients, config.patients), patient=True)
    controls = population.take(config.controls, patient=False)
    train = _own([*patients[: config.patients], *controls], "train")
    return train + _own(_halves(population, config), "test"), _own([*patients, *controls], "train")


def _own(persons: Sequence[Person], part: Part) -> list[Seen]:
    return [Seen(person=person, site=person.site, part=part) for person in persons]


def _at(persons: Sequence[Person], names: Sequence[str], part: Part) -> list[Seen]:
    """Return persons spread over scanners in turn, patients and controls alike."""
    known = _TRAINING | _UNSEEN | _CONFOUNDED
    return [
        Seen(person=person, site=name, part=part, scanner=known[name])
        for person, name in zip(persons, names, strict=True)
    ]


def _turns(persons: Sequence[Person], names: Sequence[str]) -> list[str]:
    seen = {True: 0, False: 0}
    turns = []
    for person in persons:
        patient = person.severity > 0
        turns.append(names[seen[patient] % len(names)])
        seen[patient] += 1
    return turns


def _scanner(config: DrawConfig, population: _Population) -> tuple[list[Seen], list[Seen]]:
    persons = [
        *population.take(config.patients, patient=True),
        *population.take(config.controls, patient=False),
    ]
    test = _halves(population, config)
    cohort = _at(persons, _turns(persons, list(_TRAINING)), "train")
    cohort += _at(test, _turns(test, list(_UNSEEN)), "test")
    same = _halves(population, config)
    cohort += _at(same, _turns(same, list(_TRAINING)), "test")
    return cohort, _everywhere(persons, list(_UNSEEN))


def _confounded(config: DrawConfig, population: _Population) -> tuple[list[Seen], list[Seen]]:
    patients = population.take(config.patients, patient=True)
    controls = population.take(config.controls, patient=False)
    rare_patients = max(1, round(config.patients / 12))
    rare_controls = max(1, round(config.controls / 10))
    sites = ["B"] * rare_patients + ["A"] * (len(patients) - rare_patients)
    sites += ["A"] * rare_controls + ["B"] * (len(controls) - rare_controls)
    persons, test = [*patients, *controls], _halves(population, config)
    cohort = _at(persons, sites, "train") + _at(test, _turns(test, list(_CONFOUNDED)), "test")
    return cohort, _everywhere(persons, list(_CONFOUNDED))


def _everywhere(persons: Sequence[Person], names: Sequence[str]) -> list[Seen]:
    return [seen for person in persons for seen in _at([person] * len(names), names, "train")]


def _age(config: DrawConfig, population: _Population) -> tuple[list[Seen], list[Seen]]:
    few_patients = max(1, round(config.patients / 12))
    few_controls = max(1, round(config.controls / 13.5))
    persons = [
        *population.take(config.patients - few_patients, patient=True, fits=_is_old),
        *population.take(few_patients, patient=True, fits=_is_young),
        *population.take(config.controls - few_controls, patient=False, fits=_is_young),
        *population.take(few_controls, patient=False, fits=_is_old),
    ]
    anyone = [
        *population.take(config.patients, patient=True),
        *population.take(config.controls, patient=False),
    ]
    test = _halves(population, config)
    cohort = _at(persons, _turns(persons, list(_TRAINING)), "train")
    cohort += _at(test, _turns(test, list(_TRAINING)), "test")
    return cohort, _at(anyone, _turns(anyone, list(_TRAINING)), "train")


def _is_young(person: Person) -> bool:
    return person.age_years < _YOUNG_BELOW


def _is_old(person: Person) -> bool:
    return person.age_years >= _OLD_FROM


_PERSONS: dict[str, Callable[[DrawConfig, _Population], tuple[list[Seen], list[Seen]]]] = {
    "few": _few,
    "none": _few,
    "scanner": _scanner,
    "confounded": _confounded,
    "age": _age,
}


def _write(folder: Path, config: DrawConfig, seen: Sequence[Seen]) -> Path:
    """Write persons as a prepared cohort; the folder's name tells cohort and oracle apart."""
    population = _population(config)
    recipe = Recipe(
        step="utility-draw",
        schema=_SCHEMA,
        config={**asdict(config), "which": folder.name},
        seeds={"phantom": population.seed},
    )

    def build(work: Path) -> None:
        grid = brain_grid(config.spacing_mm)
        volumes = create_volumes(work, len(seen), grid)
        scans: list[Scan] = []
        with one_thread(), Progress("draw persons", len(seen)) as progress:
            for row, one in enumerate(seen):
                site = one.scanner or draw_site(population, one.site)
                volumes[row] = prepared_volume(population, one.person, config.spacing_mm, site=site)
                scans.append(_scan(one, hashlib.sha256(volumes[row].tobytes()).hexdigest()))
                progress.advance()
        parts = {one.person.person_id: one.part for one in seen if one.part is not None}
        about = {"question": config.question, "persons": len(parts)}
        write_cohort(work, scans=scans, grid=grid, partition=parts, about=about)
        write_atomic(work / "NOTICE", NOTICE)

    return run_step(folder, recipe, build)


def _scan(seen: Seen, sha256: str) -> Scan:
    scan = scan_of(replace(seen.person, site=seen.site), sha256)
    return replace(scan, scan_id=f"{scan.person_id}_{seen.site}", session=seen.site)
