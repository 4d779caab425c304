"""Read pictures and clips from DICOM: ultrasound of one or many frames, films.

`open_dicom` serves `frames.open_clip`. What would be got wrong: scales are read down and across
(they differ on anisotropic pictures), only in centimetres, only of the 2D tissue region; the
regions of M-mode and Doppler have scales too, in seconds. A region that ends beyond both edges of
the picture belongs to a larger one, from which it was scaled down after the scanner wrote the
header: its scale would be wrong by an unknown factor, and so counts as unknown.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import iter_pixels

from rarescan.imaging.frames import (
    Clip,
    ClipInfo,
    Frame,
    Luminance,
    RefusedClipError,
    pick,
    require_size,
    scale_to_bytes,
    sound_frame_time,
)
from rarescan.imaging.parse import silent_pydicom

_TISSUE, _CENTIMETRES = 1, 3
_FEW = 64
_RED_CR = 128 + 40
_LARGEST_MM = 10.0
_HEART_RATES = (20.0, 400.0)
Box = tuple[int, int, int, int]


@contextmanager
def open_dicom(path: Path) -> Iterator[Clip]:
    """Open a DICOM file with pictures; see `frames.open_clip`."""
    try:
        with silent_pydicom():
            header = pydicom.dcmread(path, stop_before_pixels=True)
            info = _info(header)
    except RefusedClipError:
        raise
    except Exception:  # pydicom reads lazily, and the bytes are hostile
        raise RefusedClipError("CLIP_UNREADABLE") from None

    def stream(positions: Sequence[int] | None) -> Iterator[Frame]:
        few = positions is not None and len(positions) <= _FEW
        every = iter_pixels(path, raw=True, indices=list(positions or ()) or None if few else None)
        grey = _grey_frames(every, header, luminance)
        return grey if few and positions else pick(grey, positions)

    luminance = Luminance()
    yield Clip(info=info, stream=stream, luminance=luminance)


def _grey_frames(frames: Iterator[Any], header: Any, luminance: Luminance) -> Iterator[Frame]:
    while True:
        try:
            with silent_pydicom():
                frame = next(frames, None)
                grey = None if frame is None else _grey(frame, header, luminance)
        except (RefusedClipError, MemoryError):
            raise
        except (NotImplementedError, RuntimeError) as error:
            missing = isinstance(error, NotImplementedError) or "plugin" in str(error)
            raise RefusedClipError("NO_DECODER" if missing else "CLIP_TRUNCATED") from None
        except Exception:
            raise RefusedClipError("CLIP_TRUNCATED") from None
        if grey is None:
            return
        yield grey


def _grey(frame: Any, header: Any, luminance: Luminance) -> Frame:
    """Return the luminance of one frame as it was stored."""
    kind = str(header.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        coloured = apply_color_lut(frame, header)
        # Palettes of 16 bits repeat or shift their 8 significant ones upward, PS3.3 C.7.6.3.1.5.
        frame = coloured if coloured.dtype == np.uint8 else (coloured >> 8).astype(np.uint8)
        return luminance(frame)
    if kind.startswith("YBR"):
        # PS3.3 C.7.6.3.1.2: Cr of a red is 128 + 0.5 R - 0.42 G - 0.08 B.
        red = float((frame[..., 2] > _RED_CR).mean())
        luminance.red_share = max(luminance.red_share, red)
        return np.ascontiguousarray(frame[..., 0])
    if kind == "RGB":
        return luminance(frame)
    grey = _windowed(frame, header)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _windowed(frame: Any, header: Any) -> Frame:
    """Return a grey frame in 8 bits: by its window, else by the range of its stored bits."""
    if frame.dtype == np.uint8 and int(header.get("BitsStored", 8)) == 8:
        return np.array(frame)
    values = frame.astype(np.float64)
    values = values * float(header.get("RescaleSlope", 1) or 1)
    values += float(header.get("RescaleIntercept", 0) or 0)
    centre, width = (_first(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None and width > 1:
        # PS3.3 C.11.2.1.2: the window's ends map to black and white.
        return scale_to_bytes(values - (centre - 0.5 - (width - 1) / 2), width - 1)
    return scale_to_bytes(values, float(2 ** int(header.get("BitsStored", 16)) - 1))


def _info(header: Any) -> ClipInfo:
    rows, columns = int(header.Rows), int(header.Columns)
    require_size(rows, columns)
    n_frames = int(header.get("NumberOfFrames") or 1)
    if n_frames < 1:
        raise RefusedClipError("CLIP_EMPTY")
    region, spacing, flags = _tissue(header, rows, columns)
    coloured = int(header.get("UltrasoundColorDataPresent") or 0)
    low, high = _HEART_RATES
    rate = _first(header.get("HeartRate")) or 0.0
    return ClipInfo(
        kind="dicom",
        rows=rows,
        columns=columns,
        n_frames=n_frames,
        frame_time_ms=_frame_time(header) if n_frames > 1 else None,
        spacing_mm=spacing,
        region=region,
        heart_rate_bpm=rate if low <= rate <= high else None,
        modality=str(header.get("Modality") or "")[:16],
        flags=(*flags, *("COLOUR_FLOW",) * bool(coloured)),
    )


def _first(value: Any) -> float | None:
    """Return a finite number of an element that may have several values, none, or nonsense."""
    single = value[0] if isinstance(value, pydicom.multival.MultiValue) and value else value
    try:
        number = float(single)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _frame_time(header: Any) -> float | None:
    """Return the time between frames in milliseconds from what the header has."""
    vector = header.get("FrameTimeVector")
    if isinstance(vector, pydicom.multival.MultiValue) and len(vector) > 1:
        # PS3.3 C.7.6.5.1.2: increments; the first is 0.
        return sound_frame_time(float(np.mean([float(step) for step in vector][1:])))
    rate = _first(header.get("CineRate")) or _first(header.get("RecommendedDisplayFrameRate"))
    times = (_first(header.get("FrameTime")), 1000 / rate if rate else None)
    return next((time for time in map(sound_frame_time, times) if time is not None), None)


def _tissue(
    header: Any, rows: int, columns: int
) -> tuple[Box | None, tuple[float, float] | None, tuple[str, ...]]:
    """Return the largest 2D tissue region, the edges of its pixels (down, right), and flags."""
    regions = [
        item
        for item in header.get("SequenceOfUltrasoundRegions") or ()
        if int(item.get("RegionSpatialFormat") or 0) == 1
        and int(item.get("RegionDataType") or 0) == _TISSUE
    ]
    found = max(regions, key=_area, default=None)
    if found is None:
        return None, _film_spacing(header), ()
    column0, row0, column1, row1 = _corners(found)
    beyond = (column1 > columns) + (row1 > rows)
    inside = 0 <= column0 < min(column1, columns) - 1 and 0 <= row0 < min(row1, rows) - 1
    if beyond == 2 or not inside:
        return None, None, ("REGION_OUTSIDE",)
    box = (row0, min(row1 + 1, rows), column0, min(column1 + 1, columns))
    spacing = _scale(found)
    return box, spacing, () if spacing else ("REGION_UNITS",)


def _corners(region: Any) -> tuple[int, int, int, int]:
    names = ("MinX0", "MinY0", "MaxX1", "MaxY1")
    values = [int(region[f"RegionLocation{name}"].value) for name in names]
    return values[0], values[1], values[2], values[3]


def _area(region: Any) -> int:
    column0, row0, column1, row1 = _corners(region)
    return (column1 - column0) * (row1 - row0)


def _scale(region: Any) -> tuple[float, float] | None:
    """Return the edges of a pixel (down, right) in mm; only centimetres say them."""
    edges = []
    for axis in ("Y", "X"):
        unit: Literal[3] | int = int(region.get(f"PhysicalUnits{axis}Direction") or 0)
        edge = abs(_first(region.get(f"PhysicalDelta{axis}")) or 0.0) * 10
        if unit != _CENTIMETRES or not 0 < edge <= _LARGEST_MM:
            return None
        edges.append(edge)
    return edges[0], edges[1]


def _film_spacing(header: Any) -> tuple[float, float] | None:
    """Return the edges of a pixel of a film; ultrasound without a region has none."""
    given = chain.from_iterable(
        header.get(name) or () for name in ("ImagerPixelSpacing", "PixelSpacing")
    )
    edges = [float(edge) for edge in given][:2]
    if len(edges) < 2 or not all(0 < edge <= _LARGEST_MM for edge in edges):
        return None
    return edges[0], edges[1]
