"""The frames of echocardiograms: tissue only, all of a clip or some of several.

`decoded` brings the frames of clips to files, `read_frames` some of several clips to memory,
`read_traced` those that were traced, with their outlines. What is no tissue is black, so that no
text of the screen comes along.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rarescan.cohort.store import new_array
from rarescan.errors import InputError
from rarescan.imaging.echo import (
    CHILD_CPU_SECONDS,
    CHILD_MEMORY_MIB,
    ClipSource,
    SourceClip,
    list_clips,
)
from rarescan.imaging.echonet import FILMS, Film, Tracing, fill_tracing, read_tracings
from rarescan.imaging.frames import Clip, RefusedClipError, even_positions, open_clip
from rarescan.imaging.parse import limit_this_process
from rarescan.imaging.tissue import tissue_mask
from rarescan.processes import run_parallel

Frames = npt.NDArray[np.uint8]
Traced = tuple[str, Frames, npt.NDArray[np.bool_]]
"""Person, frames (n, rows, columns) in the order of time, ventricles (n, 1, rows, columns)."""

_RAW = ".frames.npy"
_AT_ONCE = 8
"""Clips that are decoded before they are worked on: their frames lie on the disk meanwhile."""
_TISSUE_FRAMES = 10


def decoded(
    clips: Sequence[SourceClip],
    folder: Path,
    *,
    fewest_frames: int = 1,
    workers: int | None = None,
) -> Iterator[tuple[SourceClip, Path, str]]:
    """Yield each clip with the file of its frames, uint8 (frames, rows, columns), and a fault.

    The file lies in the folder until the next clip is asked for. The fault is the reason code why
    the clip cannot be decoded (then there is no whole file), else an empty text.
    """
    for left in folder.glob(f"*{_RAW}"):  # of a command that was killed
        left.unlink()
    for start in range(0, len(clips), _AT_ONCE):
        some = clips[start : start + _AT_ONCE]
        faults = run_parallel(
            partial(_decode, folder=folder, fewest_frames=fewest_frames),
            some,
            what="decode clips",
            workers=workers,
            on_death=lambda _clip: "CLIP_UNREADABLE",
        )
        for clip, fault in zip(some, faults, strict=True):
            raw = folder / f"{clip.clip_id}{_RAW}"
            yield clip, raw, fault
            raw.unlink(missing_ok=True)


def read_frames(
    wanted: Sequence[tuple[SourceClip, Sequence[int] | int]], *, workers: int | None = None
) -> list[Frames | None]:
    """Return frames of several clips, uint8 (n, rows, columns); None where a clip is refused.

    Parameters
    ----------
    wanted : sequence of (clip, positions)
        Ascending positions, or how many evenly spaced frames.
    workers : int, optional
        Number of processes.
    """
    return run_parallel(
        _read_frames, wanted, what="read frames", workers=workers, on_death=lambda _: None
    )


def read_traced(source: ClipSource) -> dict[str, list[Traced]]:
    """Return the traced frames of a folder in EchoNet's format, part -> one entry a clip.

    Raises
    ------
    InputError
        A person has films in two parts.
    """
    tracings = read_tracings(source.folder)
    parts: dict[str, str] = {}
    chosen: list[tuple[SourceClip, Film, list[Tracing]]] = []
    for clip in list_clips(source):
        film = clip.film
        if film is None or film.name not in tracings or clip.refused:
            continue
        if parts.setdefault(clip.person_id, film.split) != film.split:
            raise InputError(
                "A person has films in two parts: what is learned would be tested on.",
                remedy=f"Give all films of a person the same Split in {FILMS}.",
            )
        chosen.append((clip, film, sorted(tracings[film.name], key=lambda t: t.frame)))
    found = read_frames(
        [(clip, [t.frame for t in traced]) for clip, _, traced in chosen], workers=source.workers
    )
    traced_of: dict[str, list[Traced]] = {}
    for (clip, film, traced), frames in zip(chosen, found, strict=True):
        if frames is not None:
            shape = (frames.shape[1], frames.shape[2])
            outlines = np.stack([fill_tracing(t.lines, shape) for t in traced])[:, None]
            traced_of.setdefault(film.split, []).append((clip.person_id, frames, outlines))
    return traced_of


def _decode(clip: SourceClip, folder: Path, fewest_frames: int) -> str:
    """Write one clip's frames, in a child process."""
    limit_this_process(CHILD_MEMORY_MIB, cpu_seconds=CHILD_CPU_SECONDS, writes=True)
    if clip.refused:
        return clip.refused
    try:
        with open_clip(clip.path) as opened:
            count = opened.count()
            if count < fewest_frames:
                return "too_few_frames"
            seen = _seen(opened, count)
            place = folder / f"{clip.clip_id}{_RAW}"
            frames = new_array(place, np.uint8, (count, *seen.tissue.shape))
            for position, frame in enumerate(opened.frames()):
                frames[position] = seen.cut(frame)
            frames.flush()
            return "COLOUR_FLOW" if opened.shows_flow() else ""
    except RefusedClipError as error:
        return error.code


def _read_frames(wanted: tuple[SourceClip, Sequence[int] | int]) -> Frames | None:
    """Read some frames of one clip, in a child process."""
    limit_this_process(CHILD_MEMORY_MIB, cpu_seconds=CHILD_CPU_SECONDS)
    clip, which = wanted
    try:
        with open_clip(clip.path) as opened:
            count = opened.count()
            positions = even_positions(count, which) if isinstance(which, int) else which
            seen = _seen(opened, count)
            return np.stack([seen.cut(frame) for frame in opened.frames(positions)])
    except RefusedClipError:
        return None


@dataclass(frozen=True)
class _Seen:
    """Where in the frames of a clip tissue is seen."""

    rows: slice
    columns: slice
    tissue: npt.NDArray[np.bool_]
    """Of the pixels in these rows and columns."""

    def cut(self, frame: Frames) -> Frames:
        """Return the region of a frame, black where no tissue is."""
        return np.where(self.tissue, frame[self.rows, self.columns], 0).astype(np.uint8)


def _seen(clip: Clip, count: int) -> _Seen:
    """Find the tissue: the region that the header tells, and the probe's field inside it."""
    info = clip.info
    top, bottom, left, right = info.region or (0, info.rows, 0, info.columns)
    rows, columns = slice(top, bottom), slice(left, right)
    looks = clip.frames(even_positions(count, _TISSUE_FRAMES))
    tissue = tissue_mask([frame[rows, columns] for frame in looks], convex=True)
    if tissue is None:
        raise RefusedClipError("PIXELS_DEAD")
    return _Seen(rows, columns, tissue)
