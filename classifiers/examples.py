"""Labelled scans, and in which order a classifier sees them.

`labelled` takes them from a cohort; `Pool` and `draw` say which of them each step takes. What
the reader would get wrong: a pool is an endless sequence that only its seed and its name decide,
so two arms that share a pool see the same scans at the same steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from rarescan.classifiers.contract import BINARY, Labels
from rarescan.cohort.contracts import Cohort, FloatArray, Part, Question
from rarescan.cohort.store import open_volumes
from rarescan.seeds import generator


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Labelled scans that stay in their memory-mapped arrays until they are read."""

    sources: tuple[FloatArray, ...]
    """Arrays of shape (scans, x, y, z), values 0 to 1."""
    rows: tuple[tuple[int, int], ...]
    """(source, row) of each scan."""
    labels: tuple[int, ...]
    """Place of the class in the labels: 1 positive, 0 negative where there are two."""
    person_ids: tuple[str, ...]
    classes: Labels = BINARY
    """What the labels tell apart."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.sources[0].shape[1:])

    def read(self, positions: Sequence[int] | None = None) -> FloatArray:
        """Return the images at these positions (all without), float32, shape (n, x, y, z)."""
        chosen = self.rows if positions is None else [self.rows[p] for p in positions]
        return np.stack([self.sources[source][row] for source, row in chosen])

    def persons(self, label: int | None = None) -> tuple[tuple[int, ...], ...]:
        """Return each person's positions, persons in order; of one label where it is given."""
        found: dict[str, list[int]] = {}
        for position, person in enumerate(self.person_ids):
            if label is None or self.labels[position] == label:
                found.setdefault(person, []).append(position)
        return tuple(tuple(positions) for positions in found.values())

    def take(self, positions: Sequence[int], *, label: int | None = None) -> "Examples":
        """Return some of the scans, with another label where it is given."""
        return replace(
            self,
            rows=tuple(self.rows[p] for p in positions),
            labels=tuple(self.labels[p] if label is None else label for p in positions),
            person_ids=tuple(self.person_ids[p] for p in positions),
        )

    def joined(self, others: "Examples") -> "Examples":
        """Return these scans followed by others."""
        n = len(self.sources)
        return replace(
            self,
            sources=self.sources + others.sources,
            rows=self.rows + tuple((source + n, row) for source, row in others.rows),
            labels=self.labels + others.labels,
            person_ids=self.person_ids + others.person_ids,
        )


def labelled(cohort: Cohort, question: Question, *parts: Part) -> Examples:
    """Return a cohort's scans of the question's two diagnoses, from some parts (all without)."""
    label = {question.positive: 1, question.negative: 0}
    chosen = [i for i in cohort.indices(*parts) if cohort.scans[i].condition.diagnosis in label]
    return Examples(
        sources=(open_volumes(cohort),),
        rows=tuple((0, i) for i in chosen),
        labels=tuple(label[cohort.scans[i].condition.diagnosis] for i in chosen),
        person_ids=tuple(cohort.scans[i].person_id for i in chosen),
    )


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Persons whom a share of every batch is drawn from, each equally often."""

    name: str
    persons: tuple[tuple[int, ...], ...]
    """Positions of each person's scans, which take turns."""
    stride: int
    """By how many persons the sequence moves on in a step."""
    take: int
    """How many of them are used."""

    def at(self, seed: int, step: int) -> list[int]:
        """Return the positions that a step uses: a stretch of endless shuffled rounds."""
        first = step * self.stride
        return [self._at(seed, place) for place in range(first, first + self.take)]

    def _at(self, seed: int, place: int) -> int:
        round_number, index = divmod(place, len(self.persons))
        scans = self.persons[int(self._order(seed, round_number)[index])]
        return scans[round_number % len(scans)]

    def _order(self, seed: int, round_number: int) -> npt.NDArray[np.int64]:
        return generator(seed, "order", self.name, round_number).permutation(len(self.persons))


def draw(pools: Sequence[Pool], seed: int, step: int) -> list[int]:
    """Return the positions in a step's batch, pool after pool."""
    return list(chain.from_iterable(pool.at(seed, step) for pool in pools))


def plain_pools(examples: Examples, batch_size: int) -> tuple[Pool, ...]:
    """Return one pool of all persons: the classes as often as they are."""
    return (Pool(name="all", persons=examples.persons(), stride=batch_size, take=batch_size),)


def class_pools(examples: Examples, batch_size: int, n_classes: int) -> tuple[Pool, ...]:
    """Return one pool a class that occurs, all with the same share of a batch."""
    present = [c for c in range(n_classes) if examples.persons(c)]
    sizes = [batch_size // len(present) + (i < batch_size % len(present)) for i in range(n_classes)]
    return tuple(
        Pool(name=f"class {c}", persons=examples.persons(c), stride=size, take=size)
        for c, size in zip(present, sizes, strict=False)
        if size
    )


def balanced_pools(
    real: Examples, batch_size: int, added: Examples | None = None
) -> tuple[Pool, ...]:
    """Return pools that give both classes half of a batch.

    `added` patients, which follow the real scans in `real.joined(added)`, take half of the
    positive places; the other half keeps the real patients of an arm without them.
    """
    negative = batch_size // 2
    positive = batch_size - negative
    kept = positive if added is None else positive - positive // 2
    pools = [
        Pool(name="negative", persons=real.persons(0), stride=negative, take=negative),
        Pool(name="positive", persons=real.persons(1), stride=positive, take=kept),
    ]
    if added is not None:
        n = positive - kept
        moved = tuple(tuple(p + len(real) for p in person) for person in added.persons())
        pools.append(Pool(name="added", persons=moved, stride=n, take=n))
    return tuple(pools)
