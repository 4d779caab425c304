"""Who trains, who validates, who tests: drawn once, by person, and obeyed by every room.

`draw_partition` is the way in. It is stratified by diagnosis and site, and stable: persons who
have a part keep it when the cohort grows. Which part a new person gets depends on the seed and
on pseudonyms, never on the order of files. Pseudonyms that may be one person (the flag `PERHAPS`)
always get one part together.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import annotated_types as at

from rarescan.cohort.contracts import Condition, Part, Scan
from rarescan.errors import InputError
from rarescan.seeds import derive
from rarescan.settings import STRICT

PARTS: tuple[Part, ...] = ("train", "validation", "test")
PERHAPS = "perhaps_"
"""Beginning of the flag of scans whose person may be another pseudonym's too; the first of those
pseudonyms follows."""
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
        A diagnosis has too few persons to be divided, a person has two diagnoses, or pseudonyms
        that may be one person have two diagnoses or stood in two parts.
    """
    groups = _groups(scans)
    strata = _strata(scans, groups)
    shares = _shares(config, sum(len(groups[g]) for names in strata.values() for g in names))
    earlier = _earlier_parts(groups, previous or {})
    partition: dict[str, Part] = {}
    for name, heads in sorted(strata.items()):
        kept = {head: earlier[head] for head in heads if head in earlier}
        own = {head: groups[head] for head in heads}
        parts = kept | _fill(own, kept, shares, config.seed, name)
        partition |= {person: part for head, part in parts.items() for person in groups[head]}
    return dict(sorted(partition.items()))


def _groups(scans: Sequence[Scan]) -> dict[str, set[str]]:
    """Return first member -> persons who may be one person; most are alone."""
    head_of: dict[str, str] = {}
    for scan in scans:
        marks = (flag.removeprefix(PERHAPS) for flag in scan.flags if flag.startswith(PERHAPS))
        head_of[scan.person_id] = next(marks, head_of.get(scan.person_id, scan.person_id))
    groups: dict[str, set[str]] = defaultdict(set)
    for person, head in head_of.items():
        groups[head].add(person)
    return {min(group): group for group in groups.values()}


def _earlier_parts(groups: Mapping[str, set[str]], previous: Mapping[str, Part]) -> dict[str, Part]:
    """Return the part that each group had, by its first member."""
    earlier: dict[str, Part] = {}
    for head, group in groups.items():
        parts = {previous[person] for person in group if person in previous}
        if len(parts) > 1:
            raise InputError(
                f"{len(group)} pseudonyms, first {head}, may be one person, and stand in different "
                f"parts of the earlier partition ({', '.join(sorted(parts))}).",
                remedy="Confirm whether they are (`rarescan review`), or prepare into a new "
                "folder, which draws a new partition.",
            )
        earlier |= dict.fromkeys([head] if parts else [], next(iter(parts), "train"))
    return earlier


def _strata(scans: Sequence[Scan], groups: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return "diagnosis/site" -> groups by first member; sites too small are joined."""
    by_person = {s.person_id: s.condition for s in sorted(scans, key=lambda s: s.scan_id)[::-1]}
    diagnoses = Counter(condition.diagnosis for condition in by_person.values())
    _require_divisible(scans, diagnoses)
    _require_one_diagnosis(groups, by_person)
    sites = Counter((c.diagnosis, c.site) for c in by_person.values())
    strata: dict[str, set[str]] = defaultdict(set)
    for head in groups:
        c = by_person[head]
        large = sites[c.diagnosis, c.site] >= _FEWEST_PER_DIAGNOSIS
        strata[f"{c.diagnosis}/{c.site if large else ''}"].add(head)
    return strata


def _require_one_diagnosis(
    groups: Mapping[str, set[str]], by_person: Mapping[str, Condition]
) -> None:
    for head, group in sorted(groups.items()):
        if len({by_person[person].diagnosis for person in group}) > 1:
            raise InputError(
                f"{len(group)} pseudonyms, first {head}, may be one person and have different "
                "diagnoses.",
                remedy="Confirm whether they are one (`rarescan review`), and correct the labels.",
            )


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
    groups: Mapping[str, set[str]],
    kept: Mapping[str, Part],
    shares: Mapping[Part, float],
    seed: int,
    stratum: str,
) -> dict[str, Part]:
    """Give each new group the part that is furthest behind its share, in hashed order."""
    counts = Counter({part: 0 for part in PARTS})
    for head, part in kept.items():
        counts[part] += len(groups[head])
    filled: dict[str, Part] = {}
    for head in sorted(groups.keys() - kept.keys(), key=lambda p: derive(seed, "partition", p)):
        size = counts.total() + len(groups[head])
        tie = derive(seed, "tie", stratum, size)
        behind = {p: shares[p] * size - counts[p] for p in PARTS}
        part = max(PARTS, key=lambda p: (round(behind[p], 9), (tie + PARTS.index(p)) % 3))
        filled[head] = part
        counts[part] += len(groups[head])
    return filled


def smallest_group(scans: Sequence[Scan]) -> dict[str, int]:
    """Return how well persons hide among each other, counted at their first scan.

    Two persons are alike where site, decade of age, sex and diagnosis are equal (k-anonymity,
    Sweeney 2002). `persons`: size of the smallest group (k); `groups`: how many there are;
    `alone`: persons whom nobody is like.
    """
    first = {s.person_id: s for s in sorted(scans, key=lambda s: s.scan_id)[::-1]}
    sizes = Counter(
        (s.site, None if c.age_years is None else c.age_years // 10, c.sex, c.diagnosis)
        for s in first.values()
        for c in (s.condition,)
    )
    return {
        "persons": min(sizes.values(), default=0),
        "groups": len(sizes),
        "alone": sum(size == 1 for size in sizes.values()),
    }
