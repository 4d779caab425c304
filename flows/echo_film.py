"""One echocardiogram from its frames to its curves, and where they lie.

`follow_film` writes a clip's masks, curves and picture; `read_film` opens the curves again. Frames
and masks lie on the disk while they are worked on, so that a clip may be long.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rarescan.cohort.store import new_array
from rarescan.errors import InputError
from rarescan.files import read_json, sha256_file, write_atomic, write_json

if TYPE_CHECKING:
    from rarescan.classifiers.echo_masks import Segmenter
    from rarescan.classifiers.echo_measure import FilmFigures
    from rarescan.classifiers.echo_volumes import Track

_COLUMNS = ("area_mm2", "length_mm", "diameters_mm", "axes")


@dataclass(frozen=True, kw_only=True)
class Film:
    """The curves of one clip."""

    n_frames: int
    frame_time_ms: float | None
    in_mm: bool
    ventricle: "Track"
    atrium: "Track | None"

    def figures(self) -> "FilmFigures":
        """Return what the curves say."""
        from rarescan.classifiers.echo_measure import measure_film

        return measure_film(
            self.ventricle,
            frame_time_ms=self.frame_time_ms,
            in_mm=self.in_mm,
            atrium=self.atrium,
        )


def follow_film(
    frames: npt.NDArray[np.uint8],
    target: Path,
    segmenter: "Segmenter",
    *,
    spacing_mm: tuple[float, float] | None,
    frame_time_ms: float | None,
) -> None:
    """Find the chambers in every frame and write what follows from it.

    Parameters
    ----------
    frames : uint8 array, shape (frames, rows, columns)
        May be a memory map.
    target : Path
        Without suffix; gets `.npy` (masks, one bit a pixel, shape (2, frames, rows, columns / 8)),
        `.npz` (curves), `.png` (end-diastole and end-systole with the contours) and, last,
        `.json`.
    segmenter : Segmenter
        Finds the chambers.
    spacing_mm, frame_time_ms
        Of the pixels (down, right) and between frames; None where unknown.
    """
    from rarescan.classifiers.echo_masks import CHAMBERS
    from rarescan.classifiers.echo_volumes import join_track, measure_chamber

    n, rows, columns = frames.shape
    masks = new_array(
        target.with_suffix(".npy"), np.uint8, (len(CHAMBERS), n, rows, -(-columns // 8))
    )
    found: tuple[list[Any], list[Any]] = ([], [])
    for number, shares in enumerate(segmenter.follow(frames)):
        masks[:, number] = np.packbits(shares > 0.5, axis=-1)
        found[0].append(measure_chamber(shares[0], spacing_mm, atrium=shares[1]))
        found[1].append(measure_chamber(shares[1], spacing_mm))
    masks.flush()
    film = Film(
        n_frames=n,
        frame_time_ms=frame_time_ms,
        in_mm=spacing_mm is not None,
        ventricle=join_track(found[0]),
        atrium=join_track(found[1]) if "la" in segmenter.chambers else None,
    )
    _write_curves(target, film)
    _write_picture(target, film, frames, masks)
    write_json(
        target.with_suffix(".json"),
        {
            "n_frames": n,
            "rows": rows,
            "columns": columns,
            "frame_time_ms": frame_time_ms,
            "in_mm": film.in_mm,
            "masks_sha256": sha256_file(target.with_suffix(".npy")),
            "flags": [sorted(frame) for frame in film.ventricle.flags],
            "atrium": film.atrium is not None,
        },
    )


def read_film(target: Path) -> Film | None:
    """Open the curves of a clip; None where it was too short or could not be decoded."""
    from rarescan.classifiers.echo_volumes import Track

    about = read_json(target.with_suffix(".json"))
    if "refused" in about:
        return None
    with np.load(target.with_suffix(".npz"), allow_pickle=False) as stored:
        curves = {name: stored[name] for name in stored.files}
    nothing = (frozenset[str](),) * about["n_frames"]
    flags = tuple(frozenset(frame) for frame in about["flags"])
    tracks = {
        chamber: Track(
            **{name: curves[f"{chamber}_{name}"] for name in _COLUMNS},
            flags=flags if chamber == "lv" else nothing,
        )
        for chamber in ("lv", *(("la",) if about["atrium"] else ()))
    }
    return Film(
        n_frames=about["n_frames"],
        frame_time_ms=about["frame_time_ms"],
        in_mm=about["in_mm"],
        ventricle=tracks["lv"],
        atrium=tracks.get("la"),
    )


def read_masks(target: Path, frame: int, columns: int) -> npt.NDArray[np.bool_]:
    """Return ventricle and atrium of one frame, shape (2, rows, columns)."""
    packed = np.load(target.with_suffix(".npy"), mmap_mode="r")
    if not 0 <= frame < packed.shape[1]:
        raise InputError("The clip has no such frame.", remedy="Frames count from 0.")
    return np.unpackbits(packed[:, frame], axis=-1, count=columns).astype(bool)


def _write_curves(target: Path, film: Film) -> None:
    curves = {f"lv_{name}": getattr(film.ventricle, name) for name in _COLUMNS}
    if film.atrium is not None:
        curves |= {f"la_{name}": getattr(film.atrium, name) for name in _COLUMNS}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **curves)
    write_atomic(target.with_suffix(".npz"), buffer.getvalue())


def _write_picture(target: Path, film: Film, frames: Any, masks: Any) -> None:
    """Draw end-diastole and end-systole of the first beat."""
    from rarescan.evaluation.echo_page import draw_phases

    beats = film.figures().beats.beats
    if not beats:
        return
    phases = (beats[0].ed, beats[0].es)
    columns = frames.shape[2]
    shown = [
        (
            np.array(frames[phase]),
            np.unpackbits(masks[:, phase], axis=-1, count=columns).astype(bool),
            film.ventricle.axes[phase],
        )
        for phase in phases
    ]
    write_atomic(target.with_suffix(".png"), draw_phases(shown))
