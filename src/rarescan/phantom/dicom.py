"""Write one series as a PACS hands it over: a file a slice, identity in every header.

`write_series` is the way in. The dataset is encoded once, by pydicom, with place holders of fixed
width for what differs between slices; filling them in is forty times faster than encoding each.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage

from rarescan.phantom.identities import Identity
from rarescan.phantom.persons import Person
from rarescan.phantom.scanners import SLICES, Header, Scanner, Slices

_IMPLEMENTATION = UID("2.25.180284351829381720394857261028374650912")
_UID, _NUMBER = UID("2.25.199999999999999999999999999999999999999"), "-2147483645"
_PLACES = tuple(f"+888{digit}.5555" for digit in "1234")
_LOWEST_UID, _UIDS = 10**38, 24 * 10**37
Pixels = npt.NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series of one person."""

    number: int
    slices: Slices
    header: Header
    """What differs from the scanner's and the person's own elements."""
    first: int = 0
    """Files of the same series in other planes, written before."""


def uid(*names: int | str) -> str:
    """Return the UID of these names: `2.25.` and 39 digits, so that every one has 44 characters."""
    digest = hashlib.sha256(":".join(map(str, names)).encode()).digest()
    return f"2.25.{_LOWEST_UID + int.from_bytes(digest[:16], 'big') % _UIDS}"


def write_series(
    folder: Path, series: Series, pixels: Pixels, dataset: FileDataset, *, study: str
) -> None:
    """Write a series, one file a slice, under names without meaning.

    Parameters
    ----------
    folder : Path
        Is made; holds the files.
    series : Series
        Geometry and number.
    pixels : uint16 array, shape (slices, rows, columns)
        Stored values.
    dataset : FileDataset
        From `header_of`.
    study : str
        Names the study, for the UIDs.
    """
    dataset.PixelData = pixels[0].tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    header = buffer.getvalue()[: -pixels[0].nbytes]
    folder.mkdir(parents=True, exist_ok=True)
    for slot, plane in enumerate(pixels):
        index, position = series.first + slot, series.slices.position_mm(slot)
        location = float(position @ series.slices.axes[2])
        values = [*position, location]
        filled = header.replace(_UID.encode(), uid(study, series.number, index).encode())
        filled = filled.replace(_NUMBER.encode(), f"{index + 1:+011d}".encode())
        for place, value in zip(_PLACES, values, strict=True):
            filled = filled.replace(place.encode(), f"{value:+010.4f}".encode())
        (folder / file_name(study, series.number, index)).write_bytes(filled + plane.tobytes())


def file_name(*names: int | str) -> str:
    """Return eight characters without meaning, as a PACS names files and folders."""
    return hashlib.sha256(":".join(map(str, ("file", *names))).encode()).hexdigest()[:8].upper()


def header_of(
    series: Series, scanner: Scanner, person: Person, identity: Identity, *, study: str
) -> FileDataset:
    """Return everything but the pixels of a series, with place holders for what a slice changes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, _UID
    meta.ImplementationClassUID = _IMPLEMENTATION
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if scanner.implicit else ExplicitVRLittleEndian
    dataset = FileDataset(io.BytesIO(), {}, file_meta=meta, preamble=b"\0" * 128)
    elements = {
        **_study(person, identity, study),
        **scanner.device,
        **series.header,
        **_geometry(series.slices),
        **_pixel_format(scanner),
        "SeriesInstanceUID": uid(study, series.number),
        "SeriesNumber": series.number,
        "SOPInstanceUID": _UID,
        "InstanceNumber": _NUMBER,
    }
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    for group, creator, private in scanner.private:
        block = dataset.private_block(group, creator, create=True)
        for element, vr, value in private:
            block.add_new(element, vr, series.slices.size[0] if value == SLICES else value)
    # Makers keep copies of the identity in groups that only they can read.
    copy = dataset.private_block(0x0029, "REGISTRATION COPY", create=True)
    copy.add_new(0x10, "LO", identity.patient_id)
    copy.add_new(0x11, "PN", identity.name)
    copy.add_new(0x12, "LT", identity.address)
    return dataset


def _study(person: Person, identity: Identity, study: str) -> Header:
    day = identity.study_date.strftime("%Y%m%d")
    return {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": MRImageStorage,
        "Modality": "MR",
        "StudyDate": day,
        "SeriesDate": day,
        "AcquisitionDate": day,
        "ContentDate": day,
        "StudyTime": identity.study_time,
        "AccessionNumber": identity.accession,
        "ReferringPhysicianName": identity.physician,
        "OperatorsName": "MTRA^2",
        "StudyDescription": "Kopf nativ" if person.site == "A" else "MRI HEAD",
        "PatientName": identity.name,
        "PatientID": identity.patient_id,
        "PatientBirthDate": identity.birth_date.strftime("%Y%m%d"),
        "PatientSex": person.sex,
        "PatientAge": identity.age,
        "PatientWeight": identity.weight_kg,
        "PatientAddress": identity.address,
        "PatientTelephoneNumbers": identity.telephone,
        "BodyPartExamined": "HEAD",
        "PatientPosition": "HFS",
        "StudyInstanceUID": uid(study),
        "StudyID": identity.accession[1:5],
        "AcquisitionNumber": 1,
        "FrameOfReferenceUID": uid(study, "frame of reference"),
        "PositionReferenceIndicator": "",
        "Laterality": "",
    }


def _geometry(slices: Slices) -> Header:
    _, rows, columns = slices.size
    return {
        "SliceThickness": slices.spacing_mm[0],
        "SpacingBetweenSlices": slices.spacing_mm[0],
        "PixelSpacing": [slices.spacing_mm[1], slices.spacing_mm[2]],
        "AcquisitionMatrix": [0, columns, rows, 0],
        "InPlanePhaseEncodingDirection": "ROW",
        "ImageOrientationPatient": [f"{v:.9f}" for v in slices.axes[:2].ravel()],
        "ImagePositionPatient": list(_PLACES[:3]),
        "SliceLocation": _PLACES[3],
        "Rows": rows,
        "Columns": columns,
    }


def _pixel_format(scanner: Scanner) -> Header:
    bright = scanner.full_scale / (scanner.slope or 1)
    elements: dict[str, Any] = {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": scanner.bits,
        "HighBit": scanner.bits - 1,
        "PixelRepresentation": int(scanner.bits == 16),
        "WindowCenter": round(bright / 2),
        "WindowWidth": round(bright),
    }
    if scanner.slope is not None:
        elements |= {
            "RescaleSlope": scanner.slope,
            "RescaleIntercept": 0,
            "RescaleType": "normalized",
        }
    return elements


def stored_values(brightness: npt.NDArray[np.float32], scanner: Scanner) -> Pixels:
    """Return brightness (1: nearly fat) as the scanner stores it."""
    highest = 2 ** (scanner.bits - (scanner.bits == 16)) - 1
    counts = brightness * np.float32(scanner.full_scale / (scanner.slope or 1))
    stored: Pixels = np.rint(counts).clip(0, highest).astype("<u2")
    return stored
