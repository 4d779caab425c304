"""Which echocardiograms a folder holds, under pseudonyms.

`list_clips` is the way in: EchoNet-Dynamic's format (`FileList.csv`) or any folder of DICOM files
and videos, with or without a table beside. Files are opened in limited child processes only; what
lies in the frames is read by `echo_frames`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rarescan.errors import InputError
from rarescan.imaging import identity
from rarescan.imaging.echonet import FILMS, Film, film_name, read_films
from rarescan.imaging.frames import ClipInfo, RefusedClipError, open_clip
from rarescan.imaging.header import Header
from rarescan.imaging.labels import sex_or_none
from rarescan.imaging.parse import limit_this_process, read_header
from rarescan.imaging.picture_table import read_rows
from rarescan.imaging.unpack import regular_files, require_source, source_id
from rarescan.processes import run_parallel

Said = Mapping[str, str]
"""Our word -> what a table says of one file."""

_log = logging.getLogger("rarescan")
CHILD_MEMORY_MIB, CHILD_CPU_SECONDS = 2048, 600
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VIDEOS = (".avi", ".mp4", ".mov", ".m4v", ".mpg", ".gif", ".dcm")
_NO_CLIPS = (".csv", ".md", ".json", ".txt")
_SOUND_SPACING_MM = (0.01, 10.0)


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A folder of echocardiograms, and what is told of its files."""

    folder: Path
    """With `FileList.csv`, or of DICOM files and videos."""
    table: str = ""
    """A CSV in the folder that tells of each file what its header does not."""
    columns: Mapping[str, str]
    """Our word (file, person, view, spacing_mm, sex) -> the table's column."""
    key_file: str = ""
    """Of the pseudonyms. Without one the names in `FileList.csv` are taken for pseudonyms, as
    EchoNet-Dynamic's are; other files always need one and take the usual key."""
    workers: int | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """What identifies the source in a recipe: its listing, and the key if one is used."""
        require_source(self.folder)
        inputs = {"source": source_id(self.folder)}
        if self.key_file or not (self.folder / FILMS).is_file():
            inputs["key"] = identity.fingerprint(identity.read_key(self.key_file))
        return inputs


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

    def as_row(self) -> dict[str, Any]:
        """Return what may be written of it, as plain values; what is unknown is None."""
        info, film = self.info, self.film
        down, right = self.spacing_mm or (None, None)
        known = ("rows", "columns", "n_frames", "frame_time_ms", "heart_rate_bpm")
        truth = {k: asdict(film)[k] for k in ("ef", "edv_ml", "esv_ml")} if film else {}
        return {
            **{name: getattr(self, name) for name in ("clip_id", "study_id", "person_id", "sex")},
            "view": self.view,
            "kind": info.kind if info else "unreadable",
            **{name: getattr(info, name) if info else None for name in known},
            "spacing_down_mm": down,
            "spacing_right_mm": right,
            "flags": sorted(
                {*(info.flags if info else ()), *([self.refused] * bool(self.refused))}
            ),
            "truth": {k: v if np.isfinite(v) else None for k, v in truth.items()} or None,
            "split": film.split if film else None,
        }


@dataclass(frozen=True)
class _Found:
    info: ClipInfo | None
    header: Header | None
    refused: str = ""


def list_clips(source: ClipSource) -> tuple[SourceClip, ...]:
    """Return the clips of a source in a fixed order, each under its pseudonyms.

    Raises
    ------
    InputError
        There is nothing to read, or a film of the table is missing.
    SettingError
        A key is needed and there is none.
    """
    require_source(source.folder)
    told = _table(source)
    if (source.folder / FILMS).is_file():
        return _films(source, told)
    names = [n for n in regular_files(source.folder) if not n.endswith(_NO_CLIPS)]
    paths = [source.folder / name for name in names]
    found = [
        (path, one)
        for path, one in zip(paths, _describe_all(paths, source.workers), strict=True)
        if one.info is not None or one.header is not None
    ]
    if not found:
        raise InputError(
            "The source holds no picture or clip that can be read.",
            remedy="Name a folder of DICOM clips or videos, or one with FileList.csv.",
        )
    if len(found) < len(names):
        _log.warning("%d files of the source are no pictures or clips", len(names) - len(found))
    key = identity.read_key(source.key_file)
    clips = []
    for number, (path, one) in enumerate(found, start=1):
        said = told.get(film_name(path.name), {})
        person, study = _identities(key, one, said, path)
        clips.append(_clip((f"C{number:04d}", study, person), path, one, said))
    return tuple(clips)


def _films(source: ClipSource, told: Mapping[str, Said]) -> tuple[SourceClip, ...]:
    films = read_films(source.folder)
    places = {film_name(name): source.folder / name for name in regular_files(source.folder)}
    missing = [number for number, name in enumerate(films, start=2) if name not in places]
    if missing:
        raise InputError(
            f"{len(missing)} films of {FILMS} are not in the source, first that of row "
            f"{missing[0]}.",
            remedy="Put the films into the folder, or take their rows out.",
        )
    paths = [_best(source.folder, name, places[name]) for name in films]
    key = identity.read_key(source.key_file) if source.key_file else None
    clips = []
    found = _describe_all(paths, source.workers)
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
    places = (source / "clips", source / "Videos", source)
    named = (folder / f"{name}{ending}" for folder in places for ending in _VIDEOS)
    return next((path for path in named if path.is_file()), found)


def _clip(ids: tuple[str, str, str], path: Path, one: _Found, said: Said) -> SourceClip:
    clip_id, study, person = ids
    info = one.info
    return SourceClip(
        clip_id=clip_id,
        study_id=study,
        person_id=person,
        path=path,
        info=info,
        refused="COLOUR_FLOW" if info and "COLOUR_FLOW" in info.flags else one.refused,
        view=said.get("view", "").lower() or None,
        spacing_mm=(info.spacing_mm if info else None) or _spacing(said.get("spacing_mm", "")),
        sex=sex_or_none(said.get("sex") or (one.header.sex if one.header else None)),
    )


def _spacing(text: str) -> tuple[float, float] | None:
    try:
        value = float(text)
    except ValueError:
        return None
    low, high = _SOUND_SPACING_MM
    return (value, value) if low < value < high else None


def _identities(key: bytes, one: _Found, said: Said, path: Path) -> tuple[str, str]:
    """Return the pseudonyms of person and study; a file that names nobody is its own person."""
    header = one.header
    patient = said.get("person") or (header.patient_id if header else None)
    issuer = header.issuer if header and not said.get("person") else None
    person = identity.person_id(key, issuer, patient or path.name)
    study = (header.study_uid if header else None) or person
    return person, "ST" + identity.token(key, "study", study)


def _describe_all(paths: Sequence[Path], workers: int | None) -> list[_Found]:
    return run_parallel(
        _describe,
        paths,
        what="read headers",
        workers=workers,
        on_death=lambda _: _Found(info=None, header=None, refused="CLIP_UNREADABLE"),
    )


def _describe(path: Path) -> _Found:
    """Return what a file says of itself; runs in a child process."""
    limit_this_process(CHILD_MEMORY_MIB, cpu_seconds=CHILD_CPU_SECONDS)
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


def _table(source: ClipSource) -> dict[str, Said]:
    """Return what the table beside the films says of each: name -> our word -> text."""
    path = source.folder / source.table
    if not source.table or not path.is_file():
        return {}
    file = source.columns.get("file", "file")
    return {
        film_name(row[file]): {
            ours: row[theirs] for ours, theirs in source.columns.items() if theirs in row
        }
        for row in read_rows(path)
        if file in row
    }
