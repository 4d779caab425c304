"""Synthetic scans as DICOM series, for a research PACS.

`write_dicom` is the way in: a batch in, one folder a person out, one file a slice (MR Image
Storage). Every file says in the standard's own words that no scanner and no person stand behind
it (PS3.3 C.12.1, SyntheticData; C.7.5.1, contributing equipment), and no identifier in it was
ever a real one. The same batch gives the same bytes.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from rarescan._version import VERSION
from rarescan.cohort.contracts import Scan
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError
from rarescan.files import Recipe, read_json, require_recipe, run_step, write_json
from rarescan.processes import run_parallel

SCHEMA = 1
ISSUER = "RARESCAN-SYNTHETIC"
BATCH = "batch.json"
_IMPLEMENTATION = UID("2.25.323168943790046838214936529127170911104")
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TOWARDS = np.array([1, 1, -1])
"""Rows and columns of a picture run to the patient's left, back or feet, as radiologists read."""
Voxels = npt.NDArray[np.int16] | npt.NDArray[np.uint8]


def write_dicom(
    batch: Path, folder: Path, *, workers: int | None = None, overwrite: bool = False
) -> Path:
    """Return `folder`, filled with one DICOM series a synthetic person.

    Parameters
    ----------
    batch : Path
        Written by `rarescan generate`.
    folder : Path
        Where `<person>/<slice>.dcm` and a copy of the batch's record go.
    workers : int, optional
        Number of processes; the bytes do not depend on it.
    overwrite : bool
        Replace another result.

    Raises
    ------
    InputError
        The folder holds no batch, a scan in it is not synthetic, or an image is not the one that
        was generated.
    """
    made = require_recipe(batch, "generate")
    scans = open_cohort(batch).scans
    if any(scan.origin != "synthetic" for scan in scans):
        raise InputError(
            f"{batch} holds scans that are not synthetic.",
            remedy="Only batches written by `rarescan generate` may become DICOM.",
        )
    about = read_json(batch / BATCH)
    recipe = Recipe(
        step="dicom",
        schema=SCHEMA,
        config={"permitted_use": about["permitted_use"]},
        inputs={"synthetic": made.id},
        found_at={"synthetic": os.path.relpath(batch.resolve(), folder.resolve())},
    )

    def build(work: Path) -> None:
        items = [_Item(work, batch, i, scan, about) for i, scan in enumerate(scans)]
        run_parallel(_write_person, items, what="write DICOM series", workers=workers)
        write_json(work / BATCH, about)

    return run_step(folder, recipe, build, overwrite=overwrite)


@dataclass(frozen=True)
class _Item:
    """What a worker needs to write one series."""

    work: Path
    batch: Path
    index: int
    scan: Scan
    about: Mapping[str, Any]


def _write_person(item: _Item) -> None:
    """Write one person's series, whole or not at all, unless it is there."""
    folder = item.work / item.scan.person_id
    if folder.exists():
        return
    image: Any = nib.load(item.batch / item.scan.path)
    voxels = np.asanyarray(image.dataobj.get_unscaled())
    if hashlib.sha256(voxels.tobytes(order="F")).hexdigest() != item.scan.sha256:
        raise InputError(
            f"The image of {item.scan.person_id} is not the one that was generated.",
            remedy="Write the batch again with `rarescan generate --overwrite`.",
        )
    unfinished = item.work / f".{item.scan.person_id}"
    shutil.rmtree(unfinished, ignore_errors=True)
    write_series(unfinished, voxels, image.affine, _labels(item))
    unfinished.rename(folder)


def _labels(item: _Item) -> dict[str, Any]:
    """Return the elements that differ between persons."""
    c, about, scan = item.scan.condition, item.about, item.scan
    names = (about["model_sha256"], about["seed"], item.index, scan.sha256)
    wanted = (c.diagnosis, c.age_years and f"{c.age_years:.0f} years", c.sex, c.site)
    return {
        "PatientName": f"SYNTHETIC^{scan.person_id}",
        # Persons are counted from 1 in every batch; an archive must not unite two of them.
        "PatientID": f"SYN-{about['batch_id'][:8]}-{scan.person_id.removeprefix('SYN')}",
        "PatientSex": c.sex or "",
        "PatientAge": "" if c.age_years is None else f"{int(c.age_years):03d}Y",
        "StudyInstanceUID": uid(*names, "study"),
        "SeriesInstanceUID": uid(*names, "series"),
        "FrameOfReferenceUID": uid(*names, "frame"),
        "DerivationDescription": "Sampled by a generative model; shows no person. Asked for: "
        f"{', '.join(str(w) for w in wanted if w)}. Permitted use: {about['permitted_use']}.",
        "ContributingEquipmentSequence": [_equipment(about, item.index)],
    }


def uid(*names: int | str) -> str:
    """Return the UID of these names: "2.25." and a version 8 UUID from their SHA-256."""
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | (0x8 << 76)
    return f"2.25.{number & ~(0x3 << 62) | (0x2 << 62)}"


def _equipment(about: Mapping[str, Any], index: int) -> Dataset:
    code, purpose, equipment = codes.DCM.SynthesizingEquipment, Dataset(), Dataset()
    purpose.CodeValue, purpose.CodeMeaning = code.value, code.meaning
    purpose.CodingSchemeDesignator = code.scheme_designator
    equipment.Manufacturer, equipment.SoftwareVersions = "rarescan", VERSION
    equipment.ManufacturerModelName = str(about.get("family", "generator"))
    equipment.ContributionDescription = (
        f"Batch {about['batch_id']}, scan {index} of seed {about['seed']}, "
        f"model SHA-256 {about['model_sha256']}"
    )
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    return equipment


def write_series(
    folder: Path,
    voxels: Voxels,
    affine: npt.NDArray[np.float64],
    labels: Mapping[str, Any],
) -> list[Path]:
    """Write one volume as a synthetic MR series, one file a slice along the third axis.

    No voxel is interpolated: axes are at most reversed, so that pictures stand as radiologists
    read them. Stored values are written as they are; MR has no unit.

    Parameters
    ----------
    folder : Path
        Is made; gets `0001.dcm` and so on, in the order of the slices.
    voxels : int16 or uint8 array, shape (x, y, z)
        Stored values, not negative.
    affine : float64 array, shape (4, 4)
        Voxel index -> RAS mm.
    labels : mapping
        DICOM keyword -> value for what is the series' own; names at least its `SeriesInstanceUID`,
        from which the instances' UIDs are made.

    Returns
    -------
    list of Path
        The files.
    """
    voxels, to_lps = _as_read(voxels, affine)
    dataset = _common(voxels, to_lps)
    for keyword, value in labels.items():
        setattr(dataset, keyword, value)
    folder.mkdir(parents=True)
    paths = []
    for k in range(voxels.shape[2]):
        dataset.SOPInstanceUID = uid(dataset.SeriesInstanceUID, k)
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = _decimals(to_lps[:3, 3] + k * to_lps[:3, 2])
        dataset.PixelData = voxels[:, :, k].tobytes(order="F")
        dataset.file_meta = _meta(dataset.SOPInstanceUID)
        paths.append(folder / f"{k + 1:04d}.dcm")
        dcmwrite(paths[-1], dataset, enforce_file_format=True)
    return paths


def _as_read(
    voxels: Voxels, affine: npt.NDArray[np.float64]
) -> tuple[Voxels, npt.NDArray[np.float64]]:
    """Return voxels and affine (index -> LPS mm) with axes reversed as pictures are read."""
    main = io_orientation(affine)[:, 0].astype(int)
    to_lps = _RAS_TO_LPS @ affine
    signs = np.sign(to_lps[main, range(3)]) * _TOWARDS[main]
    # The slices run along the normal of row and column, whatever that makes of them.
    signs[2] = np.sign(np.linalg.det(affine[:3, :3])) * signs[0] * signs[1]
    turn = np.stack([np.arange(3), signs], axis=1)
    return apply_orientation(voxels, turn), to_lps @ inv_ornt_aff(turn, voxels.shape)


def _common(voxels: Voxels, to_lps: npt.NDArray[np.float64]) -> Dataset:
    """Return the elements that all slices share."""
    edges = np.linalg.norm(to_lps[:3, :3], axis=0)
    bits, top = voxels.dtype.itemsize * 8, int(voxels.max())
    elements: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["DERIVED", "SECONDARY", "OTHER"],
        "SyntheticData": "YES",
        "SOPClassUID": MRImageStorage,
        "Modality": "MR",
        "Manufacturer": "rarescan (synthetic)",
        "StudyDescription": "SYNTHETIC",
        "SeriesDescription": "SYNTHETIC T1w, skull-stripped",
        "IssuerOfPatientID": ISSUER,
        "ScanningSequence": "RM",
        "SequenceVariant": "NONE",
        "MRAcquisitionType": "3D",
        "PatientPosition": "HFS",
        "SliceThickness": _decimals(edges[2:])[0],
        "SpacingBetweenSlices": _decimals(edges[2:])[0],
        "SeriesNumber": 1,
        "ImageOrientationPatient": _decimals((to_lps[:3, :2] / edges[:2]).T.ravel()),
        "PixelSpacing": _decimals(edges[1::-1]),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": voxels.shape[1],
        "Columns": voxels.shape[0],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(voxels.dtype.kind == "i"),
        "WindowCenter": math.ceil(top / 2),
        "WindowWidth": max(top, 1),
        "BurnedInAnnotation": "NO",
        "RecognizableVisualFeatures": "NO",
        "LossyImageCompression": "00",
    }
    # The standard asks for these; empty says that there is nothing to tell.
    empty = ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID",
             "PatientBirthDate", "ScanOptions", "RepetitionTime", "EchoTime", "EchoTrainLength",
             "PositionReferenceIndicator")  # fmt: skip
    dataset = Dataset()
    for keyword, value in (dict.fromkeys(empty, "") | elements).items():
        setattr(dataset, keyword, value)
    return dataset


def _decimals(values: npt.NDArray[np.float64] | Sequence[float]) -> list[str]:
    return [format_number_as_ds(float(v) + 0.0) for v in values]


def _meta(sop_uid: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, UID(sop_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = _IMPLEMENTATION, "RARESCAN"
    return meta
