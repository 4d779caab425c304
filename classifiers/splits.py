"""Who is trained on and who is tested: folds by person, and nobody on both sides.

`label_table` says which scans have which label, `draw_folds` divides them. What the reader would
get wrong: pseudonyms that may be one person, and persons who share a picture, are one group;
without `leaky` no split by scan can be drawn at all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from rarescan.classifiers.contract import Labels, Modality
from rarescan.classifiers.spec import ClassifyConfig
from rarescan.cohort.contracts import Cohort, Scan
from rarescan.cohort.partition import PERHAPS
from rarescan.errors import InputError, SettingError, nearest
from rarescan.seeds import derive

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """The labelled scans of a cohort, in its order."""

    labels: Labels
    scans: tuple[Scan, ...]
    rows: tuple[int, ...]
    """Each scan's place in the cohort's array."""
    truth: Ints
    """Each scan's place in the labels."""
    groups: tuple[str, ...]
    """Who must stay together."""

    @property
    def person_ids(self) -> tuple[str, ...]:
        """The person of each scan."""
        return tuple(scan.person_id for scan in self.scans)

    @cached_property
    def items(self) -> tuple[str, ...]:
        """The item (clip, film, session) of each scan, a name that only one person has."""
        persons: dict[str, set[str]] = {}
        for scan in self.scans:
            persons.setdefault(scan.session, set()).add(scan.person_id)
        return tuple(
            s.session if len(persons[s.session]) == 1 else f"{s.person_id}_{s.session}"
            for s in self.scans
        )

    def counts(self, key: Sequence[str]) -> dict[str, int]:
        """Return class -> how many different keys (persons, items, scans) show it."""
        shown = set(zip(key, self.truth.tolist(), strict=True))
        return {
            name: sum(place == i for _, place in shown) for i, name in enumerate(self.labels.names)
        }


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Positions in a `LabelTable`."""

    train: Ints
    validation: Ints
    """Of the training persons; they stop training and calibrate."""
    test: Ints


def label_table(cohort: Cohort, config: ClassifyConfig, modality: Modality) -> LabelTable:
    """Return the scans that carry one of the classes and all of the flags.

    A scan's label is its `target`; where no scan of the cohort has one, the person's diagnosis.

    Raises
    ------
    InputError
        The cohort holds synthetic scans.
    SettingError
        A class is named that no scan has, or fewer than two classes occur.
    """
    if any(scan.origin == "synthetic" for scan in cohort.scans):
        raise InputError(
            "The cohort holds synthetic scans; a classifier is tested on real persons.",
            remedy="Use `rarescan retrain` to see what synthetic scans do to a classifier.",
        )
    chosen = [
        (row, scan) for row, scan in enumerate(cohort.scans) if set(config.flags) <= set(scan.flags)
    ]
    texts = _texts([scan for _, scan in chosen])
    names = _names(config, modality, set(texts.values()))
    labelled = [(row, scan) for row, scan in chosen if texts.get(scan.scan_id) in names]
    scans = tuple(scan for _, scan in labelled)
    return LabelTable(
        labels=Labels(names=names, scheme=config.scheme),
        scans=scans,
        rows=tuple(row for row, _ in labelled),
        truth=np.array([names.index(texts[scan.scan_id]) for scan in scans], dtype=np.int64),
        groups=_groups(scans, config),
    )


def _texts(scans: Sequence[Scan]) -> dict[str, str]:
    targets = {scan.scan_id: scan.target for scan in scans if scan.target is not None}
    return targets or {scan.scan_id: scan.condition.diagnosis for scan in scans}


def _names(config: ClassifyConfig, modality: Modality, present: set[str]) -> tuple[str, ...]:
    usual = modality.classes if set(modality.classes) & present else tuple(sorted(present))
    names = config.classes or tuple(name for name in usual if name in present)
    for name in names:
        if name not in present:
            raise SettingError(
                f"No scan has the label '{name}'.",
                remedy=f"{nearest(name, sorted(present))} Correct classify.classes.",
            )
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise SettingError(
            f"{len(set(names))} class cannot be told apart."
            if len(names) < 2
            else "A class is named twice.",
            remedy="Name two different labels of this cohort or more in classify.classes.",
        )
    return names


def _groups(scans: Sequence[Scan], config: ClassifyConfig) -> tuple[str, ...]:
    """Return each scan's group: persons joined by a doubt, a shared picture, or their source."""
    if config.leaky:
        return tuple(scan.scan_id for scan in scans)
    head = {scan.person_id: scan.person_id for scan in scans}

    def first(name: str) -> str:
        while head.setdefault(name, name) != name:
            name = head[name]
        return name

    for scan in scans:
        for tie in _ties(scan, config):
            one, other = sorted((first(scan.person_id), first(tie)))
            head[other] = one
    return tuple(first(scan.person_id) for scan in scans)


def _ties(scan: Scan, config: ClassifyConfig) -> Iterable[str]:
    for flag in scan.flags:
        if flag.startswith(PERHAPS):
            yield flag.removeprefix(PERHAPS)
    if scan.sha256:
        yield f"sha256 {scan.sha256}"
    if config.group == "source" and scan.site is not None:
        yield f"source {scan.site}"


def too_few(table: LabelTable, config: ClassifyConfig) -> str:
    """Return why there is no figure, or an empty text where there are persons enough."""
    needed = max(config.fewest_persons, config.folds)
    groups = table.counts(table.groups)
    for name, persons in table.counts(table.person_ids).items():
        if min(persons, groups[name]) < needed:
            what = "sources" if config.group == "source" else "persons"
            return (
                f"Insufficient: {min(persons, groups[name])} {what} show '{name}', and "
                f"{needed} are needed for {config.folds} folds."
            )
    return ""


def draw_folds(table: LabelTable, config: ClassifyConfig, repeat: int) -> list[Fold]:
    """Return the folds of one repeat; every scan is tested once.

    Stratified by class and grouped by person (scikit-learn's `StratifiedGroupKFold`); the seed is
    that of `classify.network` and the repeat.

    Raises
    ------
    InputError
        A fold's training persons lack a class.
    """
    everyone = np.arange(len(table.scans))
    seed = config.network.seed
    folds = []
    for number, (rest, test) in enumerate(
        _divided(table, everyone, config.folds, derive(seed, "folds", repeat))
    ):
        train, validation = _held_back(
            table, rest, config.validation, derive(seed, "validation", repeat, number)
        )
        fold = Fold(train=train, validation=validation, test=test)
        if straddlers(table, fold):
            raise RuntimeError("a group stands on both sides of a split")
        folds.append(fold)
    return folds


def _held_back(table: LabelTable, rest: Ints, share: float, seed: int) -> tuple[Ints, Ints]:
    """Return training and validation positions, all classes on both sides where that can be."""
    wanted = round(1 / share)
    smallest = min(
        len({table.groups[p] for p in rest if table.truth[p] == c})
        for c in range(len(table.labels.names))
    )
    best: tuple[int, Any] = (-1, None)
    for train, validation in _divided(table, rest, max(2, min(wanted, smallest)), seed):
        if len(set(table.truth[train])) == len(table.labels.names):
            n_classes = len(set(table.truth[validation]))
            best = max(best, (n_classes, (train, validation)), key=lambda found: found[0])
    if best[1] is None:
        raise InputError(
            "A fold's training persons lack a class.",
            remedy="Set fewer classify.folds, or add persons of the rarest class.",
        )
    chosen: tuple[Ints, Ints] = best[1]
    return chosen


def _divided(
    table: LabelTable, positions: Ints, n_parts: int, seed: int
) -> list[tuple[Ints, Ints]]:
    names, groups = np.unique([table.groups[p] for p in positions], return_inverse=True)
    if len(names) < n_parts:
        raise InputError(
            f"{len(names)} groups cannot be divided into {n_parts} folds.",
            remedy="Set fewer classify.folds, or classify.group: person.",
        )
    splitter = StratifiedGroupKFold(n_parts, shuffle=True, random_state=seed % 2**32)
    return [
        (positions[rest], positions[part])
        for rest, part in splitter.split(positions, table.truth[positions], groups)
    ]


def straddlers(table: LabelTable, fold: Fold) -> set[str]:
    """Return the groups that stand in more than one part of a fold: a leak."""
    parts = [{table.groups[p] for p in part} for part in (fold.train, fold.validation, fold.test)]
    return (parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2])
