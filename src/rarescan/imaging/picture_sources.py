"""Where pictures come from: a table, DICOM headers, or a collection with tables of its own.

`list_pictures` is the way in. DICOM files without a table are told apart by their headers, which
are read in child processes; persons then always get keyed pseudonyms.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom

from rarescan.errors import InputError
from rarescan.imaging import identity
from rarescan.imaging.labels import Label, Labels, read_labels
from rarescan.imaging.mammograms import CBIS_LABELS, MIAS_LABELS, cbis_rows, mias_rows
from rarescan.imaging.parse import limit_this_process, silent_pydicom
from rarescan.imaging.picture_table import Picture, pictures_of, read_pictures, with_worst
from rarescan.imaging.spec import PicturesConfig
from rarescan.imaging.unpack import regular_files
from rarescan.processes import run_parallel

_CHILD_MEMORY_MIB = 2048


def list_pictures(
    source: Path, config: PicturesConfig, *, workers: int | None = None
) -> tuple[list[Picture], bytes | None]:
    """Return what is known of each file to be read, and the key of the pseudonyms.

    Parameters
    ----------
    source : Path
        The folder of the files.
    config : PicturesConfig
        Layout, table and words.
    workers : int, optional
        Number of processes that read headers.

    Raises
    ------
    SettingError
        The table or the key is missing, or lacks a column.
    InputError
        The table is faulty, or there is no file of the layout.
    """
    if not source.is_dir():
        raise InputError(f"There is no folder {source}.", remedy="Name the folder of pictures.")
    asked = config.key_file or config.layout == "dicom"
    key = identity.read_key(config.key_file) if asked else None
    if config.layout == "table":
        return read_pictures(source, config, key), key
    if config.layout == "dicom":
        return _from_headers(source, config, identity.read_key(config.key_file), workers), key
    cbis = config.layout == "cbis"
    rows = cbis_rows(source) if cbis else mias_rows(source, config.table)
    named = replace(config, labels=config.labels or (CBIS_LABELS if cbis else MIAS_LABELS))
    return pictures_of(rows, source, named, key), key


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What tells a DICOM file's person and study apart; empty where it is no DICOM file."""

    patient: str = ""
    issuer: str = ""
    accession: str = ""
    instance: str = ""


def _from_headers(
    source: Path, config: PicturesConfig, key: bytes, workers: int | None
) -> list[Picture]:
    """Return one picture a DICOM file; other files are no pictures of this layout."""
    paths = [source / name for name in regular_files(source)]
    headers = run_parallel(
        _header, paths, what="read headers", workers=workers, on_death=lambda _: _Header()
    )
    labels = read_labels(source / config.table) if config.table else None
    found = [
        _picture(path, header, config, key, labels)
        for path, header in zip(paths, headers, strict=True)
        if header.instance
    ]
    if not found:
        raise InputError(
            "The folder holds no DICOM file with an identity.",
            remedy="Name the folder of the export, or set pictures.layout and a table.",
        )
    return with_worst(found, config)


def _header(path: Path) -> _Header:
    """Read one header, in a child process."""
    limit_this_process(_CHILD_MEMORY_MIB)
    try:
        with silent_pydicom():
            dataset: Any = pydicom.dcmread(path, stop_before_pixels=True)
            return _Header(
                patient=str(dataset.get("PatientID") or ""),
                issuer=str(dataset.get("IssuerOfPatientID") or ""),
                accession=str(dataset.get("AccessionNumber") or ""),
                instance=str(dataset.get("SOPInstanceUID") or ""),
            )
    except Exception:  # hostile bytes fail in any way
        return _Header()


def _picture(
    path: Path, header: _Header, config: PicturesConfig, key: bytes, labels: Labels | None
) -> Picture:
    label = _label_of(header, labels)
    word = config.words.get(label.diagnosis, label.diagnosis) if label else None
    return Picture(
        file=path,
        person=identity.person_id(key, header.issuer or None, header.patient),
        item="C" + identity.token(key, "item", header.instance),
        label=word,
        diagnosis=word or "",
        source=label.site if label else None,
        licence=config.licence,
        age_years=identity.shown_age(label.age_years) if label else None,
        sex=label.sex if label else None,
        fault="" if header.patient.strip() else "NO_IDENTITY",
        secrets=(header.patient, header.issuer, header.accession, header.instance),
    )


def _label_of(header: _Header, labels: Labels | None) -> Label | None:
    found: Sequence[Label] = labels.find([header.patient], [header.accession]) if labels else ()
    return found[0] if found else None
