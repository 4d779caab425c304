"""Pictures and clips as a cohort: ultrasound, films, slices.

`adopt_pictures` is the way in. Each file is read in a child process with limits; of a clip, evenly
spaced frames are taken, whatever its label; what does not show the body becomes black; and the
frames are written anew as PNG, under pseudonyms. What cannot be used becomes an event; nothing is
skipped silently. Labels come from the table (`picture_table`), never from names of files.
"""

import hashlib
import io
import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rarescan.errors import InputError, RarescanError
from rarescan.files import Recipe, content_id, read_json, run_step, write_atomic, write_json
from rarescan.imaging import identity
from rarescan.imaging.frames import Frame, RefusedClipError, even_positions, open_clip
from rarescan.imaging.parse import limit_this_process
from rarescan.imaging.persons import fingerprint, read_erased, unions, with_erased, write_erased
from rarescan.imaging.picture_cohort import Taken, require_no_leak, write_tables
from rarescan.imaging.picture_sources import list_pictures
from rarescan.imaging.picture_table import Picture
from rarescan.imaging.reasons import ACTIONS
from rarescan.imaging.spec import PicturesConfig
from rarescan.imaging.tissue import tissue_mask
from rarescan.processes import run_parallel

SCHEMA = 1
_CHILD_MEMORY_MIB, _CHILD_CPU_SECONDS = 4096, 600
_WATCHED = 8
_DONE = ".items"
_MADE_BY = {"US": "US", "ECHO": "US", "MG": "MG", "MR2D": "MR"}
"""Our word for a modality -> DICOM's."""
_log = logging.getLogger("rarescan")


def adopt_pictures(
    source: Path,
    folder: Path,
    config: PicturesConfig,
    *,
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Return `folder`, filled with the cohort of a folder of pictures and clips.

    Parameters
    ----------
    source : Path
        Folder with DICOM, PNG, JPEG, BMP, video, GIF or NIfTI files.
    folder : Path
        Where the cohort goes: a scan is one frame (PNG, uint8, native size), `Scan.session` the
        clip or film that it belongs to, `rarescan/metadata.parquet` what is known of it.
    config : PicturesConfig
        The table, its words, and what is shown.
    workers : int, optional
        Number of processes; all cores by default. The result does not depend on it.
    overwrite : bool
        Replace another result.

    Raises
    ------
    SettingError
        The table or the key is missing, or lacks a column.
    InputError
        A row of the table is shifted or has no known label, or no file can be used.
    """
    pictures, key = list_pictures(source, config, workers=workers)
    erased = read_erased(folder)
    settings = {k: v for k, v in asdict(config).items() if k not in ("key_file", "table")}
    recipe = Recipe(
        step="ingest",
        schema=SCHEMA,
        config={"pictures": settings},
        inputs={
            "table": content_id([_fingerprint(picture) for picture in pictures]),
            "key": identity.fingerprint(key) if key else "none",
        },
    )
    recipe = with_erased(recipe, erased)

    def build(work: Path) -> None:
        work.chmod(0o700)
        try:
            kept = [p for p in pictures if fingerprint(p.person) not in erased]
            _fill(work, kept, config, workers)
            require_no_leak(work, source, kept, config, workers=workers)
            write_erased(work, erased)
        except RarescanError:
            shutil.rmtree(work)
            raise

    return run_step(folder, recipe, build, overwrite=overwrite)


def _fingerprint(picture: Picture) -> dict[str, Any]:
    """Return what a picture's record depends on; its name is not part of it."""
    size = picture.file.stat().st_size if picture.file.is_file() else -1
    known = {k: v for k, v in asdict(picture).items() if k not in ("file", "secrets")}
    return known | {"size": size}


@dataclass(frozen=True, kw_only=True)
class _Item:
    """What a worker is told of one clip, film or visit."""

    work: Path
    pictures: tuple[Picture, ...]
    config: PicturesConfig

    @property
    def name(self) -> str:
        """The item's place under its person."""
        return f"{self.pictures[0].person}_{self.pictures[0].item}"

    @property
    def result(self) -> Path:
        """Where the item's scans are listed; present = the item is done."""
        return self.work / _DONE / f"{self.name}.json"


def _fill(
    work: Path, pictures: Sequence[Picture], config: PicturesConfig, workers: int | None
) -> None:
    groups: dict[tuple[str, str], list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[picture.person, picture.item].append(picture)
    items = [_Item(work=work, pictures=tuple(g), config=config) for g in groups.values()]
    run_parallel(
        _take_over,
        [item for item in items if not item.result.exists()],
        what="read pictures",
        workers=workers,
        on_death=_note_death,
    )
    found = [(p, r) for i in items for p, r in zip(i.pictures, read_json(i.result), strict=True)]
    rows = [(p, frame) for p, result in found for frame in result["frames"]]
    events = [_event(p, code) for p, result in found for code in result["codes"]]
    rows, twice = _without_twins(rows)
    events += [_event(p, "SAME_PIXELS_TWO_PEOPLE") for p, _ in twice]
    if not rows:
        counts = Counter(event["code"] for event in events)
        raise InputError(
            f"None of {len(pictures)} files can be used: "
            f"{', '.join(f'{n} x {code}' for code, n in counts.items())}.",
            remedy="Check that the table names pictures or clips, relative to the source folder.",
        )
    shutil.rmtree(work / _DONE)
    write_tables(work, rows, events, len(pictures), config)


def _event(picture: Picture, code: str) -> dict[str, Any]:
    return {
        "stack_id": picture.item,
        "person_id": picture.person,
        "code": code,
        "action": ACTIONS[code],
        "n_files": 1,
    }


def _without_twins(rows: Sequence[Taken]) -> tuple[list[Taken], list[Taken]]:
    """Return the frames without, and those with, the pixels of another person's frame.

    Where the diagnoses agree, both persons may be one, and are marked so that the partition keeps
    them together.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for picture, frame in rows:
        owners[frame["raw_sha256"]].add(picture.person)
    shared = {digest: persons for digest, persons in owners.items() if len(persons) > 1}
    diagnoses = {picture.person: picture.diagnosis for picture, _ in rows}
    pairs = [
        pair
        for persons in shared.values()
        for pair in combinations(sorted(persons), 2)
        if diagnoses[pair[0]] == diagnoses[pair[1]]
    ]
    heads = unions(pairs)
    if shared:
        n_persons = len(set().union(*shared.values()))
        _log.warning("%d pictures stand under %d persons: set apart", len(shared), n_persons)
    kept: list[Taken] = [
        (picture, {**frame, "perhaps": heads.get(picture.person, "")})
        for picture, frame in rows
        if frame["raw_sha256"] not in shared
    ]
    return kept, [row for row in rows if row[1]["raw_sha256"] in shared]


def _note_death(item: _Item) -> None:
    write_json(item.result, [{"codes": ["PARSER_CRASH"], "frames": []} for _ in item.pictures])


def _take_over(item: _Item) -> None:
    """Read the files of one item and write their frames anew, in a child process."""
    limit_this_process(_CHILD_MEMORY_MIB, cpu_seconds=_CHILD_CPU_SECONDS, writes=True)
    read = [_read(picture, item.config) for picture in item.pictures]
    masks = _masks([frame for one in read for frame in one.watched], item.config)
    number, results = 0, []
    for picture, one in zip(item.pictures, read, strict=True):
        codes, written = list(one.codes), []
        for frame in one.frames:
            number += 1
            mask = masks[frame.shape]
            seen = frame if mask is None else np.where(mask, frame, 0)
            if not seen.any() or frame.min() == frame.max():
                codes.append("PIXELS_DEAD" if frame.min() == frame.max() else "NO_TISSUE")
                continue
            raw = hashlib.sha256(f"{frame.shape}".encode() + frame.tobytes()).hexdigest()
            known = one.about | {"raw_sha256": raw}
            written.append(_write_frame(item, picture, number, seen) | known)
        results.append({"codes": sorted({*codes}), "frames": written})
    write_json(item.result, results)


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What was read of one file."""

    codes: tuple[str, ...]
    frames: tuple[Frame, ...] = ()
    """Those that are taken."""
    watched: tuple[Frame, ...] = ()
    """Those that tell what moves: at least eight of a clip that has them."""
    about: dict[str, Any] = field(default_factory=dict)


def _read(picture: Picture, config: PicturesConfig) -> _Read:
    """Return the frames that are taken of a file, and what is known of them."""
    if picture.fault:
        return _Read(codes=(picture.fault,))
    try:
        with open_clip(picture.file) as clip:
            info = clip.info
            if _MADE_BY.get(config.modality, info.modality) != info.modality != "":
                return _Read(codes=("OTHER_MODALITY",))
            n_frames = clip.count()
            taken = even_positions(n_frames, config.frames_per_clip)
            watched = sorted({*taken, *even_positions(n_frames, _WATCHED)})
            frames = {
                position: _part(_cut(frame, info.region), picture.box)
                for position, frame in zip(watched, clip.frames(watched), strict=True)
            }
            if clip.shows_flow() and _MADE_BY.get(config.modality) == "US":
                return _Read(codes=("COLOUR_FLOW",))
    except RefusedClipError as refused:
        return _Read(codes=(refused.code,))
    down, right = info.spacing_mm or (None, None)
    return _Read(
        codes=tuple(flag for flag in info.flags if ACTIONS[flag] == "fix")
        if frames
        else ("CLIP_EMPTY",),
        frames=tuple(frames[position] for position in taken),
        watched=tuple(frames.values()),
        about={
            "n_frames": n_frames,
            "frames_per_second": 1000 / info.frame_time_ms if info.frame_time_ms else None,
            "spacing_down_mm": down,
            "spacing_right_mm": right,
        },
    )


def _cut(frame: Frame, region: tuple[int, int, int, int] | None) -> Frame:
    """Return what lies in the tissue region: names and settings stand around it."""
    if region is None:
        return frame
    row0, row1, column0, column1 = region
    return np.ascontiguousarray(frame[row0:row1, column0:column1])


def _part(frame: Frame, box: tuple[float, ...] | None) -> Frame:
    """Return the part of a picture that the table names, by shares of its size."""
    if box is None:
        return frame
    rows, columns = frame.shape
    row0, row1 = round(box[0] * rows), round(box[1] * rows)
    column0, column1 = round(box[2] * columns), round(box[3] * columns)
    return np.ascontiguousarray(
        frame[row0 : max(row1, row0 + 1), column0 : max(column1, column0 + 1)]
    )


def _masks(
    frames: Sequence[Frame], config: PicturesConfig
) -> dict[tuple[int, ...], npt.NDArray[np.bool_] | None]:
    """Return size of a picture -> what of it is shown; None shows everything."""
    by_size: dict[tuple[int, ...], list[Frame]] = defaultdict(list)
    for frame in frames:
        by_size[frame.shape].append(frame)
    if config.show == "all":
        return dict.fromkeys(by_size)
    found = {s: tissue_mask(f, convex=config.show == "sector") for s, f in by_size.items()}
    return {s: np.zeros(s, bool) if mask is None else mask for s, mask in found.items()}


def _write_frame(item: _Item, picture: Picture, number: int, frame: Frame) -> dict[str, Any]:
    """Write one frame; return where it lies and what it is."""
    stem = f"sub-{picture.person}_ses-{picture.item}_run-{number:03d}"
    kind = item.config.modality
    path = f"sub-{picture.person}/ses-{picture.item}/{kind.lower()}/{stem}_{kind}.png"
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "PNG")
    write_atomic(item.work / path, stream.getvalue())
    return {
        "scan_id": f"{picture.person}_{picture.item}_{number:03d}",
        "path": path,
        "sha256": hashlib.sha256(frame.tobytes()).hexdigest(),
        "height": frame.shape[0],
        "width": frame.shape[1],
    }
