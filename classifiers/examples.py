"""Labelled scans, and in which order a classifier sees them.

`labelled` takes them from a cohort; pools (`Feed`) and `draw` say which of them each step takes.
What the reader would get wrong: a pool is an endless sequence that only its seed and its name
decide, so two arms that share a pool see the same scans at the same steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rarescan.classifiers.contract import BINARY, Labels
from rarescan.cohort.contracts import Cohort, Condition, FloatArray, Part, Question
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
    conditions: tuple[Condition, ...] = ()
    """Age, sex and site of each scan; empty where nobody asked."""
    positive_weight: float = 1.0
    """How many times more a scan of the positive diagnosis counts in the loss."""
    look: Callable[[FloatArray], FloatArray] | None = None
    """What is done to images, shape (n, x, y, z), whenever they are read."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.sources[0].shape[1:])

    def read(self, positions: Sequence[int] | None = None) -> FloatArray:
        """Return the images at these positions (all without), float32, shape (n, x, y, z)."""
        chosen = self.rows if positions is None else [self.rows[p] for p in positions]
        images = np.stack([self.sources[source][row] for source, row in chosen])
        return images if self.look is None else self.look(images)

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
            conditions=tuple(self.conditions[p] for p in positions if self.conditions),
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
            conditions=self.conditions + others.conditions,
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
        conditions=tuple(cohort.scans[i].condition for i in chosen),
    )


class Feed(Protocol):
    """What takes a share of every batch."""

    def at(self, seed: int, step: int) -> list[int]:
        """Return the positions that a step uses."""
        ...


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
        return [self.place(seed, place) for place in range(first, first + self.take)]

    def place(self, seed: int, place: int) -> int:
        """Return the position at one place of the sequence."""
        round_number, index = divmod(place, len(self.persons))
        scans = self.persons[int(self._order(seed, round_number)[index])]
        return scans[round_number % len(scans)]

    def _order(self, seed: int, round_number: int) -> npt.NDArray[np.int64]:
        return generator(seed, "order", self.name, round_number).permutation(len(self.persons))


@dataclass(frozen=True, kw_only=True)
class CellPool:
    """Cells that take turns at a share of every batch; in each, real persons keep their share."""

    cells: tuple[tuple[Pool, ...], ...]
    """Of each cell the pool of real persons and the pool of others, as far as there are any."""
    take: int
    """Places in a batch."""
    real_share: float

    def at(self, seed: int, step: int) -> list[int]:
        """Return the positions that a step uses."""
        first = step * self.take
        return [self._at(seed, place) for place in range(first, first + self.take)]

    def _at(self, seed: int, place: int) -> int:
        turn, which = divmod(place, len(self.cells))
        pools = self.cells[which]
        if len(pools) == 1:
            return pools[0].place(seed, turn)
        before, after = (ceil(t * self.real_share) for t in (turn, turn + 1))
        is_real = after > before
        return pools[0 if is_real else 1].place(seed, before if is_real else turn - before)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A pool that is used in some of the steps."""

    pool: Feed
    since: int = 0
    until: int | None = None

    def at(self, seed: int, step: int) -> list[int]:
        """Return the positions that a step uses."""
        on = self.since <= step and (self.until is None or step < self.until)
        return self.pool.at(seed, step) if on else []


def draw(pools: Sequence[Feed], seed: int, step: int) -> list[int]:
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
    real: Examples, batch_size: int, added: Examples | None = None, real_share: float = 0.5
) -> tuple[Pool, ...]:
    """Return pools that give both classes half of a batch.

    `added` patients, which follow the real scans in `real.joined(added)`, take half of the
    positive places, or what `real_share` leaves of them; the others keep the real patients of an
    arm without them.
    """
    negative = batch_size // 2
    positive = batch_size - negative
    kept = positive if added is None else ceil(positive * real_share)
    pools = [
        Pool(name="negative", persons=real.persons(0), stride=negative, take=negative),
        Pool(name="positive", persons=real.persons(1), stride=positive, take=kept),
    ]
    if added is not None:
        n = positive - kept
        moved = tuple(tuple(p + len(real) for p in person) for person in added.persons())
        pools.append(Pool(name="added", persons=moved, stride=n, take=n))
    return tuple(pools)


def only_pools(examples: Examples, batch_size: int, n_real: int) -> tuple[Pool, ...]:
    """Return pools that give both classes half of a batch, from scans that are not real.

    The first `n_real` scans are, and they take the places of a class that has no other.
    """
    pools = []
    for label, name in enumerate(("negative", "positive")):
        persons = _by_origin(
            examples, [i for i, v in enumerate(examples.labels) if v == label], n_real
        )
        size = batch_size // 2 if label == 0 else batch_size - batch_size // 2
        pools.append(Pool(name=f"{name} alone", persons=persons[-1], stride=size, take=size))
    return tuple(pools)


def cell_pools(
    examples: Examples,
    cells: Sequence[str],
    batch_size: int,
    *,
    n_real: int,
    real_share: float | None = 0.5,
) -> tuple[CellPool, ...]:
    """Return pools that give both classes half of a batch, and within a class every cell as much.

    Parameters
    ----------
    examples : Examples
        The first `n_real` scans are real.
    cells : sequence of str
        The cell of each scan.
    batch_size : int
    n_real : int
    real_share : float, optional
        Share of the places of a cell that real persons keep where it has others too; None: all
        persons of a cell are alike.
    """
    pools = []
    for label in (0, 1):
        members: dict[str, list[int]] = {}
        for position, cell in enumerate(cells):
            if examples.labels[position] == label:
                members.setdefault(cell, []).append(position)
        size = batch_size // 2 if label == 0 else batch_size - batch_size // 2
        border = len(examples) if real_share is None else n_real
        found = tuple(
            tuple(
                Pool(name=f"{label} {cell} {k}", persons=persons, stride=1, take=1)
                for k, persons in enumerate(_by_origin(examples, members[cell], border))
            )
            for cell in sorted(members)
        )
        pools.append(CellPool(cells=found, take=size, real_share=real_share or 0.0))
    return tuple(pools)


def _by_origin(
    examples: Examples, positions: Sequence[int], n_real: int
) -> list[tuple[tuple[int, ...], ...]]:
    """Return the persons of some scans, real ones first, as far as there are any."""
    found: list[dict[str, list[int]]] = [{}, {}]
    for position in positions:
        person = examples.person_ids[position]
        found[position >= n_real].setdefault(person, []).append(position)
    return [tuple(map(tuple, persons.values())) for persons in found if persons]
