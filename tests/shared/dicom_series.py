"""One slice after another, as a scanner writes them; what tests of several rooms begin with."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

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
