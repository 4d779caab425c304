"""Sets of volumes and everything that is measured in them, one worker process a set.

`ImageSet` names the rows of a cohort on disk; `describe_set` reads them chunk by chunk and
returns small arrays: region measures, overlap, fine detail, best matches among training persons.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from rarescan.cohort.contracts import Cohort, FloatArray, Grid, Part
from rarescan.cohort.planes import are_planes
from rarescan.cohort.store import VOLUMES, open_cohort, require_same_grid, tables
from rarescan.errors import InputError
from rarescan.evaluation.canaries import KINDS, plant
from rarescan.evaluation.copies import Assay, Matches, coarse_voxel_mm, coarsen
from rarescan.evaluation.diversity import pair_similarity, paired
from rarescan.evaluation.measures import (
    apodised,
    blurred_high_frequency,
    brightness,
    describe,
    high_frequency,
    outline,
    overlap,
)
from rarescan.files import read_json
from rarescan.seeds import generator

Array = npt.NDArray[np.float64]

_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Scans of one part of a cohort or of one candidate."""

    name: str
    root: Path
    rows: tuple[int, ...]
    """Positions in the cohort's volumes."""
    persons: tuple[str, ...]
    """Whose scan each row is."""
    diagnoses: tuple[str, ...]
    ages: tuple[float, ...]
    """Years; NaN where unknown."""

    @property
    def n_bytes(self) -> int:
        """Size of the set's volumes."""
        return len(self.rows) * int(_volumes(self.root)[0].nbytes)

    def chunks(self) -> Iterator[FloatArray]:
        """Yield the volumes in order, a bounded number of bytes at a time."""
        volumes = _volumes(self.root)
        size = max(1, _CHUNK_BYTES // max(1, volumes[0].nbytes))
        for start in range(0, len(self.rows), size):
            yield np.asarray(volumes[list(self.rows[start : start + size])])

    def at(self, places: Sequence[int]) -> "ImageSet":
        """Return the scans at some places of the set, in that order."""
        return replace(
            self,
            rows=tuple(self.rows[i] for i in places),
            persons=tuple(self.persons[i] for i in places),
            diagnoses=tuple(self.diagnoses[i] for i in places),
            ages=tuple(self.ages[i] for i in places),
        )

    def pieces(self, most: int) -> list["ImageSet"]:
        """Return the set in pieces of at most so many scans, in order."""
        n = len(self.rows)
        return [self.at(range(i, min(i + most, n))) for i in range(0, n, most)]

    def content(self) -> str:
        """Return the hash of the voxels, in order."""
        digest = hashlib.sha256()
        for volumes in self.chunks():
            digest.update(np.ascontiguousarray(volumes).data)
        return digest.hexdigest()


def require_grid(cohort: Cohort) -> Grid:
    """Return the grid of a prepared cohort, or say that it has none."""
    if cohort.grid is None:
        raise InputError(
            f"{cohort.root} is not prepared: its scans are not on one grid.",
            remedy=f"Run `rarescan prepare {cohort.root} PREPARED` and use PREPARED.",
        )
    return cohort.grid


def part_of(cohort: Cohort, part: Part) -> ImageSet:
    """Return the scans of one part of a prepared cohort."""
    rows = cohort.indices(part)
    if not rows:
        raise InputError(
            f"The cohort has no {part} persons.",
            remedy="Run `rarescan prepare` with more persons, so that every part has some.",
        )
    scans = [cohort.scans[i] for i in rows]
    ages = (s.condition.age_years for s in scans)
    return ImageSet(
        name=part,
        root=cohort.root,
        rows=tuple(rows),
        persons=tuple(s.person_id for s in scans),
        diagnoses=tuple(s.condition.diagnosis for s in scans),
        ages=tuple(float("nan") if age is None else float(age) for age in ages),
    )


def samples_of(name: str, root: Path, grid: Grid) -> ImageSet:
    """Return a candidate's synthetic scans; the folder may be part of an unfinished step.

    Raises
    ------
    InputError
        Tables or volumes are missing, disagree, or hold fewer than two scans.
    GridMismatchError
        The volumes lie on another grid than the real ones.
    """
    columns = ["person_id", "condition_diagnosis", "condition_age_years"]
    try:
        table = pq.read_table(tables(root) / "scans.parquet", columns=columns).to_pydict()
        shape = _volumes(root).shape
        stored = read_json(tables(root) / "cohort.json")["grid"]
    except FileNotFoundError:
        raise InputError(
            f"The samples of the candidate '{name}' are missing.",
            remedy="Run `rarescan evaluate` again; it draws them.",
        ) from None
    n = len(table["person_id"])
    require_same_grid(_grid(stored), grid, (f"The candidate '{name}'", "the cohort"))
    if shape != (n, *grid.shape) or n < 2:
        raise InputError(
            f"The candidate '{name}' has volumes of the shape {shape} for {n} synthetic scans.",
            remedy="Draw at least two samples (`evaluate.n_synthetic`) and evaluate again.",
        )
    ages = table["condition_age_years"]
    return ImageSet(
        name=name,
        root=root,
        rows=tuple(range(n)),
        persons=tuple(table["person_id"]),
        diagnoses=tuple(table["condition_diagnosis"]),
        ages=tuple(float("nan") if age is None else float(age) for age in ages),
    )


def _grid(stored: Any) -> Grid | None:
    if stored is None:
        return None
    x, y, z = stored["shape"]
    affine = tuple(tuple(row) for row in stored["affine"])
    return Grid(shape=(x, y, z), spacing_mm=stored["spacing_mm"], affine=affine)


def _volumes(root: Path) -> FloatArray:
    volumes: FloatArray = np.load(tables(root) / VOLUMES, mmap_mode="r")
    return volumes


@dataclass(frozen=True, kw_only=True)
class SetTask:
    """What one worker measures."""

    images: ImageSet
    prepared: Path
    cohort_id: str
    shift_mm: float
    canaries: int = 0
    """Plant copies of this many training persons instead of measuring the set."""
    seed: int = 0
    pairs: bool = False
    """Compare persons within the set instead."""


@dataclass(frozen=True, kw_only=True)
class SetFacts:
    """What was measured in a set, one row a scan."""

    measures: Array
    """Region measures, and the overlap with the training persons' outline and the 1-Wasserstein
    distance to their mean histogram of z-scored brightness."""
    high_frequency: Array
    blurred: Array | None
    """`measures.blurred_high_frequency` of the validation persons, one column a blur; else None."""
    matches: Matches | None
    """None for the training persons themselves."""

    @classmethod
    def joined(cls, pieces: Sequence["SetFacts"]) -> "SetFacts":
        """Return what was measured in the pieces of one set, in order."""
        matches = [piece.matches for piece in pieces if piece.matches is not None]
        blurred = [piece.blurred for piece in pieces if piece.blurred is not None]
        return cls(
            measures=np.concatenate([piece.measures for piece in pieces]),
            high_frequency=np.concatenate([piece.high_frequency for piece in pieces]),
            blurred=np.concatenate(blurred) if blurred else None,
            matches=_joined(matches) if matches else None,
        )


def _joined(pieces: Sequence[Matches]) -> Matches:
    return Matches(
        score=np.concatenate([piece.score for piece in pieces]),
        correlation=np.concatenate([piece.correlation for piece in pieces]),
        person=np.concatenate([piece.person for piece in pieces]),
    )


def describe_set(task: SetTask) -> SetFacts | dict[str, Matches] | Array:
    """Measure a set, or plant canaries and search for them, or compare persons within the set."""
    if task.canaries:
        return _canaries(task)
    if task.pairs:
        return _similarity(task)
    reference = reference_of(task.prepared, task.cohort_id, task.shift_mm)
    measures, detail, blurred, small = [], [], [], []
    for volumes in task.images.chunks():
        dice = overlap(volumes, reference.brain)
        moved = np.abs(brightness(volumes) - reference.brightness).mean(axis=1)
        measures.append(np.column_stack([describe(volumes, reference.grid), dice, moved]))
        detail.append(high_frequency(volumes, reference.window))
        if task.images.name == "validation":
            blurred.append(blurred_high_frequency(volumes, reference.window))
        small.append(coarsen(volumes, reference.grid.spacing_mm))
    return SetFacts(
        measures=np.concatenate(measures),
        high_frequency=np.concatenate(detail),
        blurred=np.concatenate(blurred) if blurred else None,
        matches=None
        if task.images.name == "train"
        else reference.assay.match(np.concatenate(small)),
    )


def _canaries(task: SetTask) -> dict[str, Matches]:
    reference = reference_of(task.prepared, task.cohort_id, task.shift_mm)
    first = {person: row for row, person in reversed(list(enumerate(task.images.persons)))}
    persons = sorted(first)
    chosen = generator(task.seed, "canary persons").permutation(len(persons))[: task.canaries]
    rows = [task.images.rows[first[persons[i]]] for i in sorted(chosen)]
    volumes = coarsen(np.asarray(_volumes(task.images.root)[rows]), reference.grid.spacing_mm)
    planted = plant(volumes, shift_voxels=reference.assay.shift_voxels, seed=task.seed)
    return {kind: reference.assay.match(planted[kind]) for kind in KINDS}


def _similarity(task: SetTask) -> Array:
    chosen = task.images.at(paired(task.images.persons, seed=task.seed))
    spacing_mm = require_grid(open_cohort(task.prepared)).spacing_mm
    return pair_similarity(np.concatenate([coarsen(v, spacing_mm) for v in chosen.chunks()]))


@dataclass(frozen=True)
class Reference:
    """What every set is compared with."""

    grid: Grid
    brain: npt.NDArray[np.bool_]
    window: FloatArray
    brightness: Array
    """Mean percentiles of the training persons."""
    assay: Assay


@lru_cache(maxsize=1)
def reference_of(prepared: Path, cohort_id: str, shift_mm: float) -> Reference:  # noqa: ARG001
    """Return what every set is compared with; built once a worker and cohort (hence its id)."""
    cohort = open_cohort(prepared)
    grid = require_grid(cohort)
    training = part_of(cohort, "train")
    spacing_mm = grid.spacing_mm
    volumes = _volumes(prepared)
    brain = outline(volumes[list(training.rows)])
    small = np.concatenate([coarsen(chunk, spacing_mm) for chunk in training.chunks()])
    assay = Assay.of(
        small,
        training.persons,
        voxel_mm=coarse_voxel_mm(spacing_mm, planes=are_planes(grid.shape)),
        shift_mm=shift_mm,
    )
    bright = np.concatenate([brightness(chunk) for chunk in training.chunks()]).mean(axis=0)
    return Reference(grid, brain, apodised(brain), bright, assay)
