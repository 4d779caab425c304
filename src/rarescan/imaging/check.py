"""What the BIDS validator does not see: `check_bids` lists it for a data set that we wrote.

The validator lets times in milliseconds, ages above 90, real dates, persons who are not in the
table and damaged voxels pass. Headers and tables are looked at whenever a data set is written
(`require_sound`); reading the voxels too is for tests and audits.
"""

import csv
import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from rarescan.errors import InputError
from rarescan.files import read_json

_LONGEST_SECONDS = {"RepetitionTime": 20.0, "EchoTime": 0.5, "InversionTime": 10.0}
_OLDEST_AGE = 90
_FIRST_REAL_YEAR = 1925
"""BIDS asks for shifted dates before this year."""
_SYNTHETIC = "sub-SYN"
_DATE = re.compile(r"(?<!\d)(\d{4})-\d\d-\d\d")
_DATE_KEY = re.compile(r"(Date|DateTime|^AcquisitionTime)$")
_DAMAGED = (ImageFileError, OSError, EOFError, ValueError, zlib.error)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a data set."""

    code: str
    path: str
    """Relative to the data set."""


def require_sound(root: Path) -> None:
    """Raise where tables or headers of a data set are wrong.

    Raises
    ------
    InputError
        Names the first problems; all of them stand in `check_bids`.
    """
    problems = check_bids(root)
    if problems:
        named = ", ".join(f"{p.code} ({p.path})" for p in problems[:3])
        raise InputError(
            f"The data set would not be sound in {len(problems)} places: {named}.",
            remedy="Correct the source or its table (ages in years, names of persons, images).",
        )


def check_bids(root: Path, *, voxels: bool = False) -> list[Problem]:
    """Return what is wrong with a BIDS data set, beyond what the BIDS validator finds.

    Parameters
    ----------
    root : Path
        A raw data set of real scans or a derivative of synthetic ones.
    voxels : bool
        Also read every voxel and compare it with the hash in the sidecar.

    Returns
    -------
    list of Problem
        `NO_DESCRIPTION`, `PARTICIPANTS`, `AGE`, `DATE`, `TIME_UNIT`, `SYNTHETIC_IN_RAW`,
        `REAL_IN_SYNTHETIC`, `HEADER`, `SIDECAR`, `VOXELS`; empty where all is well.
    """
    try:
        kind = read_json(root / "dataset_description.json")["DatasetType"]
    except (OSError, ValueError, KeyError):
        return [Problem(code="NO_DESCRIPTION", path="dataset_description.json")]
    images = sorted(root.glob("sub-*/**/anat/*_T1w.nii.gz"))
    found = [*_persons(root, images), *_dates(root)]
    for image in images:
        path = image.relative_to(root).as_posix()
        codes = [*_header(image), *_sidecar(image, kind)]
        codes += _voxels(image) if voxels and not codes else []
        found += [Problem(code=code, path=path) for code in codes]
    return found


def _persons(root: Path, images: list[Path]) -> Iterator[Problem]:
    """Compare the table of persons with the folders, and look at the ages."""
    table = "participants.tsv"
    rows = _rows(root / table) if (root / table).exists() else []
    named = [row.get("participant_id", "") for row in rows]
    with_image = {image.relative_to(root).parts[0] for image in images}
    if sorted(named) != sorted({p.name for p in root.glob("sub-*")} | with_image):
        yield Problem(code="PARTICIPANTS", path=table)
    for row in rows:
        if not _is_age(row.get("age", "n/a")):
            yield Problem(code="AGE", path=f"{table}: {row.get('participant_id')}")
        if row.get("participant_id") not in with_image:
            yield Problem(code="PARTICIPANTS", path=f"{row.get('participant_id')}")


def _is_age(cell: str) -> bool:
    try:
        return cell == "n/a" or 0 <= float(cell) <= _OLDEST_AGE
    except ValueError:
        return False


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def _dates(root: Path) -> Iterator[Problem]:
    for path in sorted(root.glob("sub-*/**/*.tsv")):
        if any(int(year) >= _FIRST_REAL_YEAR for year in _DATE.findall(path.read_text())):
            yield Problem(code="DATE", path=path.relative_to(root).as_posix())


def _header(image: Path) -> list[str]:
    """Look at what says where voxels lie; nothing of them is read."""
    try:
        header: Any = nib.load(image).header
        affine = header.get_best_affine()
    except _DAMAGED:
        return ["HEADER"]
    placed = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-6
    sound = len(header.get_data_shape()) == 3 and header.get_xyzt_units()[0] == "mm" and placed
    silent = not any(bytes(header[name]).strip(b"\0") for name in ("descrip", "aux_file"))
    return [] if sound and silent else ["HEADER"]


def _sidecar(image: Path, kind: str) -> list[str]:
    try:
        beside = read_json(image.with_name(image.name.replace(".nii.gz", ".json")))
    except (OSError, ValueError):
        return ["SIDECAR"]
    synthetic = image.name.startswith(_SYNTHETIC) or beside.get("Synthetic") is True
    claimed = image.name.startswith(_SYNTHETIC) and beside.get("Synthetic") is True
    codes = []
    if any(beside.get(name, 0) > limit for name, limit in _LONGEST_SECONDS.items()):
        codes.append("TIME_UNIT")
    if any(_DATE_KEY.search(name) for name in beside):
        codes.append("DATE")
    if kind == "raw" and synthetic:
        codes.append("SYNTHETIC_IN_RAW")
    if kind == "derivative" and not claimed:
        codes.append("REAL_IN_SYNTHETIC")
    return codes


def _voxels(image: Path) -> list[str]:
    try:
        loaded: Any = nib.load(image)
        values = np.asanyarray(loaded.dataobj.get_unscaled())
    except _DAMAGED:
        return ["VOXELS"]
    beside = read_json(image.with_name(image.name.replace(".nii.gz", ".json")))
    digest = hashlib.sha256(values.tobytes(order="F")).hexdigest()
    return [] if beside.get("VoxelSHA256", digest) == digest else ["VOXELS"]
