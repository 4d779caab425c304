"""Small changes to a DICOM series, to be combined: each makes one fault."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from dicom_series import N
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

Edit = Callable[[int, Dataset], None]
Spoil = Callable[[int, bytes], bytes]


def encode(ds: Dataset, syntax: str) -> bytes:
    """Return a data set as a file; encoded syntaxes are compressed by pydicom."""
    compressed = syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if compressed else syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    if compressed:
        ds.compress(syntax, generate_instance_uid=False)
    stream = BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def graft(first: bytes, own: bytes) -> bytes:
    """Return a file with the instance's own elements and pixels."""
    for tag in (b"\x08\0\x18\0UI", b"\x20\0\x13\0IS", b"\x20\0\x32\0DS"):
        (a, b), (c, d) = (element(data, tag) for data in (first, own))
        first = first[:a] + own[c:d] + first[b:] if a > 0 else first
    n = N * N * 2
    return first[:-n] + own[-n:] if len(first) > n else first


def element(data: bytes, tag: bytes) -> tuple[int, int]:
    at = data.find(tag)
    return at, at + 8 + int.from_bytes(data[at + 6 : at + 8], "little")


def varying(edit: Any) -> Any:
    edit.varies = True
    return edit


def each(**values: Any) -> Edit:
    def edit(k: int, ds: Dataset) -> None:
        for name, value in values.items():
            setattr(ds, name, value(k) if callable(value) else value)

    return varying(edit) if any(map(callable, values.values())) else edit


def only(number: int, change: Any) -> Any:
    """Do something to one slice."""
    return varying(lambda k, thing: change(k, thing) if k == number else thing)


def place(x: Callable[[int], float], y: Callable[[int], float] = lambda k: -70.0) -> Edit:
    return each(ImagePositionPatient=lambda k: [x(k), y(k), 71.0])


def at(k: int) -> float:
    return -72 + 1.5 * k


def private(tag: int, creator: str, vr: str, value: Any, **values: Any) -> Edit:
    def edit(k: int, ds: Dataset) -> None:
        each(**values)(k, ds)
        block = ds.private_block(tag >> 16, creator, create=True)
        block.add_new(tag & 0xFF, vr, value)

    return edit


def stray(ds: Dataset, tag: int, vr: str, value: Any) -> None:
    ds[Tag(tag)] = pydicom.DataElement(Tag(tag), vr, value)


def overlay(k: int, ds: Dataset) -> None:
    stray(ds, 0x60000010, "US", 96)
    stray(ds, 0x60003000, "OW", b"\xff" * 1152)
    stray(ds, 0x50000005, "US", 2)


def undefined_vr(k: int, ds: Dataset) -> None:
    del ds.EchoTime
    stray(ds, 0x00180081, "UN", b"2.98")


def without(*names: str) -> Edit:
    def edit(k: int, ds: Dataset) -> None:
        for name in names:
            delattr(ds, name)

    return edit


def both(*edits: Edit) -> Edit:
    def edit(k: int, ds: Dataset) -> None:
        for one in edits:
            one(k, ds)

    return edit


PHYSICS = ("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "ScanningSequence",
           "SequenceVariant")  # fmt: skip
GE = {"Manufacturer": "GE MEDICAL SYSTEMS", "ScanningSequence": "GR", "RepetitionTime": "6.96",
      "SequenceVariant": ["SS", "SP", "SK"], "InversionTime": "400", "FlipAngle": "11",
      "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"], "SeriesDescription": "SPGR"}  # fmt: skip
PHILIPS = {"Manufacturer": "Philips Medical Systems"}
TURNED = [0.96, 0.28, 0, 0, 0, -1]
CORONAL = [1, 0, 0, 0, 0, -1]


def item(**values: Any) -> list[Dataset]:
    ds = Dataset()
    for name, value in values.items():
        setattr(ds, name, value)
    return [ds]


def enhanced(voxels: np.ndarray, first: Dataset, **whole: Any) -> Dataset:
    """Return all slices as one Enhanced MR image, as DICOM PS3.3 A.36 has it."""
    for name in (*PHYSICS, "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(first, name)
    first.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    first.MRAcquisitionType, first.NumberOfFrames = "3D", len(voxels)
    first.EchoPulseSequence, first.Spoiling = "GRADIENT", "RF"
    first.EchoPlanarPulseSequence = "NO"
    first.SharedFunctionalGroupsSequence = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        PixelMeasuresSequence=item(PixelSpacing=[1.5, 1.5], SliceThickness="1.5"),
        MRTimingAndRelatedParametersSequence=item(RepetitionTime="2300", FlipAngle="9"),
        MRModifierSequence=item(InversionRecovery="YES", InversionTimes=900.0),
        MREchoSequence=item(EffectiveEchoTime=2.98),
    )
    frames = []
    for k in range(len(voxels)):
        (frame,) = item(PlanePositionSequence=item(ImagePositionPatient=[at(k % N), -70.0, 71.0]))
        if k >= N:
            frame.MREchoSequence = item(EffectiveEchoTime=5.2)
        frames.append(frame)
    first.PerFrameFunctionalGroupsSequence = frames
    first.PixelData = voxels.tobytes()
    for name, value in whole.items():
        setattr(first, name, value)
    return first
