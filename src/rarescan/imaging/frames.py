"""Read the frames of a picture or clip of any kind: DICOM, PNG, JPEG, BMP, PGM, video, GIF, NIfTI.

`open_clip` is the way in: what is known of the clip, and its frames as grey pictures, streamed in
bounded memory. The kind comes from the bytes, never from the name. Files may be hostile: whoever
reads files of others does it in a child process after `parse.limit_this_process`.

Frames are uint8 arrays (rows, columns) in the order of time, row 0 at the top; nothing is flipped
and no frame has a scale of its own. Colour becomes luminance (ITU-R BT.601: 0.299 R + 0.587 G +
0.114 B), rounded, without wrapping round.
"""

import gzip
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

from rarescan.errors import InputError, MissingExtraError
from rarescan.imaging.reasons import WORDS

Frame = npt.NDArray[np.uint8]
"""One grey picture, shape (rows, columns)."""

MOST_PIXELS = 64 << 20
"""Pixels of one picture, or voxels of a NIfTI clip in units of 8, that are still read."""
_MOST_NIFTI_BYTES = 1 << 30
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"P5")
_MOST_FRAMES_THERE = 0.9
"""Share of the frames that a container promises which must be there; a few are often not."""
_SOUND_FRAME_MS = (0.1, 60_000.0)
_RED = 64
"""Grey levels by which red exceeds green and blue in a map of flow."""
_FLOW_SHARE = 0.005
T = TypeVar("T")
# Playlists and the like would make the reader open other files and addresses.
_VIDEO_OPTIONS = {
    "format_whitelist": "mov,avi,gif,mpeg,mpegts,mpegvideo,matroska",
    "protocol_whitelist": "none",
}


class RefusedClipError(InputError):
    """A picture or clip that cannot be used; `code` is a reason code."""

    def __init__(self, code: str) -> None:
        super().__init__(
            f"A picture or clip {WORDS[code]} ({code}).",
            remedy="Export it again, or leave it out.",
        )
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return RefusedClipError, (self.code,)


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """What is known of a clip before its frames are read."""

    kind: Literal["dicom", "image", "video", "nifti"]
    rows: int
    columns: int
    n_frames: int | None
    """None where only reading to the end tells."""
    frame_time_ms: float | None
    """Time between frames; None for pictures and where it is unknown."""
    spacing_mm: tuple[float, float] | None
    """Edges of a pixel (down, right) in millimetres; None where unknown."""
    region: tuple[int, int, int, int] | None
    """row0, row1, column0, column1 of the 2D tissue region: rows row0 to row1 - 1."""
    heart_rate_bpm: float | None
    """None where absent or 0."""
    modality: str = ""
    """What the file says that made it (`US`, `MG`, ...); only DICOM does."""
    flags: tuple[str, ...] = ()
    """Reason codes of what was ignored or warned of: `REGION_UNITS`, `REGION_OUTSIDE`,
    `COLOUR_FLOW`."""


class Luminance:
    """Turns colour into grey, and remembers how much of a picture was red: blood that flows."""

    def __init__(self) -> None:
        self.red_share = 0.0
        """The largest share of red pixels in a frame so far; sepia is not red."""

    def __call__(self, colour: npt.NDArray[np.uint8]) -> Frame:
        """Return the luminance of a picture, shape (rows, columns, 3) to (rows, columns)."""
        # In 32 bits: 8-bit sums wrap round, and bright tissue would come out black.
        red, green, blue = (colour[..., k].astype(np.int32) for k in range(3))
        flow = (red - green > _RED) & (red - blue > _RED)
        self.red_share = max(self.red_share, float(flow.mean()))
        return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """An open clip."""

    info: ClipInfo
    stream: Callable[[Sequence[int] | None], Iterator[Frame]]
    luminance: Luminance = field(default_factory=Luminance)
    counted: Callable[[], int] | None = None
    """Counts the frames of a clip whose header cannot be trusted."""

    def frames(self, positions: Sequence[int] | None = None) -> Iterator[Frame]:
        """Yield the frames in the order of time, one after another.

        Parameters
        ----------
        positions : sequence of int, optional
            Which frames, ascending from 0; all by default.

        Raises
        ------
        RefusedClipError
            The clip ends before the last of them, or its bytes cannot be decoded.
        """
        if positions is not None and any(b < a for a, b in pairwise((0, *positions))):
            raise ValueError("positions of frames must ascend from 0")
        return self.stream(positions)

    def count(self) -> int:
        """Return how many frames there are; where nothing reliable says it, by reading them."""
        if self.info.n_frames is not None:
            return self.info.n_frames
        return self.counted() if self.counted else sum(1 for _ in self.frames())

    def shows_flow(self) -> bool:
        """Return whether the frames read so far, or the header, show colour Doppler."""
        return "COLOUR_FLOW" in self.info.flags or self.luminance.red_share > _FLOW_SHARE


def even_positions(n_frames: int, wanted: int) -> list[int]:
    """Return the middles of `wanted` equal parts of a clip; all frames of a shorter one."""
    if n_frames <= wanted:
        return list(range(n_frames))
    return [(2 * part + 1) * n_frames // (2 * wanted) for part in range(wanted)]


@contextmanager
def open_clip(path: Path) -> Iterator[Clip]:
    """Open a picture or clip.

    Parameters
    ----------
    path : Path
        Any name; the bytes tell the kind.

    Yields
    ------
    Clip
        Usable as long as the block lasts.

    Raises
    ------
    RefusedClipError
        Nothing can be read from it; `code` says why.
    MissingExtraError
        It is a video, and PyAV is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _reader(path) as clip:
                yield clip
    except (RefusedClipError, MissingExtraError):
        raise
    except MemoryError:
        raise RefusedClipError("CLIP_SIZE") from None


def _reader(path: Path) -> Any:
    """Return the context manager that opens this kind of file."""
    if not path.is_file():
        raise RefusedClipError("FILE_MISSING")
    with path.open("rb") as stream:
        head = stream.read(352)
    if head[128:132] == b"DICM":
        from rarescan.imaging.dicom_clip import open_dicom

        return open_dicom(path)
    if head.startswith(_IMAGES):
        return _open_image(path)
    if head[344:348] in (b"n+1\0", b"ni1\0") or head.startswith(b"\x1f\x8b"):
        return _open_nifti(path)
    return _open_video(path)


def require_size(rows: int, columns: int) -> None:
    """Raise where a picture is larger than anything that a scanner makes."""
    if not (0 < rows * columns <= MOST_PIXELS):
        raise RefusedClipError("CLIP_SIZE" if rows * columns else "CLIP_EMPTY")


def pick(frames: Iterator[T], positions: Sequence[int] | None) -> Iterator[T]:
    """Yield the frames at ascending positions of a stream of all frames."""
    if positions is None:
        yield from frames
        return
    at, frame = -1, None
    for position in positions:
        while at < position:
            frame = next(frames, None)
            at += 1
            if frame is None:
                raise RefusedClipError("CLIP_TRUNCATED")
        if frame is not None:
            yield frame


@contextmanager
def _open_image(path: Path) -> Iterator[Clip]:
    try:
        with Image.open(path) as image:
            columns, rows = image.size
    except Image.DecompressionBombError:
        raise RefusedClipError("CLIP_SIZE") from None
    except Exception:  # Pillow fails on hostile bytes with many errors
        raise RefusedClipError("CLIP_UNREADABLE") from None
    require_size(rows, columns)

    grey = Luminance()

    def stream(positions: Sequence[int] | None) -> Iterator[Frame]:
        return pick(iter([_decode_image(path, grey)]), positions)

    info = _plain_info("image", rows, columns, n_frames=1)
    yield Clip(info=info, stream=stream, luminance=grey)


def _decode_image(path: Path, grey: Luminance) -> Frame:
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                return scale_to_bytes(np.asarray(image, dtype=np.float64))
            if image.mode == "L":
                return np.array(image)
            return grey(np.asarray(image.convert("RGB")))
    except Exception:
        raise RefusedClipError("CLIP_TRUNCATED") from None


def scale_to_bytes(values: npt.NDArray[Any], highest: float | None = None) -> Frame:
    """Return values from 0 to `highest` (their own largest by default) as 0 to 255."""
    top = float(values.max()) if highest is None else highest
    if top <= 0 or not np.isfinite(values).all():
        raise RefusedClipError("PIXELS_DEAD")
    return np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)


def _plain_info(
    kind: Literal["image", "video", "nifti"],
    rows: int,
    columns: int,
    *,
    n_frames: int | None,
    frame_time_ms: float | None = None,
    spacing_mm: tuple[float, float] | None = None,
) -> ClipInfo:
    return ClipInfo(
        kind=kind,
        rows=rows,
        columns=columns,
        n_frames=n_frames,
        frame_time_ms=sound_frame_time(frame_time_ms),
        spacing_mm=spacing_mm,
        region=None,
        heart_rate_bpm=None,
    )


def sound_frame_time(milliseconds: float | None) -> float | None:
    """Return a time between frames, or None where it is none."""
    low, high = _SOUND_FRAME_MS
    return milliseconds if milliseconds is not None and low <= milliseconds <= high else None


@contextmanager
def _open_video(path: Path) -> Iterator[Clip]:
    try:
        import av
    except ImportError:
        raise MissingExtraError(
            "Reading video needs PyAV, which is not installed.",
            remedy="Install it: pip install 'rarescan[video]'.",
        ) from None

    av.logging.set_level(None)

    def opened(stream: Any) -> tuple[Any, Any]:
        container: Any = av.open(stream, options=_VIDEO_OPTIONS)
        track = container.streams.video[0]
        track.codec_context.thread_count = 1
        return container, track

    grey = Luminance()

    def decode() -> Iterator[Any]:
        with path.open("rb") as stream:
            try:
                container, track = opened(stream)
                yield from container.decode(track)
            except (av.FFmpegError, ValueError, IndexError):
                raise RefusedClipError("CLIP_TRUNCATED") from None

    def frames(positions: Sequence[int] | None) -> Iterator[Frame]:
        for frame in pick(decode(), positions):
            # By way of colour, which has the full range; luminance of video has 16 to 235.
            yield grey(frame.to_ndarray(format="rgb24"))

    with path.open("rb") as stream:
        try:
            container, track = opened(stream)
            rows, columns, rate, promised = (
                track.height,
                track.width,
                track.average_rate,
                track.frames,
            )
            container.close()
        except (av.FFmpegError, ValueError, IndexError, AttributeError):
            raise RefusedClipError("CLIP_UNREADABLE") from None
    require_size(rows, columns)

    def counted() -> int:
        n_frames = sum(1 for _ in decode())
        if n_frames < _MOST_FRAMES_THERE * promised:
            raise RefusedClipError("CLIP_TRUNCATED")
        return n_frames

    frame_time = 1000 / float(rate) if rate else None
    info = _plain_info("video", rows, columns, n_frames=None, frame_time_ms=frame_time)
    yield Clip(info=info, stream=frames, luminance=grey, counted=counted)


@contextmanager
def _open_nifti(path: Path) -> Iterator[Clip]:
    """Open pictures whose first axis goes right, the second down, the third is time."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            data = stream.read(_MOST_NIFTI_BYTES + 1)
        if len(data) > _MOST_NIFTI_BYTES:
            raise RefusedClipError("CLIP_SIZE")
        read: Any = nib.Nifti1Image.from_bytes
        image = read(data)
        values = np.asanyarray(image.dataobj)
        zooms = [float(edge) for edge in image.header.get_zooms()]
        unit = image.header.get_xyzt_units()[1]
    except (RefusedClipError, MemoryError):
        raise
    except Exception:  # nibabel fails on hostile bytes with any exception
        raise RefusedClipError("CLIP_UNREADABLE") from None
    if values.ndim == 4 and values.shape[2] == 1:
        values, zooms = values[:, :, 0], [*zooms[:2], zooms[3]]
    if values.ndim not in (2, 3) or not values.size:
        raise RefusedClipError("NOT_2D")
    values = values if values.ndim == 3 else values[..., None]
    grey = values if values.dtype == np.uint8 else scale_to_bytes(values)
    columns, rows, n_frames = grey.shape
    seconds = {"msec": 1e-3, "usec": 1e-6}.get(unit, 1.0)
    info = _plain_info(
        "nifti",
        rows,
        columns,
        n_frames=n_frames,
        frame_time_ms=zooms[2] * seconds * 1000 if len(zooms) > 2 and n_frames > 1 else None,
        spacing_mm=(zooms[1], zooms[0]) if min(zooms[:2]) > 0 else None,
    )

    def every() -> Iterator[Frame]:
        for time in range(n_frames):
            yield np.ascontiguousarray(grey[:, :, time].T)

    yield Clip(info=info, stream=lambda positions: pick(every(), positions))
