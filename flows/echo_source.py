"""Which echocardiograms a folder holds, under pseudonyms, and their frames.

`list_clips` is the way in: EchoNet-Dynamic's format (`FileList.csv`) or any folder of DICOM files,
with or without a table beside. `decode` brings a clip's frames to a file, `read_frames` single ones
to memory. Files are opened in limited child processes only.
"""

import csv
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rarescan.classifiers.echo_spec import EchoConfig
from rarescan.classifiers.echo_tracings import FILMS, Film, film_name, read_films
from rarescan.cohort.store import new_array
from rarescan.errors import InputError
from rarescan.imaging import identity
from rarescan.imaging.frames import Clip, ClipInfo, RefusedClipError, even_positions, open_clip
from rarescan.imaging.header import Header
from rarescan.imaging.parse import limit_this_process, read_header
from rarescan.imaging.tissue import tissue_mask
from rarescan.imaging.unpack import regular_files, require_source, source_id
from rarescan.processes import run_parallel

Frames = npt.NDArray[np.uint8]

_log = logging.getLogger("rarescan")
_CHILD_MEMORY_MIB, _CHILD_CPU_SECONDS = 2048, 600
_TISSUE_FRAMES = 10
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ENDINGS = (".avi", ".mp4", ".mov", ".m4v", ".mpg", ".gif", ".dcm", "")


@dataclass(frozen=True, kw_only=True)
class SourceClip:
    """One clip of a source; `path` stays in memory and is never written."""

    clip_id: str
    study_id: str
    person_id: str
    path: Path
    info: ClipInfo | None
    """None where it cannot be read; `refused` says why."""
    refused: str = ""
    view: str | None = None
    spacing_mm: tuple[float, float] | None = None
    sex: str | None = None
    film: Film | None = None
    """The row of `FileList.csv`."""


@dataclass(frozen=True)
class _Found:
    info: ClipInfo | None
    header: Header | None
    refused: str = ""


def list_clips(
    source: Path, config: EchoConfig, *, workers: int | None = None
) -> tuple[SourceClip, ...]:
    """Return the clips of a source in a fixed order, each under its pseudonyms.

    Parameters
    ----------
    source : Path
        A folder with `FileList.csv`, or of DICOM files and videos.
    config : EchoConfig
        Names the table and its columns, and the key. Without a key the names in `FileList.csv`
        are taken for pseudonyms, as EchoNet-Dynamic's are; DICOM files always need one.
    workers : int, optional
        Number of processes.

    Raises
    ------
    InputError
        There is nothing to read, or a film of the table is missing.
    SettingError
        A key is needed and there is none.
    """
    require_source(source)
    told = _table(source, config)
    if (source / FILMS).is_file():
        return _films(source, config, told, workers)
    names = [n for n in regular_files(source) if not n.endswith((".csv", ".md", ".json", ".txt"))]
    found = _describe_all([source / name for name in names], workers)
    readable = [
        (source / name, one) for name, one in zip(names, found, strict=True) if _is_clip(one)
    ]
    if not readable:
        raise InputError(
            "The source holds no picture or clip that can be read.",
            remedy="Name a folder of DICOM clips or videos, or one with FileList.csv.",
        )
    if len(readable) < len(names):
        _log.warning("%d files of the source are no pictures or clips", len(names) - len(readable))
    key = identity.read_key(config.key_file)
    clips = []
    for number, (path, one) in enumerate(readable, start=1):
        said = told.get(film_name(path.name), {})
        person, study = _identities(key, one, said, path)
        clips.append(_clip((f"C{number:04d}", study, person), path, one, said))
    return tuple(clips)


def source_inputs(source: Path, config: EchoConfig) -> dict[str, str]:
    """Return what identifies a source in a recipe: its listing, and the key if one is used."""
    require_source(source)
    inputs = {"source": source_id(source)}
    if config.key_file or not (source / FILMS).is_file():
        inputs["key"] = identity.fingerprint(identity.read_key(config.key_file))
    return inputs


def decode(clip: SourceClip, folder: Path) -> str:
    """Write a clip's frames to `<clip_id>.frames.npy`, uint8 (frames, rows, columns).

    Only tissue is written, the rest is black, so that no text of the screen comes along. Runs in a
    child process. Returns the reason code where the clip cannot be decoded, else an empty text.
    """
    limit_this_process(_CHILD_MEMORY_MIB, cpu_seconds=_CHILD_CPU_SECONDS, writes=True)
    if clip.refused:
        return clip.refused
    try:
        with open_clip(clip.path) as opened:
            count = opened.count()
            seen = _seen(opened, count)
            frames = new_array(
                folder / f"{clip.clip_id}.frames.npy", np.uint8, (count, *seen.tissue.shape)
            )
            for position, frame in enumerate(opened.frames()):
                frames[position] = seen.cut(frame)
            frames.flush()
    except RefusedClipError as error:
        return error.code
    return ""


def decode_frames(wanted: tuple[SourceClip, Sequence[int]]) -> Frames | None:
    """Return a clip's frames at ascending positions, uint8 (n, rows, columns); None where refused.

    Runs in a child process.
    """
    limit_this_process(_CHILD_MEMORY_MIB, cpu_seconds=_CHILD_CPU_SECONDS)
    clip, positions = wanted
    try:
        with open_clip(clip.path) as opened:
            seen = _seen(opened, opened.count())
            return np.stack([seen.cut(frame) for frame in opened.frames(positions)])
    except RefusedClipError:
        return None


def read_even(clip: SourceClip, n_frames: int) -> Frames | None:
    """Return evenly spaced frames of a clip, uint8 (n, rows, columns); None where refused."""
    wanted = [(clip, n_frames)]
    return run_parallel(_decode_even, wanted, what="read frames", workers=1, on_death=_no_frames)[0]


def read_frames(
    wanted: Sequence[tuple[SourceClip, Sequence[int]]], *, workers: int | None = None
) -> list[Frames | None]:
    """Return the frames of `decode_frames` for several clips, read in child processes."""
    return run_parallel(
        decode_frames, wanted, what="read frames", workers=workers, on_death=_no_frames
    )


def _decode_even(wanted: tuple[SourceClip, int]) -> Frames | None:
    clip, n_frames = wanted
    try:
        with open_clip(clip.path) as opened:
            positions = even_positions(opened.count(), n_frames)
    except RefusedClipError:
        return None
    return decode_frames((clip, positions))


def _no_frames(_wanted: tuple[SourceClip, object]) -> None:
    return None


@dataclass(frozen=True)
class _Seen:
    """Where in the frames of a clip tissue is seen."""

    rows: slice
    columns: slice
    tissue: npt.NDArray[np.bool_]
    """Of the pixels in these rows and columns."""

    def cut(self, frame: Frames) -> Frames:
        """Return the region of a frame, black where no tissue is."""
        return np.where(self.tissue, frame[self.rows, self.columns], 0).astype(np.uint8)


def _seen(clip: Clip, count: int) -> _Seen:
    """Find the tissue: the region that the header tells, and the probe's field inside it."""
    info = clip.info
    top, bottom, left, right = info.region or (0, info.rows, 0, info.columns)
    rows, columns = slice(top, bottom), slice(left, right)
    looks = clip.frames(even_positions(count, _TISSUE_FRAMES))
    tissue = tissue_mask([frame[rows, columns] for frame in looks], convex=True)
    if tissue is None:
        raise RefusedClipError("PIXELS_DEAD")
    return _Seen(rows, columns, tissue)


def _films(
    source: Path, config: EchoConfig, told: dict[str, dict[str, str]], workers: int | None
) -> tuple[SourceClip, ...]:
    films = read_films(source)
    places = {film_name(name): source / name for name in regular_files(source)}
    missing = [number for number, name in enumerate(films, start=1) if name not in places]
    if missing:
        raise InputError(
            f"{len(missing)} films of {FILMS} are not in the source, first that of row "
            f"{missing[0] + 1}.",
            remedy="Put the films into the folder, or take their rows out.",
        )
    paths = [_best(source, name, places[name]) for name in films]
    key = identity.read_key(config.key_file) if config.key_file else None
    clips = []
    found = _describe_all(paths, workers)
    for number, (film, path, one) in enumerate(zip(films.values(), paths, found, strict=True), 1):
        said = told.get(film.name, {})
        person = said.get("person") or film.name
        plain = key is None and _PLAIN.fullmatch(film.name) and _PLAIN.fullmatch(person)
        if key is not None:
            person = identity.person_id(key, None, person)
        elif not plain:
            raise InputError(
                f"Row {number + 1} of {FILMS} holds a name that is no pseudonym.",
                remedy="Name the file of the pseudonym key with --key (`rarescan key new`).",
            )
        name = film.name if plain else f"C{number:04d}"
        clips.append(replace(_clip((name, person, person), path, one, said), film=film))
    return tuple(clips)


def _best(source: Path, name: str, found: Path) -> Path:
    """Return the film itself where other files (pictures of it) have its name."""
    for folder in (source / "clips", source / "Videos", source):
        for ending in _ENDINGS:
            if ending and (path := folder / f"{name}{ending}").is_file():
                return path
    return found


def _clip(ids: tuple[str, str, str], path: Path, one: _Found, said: dict[str, str]) -> SourceClip:
    clip_id, study, person = ids
    info = one.info
    spacing = info.spacing_mm if info else None
    sex = (said.get("sex") or (one.header.sex if one.header else None) or "").upper()[:1]
    return SourceClip(
        clip_id=clip_id,
        study_id=study,
        person_id=person,
        path=path,
        info=info,
        refused="COLOUR_FLOW" if info and "COLOUR_FLOW" in info.flags else one.refused,
        view=(said.get("view") or "").strip().lower() or None,
        spacing_mm=spacing or _spacing(said.get("spacing_mm", "")),
        sex=sex if sex in ("M", "F") else None,
    )


def _spacing(text: str) -> tuple[float, float] | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return (value, value) if 0.01 < value < 10 else None


def _identities(key: bytes, one: _Found, said: dict[str, str], path: Path) -> tuple[str, str]:
    """Return the pseudonyms of person and study; a file that names nobody is its own person."""
    header = one.header
    patient = said.get("person") or (header.patient_id if header else None)
    issuer = header.issuer if header and not said.get("person") else None
    person = identity.person_id(key, issuer, patient or path.name)
    study = (header.study_uid if header else None) or person
    return person, "ST" + identity.token(key, "study", study)


def _is_clip(one: _Found) -> bool:
    return one.info is not None or one.header is not None


def _describe_all(paths: Sequence[Path], workers: int | None) -> list[_Found]:
    return run_parallel(_describe, paths, what="read headers", workers=workers, on_death=_died)


def _describe(path: Path) -> _Found:
    """Return what a file says of itself; runs in a child process."""
    limit_this_process(_CHILD_MEMORY_MIB, cpu_seconds=_CHILD_CPU_SECONDS)
    header: Header | str = "NOT_DICOM"
    with path.open("rb") as stream:
        head = stream.read(132)
        if head[128:] == b"DICM":
            stream.seek(0)
            header = read_header(stream.read())
    known = header if isinstance(header, Header) else None
    try:
        with open_clip(path) as clip:
            return _Found(info=clip.info, header=known)
    except RefusedClipError as error:
        return _Found(info=None, header=known, refused=error.code)


def _died(_path: Path) -> _Found:
    return _Found(info=None, header=None, refused="CLIP_UNREADABLE")


def _table(source: Path, config: EchoConfig) -> dict[str, dict[str, str]]:
    """Return what the table beside the films says of each: name -> our word -> text."""
    path = source / config.table
    if not config.table or not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows: list[dict[Any, Any]] = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error):
        rows = [{}]
    if any(None in row or None in row.values() for row in rows) or rows == [{}]:
        raise InputError(
            f"{path.name} is no table: rows are longer or shorter than its header.",
            remedy="Look for unquoted commas, and write it as UTF-8.",
        )
    file = config.columns.get("file", "file")
    return {
        film_name(row[file]): {
            ours: row[theirs].strip() for ours, theirs in config.columns.items() if theirs in row
        }
        for row in rows
        if file in row
    }
