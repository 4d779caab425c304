"""The nouns that every room shares: frozen dataclasses, nothing heavy, no behaviour to speak of.

A `Scan` is one image of one person at one session, the same record for every modality. A
`Cohort` is scans, persons and one partition on one grid; it is opened with
`rarescan.cohort.store.open_cohort`. What the reader would get wrong: the person, never the
slice, frame or session, is the unit of every split, interval and test.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from rarescan.settings import STRICT

FloatArray = npt.NDArray[np.float32]
Part = Literal["train", "validation", "test"]
Outcome = Literal["pass", "fail", "insufficient"]
PermittedUse = Literal["release", "inside_controller"]

BRAIN_BOX_MM = (160, 192, 160)
"""Edges of the box that holds every brain of the template."""
BRAIN_BOX_LOW_MM = (-80.0, -112.0, -76.0)
"""Its low corner (the corner of the first voxel, not its centre), RAS mm of the template."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A regular grid of voxels in RAS space."""

    shape: tuple[int, int, int]
    """Voxels along x (right), y (anterior), z (superior)."""
    spacing_mm: float
    """Edge of one cubic voxel, in millimetres."""
    affine: tuple[tuple[float, ...], ...]
    """4 x 4, voxel index -> centre of the voxel, RAS mm."""

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return the affine as an array, shape (4, 4)."""
        return np.array(self.affine, dtype=np.float64)

    @property
    def is_brain(self) -> bool:
        """Tell the brain box from planes: only there do regions, template and RAS space exist."""
        edges = tuple(n * self.spacing_mm for n in self.shape)
        return edges == BRAIN_BOX_MM


def brain_grid(spacing_mm: float) -> Grid:
    """Return the brain box cut into cubic voxels, of 1, 2 or 4 mm (8 mm in quick tests)."""
    shape = tuple(int(edge / spacing_mm) for edge in BRAIN_BOX_MM)
    if any(n * spacing_mm != edge for n, edge in zip(shape, BRAIN_BOX_MM, strict=True)):
        raise ValueError(f"{spacing_mm} mm does not divide the brain box {BRAIN_BOX_MM} mm")
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = np.array(BRAIN_BOX_LOW_MM) + spacing_mm / 2
    rows = tuple(tuple(float(v) for v in row) for row in affine)
    return Grid(shape=(shape[0], shape[1], shape[2]), spacing_mm=float(spacing_mm), affine=rows)


def plane_grid(rows: int, columns: int, planes: int = 1, spacing_mm: float = 0.0) -> Grid:
    """Return the grid of pictures: rows down, columns to the right, planes of one person.

    `spacing_mm` is the edge of a pixel, 0 where it is unknown or differs from scan to scan.
    """
    edge = spacing_mm or 1.0
    rows_ras = tuple(
        tuple(edge if i == j < 3 else float(i == j) for j in range(4)) for i in range(4)
    )
    return Grid(shape=(rows, columns, planes), spacing_mm=float(spacing_mm), affine=rows_ras)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What is known of a scan, or asked of a synthetic one."""

    diagnosis: str
    age_years: float | None = None
    sex: Literal["F", "M"] | None = None
    site: str | None = None
    severity: float | None = None
    """0 (none) to 1 (most severe of the cohort)."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a classifier is asked: which of two diagnoses does this person have."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    positive: str = "bvFTD"
    """The rare diagnosis."""
    negative: str = "control"
    """What it is told from."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One image of one person at one session; the same record for every modality."""

    scan_id: str
    person_id: str
    """Keyed pseudonym; `SYN...` for synthetic persons."""
    session: str = "01"
    modality: str = "T1w"
    unit: Literal["volume", "film", "clip", "frame"] = "volume"
    origin: Literal["real", "synthetic", "phantom"] = "real"
    path: str = ""
    """Relative to the cohort's root."""
    sha256: str = ""
    """Of the voxel values, so that it survives another compression."""
    condition: Condition
    target: str | None = None
    """The label or value that a classifier predicts."""
    site: str | None = None
    """Where it was acquired; `condition.site` is what a generator may be asked for."""
    licence: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Scans, persons and one partition on one grid."""

    cohort_id: str
    """The id of its recipe."""
    root: Path
    grid: Grid | None
    """None for native scans that are not prepared yet; pictures lie on a `plane_grid`."""
    scans: tuple[Scan, ...]
    """In the order of the memory-mapped array."""
    partition: dict[str, Part] = field(default_factory=dict)
    """person_id -> part. Empty until it is drawn, and for synthetic cohorts."""
    recipe: dict[str, Any] = field(default_factory=dict)

    def indices(self, *parts: Part) -> list[int]:
        """Return the positions of the scans whose person is in one of the parts; all without."""
        return [
            i
            for i, scan in enumerate(self.scans)
            if not parts or self.partition.get(scan.person_id) in parts
        ]

    def diagnoses(self) -> list[str]:
        """Return the diagnoses that occur, sorted."""
        return sorted({scan.condition.diagnosis for scan in self.scans})


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """One feature vector a person."""

    values: FloatArray
    """Shape (persons, features)."""
    person_ids: tuple[str, ...]
    extractor: str
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.person_ids) != len(self.values):
            raise ValueError(
                f"{self.values.shape} feature values do not give {len(self.person_ids)} persons "
                "one row each"
            )
        if len(set(self.person_ids)) != len(self.person_ids):
            raise ValueError("a person has more than one feature row: average a person's scans")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number with everything that is needed to read it."""

    name: str
    value: float
    low: float | None = None
    """Lower end of the 95 % interval; None where no valid interval exists."""
    high: float | None = None
    better: Literal["lower", "higher", "neither"] = "lower"
    n_real: int = 0
    """Persons, never slices."""
    n_synthetic: int = 0
    sufficient: bool = True
    """False: shown, but too little data to read anything from it."""
    method: str = ""
    extractor: str = ""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One check of one candidate."""

    name: str
    outcome: Outcome
    statistic: float | None = None
    limit: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the gates and the ranking say, as a value."""

    decision_id: str
    verdict: Literal["register", "keep_champion", "refuse"]
    chosen: str | None
    """The family of the winner; None where every candidate was refused."""
    permitted_use: PermittedUse = "inside_controller"
    gates: dict[str, tuple[Gate, ...]] = field(default_factory=dict)
    """Candidate -> its gates."""
    reasons: tuple[tuple[str, str], ...] = ()
    """(code, text)."""
    scores: dict[str, tuple[Score, ...]] = field(default_factory=dict)
    """Candidate -> its scores."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A synthetic cohort with its seed and lineage."""

    batch_id: str
    model_uri: str
    model_sha256: str
    seed: int
    scans: tuple[Scan, ...]
    decision_id: str
    permitted_use: PermittedUse
