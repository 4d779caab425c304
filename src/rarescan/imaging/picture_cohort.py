"""What is written around the frames of a cohort of pictures, and the last look for leaks.

`write_tables` writes scans, metadata, events and counts; `require_no_leak` refuses what holds a
text of the source: names of files and folders, identities, texts of DICOM headers.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rarescan._version import VERSION
from rarescan.cohort.contracts import Condition, Scan
from rarescan.cohort.partition import PERHAPS, smallest_group
from rarescan.cohort.store import write_cohort, write_events, write_metadata
from rarescan.errors import InputError
from rarescan.files import write_atomic, write_json
from rarescan.imaging.bids import BIDS_VERSION
from rarescan.imaging.leaks import SHORTEST, Heads, leaks, own_words, texts_of
from rarescan.imaging.parse import limit_this_process
from rarescan.imaging.picture_table import Picture
from rarescan.imaging.reasons import count_codes
from rarescan.imaging.spec import PicturesConfig
from rarescan.processes import run_parallel

Taken = tuple[Picture, Mapping[str, Any]]
"""A picture, and one frame of it as it was written."""
_HEADER_BYTES = 4 << 20
_CHILD_MEMORY_MIB = 2048


def write_tables(
    work: Path,
    rows: Sequence[Taken],
    events: Sequence[Mapping[str, Any]],
    n_files: int,
    config: PicturesConfig,
) -> None:
    """Write the tables of a cohort whose frames lie under `work` already.

    Parameters
    ----------
    work : Path
        The cohort's folder.
    rows : sequence of (Picture, mapping)
        One a frame: `scan_id`, `path`, `sha256`, `width`, `height`, `n_frames`,
        `frames_per_second`, `spacing_down_mm`, `spacing_right_mm`, `perhaps`.
    events : sequence of mapping
        What was fixed, dropped or set apart.
    n_files : int
        Files that the table names.
    config : PicturesConfig
        Names and licence.
    """
    scans = [_scan(picture, frame, config) for picture, frame in rows]
    bad = Counter(str(e["action"]) for e in events if e["action"] != "fix")
    about = {
        "files": {
            "found": n_files,
            "used": len({(picture.person, picture.file) for picture, _ in rows}),
            "dropped": bad["drop"],
            "quarantined": bad["quarantine"],
        },
        **count_codes(str(event["code"]) for event in events),
        "persons": len({scan.person_id for scan in scans}),
        "smallest_group": smallest_group(scans),
        "scans": len(scans),
        "labels": list(config.labels),
        "licences": dict(sorted(Counter(scan.licence for scan in scans).items())),
        "versions": {"rarescan": VERSION, "numpy": np.__version__},
    }
    write_metadata(work, [_metadata(picture, frame) for picture, frame in rows])
    write_events(work, events)
    _write_texts(work, scans, config)
    write_cohort(work, scans=scans, grid=None, partition={}, about=about)


def _scan(picture: Picture, frame: Mapping[str, Any], config: PicturesConfig) -> Scan:
    flags = [f"probe_{picture.probe}"] if picture.probe else []
    if frame["perhaps"]:
        flags.append(f"{PERHAPS}{frame['perhaps']}")
    return Scan(
        scan_id=frame["scan_id"],
        person_id=picture.person,
        session=picture.item,
        modality=config.modality,
        unit=config.unit,
        origin=config.origin,
        path=frame["path"],
        sha256=frame["sha256"],
        condition=Condition(
            diagnosis=picture.diagnosis,
            age_years=picture.age_years,
            sex=picture.sex,
            site=picture.source,
            severity=picture.severity,
        ),
        target=picture.label,
        site=picture.source,
        licence=picture.licence,
        flags=tuple(flags),
    )


def _metadata(picture: Picture, frame: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a scan without looking at it; nothing of its label."""
    names = ("width", "height", "n_frames", "frames_per_second")
    known = {name: frame[name] for name in (*names, "spacing_down_mm", "spacing_right_mm")}
    words = {"source": picture.source or "", "probe": picture.probe, "plane": picture.plane}
    return {"scan_id": frame["scan_id"], **known, **words, **picture.numbers}


def _write_texts(work: Path, scans: Iterable[Scan], config: PicturesConfig) -> None:
    """Write the table of persons and what the folder is, as BIDS has them."""
    persons = {scan.person_id: scan for scan in scans}
    lines = ["participant_id\tage\tsex\tgroup\tsite"]
    for person, scan in sorted(persons.items()):
        c = scan.condition
        age = None if c.age_years is None else f"{c.age_years:g}"
        cells = (f"sub-{person}", age, c.sex, c.diagnosis, scan.site)
        lines.append("\t".join(cell or "n/a" for cell in cells))
    write_atomic(work / "participants.tsv", "\n".join(lines) + "\n")
    licences = sorted({scan.licence for scan in scans} - {""})
    about = {
        "Name": config.name,
        "BIDSVersion": BIDS_VERSION,
        "License": ", ".join(licences) or "not stated",
        "GeneratedBy": [{"Name": "rarescan", "Version": VERSION}],
    }
    write_json(work / "dataset_description.json", about)
    text = (
        f"# {config.name}\n\nPictures under pseudonyms, written by rarescan: one PNG a frame, a "
        "folder a clip, film or visit.\nThe folders are named as in BIDS, which has no rules for "
        "these pictures. `rarescan/` holds the tables:\nscans, what is known of each, and what was "
        "set apart and why.\n"
    )
    write_atomic(work / "README.md", text)


def require_no_leak(
    work: Path,
    source: Path,
    pictures: Sequence[Picture],
    config: PicturesConfig,
    *,
    workers: int | None,
) -> None:
    """Raise where a text of the source stands in what was written below `work`.

    Parameters
    ----------
    work : Path
        The finished cohort.
    source : Path
        Where the files lie: their names below it are searched, and the texts of DICOM headers.
    pictures : sequence of Picture
        What the table says of each file; its `secrets` are searched.
    config : PicturesConfig
        Words that were given for writing do not count.
    workers : int, optional
        Number of processes.

    Raises
    ------
    InputError
        There is such a text; the message does not repeat it.
    """
    files = sorted({picture.file for picture in pictures})
    tokens = {text for picture in pictures for text in picture.secrets}
    for path in files:
        below = path.relative_to(source) if path.is_relative_to(source) else path
        tokens |= {*below.parts[:-1], below.stem}
    found = run_parallel(
        _header_texts,
        [path for path in files if _is_dicom(path)],
        what="look for leaks",
        workers=workers,
        on_death=lambda _: set(),
    )
    tokens = {token for token in tokens.union(*found) if len(token) >= SHORTEST}
    heads: Heads = defaultdict(list)
    for token in tokens:
        heads[token[:SHORTEST]].append(token)
    ours = "\n".join((own_words(), *_given_words(pictures, config)))
    leaking = [path for path in _texts_below(work) if leaks(path, work, heads, ours)]
    if leaking:
        raise InputError(
            f"A text of the source would stand in {len(leaking)} of the files to be written, so "
            "nothing was written.",
            remedy="If a source, label or licence of the table repeats the name of a file or a "
            "text of the headers, use a neutral word there; otherwise this is a bug to report.",
        )


def _given_words(pictures: Iterable[Picture], config: PicturesConfig) -> set[str]:
    """Return what a human gave for writing; pseudonyms of a table without key are such words."""
    words = {config.name, config.licence, config.modality, *config.metadata}
    for p in pictures:
        words |= {p.person, p.label or "", p.diagnosis, p.plane, p.source or "", p.licence, p.probe}
    return words


def _texts_below(root: Path) -> Iterable[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file())


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _header_texts(path: Path) -> set[str]:
    """Return the texts of a DICOM file's header, in a child process."""
    limit_this_process(_CHILD_MEMORY_MIB)
    with path.open("rb") as stream:
        return texts_of(stream.read(_HEADER_BYTES))
