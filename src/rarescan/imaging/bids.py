"""BIDS out: a raw data set of real scans, a derivative of synthetic ones.

`write_image` writes one NIfTI file, `write_raw` the tables around native scans,
`write_derivative` a whole synthetic batch. Files have the same bytes for the same voxels: no time
stamp, no name and no text in any header.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip

from rarescan._version import VERSION
from rarescan.cohort.contracts import Grid, Scan
from rarescan.cohort.store import VOLUMES, tables
from rarescan.files import read_json, write_atomic, write_json
from rarescan.imaging.check import require_sound
from rarescan.processes import run_parallel

Voxels = npt.NDArray[np.generic]
Affine = npt.NDArray[np.float64]

BIDS_VERSION = "1.10.1"
TEMPLATE_SPACE = "MNI152NLin2009aSym"
_TEMPLATE_URL = "https://nist.mni.mcgill.ca/icbm-152-nonlinear-atlases-2009/"
_IGNORED = "/rarescan\n/recipe.json\n/recipe.unfinished.json\n/batch.json\n/model\n/DATASHEET.md\n"
_CODES = {"scanner": 1, "template": 4}
_empty_header: Any = nib.Nifti1Header
_unpack: Any = igzip.decompress
_SYNTHETIC_SLOPE = np.float32(1 / 32767)


def scan_stem(person: str, session: str) -> str:
    """Return where a raw T1 lies, relative to the data set and without its suffix."""
    return f"sub-{person}/ses-{session}/anat/sub-{person}_ses-{session}_T1w"


def _header(shape: Sequence[int], dtype: np.dtype[Any], affine: Affine) -> Any:
    """Return a NIfTI header with geometry and no text; units mm."""
    header = _empty_header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_xyzt_units("mm", "sec")
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return header


def write_image(
    path: Path,
    voxels: Voxels,
    affine: Affine,
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
    space: Literal["scanner", "template"] = "scanner",
) -> str:
    """Write one NIfTI file, whole or not at all, and return the SHA-256 of its voxels.

    Parameters
    ----------
    path : Path
        Ends in `.nii.gz`.
    voxels : array, shape (x, y, z)
        uint8, int16 or float32, written as they are.
    affine : float64 array, shape (4, 4)
        Voxel index -> RAS mm.
    slope, intercept : float
        A stored value v stands for `slope * v + intercept`.
    space : str
        What the affine leads to: the scanner's coordinates or the template's.
    """
    header = _header(voxels.shape, voxels.dtype, affine)
    header.set_slope_inter(slope, intercept)
    header.set_sform(affine, _CODES[space])
    # A sheared affine has no quaternion; no accepted scan is sheared beyond rounding.
    header.set_qform(affine, _CODES[space], strip_shears=True)
    block = voxels.tobytes(order="F")
    packed = igzip.compress(header.binaryblock + bytes(4) + block, 3, mtime=0)
    if _unpack(packed)[352:] != block:
        raise OSError(f"{path.name} does not hold the voxels that it should")
    write_atomic(path, packed)
    return hashlib.sha256(block).hexdigest()


def write_raw(
    root: Path,
    *,
    scans: Sequence[Scan],
    acquired: Mapping[str, str],
    name: str,
    licence: str,
) -> None:
    """Write the tables around native scans that lie at `Scan.path` under `root` already.

    Parameters
    ----------
    root : Path
        The data set's folder.
    scans : sequence of Scan
        One or more a person.
    acquired : mapping
        scan_id -> shifted day (YYYY-MM-DD), where it is known.
    name, licence : str
        For `dataset_description.json`.

    Raises
    ------
    InputError
        The data set would not be sound (see `check`).
    """
    by_person: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        by_person[scan.person_id].append(scan)
    for person, own in by_person.items():
        times = {s.scan_id: f"{acquired[s.scan_id]}T00:00:00" for s in own if s.scan_id in acquired}
        folder = root / f"sub-{person}"
        rows = [(f"ses-{s.session}", times.get(s.scan_id)) for s in own]
        _write_table(folder / f"sub-{person}_sessions.tsv", ("session_id", "acq_time"), rows)
        for s in own:
            file = "/".join(Path(s.path).parts[2:])
            _write_table(
                folder / f"ses-{s.session}" / f"sub-{person}_ses-{s.session}_scans.tsv",
                ("filename", "acq_time"),
                [(file, times.get(s.scan_id))],
            )
    _write_participants(root, [own[0] for own in by_person.values()])
    text = (
        f"# {name}\n\nNative T1-weighted heads under keyed pseudonyms, written by rarescan from an "
        "export or from images that were there.\nAll dates are shifted by a secret number of days "
        "for each person.\n\n**The faces are still there.** This folder is readable for its owner "
        "only and stays where the\nimages come from; `rarescan prepare` makes the skull-stripped "
        "cohort that may be worked with.\n\n`rarescan/` holds the tables: scans, counts, and what "
        "was set apart and why.\n"
    )
    _write_description(root, {"Name": name, "DatasetType": "raw"}, text, licence)
    require_sound(root)


def _write_participants(root: Path, scans: Sequence[Scan]) -> None:
    """Write one row a person."""
    rows = []
    for scan in sorted(scans, key=lambda s: s.person_id):
        c = scan.condition
        age = None if c.age_years is None else f"{c.age_years:g}"
        rows.append((f"sub-{scan.person_id}", age, c.sex, c.diagnosis, scan.site or c.site))
    columns = ("participant_id", "age", "sex", "group", "site")
    _write_table(root / "participants.tsv", columns, rows)
    about = {
        "age": {"Description": "Age at the first scan; 90 stands for 90 and more", "Units": "year"},
        "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
        "group": {"Description": "Diagnosis"},
        "site": {"Description": "Where the scan was acquired"},
    }
    write_json(root / "participants.json", about)


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str | None]]) -> None:
    lines = ["\t".join(cell or "n/a" for cell in row) for row in (columns, *rows)]
    write_atomic(path, "\n".join(lines) + "\n")


def _write_description(root: Path, about: dict[str, Any], readme: str, licence: str) -> None:
    description = {
        **about,
        "BIDSVersion": BIDS_VERSION,
        "License": licence or "not stated",
        "GeneratedBy": [{"Name": "rarescan", "Version": VERSION}],
    }
    write_json(root / "dataset_description.json", description)
    write_atomic(root / "README.md", readme)
    # The convention asks for a date; a fixed one keeps the bytes the same on every run.
    write_atomic(root / "CHANGES", "1.0.0 1970-01-01\n  - Written by rarescan.\n")
    write_atomic(root / ".bidsignore", _IGNORED)


@dataclass(frozen=True, kw_only=True)
class _Item:
    """What a worker needs to write one synthetic scan."""

    root: Path
    volumes: Path
    index: int
    scan: Scan
    grid: Grid
    model: Mapping[str, Any]


def write_derivative(  # noqa: PLR0913 - one keyword for each part of a data set
    root: Path,
    *,
    scans: Sequence[Scan],
    grid: Grid,
    name: str,
    model: Mapping[str, Any],
    volumes: Path | None = None,
    workers: int | None = None,
) -> list[Scan]:
    """Write a synthetic batch as a BIDS derivative; files that are there already are kept.

    Parameters
    ----------
    root : Path
        The data set's folder; the same call after an interruption goes on in it.
    scans : sequence of Scan
        In the order of the volumes; `person_id` becomes the subject (`SYN000001`).
    grid : Grid
        Of the volumes, in template space.
    name : str
        Name of the data set.
    model : mapping
        JSON values (uri, sha256, seed, decision ...) that stand in every sidecar.
    volumes : Path, optional
        `.npy` file, float32, shape (scans, x, y, z), values 0 to 1, read as a memory map; the
        cohort's own, `rarescan/volumes.npy` under `root`, by default.
    workers : int, optional
        Number of processes; the bytes do not depend on it.

    Returns
    -------
    list of Scan
        The scans with `path` (relative to `root`) and `sha256` (of the stored int16 voxels).

    Raises
    ------
    InputError
        The data set would not be sound (see `check`).
    """
    source = volumes or tables(root) / VOLUMES
    items = [
        _Item(root=root, volumes=source, index=i, scan=s, grid=grid, model=model)
        for i, s in enumerate(scans)
    ]
    done = run_parallel(_write_synthetic, items, what="write synthetic scans", workers=workers)
    written = [
        replace(scan, path=path, sha256=digest)
        for scan, (path, digest) in zip(scans, done, strict=True)
    ]
    _write_participants(root, written)
    shows = "No image shows a person."
    if model.get("near_copy_of_a_person"):
        shows = "Every image shows a real person, changed: a near copy."
    text = (
        f"# {name}\n\nSynthetic, skull-stripped T1-weighted brains in {TEMPLATE_SPACE} space. "
        f"**{shows}**\nEach sidecar names the model, the seed and the condition that "
        "was asked for; `rarescan/` holds the tables.\n"
    )
    about = {
        "Name": name,
        "DatasetType": "derivative",
        "SourceDatasets": [{"URL": f"urn:rarescan:cohort:{model.get('prepared_id', 'unnamed')}"}],
    }
    licences = sorted({scan.licence for scan in scans} - {""})
    _write_description(root, about, text, ", ".join(licences))
    require_sound(root)
    return written


def _write_synthetic(item: _Item) -> tuple[str, str]:
    """Write one scan unless it is there; return its path and the hash of its voxels."""
    sub = f"sub-{item.scan.person_id}"
    stem = f"{sub}/anat/{sub}_space-{TEMPLATE_SPACE}_desc-synthetic_T1w"
    image, beside = item.root / f"{stem}.nii.gz", item.root / f"{stem}.json"
    if image.exists() and beside.exists():
        return f"{stem}.nii.gz", str(read_json(beside)["VoxelSHA256"])
    values = np.load(item.volumes, mmap_mode="r")[item.index]
    voxels = np.rint(np.clip(values, 0, 1) * np.float32(32767)).astype(np.int16)
    slope = float(_SYNTHETIC_SLOPE)
    digest = write_image(image, voxels, item.grid.matrix(), slope=slope, space="template")
    c = item.scan.condition
    about = {
        "SkullStripped": True,
        "SpatialReference": _TEMPLATE_URL,
        "Synthetic": True,
        "GeneratorModel": dict(item.model),
        "ScanIndex": item.index,
        "Condition": {
            "diagnosis": c.diagnosis,
            "age_years": c.age_years,
            "sex": c.sex,
            "site": c.site,
            "severity": c.severity,
        },
        "VoxelSHA256": digest,
    }
    # Written last: its presence says that the scan is complete.
    write_json(beside, about)
    return f"{stem}.nii.gz", digest
