"""Sets of volumes and everything that is measured in them, one worker process a set.

`ImageSet` names the rows of a cohort on disk; `describe_set` reads them chunk by chunk and
returns small arrays: region measures, overlap, fine detail, best matches among training persons.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from rarescan.cohort.contracts import Cohort, FloatArray, Grid, Part
from rarescan.cohort.store import VOLUMES, open_cohort, tables
from rarescan.errors import GridMismatchError, InputError
from rarescan.evaluation.canaries import KINDS, plant
from rarescan.evaluation.copies import Assay, Matches, coarse_voxel_mm, coarsen
from rarescan.evaluation.measures import apodised, describe, high_frequency, outline, overlap
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
        The volumes have another shape than the real ones.
    """
    columns = ["person_id", "condition_diagnosis", "condition_age_years"]
    try:
        table = pq.read_table(tables(root) / "scans.parquet", columns=columns).to_pydict()
        shape = _volumes(root).shape
    except FileNotFoundError:
        raise InputError(
            f"The samples of the candidate '{name}' are missing.",
            remedy="Run `rarescan evaluate` again; it draws them.",
        ) from None
    n = len(table["person_id"])
    if shape[0] != n or n < 2:
        raise InputError(
            f"The candidate '{name}' has {shape[0]} volumes for {n} synthetic scans.",
            remedy="Draw at least two samples (`evaluate.n_synthetic`) and evaluate again.",
        )
    if shape[1:] != grid.shape:
        raise GridMismatchError(
            f"The samples of '{name}' have {shape[1:]} voxels, the real scans {grid.shape}.",
            remedy="Train this candidate on this cohort.",
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


@dataclass(frozen=True, kw_only=True)
class SetFacts:
    """What was measured in a set, one row a scan."""

    measures: Array
    """Region measures and, last, the overlap with the training persons' outline."""
    high_frequency: Array
    matches: Matches | None
    """None for the training persons themselves."""


def describe_set(task: SetTask) -> SetFacts | dict[str, Matches]:
    """Measure a set, or plant canaries and search for them."""
    if task.canaries:
        return _canaries(task)
    reference = reference_of(task.prepared, task.cohort_id, task.shift_mm)
    own = task.images.name == "train"
    measures, detail, small = [], [], []
    for volumes in task.images.chunks():
        dice = overlap(volumes, reference.brain)
        measures.append(np.column_stack([describe(volumes, reference.grid), dice]))
        detail.append(high_frequency(volumes, reference.window))
        if not own:
            small.append(coarsen(volumes, reference.grid.spacing_mm))
    return SetFacts(
        measures=np.concatenate(measures),
        high_frequency=np.concatenate(detail),
        matches=None if own else reference.assay.match(np.concatenate(small)),
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


@dataclass(frozen=True)
class Reference:
    """What every set is compared with."""

    grid: Grid
    brain: npt.NDArray[np.bool_]
    window: FloatArray
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
        small, training.persons, voxel_mm=coarse_voxel_mm(spacing_mm), shift_mm=shift_mm
    )
    return Reference(grid, brain, apodised(brain), assay)
