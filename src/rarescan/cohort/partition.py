"""Who trains, who validates, who tests: drawn once, by person, and obeyed by every room.

`draw_partition` is the way in. It is stratified by diagnosis and site, and stable: persons who
have a part keep it when the cohort grows. Which part a new person gets depends on the seed and
on pseudonyms, never on the order of files.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import annotated_types as at

from rarescan.cohort.contracts import Part, Scan
from rarescan.errors import InputError
from rarescan.seeds import derive
from rarescan.settings import STRICT

PARTS: tuple[Part, ...] = ("train", "validation", "test")
_FEWEST_PER_DIAGNOSIS = 6


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """How persons are divided."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    validation: Annotated[float, at.Gt(0), at.Lt(0.5)] = 0.2
    """Share of the persons that select the generator and calibrate the privacy assay."""
    test: Annotated[float, at.Gt(0), at.Lt(0.5)] = 0.2
    """Share of the persons that nobody sees before `retrain`."""
    fewest_validation: Annotated[int, at.Ge(0)] = 20
    """Validation persons wanted at least, as far as training keeps half of the cohort."""
    seed: int = 0
    """Which persons get which part; another seed divides them differently."""


def draw_partition(
    scans: Sequence[Scan],
    config: PartitionConfig,
    previous: Mapping[str, Part] | None = None,
) -> dict[str, Part]:
    """Return person_id -> part for every person of the scans.

    Parameters
    ----------
    scans : sequence of Scan
        All scans; a person may have several, but one diagnosis.
    config : PartitionConfig
        Shares and seed.
    previous : mapping, optional
        An earlier partition, whose persons keep their part.

    Raises
    ------
    InputError
        A diagnosis has too few persons to be divided, or a person has two diagnoses.
    """
    strata = _strata(scans)
    shares = _shares(config, sum(len(persons) for persons in strata.values()))
    partition: dict[str, Part] = {}
    for name, persons in sorted(strata.items()):
        kept = {p: previous[p] for p in persons if previous and p in previous}
        partition |= kept | _fill(persons - kept.keys(), kept, shares, config.seed, name)
    return dict(sorted(partition.items()))


def _strata(scans: Sequence[Scan]) -> dict[str, set[str]]:
    """Return "diagnosis/site" -> persons; sites too small to be divided are joined."""
    by_person = {scan.person_id: scan.condition for scan in scans}
    diagnoses = Counter(condition.diagnosis for condition in by_person.values())
    _require_divisible(scans, diagnoses)
    sites = Counter((c.diagnosis, c.site) for c in by_person.values())
    strata: dict[str, set[str]] = defaultdict(set)
    for person, condition in by_person.items():
        large = sites[condition.diagnosis, condition.site] >= _FEWEST_PER_DIAGNOSIS
        strata[f"{condition.diagnosis}/{condition.site if large else ''}"].add(person)
    return strata


def _require_divisible(scans: Sequence[Scan], diagnoses: Counter[str]) -> None:
    several = _with_two(scans)
    if several:
        raise InputError(
            f"{len(several)} persons have more than one diagnosis, first {min(several)}.",
            remedy="Correct the labels: one diagnosis a person.",
        )
    for diagnosis, count in sorted(diagnoses.items()):
        if count < _FEWEST_PER_DIAGNOSIS:
            raise InputError(
                f"Only {count} person{'s have' if count > 1 else ' has'} the diagnosis "
                f"'{diagnosis}': too few to train, validate and test on different persons.",
                remedy=f"Add persons ({_FEWEST_PER_DIAGNOSIS} a diagnosis at least), or leave "
                "this diagnosis out of the labels.",
            )


def _with_two(scans: Sequence[Scan]) -> set[str]:
    seen: dict[str, str] = {}
    return {
        scan.person_id
        for scan in scans
        if seen.setdefault(scan.person_id, scan.condition.diagnosis) != scan.condition.diagnosis
    }


def _shares(config: PartitionConfig, n_persons: int) -> dict[Part, float]:
    wanted = max(config.validation, config.fewest_validation / max(n_persons, 1))
    validation = max(config.validation, min(wanted, 0.5 - config.test / 2))
    return {
        "train": 1 - validation - config.test,
        "validation": validation,
        "test": config.test,
    }


def _fill(
    new: set[str],
    kept: Mapping[str, Part],
    shares: Mapping[Part, float],
    seed: int,
    stratum: str,
) -> dict[str, Part]:
    """Give each new person the part that is furthest behind its share, in hashed order."""
    counts = Counter(kept.values())
    filled: dict[str, Part] = {}
    for person in sorted(new, key=lambda p: derive(seed, "partition", p)):
        size = len(kept) + len(filled) + 1
        tie = derive(seed, "tie", stratum, size)
        behind = {p: shares[p] * size - counts[p] for p in PARTS}
        part = max(PARTS, key=lambda p: (round(behind[p], 9), (tie + PARTS.index(p)) % 3))
        filled[person] = part
        counts[part] += 1
    return filled
