"""Small DICOM series made on the fly, as scanners write them and with every fault."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from rarescan.imaging.header import Header
from rarescan.imaging.stacks import File, Stack

Edit = Callable[[int, Dataset], None]

N = 96
"""Edge of the test volumes, in voxels of 1.5 mm: just enough for a whole head."""


def head(seed: int = 0, n: int = N) -> np.ndarray:
    """Return a bright textured ball in noise, int16, shape (slices, rows, columns)."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.linspace(-1, 1, n).reshape(s) for s in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)))
    ball = (x**2 + (y / 1.1) ** 2 + (z / 0.9) ** 2) < 0.55
    noise = rng.integers(0, 30, (n, n, n), dtype=np.int16)
    return (noise + ball * (400 + 200 * (x + 0.5 * y > 0))).astype(np.int16)


def dataset(voxels: np.ndarray, k: int, series: str, **values: Any) -> Dataset:
    """Return slice k of a sagittal Siemens MPRAGE."""
    ds = Dataset()
    person = str(values.get("PatientID", "00471199")) + str(values.get("StudyDate", ""))
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]
    ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, generate_uid(entropy_srcs=[series, str(k)])
    ds.StudyDate, ds.SeriesDate, ds.AcquisitionTime = "20190611", "20190611", "101500"
    ds.Modality, ds.Manufacturer = "MR", "SIEMENS"
    ds.InstitutionName = "Kreiskrankenhaus Musterstadt"
    ds.ManufacturerModelName = "Prisma"
    ds.SeriesDescription = "t1_mprage_sag"
    ds.PatientName, ds.PatientID = "Mustermann^Erika", "00471199"
    ds.PatientBirthDate, ds.PatientSex = "19550320", "F"
    ds.ScanningSequence, ds.SequenceVariant = ["GR", "IR"], ["SK", "SP", "MP"]
    ds.MRAcquisitionType, ds.SliceThickness = "3D", "1.5"
    ds.RepetitionTime, ds.EchoTime, ds.InversionTime = "2300", "2.98", "900"
    ds.FlipAngle, ds.MagneticFieldStrength = "9", "3"
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[person, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[series])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[person, "frame"])
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 3, 1, k + 1
    ds.ImagePositionPatient = [-72 + 1.5 * k, -70.0, 71.0]
    ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    ds.PixelSpacing = [1.5, 1.5]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = voxels.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    for name, value in values.items():
        if value is None:
            del ds[name]
        else:
            setattr(ds, name, value)
    ds.PixelData = voxels[k].tobytes()
    return ds


def save(ds: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> None:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)


@pytest.fixture(scope="session")
def write_series() -> Callable[..., list[Path]]:
    """Return the writer of one series: `write_series(folder, edit=..., keep=..., **values)`."""

    def write(
        folder: Path,
        *,
        voxels: np.ndarray | None = None,
        edit: Edit | None = None,
        keep: Sequence[int] = range(N),
        series: str = "1",
        **values: Any,
    ) -> list[Path]:
        voxels = head() if voxels is None else voxels
        paths = []
        for k in keep:
            name = f"{values.get('PatientID')}{values.get('StudyDate')}{series}"
            ds = dataset(voxels, k, name, **values)
            if edit is not None:
                edit(k, ds)
            paths.append(folder / f"IM{k:04d}.dcm")
            save(ds, paths[-1])
        return paths

    return write


@pytest.fixture(scope="session")
def make_head() -> Callable[..., np.ndarray]:
    return head


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    return dataset


@pytest.fixture(scope="session")
def save_dataset() -> Callable[..., None]:
    return save


_PLAIN: dict[str, Any] = {
    "patient_id": "P1",
    "birth_date": "1955-03-20",
    "study_date": "2019-06-11",
    "sop_class": MRImageStorage,
    "image_type": ("ORIGINAL", "PRIMARY", "M", "NORM"),
    "scanning_sequence": ("GR", "IR"),
    "sequence_variant": ("SK", "SP", "MP"),
    "acquisition_type": "3D",
    "repetition_time_ms": 2300.0,
    "echo_time_ms": 2.98,
    "inversion_time_ms": 900.0,
    "flip_angle_deg": 9.0,
    "series_description": "t1_mprage",
    "orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "pixel_spacing_mm": (1.0, 1.0),
    "slice_thickness_mm": 1.0,
    "rows": 192,
    "columns": 192,
    "bits_allocated": 16,
    "bits_stored": 12,
}


@pytest.fixture(scope="session")
def make_files() -> Callable[..., list[File]]:
    """Return the maker of headers: `make_files(n, edit, **values)`, edit(k) -> other values."""

    def make(
        n: int = 160, edit: Callable[[int], dict[str, Any]] | None = None, **values: Any
    ) -> list[File]:
        files = []
        for k in range(n):
            own = {
                "position_mm": (-80.0 + k, -90.0, 90.0),
                "instance_number": k + 1,
                "sha256": f"{values.get('series_uid', '')}{k:08d}",
                "pixel_sha256": f"pixels {values.get('series_uid', '')}{k}",
                "sop_uid": f"1.2.{k}",
            }
            changed = edit(k) if edit else {}
            files.append(File(number=k, header=Header(**{**_PLAIN, **own, **values, **changed})))
        return files

    return make


@pytest.fixture(scope="session")
def make_stack(make_files: Callable[..., list[File]]) -> Callable[..., Stack]:
    from rarescan.imaging.stacks import find_stacks

    def make(*args: Any, **values: Any) -> Stack:
        (stack,) = find_stacks(make_files(*args, **values))
        return stack

    return make
