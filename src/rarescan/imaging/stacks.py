"""From files to stacks: one stack is what could be one volume.

`find_stacks` is the way in: the files of one series of one person in, stacks out; `join_series`
puts together what a scanner spread over several series. Geometry comes from ImagePositionPatient
and ImageOrientationPatient alone; the order of files, InstanceNumber and SliceLocation are never
used for it. A frame of an Enhanced MR image counts as a file with the number of its own. DICOM
coordinates (LPS) become RAS here and nowhere else.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rarescan.imaging.header import Header

FloatVector = npt.NDArray[np.float64]

_SAME_PLACE_MM = 0.01
_SAME_DIRECTION = 2e-3
_NOISE_WORDS = frozenset({"ND", "NORM", "DIS2D", "DIS3D"})


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the export: its number in the index and its header."""

    number: int
    header: Header


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Files that could be one volume, ordered along the normal of their plane.

    Files with several frames are spread into them, so that a stack read back from the index, which
    knows files only, is the stack that was judged.
    """

    files: tuple[File, ...]
    fixes: tuple[str, ...] = ()
    """Reason codes of what was repaired while it was formed."""
    facts: frozenset[str] = frozenset()
    """Reason codes of faults that only a look at the whole series or export shows."""
    whole_series: bool = True
    """Whether the series was not split."""
    n_files: int = 0
    """Files that it answers for, with the repeated ones."""

    def __post_init__(self) -> None:
        if any(f.header.per_frame for f in self.files):
            object.__setattr__(self, "files", tuple(_sorted(spread(self.files))))

    @property
    def first(self) -> Header:
        """The header of the first slice."""
        return self.files[0].header

    @cached_property
    def placed(self) -> bool:
        """Whether every file says where it lies and how large its pixels are."""
        return all(
            f.header.position_mm and f.header.orientation and min(_spacing(f.header)) > 0
            for f in self.files
        )

    @cached_property
    def axes(self) -> FloatVector:
        """Unit vectors along a row, along a column and of the normal, LPS, shape (3, 3)."""
        return axes_of(self.first)

    @cached_property
    def offsets_mm(self) -> FloatVector:
        """Positions along the normal, mm, ascending, shape (slices,)."""
        return _offsets(self.files)

    @property
    def step_mm(self) -> float:
        """Median distance between neighbouring slices, mm; the thickness where it is unknown."""
        if len(self.files) < 2 or not self.placed:
            return self.first.slice_thickness_mm or 0.0
        return float(np.median(np.diff(self.offsets_mm)))

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Edges of a voxel along row, column and normal, mm."""
        between_rows, between_columns = _spacing(self.first)
        return between_columns, between_rows, self.step_mm

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along row, column and normal."""
        return self.first.columns or 0, self.first.rows or 0, len(self.files)

    @property
    def extent_mm(self) -> tuple[float, ...]:
        """Edges of the whole stack, mm."""
        return tuple(n * edge for n, edge in zip(self.shape, self.voxel_mm, strict=True))

    def affine(self) -> FloatVector:
        """Return voxel index (column, row, slice) -> RAS mm, shape (4, 4)."""
        first, last = (np.array(self.files[k].header.position_mm) for k in (0, -1))
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes.T * self.voxel_mm
        if len(self.files) > 1:
            matrix[:3, 2] = (last - first) / (len(self.files) - 1)
        matrix[:3, 3] = first
        # DICOM axes point left-posterior; NIfTI axes right-anterior. Flipped here and nowhere else.
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix


def _spacing(header: Header) -> tuple[float, float]:
    return header.pixel_spacing_mm or (0.0, 0.0)


def axes_of(header: Header) -> FloatVector:
    """Return the unit vectors of a file's row, column and normal, shape (3, 3).

    The column is made perpendicular to the row, which repairs rounded orientations.
    """
    row, column = np.reshape(np.array(header.orientation), (2, 3))
    row = row / max(np.linalg.norm(row), 1e-9)
    column = column - (column @ row) * row
    column = column / max(np.linalg.norm(column), 1e-9)
    return np.stack([row, column, np.cross(row, column)])


def spread(files: Iterable[File]) -> list[File]:
    """Return one `File` a frame; a file named several times is taken once."""
    by_number = {f.number: f for f in files}
    return [
        File(number=f.number, header=header)
        for f in by_number.values()
        for header in f.header.spread()
    ]


def find_stacks(files: Sequence[File], facts: Iterable[str] = ()) -> list[Stack]:
    """Return the stacks of one series of one person, in an order that only contents decide.

    Parameters
    ----------
    files : sequence of File
        All readable files of the series, exact duplicates removed.
    facts : iterable of str
        Reason codes that hold for the whole series.
    """
    whole_headers = [f for f in files if "TRUNC_HEADER" not in f.header.faults]
    if len(whole_headers) < len(files):
        facts = {*facts, "TRUNC_HEADER"}
    kept, codes = _drop_repeats(spread(whole_headers or files))
    parts = [part for group in _group(kept) for part in _split_repetitions(_sorted(group))]
    parts.sort(key=lambda part: sorted((f.header.sha256, f.header.frame) for f in part[0]))
    if len(parts) > 1 and any(f.header.frame for f in kept):
        # Its frames are several volumes, and the index can only name the whole file.
        facts = {*facts, "ENHANCED_UNSUPPORTED"}
    split = _split_codes([part[0].header for part, _ in parts])
    # Repeated and broken files are counted with the first stack: each file must be counted once.
    left = {f.number for f in files}
    own: list[set[int]] = []
    for part, _ in parts:
        own.append({f.number for f in part} & left)
        left -= own[-1]
    own[0] |= left
    return [
        Stack(
            files=tuple(part),
            fixes=tuple(sorted({*split, *code, *(codes & _FIXES)})),
            facts=frozenset(facts) | (codes - _FIXES),
            whole_series=len(parts) == 1,
            n_files=len(numbers),
        )
        for (part, code), numbers in zip(parts, own, strict=True)
    ]


def join_series(stacks: Iterable[Stack]) -> list[Stack]:
    """Put the stacks of one acquisition that came in several series together.

    Parameters
    ----------
    stacks : iterable of Stack
        All stacks of one person.

    Returns
    -------
    list of Stack
        Those whose slices lie between each other's and then have even distances are one stack
        with the repair `JOINED`; all others are as they were.
    """
    by_shot: dict[object, list[Stack]] = defaultdict(list)
    for number, stack in enumerate(stacks):
        h = stack.first
        known = stack.placed and h.frame_uid and h.acquisition_time and len(stack.files) > 1
        physics = (h.repetition_time_ms, h.flip_angle_deg, h.study_uid, h.acquisition_time)
        direction = tuple(round(v, 2) for v in h.orientation or ())
        by_shot[(_key(h), physics, direction) if known else number].append(stack)
    joined: list[Stack] = []
    for same in by_shot.values():
        union = _union(same) if len(same) > 1 else None
        joined += same if union is None else [union]
    return joined


def _union(stacks: Sequence[Stack]) -> Stack | None:
    files = _sorted([f for stack in stacks for f in stack.files])
    gaps = np.diff(_offsets(files))
    if np.ptp(gaps) > max(0.02, 0.01 * float(np.median(gaps))):
        return None
    return Stack(
        files=tuple(files),
        fixes=tuple(sorted({"JOINED", *(code for s in stacks for code in s.fixes)})),
        facts=frozenset().union(*(s.facts for s in stacks)),
        whole_series=False,
        n_files=sum(s.n_files for s in stacks),
    )


_FIXES = {"DUP_SOP_HEADER", "DUP_SLICE"}


def _drop_repeats(files: Sequence[File]) -> tuple[list[File], set[str]]:
    """Keep one of several files with the same pixels in the same place; name other repeats."""
    codes: set[str] = set()
    by_content: dict[object, list[File]] = defaultdict(list)
    for f in files:
        h = f.header
        place = (h.position_mm, h.orientation, h.echo_time_ms, h.image_type, h.pixel_sha256)
        by_content[place if h.position_mm and h.pixel_sha256 else (f.number, h.frame)].append(f)
    kept = []
    for same in by_content.values():
        kept.append(same[0])
        if len(same) > 1:
            kept[-1] = max(same, key=lambda f: (len(f.header.to_json()), f.header.sha256))
            one_uid = len({f.header.sop_uid for f in same}) == 1
            codes.add("DUP_SOP_HEADER" if one_uid else "DUP_SLICE")
    uids = Counter((f.header.sop_uid, f.header.frame) for f in kept if f.header.sop_uid)
    if any(count > 1 for count in uids.values()):
        codes.add("DUP_SOP_PIXELS")
    return kept, codes


def _group(files: Iterable[File]) -> list[list[File]]:
    """Group by all that must be equal within one volume."""
    exact: dict[object, list[list[File]]] = defaultdict(list)
    for f in sorted(files, key=lambda f: f.header.sha256):
        h = f.header
        clusters = exact[_key(h)]
        near = next((c for c in clusters if _same_direction(c[0].header, h)), None)
        if near is None:
            clusters.append([f])
        else:
            near.append(f)
    return [cluster for clusters in exact.values() for cluster in clusters]


def _key(h: Header) -> tuple[object, ...]:
    return (
        h.frame_uid,
        h.rows,
        h.columns,
        tuple(round(v, 3) for v in _spacing(h)),
        None if h.echo_time_ms is None else round(h.echo_time_ms, 2),
        None if h.inversion_time_ms is None else round(h.inversion_time_ms),
        tuple(w for w in h.image_type if w not in _NOISE_WORDS),
        h.complex_part,
    )


def _same_direction(a: Header, b: Header) -> bool:
    if a.orientation is None or b.orientation is None:
        return a.orientation == b.orientation
    pairs = zip(a.orientation, b.orientation, strict=True)
    return max(abs(x - y) for x, y in pairs) < _SAME_DIRECTION


def _split_codes(headers: Sequence[Header]) -> set[str]:
    """Say by what a series was split, as far as that is a fault worth noting."""
    codes = set()
    if len({h.echo_time_ms for h in headers}) > 1:
        codes.add("SPLIT_ECHO")
    if any(not _same_direction(headers[0], h) for h in headers):
        codes.add("SPLIT_ORIENTATION")
    return codes


def _sorted(files: list[File]) -> list[File]:
    if not all(f.header.position_mm and f.header.orientation for f in files):
        return files
    normal = axes_of(files[0].header)[2]
    return sorted(
        files, key=lambda f: (float(np.array(f.header.position_mm) @ normal), f.header.sha256)
    )


def _split_repetitions(files: list[File]) -> list[tuple[list[File], set[str]]]:
    """Split a group in which every position occurs equally often into its acquisitions."""
    unsplit: list[tuple[list[File], set[str]]] = [(files, set())]
    times = _times_each_place_occurs(files)
    if times < 2:
        return unsplit
    by_attribute: list[Callable[[File], object]] = [
        lambda f: f.header.acquisition_number,
        lambda f: f.header.temporal_position,
        lambda f: f.header.content_time,
        _blocks(files, times),
    ]
    for attribute in by_attribute:
        parts: dict[object, list[File]] = defaultdict(list)
        for f in files:
            parts[attribute(f)].append(f)
        if len(parts) == times and _same_places(list(parts.values())):
            return [(part, {"SPLIT_ACQ"}) for part in parts.values()]
    return unsplit


def _blocks(files: list[File], times: int) -> Callable[[File], object]:
    """Return which run of consecutive instance numbers a file belongs to."""
    numbers = sorted(f.header.instance_number or 0 for f in files)
    size = len(files) // times
    return lambda f: numbers.index(f.header.instance_number or 0) // size


def _offsets(files: Sequence[File]) -> FloatVector:
    places: FloatVector = np.array([f.header.position_mm for f in files])
    return np.asarray(places @ axes_of(files[0].header)[2])


def _times_each_place_occurs(files: list[File]) -> int:
    """Return how often every position occurs; 0 where that differs or nothing is placed."""
    if not all(f.header.position_mm and f.header.orientation for f in files):
        return 0
    new_place = np.diff(_offsets(files), prepend=-np.inf) > _SAME_PLACE_MM
    counts = np.unique(np.cumsum(new_place), return_counts=True)[1]
    return int(counts[0]) if len(set(counts.tolist())) == 1 else 0


def _same_places(parts: list[list[File]]) -> bool:
    if len({len(part) for part in parts}) != 1:
        return False
    places = np.stack([_offsets(part) for part in parts])
    return bool(np.ptp(places, axis=0).max() < _SAME_PLACE_MM)
