"""Bring pictures to one grid, and divide their persons.

`prepare_planes` is the way in: a native cohort of pictures in, a cohort on a `plane_grid` out;
`clip_on_grid` does the same to a clip that a finished classifier is asked about.
Black margins are cut off, pictures are resampled once by areas, grey levels become 0 to 1 once,
and several planes of one visit become one scan. The planes of one visit keep one common scale.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rarescan._version import VERSION
from rarescan.cohort.contracts import Cohort, FloatArray, Part, Scan, plane_grid
from rarescan.cohort.partition import PartitionConfig, draw_partition
from rarescan.cohort.store import (
    create_volumes,
    open_cohort,
    read_metadata,
    tables,
    write_cohort,
    write_events,
    write_metadata,
)
from rarescan.errors import InputError
from rarescan.files import Recipe, read_json, run_step
from rarescan.imaging.frames import Frame
from rarescan.imaging.reasons import ACTIONS, WORDS
from rarescan.imaging.spec import PlanesConfig, Region
from rarescan.imaging.tissue import tissue_mask
from rarescan.progress import track

SCHEMA = 1
_BRIGHT = 4
Box = tuple[int, int, int, int]


def prepare_planes(
    cohort_root: Path,
    folder: Path,
    config: PlanesConfig,
    partition: PartitionConfig,
    *,
    overwrite: bool = False,
) -> Path:
    """Prepare every picture of a native cohort and draw the partition.

    Parameters
    ----------
    cohort_root : Path
        A cohort written by `pictures.adopt_pictures`.
    folder : Path
        Where the prepared cohort goes: `rarescan/` with `volumes.npy` (float32, shape (scans,
        rows, columns, planes), 0 to 1, 0 outside the body), `scans.parquet`, `metadata.parquet`
        and `events.parquet`.
    config : PlanesConfig
        Size, planes and orientation.
    partition : PartitionConfig
        Shares and seed; persons of a prepared cohort that is replaced keep their part.
    overwrite : bool
        Replace a result made with other settings.

    Raises
    ------
    InputError
        The folder holds no native cohort of pictures, no visit has every plane, or a diagnosis
        has too few persons to be divided.
    ChangedRecipeError
        Another result lies in `folder`.
    """
    cohort = open_cohort(cohort_root)
    _require_pictures(cohort)
    recipe = Recipe(
        step="prepare",
        schema=SCHEMA,
        config={"planes": asdict(config), "partition": asdict(partition)},
        inputs={"cohort": cohort.cohort_id},
        found_at={"cohort": os.path.relpath(cohort_root.resolve(), folder.resolve())},
    )

    def build(work: Path) -> None:
        stacks, left_out = _stacks(cohort, config)
        if not stacks:
            raise InputError(
                f"No visit of {cohort_root} has the planes {', '.join(config.planes)}.",
                remedy="Correct planes.planes: the words of the table's column `plane`.",
            )
        grid = plane_grid(config.rows, config.columns, max(1, len(config.planes)))
        volumes = create_volumes(work, len(stacks), grid)
        boxes = _boxes(cohort, stacks) if config.crop == "content" else {}
        scans = []
        for row, stack in enumerate(track(stacks, "prepare pictures")):
            volumes[row] = _volume(cohort, stack, boxes, config)
            scans.append(_scan(stack, volumes[row], config))
        parts = draw_partition(scans, partition, _earlier(folder))
        write_metadata(
            work,
            [
                {**stack[0].metadata, "scan_id": s.scan_id}
                for s, stack in zip(scans, stacks, strict=True)
            ],
        )
        events = [_event(shot.scan, code) for shot, code in left_out]
        write_events(work, events)
        write_cohort(
            work,
            scans=scans,
            grid=grid,
            partition=parts,
            about=_about(scans, len(cohort.scans), events),
        )

    return run_step(folder, recipe, build, overwrite=overwrite)


@dataclass(frozen=True, kw_only=True)
class _Shot:
    """One picture of the native cohort."""

    scan: Scan
    metadata: Mapping[str, Any]


def _require_pictures(cohort: Cohort) -> None:
    if cohort.grid is not None:
        raise InputError(
            f"{cohort.root} is prepared already.",
            remedy="Name the folder that `rarescan ingest` wrote.",
        )
    if not cohort.scans or any(scan.unit == "volume" for scan in cohort.scans):
        raise InputError(
            f"{cohort.root} holds no pictures.",
            remedy="Ingest them with source.kind: pictures.",
        )


def _earlier(folder: Path) -> dict[str, Part]:
    """Return the partition of the cohort that is replaced."""
    try:
        earlier: dict[str, Part] = read_json(tables(folder) / "cohort.json")["partition"]
    except FileNotFoundError:
        return {}
    return earlier


def _stacks(
    cohort: Cohort, config: PlanesConfig
) -> tuple[list[tuple[_Shot, ...]], list[tuple[_Shot, str]]]:
    """Return the pictures of each scan to be, and those that have no place in one, with a code."""
    known = read_metadata(cohort.root) or [{} for _ in cohort.scans]
    shots = [_Shot(scan=s, metadata=m) for s, m in zip(cohort.scans, known, strict=True)]
    if not config.planes:
        return [(shot,) for shot in shots], []
    visits: dict[tuple[str, str], dict[str, _Shot]] = defaultdict(dict)
    left_out = []
    for shot in shots:
        visit, plane = visits[_visit(shot)], str(shot.metadata.get("plane", ""))
        if plane in visit or plane not in config.planes:
            left_out.append((shot, "PLANE_UNUSED"))
        else:
            visit[plane] = shot
    whole = [
        tuple(visit[plane] for plane in config.planes)
        for visit in visits.values()
        if len(visit) == len(config.planes)
    ]
    partial = [visit for visit in visits.values() if len(visit) < len(config.planes)]
    left_out += [(shot, "PLANE_MISSING") for visit in partial for shot in visit.values()]
    return whole, left_out


def _visit(shot: _Shot) -> tuple[str, str]:
    return shot.scan.person_id, shot.scan.session


_Size = tuple[str, str, tuple[int, ...]]


def _boxes(cohort: Cohort, stacks: Sequence[Sequence[_Shot]]) -> dict[_Size, Box]:
    """Return visit and size of a picture -> what is cut out of it.

    One box for all frames of a clip, or its tissue would move from frame to frame.
    """
    seen: dict[_Size, npt.NDArray[np.bool_]] = {}
    for shot in (shot for stack in stacks for shot in stack):
        frame = _open(cohort, shot.scan)
        place = (*_visit(shot), frame.shape)
        seen[place] = seen.get(place, np.zeros(frame.shape, bool)) | (frame > _BRIGHT)
    return {place: _box(shown) for place, shown in seen.items()}


def _box(shown: npt.NDArray[np.bool_]) -> Box:
    """Return row0, row1, column0, column1 of what is shown; everything where nothing is."""
    rows, columns = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, shown.shape[0], 0, shown.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _volume(
    cohort: Cohort,
    stack: Sequence[_Shot],
    boxes: Mapping[_Size, Box],
    config: PlanesConfig,
) -> FloatArray:
    """Return one scan, shape (rows, columns, planes)."""
    frames = []
    for shot in stack:
        frame = _open(cohort, shot.scan)
        whole = (0, frame.shape[0], 0, frame.shape[1])
        row0, row1, column0, column1 = boxes.get((*_visit(shot), frame.shape), whole)
        frames.append(frame[row0:row1, column0:column1])
    return on_grid(frames, config, pixel_ratio=_pixel_ratio(stack[0].metadata))


def _pixel_ratio(metadata: Mapping[str, Any]) -> float:
    down, right = (metadata.get(f"spacing_{way}_mm") for way in ("down", "right"))
    return down / right if down and right else 1.0


def _open(cohort: Cohort, scan: Scan) -> Frame:
    with Image.open(cohort.root / scan.path) as image:
        return np.array(image)


def on_grid(
    frames: Sequence[Frame], config: PlanesConfig, *, pixel_ratio: float = 1.0
) -> FloatArray:
    """Return the planes of one scan on the grid; black margins are cut off before.

    Parameters
    ----------
    frames : sequence of uint8 arrays, shape (rows, columns)
        One a plane; sizes may differ.
    config : PlanesConfig
        Size and orientation.
    pixel_ratio : float
        Height of a pixel over its width; pixels of the grid are square where the aspect is kept.

    Returns
    -------
    float32 array, shape (rows, columns, planes), 0 to 1
    """
    cut = list(frames)
    if config.mirror == "left":
        cut = [frame[:, ::-1] if _broad_side_right(frame) else frame for frame in cut]
    height, width = (max(frame.shape[axis] for frame in cut) for axis in (0, 1))
    if config.aspect == "keep":
        scale = max(height * pixel_ratio / config.rows, width / config.columns)
        height = max(height, round(config.rows * scale / pixel_ratio))
        width = max(width, round(config.columns * scale))
    else:
        height, width = 0, 0
    planes = [_resampled(_padded(frame, height, width, config), config) for frame in cut]
    return np.stack(planes, axis=-1)


def clip_on_grid(
    frames: Sequence[Frame],
    config: PlanesConfig,
    *,
    show: Region = "all",
    pixel_ratio: float = 1.0,
) -> FloatArray:
    """Return the frames of one clip as they would lie in a prepared cohort.

    A classifier that is asked about a new clip must see it as it saw those that it learned from.

    Parameters
    ----------
    frames : sequence of uint8 arrays, shape (rows, columns)
        Of one clip and one size: at least eight where the clip has them, because what moves tells
        tissue from text.
    config : PlanesConfig
        Size, margin and orientation that the cohort was prepared with.
    show : {"all", "sector", "object"}
        What was kept when it was ingested (`pictures.show`).
    pixel_ratio : float
        Height of a pixel over its width.

    Returns
    -------
    float32 array, shape (frames, rows, columns, 1), 0 to 1
    """
    shown = np.stack(frames)
    if show != "all":
        mask = tissue_mask(frames, convex=show == "sector")
        shown = np.where(np.zeros(shown.shape[1:], bool) if mask is None else mask, shown, 0)
    if config.crop == "content":
        row0, row1, column0, column1 = _box(np.asarray((shown > _BRIGHT).any(axis=0)))
        shown = shown[:, row0:row1, column0:column1]
    return np.stack([on_grid([frame], config, pixel_ratio=pixel_ratio) for frame in shown])


def _broad_side_right(frame: Frame) -> bool:
    """Return whether most of what is shown lies in the right half."""
    heights = (frame > _BRIGHT).sum(axis=0)
    half = len(heights) // 2
    return bool(heights[-half:].sum() > heights[:half].sum())


def _padded(frame: Frame, height: int, width: int, config: PlanesConfig) -> Frame:
    """Add black around a picture, equally at both sides; a chest wall stays at the edge."""
    down, right = (max(0, n - m) for n, m in zip((height, width), frame.shape, strict=True))
    before = 0 if config.mirror == "left" else right // 2
    return np.pad(frame, ((down // 2, down - down // 2), (before, right - before)))


def _resampled(frame: Frame, config: PlanesConfig) -> npt.NDArray[np.float32]:
    """Return a picture in the grid's size, 0 to 1: by areas where it shrinks."""
    values = np.ascontiguousarray(frame, dtype=np.float32) / np.float32(255)
    shrinks = frame.shape[0] >= config.rows and frame.shape[1] >= config.columns
    kind = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    resized = Image.fromarray(values).resize((config.columns, config.rows), kind)
    return np.clip(np.asarray(resized, dtype=np.float32), 0, 1)


def _scan(stack: Sequence[_Shot], volume: FloatArray, config: PlanesConfig) -> Scan:
    first = stack[0].scan
    return replace(
        first,
        scan_id=f"{first.person_id}_{first.session}" if config.planes else first.scan_id,
        path="",
        sha256=hashlib.sha256(np.ascontiguousarray(volume).tobytes()).hexdigest(),
        flags=(*first.flags, "prepared"),
    )


def _event(scan: Scan, code: str) -> dict[str, Any]:
    return {
        "stack_id": scan.scan_id,
        "person_id": scan.person_id,
        "code": code,
        "action": ACTIONS[code],
        "n_files": 1,
    }


def _about(
    scans: Sequence[Scan], n_pictures: int, events: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return counts and versions, as they stand in `cohort.json`."""
    refused = dict(sorted(Counter(str(event["code"]) for event in events).items()))
    return {
        "scans": n_pictures,
        "prepared": len(scans),
        "refused": refused,
        "reasons": {code: WORDS[code] for code in refused},
        "targets": dict(sorted(Counter(scan.target or "" for scan in scans).items())),
        "versions": {"rarescan": VERSION, "numpy": np.__version__, "pillow": version("pillow")},
    }
