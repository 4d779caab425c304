"""NIfTI files that are there already, as a cohort like the one that ingest writes.

`adopt_table` takes a folder with a table, `adopt_bids` a BIDS dataset. Files are read and checked
in child processes with limits and written anew, without the texts of their headers. What cannot
be used becomes an event; nothing is skipped silently.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from rarescan._version import VERSION
from rarescan.cohort.contracts import Condition, Scan
from rarescan.cohort.partition import smallest_group
from rarescan.cohort.store import write_cohort, write_events
from rarescan.errors import InputError, RarescanError, SettingError, nearest
from rarescan.files import Recipe, content_id, read_json, run_step, sha256_file, write_json
from rarescan.imaging import identity
from rarescan.imaging.bids import scan_stem, write_image, write_raw
from rarescan.imaging.labels import number_or_none, read_table, sex_or_none
from rarescan.imaging.parse import limit_this_process
from rarescan.imaging.persons import (
    fingerprint,
    read_erased,
    with_erased,
    write_erased,
)
from rarescan.imaging.reasons import count_codes
from rarescan.imaging.spec import AdoptConfig
from rarescan.processes import run_parallel

SCHEMA = 1
_CHILD_MEMORY_MIB = 4096
_SMALLEST_MM, _LARGEST_MM = 0.2, 10.0

Row = dict[str, str]


class _UnusableError(Exception):
    """A file that cannot be used; the message is a reason code."""


def adopt_table(
    source: Path,
    folder: Path,
    config: AdoptConfig,
    *,
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Return `folder`, filled with the cohort that a table in `source` describes.

    Parameters
    ----------
    source : Path
        Folder with NIfTI files.
    folder : Path
        Where the cohort goes.
    config : AdoptConfig
        The table, its columns, and what was done to the scans before.
    workers : int, optional
        Number of processes; all cores by default.
    overwrite : bool
        Replace another result.

    Raises
    ------
    SettingError
        The table is missing or lacks a column.
    InputError
        No row is selected, or no file of it can be used.
    """
    if not config.table:
        raise SettingError("No table is named.", remedy="Set adopt.table to the CSV of the scans.")
    rows = _selected(read_table(source / config.table), config)
    return _adopt(source, folder, config, rows, workers=workers, overwrite=overwrite)


def adopt_bids(
    source: Path,
    folder: Path,
    config: AdoptConfig,
    *,
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Return `folder`, filled with the T1 scans of a BIDS dataset.

    One scan a session: the first `*_T1w.nii[.gz]` by name. `participants.tsv` needs a column
    `diagnosis` or `group`, or one that `config.columns` names. What `sub-*/sub-*_sessions.tsv`
    says of a session wins (as Clinica converts ADNI, NIFD and GENFI). A session whose diagnosis
    is not that of the person's first one is set apart: a person has one diagnosis.

    Parameters and errors are those of `adopt_table`.
    """
    people = {row["participant_id"]: row for row in read_table(source / "participants.tsv")}
    images: dict[tuple[str, str], Path] = {}
    for path in sorted(source.glob("sub-*/**/anat/*_T1w.nii*")):
        parts = dict(p.partition("-")[::2] for p in path.name.split("_")[:-1])
        images.setdefault((parts["sub"], parts.get("ses", "01")), path)
    visits = _visits(source, {subject for subject, _ in images})
    present = {*next(iter(people.values()), {}), *next(iter(visits.values()), {})}
    columns = dict(config.columns)
    for ours, theirs in (("diagnosis", "group"), ("age_years", "age")):
        if (
            ours not in columns
            and ours not in present
            and (theirs in present or ours == "diagnosis")
        ):
            columns[ours] = theirs
    rows = []
    for (subject, session), path in images.items():
        place = {"file": str(path.relative_to(source)), "person": subject, "session": session}
        visit = visits.get((subject, session), {})
        said = {name: value for name, value in visit.items() if value}
        rows.append(dict.fromkeys(present, "") | people.get(f"sub-{subject}", {}) | said | place)
    named = replace(config, columns=columns)
    return _adopt(
        source, folder, named, _selected(rows, named), workers=workers, overwrite=overwrite
    )


def _visits(source: Path, subjects: Iterable[str]) -> dict[tuple[str, str], Row]:
    """Return (subject, session) -> its row of the subject's table of sessions, where there is one.

    All rows have the columns of all tables.
    """
    visits = {
        (subject, row.get("session_id", "").removeprefix("ses-")): row
        for subject in sorted(subjects)
        if (path := source / f"sub-{subject}" / f"sub-{subject}_sessions.tsv").exists()
        for row in read_table(path)
    }
    columns = {name for row in visits.values() for name in row} - {"session_id", "file", "person"}
    return {place: {c: row.get(c, "") for c in columns} for place, row in visits.items()}


def _selected(table: Sequence[Row], config: AdoptConfig) -> list[Row]:
    """Return the rows that the filter keeps, under our column names."""
    present = list(table[0]) if table else []
    names = {ours: config.columns.get(ours, ours) for ours in ("file", "person", "diagnosis")}
    for column in (*names.values(), *config.columns.values(), *config.where):
        if table and column not in present:
            raise SettingError(
                f"The table has no column '{column}'.",
                remedy=f"Correct adopt.columns or adopt.where. {nearest(column, present)}",
            )
    kept = [r for r in table if all(r[column] == value for column, value in config.where.items())]
    if not kept:
        raise InputError(
            f"None of {len(table)} scans in the table is selected.",
            remedy="Check adopt.where, and that the table is the right one.",
        )
    return [row | {ours: row[theirs] for ours, theirs in config.columns.items()} for row in kept]


@dataclass(frozen=True, kw_only=True)
class _Item:
    """What a worker needs to take over one file."""

    work: Path
    source: Path
    scan: Scan
    first_diagnosis: str
    """Of the person's first session."""


def _adopt(
    source: Path,
    folder: Path,
    config: AdoptConfig,
    rows: Sequence[Row],
    *,
    workers: int | None,
    overwrite: bool,
) -> Path:
    key = identity.read_key(config.key_file) if config.key_file else None
    paths = [source / row["file"] for row in rows]
    sizes = [
        (row, p.stat().st_size if p.is_file() else -1) for row, p in zip(rows, paths, strict=True)
    ]
    erased = read_erased(folder)
    recipe = Recipe(
        step="ingest",
        schema=SCHEMA,
        config={"already": config.already, "licence": config.licence, "name": config.name},
        inputs={
            "table": content_id(sizes),
            "key": identity.fingerprint(key) if key else "none",
        },
    )
    recipe = with_erased(recipe, erased)

    def build(work: Path) -> None:
        work.chmod(0o700)
        try:
            scans = _scans(rows, config, key)
            found = [
                pair
                for pair in zip(paths, scans, strict=True)
                if fingerprint(pair[1].person_id) not in erased
            ]
            _fill(work, [p for p, _ in found], [s for _, s in found], config, workers)
            write_erased(work, erased)
        except RarescanError:
            shutil.rmtree(work)
            raise

    return run_step(folder, recipe, build, overwrite=overwrite)


def _scans(rows: Sequence[Row], config: AdoptConfig, key: bytes | None) -> list[Scan]:
    """Return one scan a row, its files not read yet."""
    scans = []
    for row in rows:
        person = (
            identity.person_id(key, None, row["person"])
            if key
            else re.sub(r"[^A-Za-z0-9]", "", row["person"].removeprefix("sub-"))
        )
        session = re.sub(r"[^A-Za-z0-9]", "", row.get("session", "").removeprefix("ses-")) or "01"
        condition = Condition(
            diagnosis=row["diagnosis"],
            age_years=identity.shown_age(number_or_none(row.get("age_years"))),
            sex=sex_or_none(row.get("sex")),
            site=row.get("site") or None,
        )
        scans.append(
            Scan(
                scan_id=f"{person}_ses-{session}",
                person_id=person,
                session=session,
                path=f"{scan_stem(person, session)}.nii.gz",
                condition=condition,
                target=condition.diagnosis,
                site=condition.site,
                licence=row.get("licence") or config.licence,
                flags=tuple(config.already),
            )
        )
    return scans


def _fill(
    work: Path,
    paths: Sequence[Path],
    scans: Sequence[Scan],
    config: AdoptConfig,
    workers: int | None,
) -> None:
    twice = [name for name, n in Counter(scan.scan_id for scan in scans).items() if n > 1]
    if twice:
        raise InputError(
            f"{len(twice)} scans stand in the table more than once, first {min(twice)}.",
            remedy="Keep one row a person and session, or add a column `session`.",
        )
    first = _first_diagnoses(scans)
    items = [
        _Item(work=work, source=p, scan=s, first_diagnosis=first[s.person_id])
        for p, s in zip(paths, scans, strict=True)
    ]
    done = run_parallel(
        _take_over,
        items,
        what="adopt scans",
        workers=workers,
        on_death=lambda _: {"code": "UNREADABLE", "sha256": ""},
    )
    kept = [
        replace(scan, sha256=result["sha256"])
        for scan, result in zip(scans, done, strict=True)
        if not result["code"]
    ]
    events = [
        {
            "stack_id": "",
            "person_id": s.person_id,
            "code": r["code"],
            "action": "quarantine",
            "n_files": 1,
        }
        for s, r in zip(scans, done, strict=True)
        if r["code"]
    ]
    if not kept:
        codes = ", ".join(f"{n} x {c}" for c, n in Counter(e["code"] for e in events).items())
        raise InputError(
            f"None of {len(scans)} files can be used: {codes}.",
            remedy="Check that the table names whole NIfTI volumes with three dimensions.",
        )
    write_raw(work, scans=kept, acquired={}, name=config.name, licence=config.licence)
    write_events(work, events)
    about = {
        "files": {"found": len(scans), "used": len(kept), "dropped": 0, "quarantined": len(events)},
        **count_codes(str(e["code"]) for e in events),
        "persons": len({scan.person_id for scan in kept}),
        "smallest_group": smallest_group(kept),
        "scans": len(kept),
        "faces": "stripped" not in config.already,
        "versions": {"rarescan": VERSION, "nibabel": nib.__version__, "numpy": np.__version__},
    }
    write_cohort(work, scans=kept, grid=None, partition={}, about=about)


def _first_diagnoses(scans: Iterable[Scan]) -> dict[str, str]:
    """Return person -> the diagnosis of the first session that has one (by its label)."""
    first: dict[str, str] = {}
    for scan in sorted(scans, key=lambda s: s.session):
        first[scan.person_id] = first.get(scan.person_id) or scan.condition.diagnosis
    return first


def _take_over(item: _Item) -> Mapping[str, str]:
    """Check one file and write it anew; return its hash, or the reason against it."""
    limit_this_process(_CHILD_MEMORY_MIB, writes=True)
    image = item.work / item.scan.path
    beside = image.with_name(image.name.replace(".nii.gz", ".json"))
    if not item.scan.condition.diagnosis:
        return {"code": "UNLABELLED", "sha256": ""}
    if item.scan.condition.diagnosis != item.first_diagnosis:
        return {"code": "DIAGNOSIS_CHANGES", "sha256": ""}
    if beside.exists():
        return {"code": "", "sha256": str(read_json(beside)["VoxelSHA256"])}
    try:
        voxels, affine, slope, intercept = _read(item.source)
    except _UnusableError as fault:
        return {"code": str(fault), "sha256": ""}
    digest = write_image(image, voxels, affine, slope=slope, intercept=intercept)
    about = {"SkullStripped": "stripped" in item.scan.flags, "VoxelSHA256": digest}
    write_json(beside, {**about, "SourceSHA256": sha256_file(item.source)})
    return {"code": "", "sha256": digest}


def _read(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float, float]:
    """Return stored voxels, affine, slope and intercept of a sound volume."""
    if not path.is_file():
        raise _UnusableError("FILE_MISSING")
    load: Any = nib.Nifti1Image.from_filename
    try:
        image = load(path)
        stored = np.asarray(image.dataobj.get_unscaled())
        affine = np.asarray(image.affine, dtype=np.float64)
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    except Exception:  # nibabel fails on hostile bytes with any exception
        raise _UnusableError("UNREADABLE") from None
    if stored.ndim > 3:
        stored = stored.reshape([n for n in stored.shape if n > 1])
    if stored.ndim != 3 or min(stored.shape) < 2:
        raise _UnusableError("NOT_3D")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not _sane(spacing, affine):
        raise _UnusableError("AFFINE_INVALID")
    if stored.dtype.newbyteorder("=") not in (np.uint8, np.int16):
        stored = stored.astype(np.float32)
    if not np.isfinite(stored).all() or stored.min() == stored.max():
        raise _UnusableError("PIXELS_DEAD")
    return stored.astype(stored.dtype.newbyteorder("="), copy=False), affine, slope, intercept


def _sane(spacing: np.ndarray[Any, Any], affine: np.ndarray[Any, Any]) -> bool:
    """Return whether voxels have a plausible size and axes near a right angle."""
    plausible = bool((spacing >= _SMALLEST_MM).all() and (spacing <= _LARGEST_MM).all())
    return plausible and abs(np.linalg.det(affine[:3, :3] / spacing)) > 0.9
