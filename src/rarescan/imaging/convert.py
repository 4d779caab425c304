"""From the files of a stack to voxels with an affine, and the checks that need the pixels.

`read_stack` is the way in, in a child process with limits. Native pixels are cut from the file
directly. Encoded ones are decoded by pydicom with its plugins, and the kinds of JPEG that only
copyleft plugins know by GDCM, which comes with SimpleITK and is shown nothing but the pixels.
Slices are placed by their own positions, so that no general converter has to be believed.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder

from rarescan.imaging.header import Header
from rarescan.imaging.parse import BIG_ENDIAN, NATIVE, silent_pydicom
from rarescan.imaging.stacks import Stack

Stored = npt.NDArray[np.int16] | npt.NDArray[np.float32]

_LOWEST_SNR = 3.0
_CORNER = 8
_FEWEST_TEXT_PIXELS = 20
_LARGEST_INT16 = 32767
_LARGEST_DECODED = 1 << 30
_BY_GDCM = {f"1.2.840.10008.1.2.4.{last}" for last in ("51", "57", "70")}
"""JPEG with 12 bits, and without loss."""
_NO_FRAMES: npt.NDArray[np.generic] = np.empty((0, 0, 0))
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


class PixelFaultError(Exception):
    """The pixels of a stack cannot be used; the message is a reason code."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """The voxels of a stack, as they are stored."""

    voxels: Stored
    """Shape (columns, rows, slices), Fortran order."""
    slope: float
    intercept: float
    fixes: tuple[str, ...]


def read_stack(stack: Stack, paths: Sequence[Path]) -> Volume:
    """Return the voxels of an accepted stack.

    Parameters
    ----------
    stack : Stack
        Its slices in order.
    paths : sequence of Path
        The file of each slice.

    Raises
    ------
    PixelFaultError
        With the reason code: `TRUNC_PIXELS`, `NO_DECODER`, `PIXELS_DEAD`, `BURNED_IN_PIXELS`.
    """
    planes = list(_planes(stack, paths))
    columns, rows, n_slices = stack.shape
    if any(plane.shape != (rows, columns) for plane in planes):
        raise PixelFaultError("TRUNC_PIXELS")
    voxels = np.empty((columns, rows, n_slices), np.result_type(*planes), order="F")
    for k, plane in enumerate(planes):
        voxels[:, :, k] = plane.T
    fixes = _repair(voxels, stack.first)
    _require_alive(voxels)
    scales = [
        (f.header.rescale_slope or 1.0, f.header.rescale_intercept or 0.0) for f in stack.files
    ]
    if len(set(scales)) > 1:
        slopes, intercepts = np.array(scales, dtype=np.float32).T
        scaled = np.asfortranarray(voxels * slopes + intercepts, dtype=np.float32)
        return Volume(voxels=scaled, slope=1, intercept=0, fixes=(*fixes, "RESCALE_VARIES"))
    fits = voxels.dtype.itemsize <= 2 and int(voxels.max()) <= _LARGEST_INT16
    stored = voxels.astype(np.int16, copy=False) if fits else voxels.astype(np.float32)
    return Volume(voxels=stored, slope=scales[0][0], intercept=scales[0][1], fixes=fixes)


def _planes(stack: Stack, paths: Sequence[Path]) -> Iterator[npt.NDArray[np.generic]]:
    """Yield the slices in order; the encoded frames of one file are decoded once."""
    last, frames = -1, _NO_FRAMES
    for f, path in zip(stack.files, paths, strict=True):
        if _is_native(f.header):
            yield _native(f.header, path)
            continue
        if f.number != last:
            last, frames = f.number, _decode(f.header, path)
        if f.header.frame >= len(frames):
            raise PixelFaultError("TRUNC_PIXELS")
        yield frames[f.header.frame]


def read_plane(header: Header, path: Path) -> npt.NDArray[np.generic]:
    """Return one decoded slice, shape (rows, columns), before any scaling."""
    if _is_native(header):
        return _native(header, path)
    return np.asarray(_decode(header, path)[header.frame])


def _is_native(h: Header) -> bool:
    return h.syntax in NATIVE and h.pixel_offset >= 0


def _decode(h: Header, path: Path) -> npt.NDArray[np.generic]:
    """Return all frames of a file with encoded pixels, shape (frames, rows, columns)."""
    if h.syntax not in _BY_GDCM and not _has_decoder(h.syntax):
        raise PixelFaultError("NO_DECODER")
    data = BytesIO(path.read_bytes())
    try:
        with silent_pydicom():
            return _frames(h, pydicom.dcmread(data, force=True))
    except Exception:  # decoders fail on hostile bytes with any exception
        raise PixelFaultError("TRUNC_PIXELS") from None


def _frames(h: Header, dataset: Dataset) -> npt.NDArray[np.generic]:
    n_frames = int(dataset.get("NumberOfFrames") or 1)
    n_bytes = dataset.Rows * dataset.Columns * n_frames * dataset.BitsAllocated // 8
    if n_bytes > _LARGEST_DECODED:
        raise PixelFaultError("TRUNC_PIXELS")
    if h.syntax in _BY_GDCM:
        encoded = generate_frames(dataset.PixelData, number_of_frames=n_frames)
        return np.stack([_decode_jpeg(h, frame) for frame in encoded])
    decoded = dataset.pixel_array
    return np.asarray(decoded if decoded.ndim == 3 else decoded[None])


def _has_decoder(syntax: str) -> bool:
    try:
        return bool(get_decoder(pydicom.uid.UID(syntax)).is_available)
    except NotImplementedError:
        return False


def _decode_jpeg(h: Header, frame: bytes) -> npt.NDArray[np.generic]:
    """Decode one frame by GDCM, out of a file that never lies on a disk."""
    import SimpleITK as sitk

    plain = Dataset()
    plain.SOPClassUID, plain.SOPInstanceUID = _SECONDARY_CAPTURE, "2.25.1"
    plain.SamplesPerPixel, plain.PhotometricInterpretation = 1, "MONOCHROME2"
    plain.Rows, plain.Columns = h.rows, h.columns
    plain.BitsAllocated, plain.BitsStored = h.bits_allocated, h.bits_stored
    plain.HighBit, plain.PixelRepresentation = (h.bits_stored or 16) - 1, h.signed
    plain.PixelData = encapsulate([frame])
    plain["PixelData"].VR = "OB"
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = pydicom.uid.UID(h.syntax)
    handle = os.memfd_create("frame")
    with os.fdopen(handle, "wb") as stream:
        pydicom.dcmwrite(stream, plain, enforce_file_format=True)
        stream.flush()
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(f"/proc/self/fd/{handle}")
        decoded: npt.NDArray[np.generic] = sitk.GetArrayFromImage(reader.Execute())
    return decoded.reshape(decoded.shape[-2:])


def _native(h: Header, path: Path) -> npt.NDArray[np.generic]:
    """Cut the pixels out of the file; bits above BitsStored are cleared, the sign is extended."""
    rows, columns = h.rows or 0, h.columns or 0
    allocated, stored = h.bits_allocated or 16, h.bits_stored or 16
    n_bytes = rows * columns * allocated // 8
    with path.open("rb") as stream:
        stream.seek(h.pixel_offset)
        block = stream.read(n_bytes)
    if len(block) < n_bytes:
        raise PixelFaultError("TRUNC_PIXELS")
    order = ">" if h.syntax == BIG_ENDIAN else "<"
    plane = np.frombuffer(block, f"{order}u{allocated // 8}").reshape(rows, columns)
    plane = plane.astype(plane.dtype.newbyteorder("="), copy=False)
    high = stored - 1 if h.high_bit is None else h.high_bit
    kind = f"i{allocated // 8}" if h.signed else f"u{allocated // 8}"
    if stored == allocated:
        return plane.view(kind)
    lifted = (plane << np.uint8(allocated - 1 - high)).view(kind)
    return lifted >> np.uint8(allocated - stored)


def _repair(voxels: npt.NDArray[np.generic], h: Header) -> tuple[str, ...]:
    """Set padding to zero and undo inverted brightness, in place."""
    fixes: list[str] = []
    if h.padding_value is not None:
        bits = h.bits_allocated or 16
        signed = h.signed and h.padding_value >= 1 << (bits - 1)
        padding = voxels == (h.padding_value - (1 << bits) if signed else h.padding_value)
        if h.padding_value and padding.any():
            voxels[padding] = 0
            fixes.append("PADDING")
    if h.photometric == "MONOCHROME1":
        np.subtract(voxels.max(), voxels, out=voxels)
        fixes.append("MONOCHROME1")
    return tuple(fixes)


def _require_alive(voxels: npt.NDArray[np.generic]) -> None:
    """Raise for constant, saturated, noisy volumes, and for text drawn on many slices."""
    low, high = voxels.min(), voxels.max()
    brightest = voxels == high
    if low == high or brightest.mean() > 0.5:
        raise PixelFaultError("PIXELS_DEAD")
    # Text is drawn at full brightness in the same place on many slices; anatomy is not.
    stuck = brightest.sum(axis=2) >= max(3, voxels.shape[2] // 2)
    if (stuck & _corners(voxels.shape)).sum() > _FEWEST_TEXT_PIXELS:
        raise PixelFaultError("BURNED_IN_PIXELS")
    if _is_noise(voxels):
        raise PixelFaultError("PIXELS_DEAD")


def _is_noise(voxels: npt.NDArray[np.generic]) -> bool:
    """Return whether the middle hardly rises above the spread in the corners."""
    middle = tuple(slice(n // 3, n - n // 3) for n in voxels.shape)
    ends = [np.r_[: min(_CORNER, n), max(n - _CORNER, 0) : n] for n in voxels.shape]
    spread = float(voxels[np.ix_(*ends)].std())
    return spread > 0 and float(voxels[middle].mean()) < _LOWEST_SNR * spread


def _corners(shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return the in-plane quarters in which nothing of a head lies in all slices."""
    near = [np.minimum(np.arange(n), np.arange(n)[::-1]) < n // 5 for n in shape[:2]]
    return near[0][:, None] & near[1][None, :]
