"""Small clips made on the fly: video, GIF, DICOM, NIfTI, and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid


def fan(size: int = 96, seed: int = 0, *, n_frames: int = 6) -> np.ndarray:
    """Return a clip (frames, rows, columns) of speckle that moves, in a fan on black ground."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    down, right = rows - 0.12 * size, columns - size / 2
    inside = (np.hypot(down, right) < 0.72 * size) & (np.abs(right) < 0.7 * down)
    speckle = rng.integers(60, 230, (n_frames, size, size))
    return np.where(inside, speckle, 0).astype(np.uint8)


def with_text(frames: np.ndarray, *, rows: Sequence[int] = (3, -6)) -> np.ndarray:
    """Return frames with strokes like letters burnt in at the top and at the bottom."""
    written = frames.copy()
    for row in rows:
        for column in range(4, frames.shape[2] - 40, 4):
            written[:, row : row + 4 if row > 0 else None, column : column + 2] = 255
    return written


def save_video(path: Path, frames: np.ndarray, *, rate: int = 25, codec: str = "mpeg4") -> Path:
    """Write grey or colour frames as a video; the suffix says the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p" if codec == "libx264" else "yuv420p"
        stream.bit_rate = 8_000_000
        for values in frames:
            colour = values if values.ndim == 3 else np.stack([values] * 3, axis=-1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(colour, format="rgb24")))
        container.mux(stream.encode())
    return path


def save_gif(path: Path, frames: np.ndarray, *, frame_time_ms: int = 100) -> Path:
    """Write grey frames as an animated GIF."""
    first, *others = [Image.fromarray(values) for values in frames]
    first.save(path, save_all=True, append_images=others, duration=frame_time_ms)
    return path


def region(row0: int, row1: int, column0: int, column1: int, **values: Any) -> Dataset:
    """Return one ultrasound region, its high corner included; 0.05 cm a pixel by default."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = 1, 1
    item.RegionLocationMinX0, item.RegionLocationMaxX1 = column0, column1
    item.RegionLocationMinY0, item.RegionLocationMaxY1 = row0, row1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = 0.05
    for name, value in values.items():
        setattr(item, name, value)
    return item


def save_clip(path: Path, frames: np.ndarray, regions: Sequence[Dataset] = (), **tags: Any) -> Path:
    """Write frames as multi-frame ultrasound DICOM, uncompressed."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
        UltrasoundMultiFrameImageStorage
    )
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality, dataset.PatientID, dataset.PatientName = "US", "PAT-77341", "Muster^Erika"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape[:3]
    dataset.SamplesPerPixel = 3 if frames.ndim == 4 else 1
    dataset.PhotometricInterpretation = "RGB" if frames.ndim == 4 else "MONOCHROME2"
    if frames.ndim == 4:
        dataset.PlanarConfiguration = 0
    bits = frames.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation, dataset.FrameTime = 0, 40.0
    if regions:
        dataset.SequenceOfUltrasoundRegions = Items(regions)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = frames.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path
