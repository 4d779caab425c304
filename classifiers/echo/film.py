"""One echocardiogram from its frames to its curves, and where they lie.

`follow_film` writes a clip's masks, curves and picture; `read_film` opens the curves again and
`read_masks` the masks of a frame. Frames and masks lie on the disk while they are worked on, so
that a clip may be long.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rarescan.classifiers.echo.measure import FilmFigures, measure_film
from rarescan.classifiers.echo.spec import CHAMBERS
from rarescan.classifiers.echo.volumes import Track, join_track, measure_chamber
from rarescan.cohort.store import new_array
from rarescan.files import read_json, sha256_file, write_atomic, write_json

if TYPE_CHECKING:
    from rarescan.classifiers.echo.masks import Segmenter

_COLUMNS = ("area_mm2", "length_mm", "diameters_mm", "axes")


@dataclass(frozen=True, kw_only=True)
class Film:
    """The curves of one clip."""

    n_frames: int
    columns: int
    """Pixels of a frame from left to right."""
    frame_time_ms: float | None
    in_mm: bool
    ventricle: Track
    atrium: Track | None

    def figures(self) -> FilmFigures:
        """Return what the curves say."""
        return measure_film(
            self.ventricle,
            frame_time_ms=self.frame_time_ms,
            in_mm=self.in_mm,
            atrium=self.atrium,
        )


def follow_film(
    raw: Path,
    target: Path,
    segmenter: "Segmenter",
    *,
    fault: str,
    spacing_mm: tuple[float, float] | None,
    frame_time_ms: float | None,
) -> None:
    """Find the chambers in every frame and write what follows from it.

    Parameters
    ----------
    raw : Path
        The frames, uint8, shape (frames, rows, columns), as `.npy`.
    target : Path
        Without suffix; gets `.npy` (masks, one bit a pixel, shape (2, frames, rows, columns / 8)),
        `.npz` (curves), `.png` (end-diastole and end-systole with the contours) and, last,
        `.json`.
    segmenter : Segmenter
        Finds the chambers.
    fault : str
        Why there are no frames; then `.json` says so, and nothing else is written.
    spacing_mm, frame_time_ms
        Of the pixels (down, right) and between frames; None where unknown.
    """
    if fault:
        write_json(target.with_suffix(".json"), {"refused": fault})
    else:
        frames = np.load(raw, mmap_mode="r")
        film = _measured(frames, target, segmenter, spacing_mm, frame_time_ms)
        _write_curves(target, film)
        _write_picture(target, film, frames)
        _write_about(target, film, rows=frames.shape[1])


def _measured(
    frames: npt.NDArray[np.uint8],
    target: Path,
    segmenter: "Segmenter",
    spacing_mm: tuple[float, float] | None,
    frame_time_ms: float | None,
) -> Film:
    """Write the masks; return the curves."""
    n, rows, columns = frames.shape
    shape = (len(CHAMBERS), n, rows, -(-columns // 8))
    masks = new_array(target.with_suffix(".npy"), np.uint8, shape)
    found: tuple[list[Any], list[Any]] = ([], [])
    for number, shares in enumerate(segmenter.follow(frames)):
        masks[:, number] = np.packbits(shares > 0.5, axis=-1)
        found[0].append(measure_chamber(shares[0], spacing_mm, atrium=shares[1]))
        found[1].append(measure_chamber(shares[1], spacing_mm))
    masks.flush()
    return Film(
        n_frames=n,
        columns=columns,
        frame_time_ms=frame_time_ms,
        in_mm=spacing_mm is not None,
        ventricle=join_track(found[0]),
        atrium=join_track(found[1]) if "la" in segmenter.chambers else None,
    )


def read_film(target: Path) -> Film | None:
    """Open the curves of a clip; None where it was too short or could not be decoded."""
    about = read_json(target.with_suffix(".json"))
    if "refused" in about:
        return None
    with np.load(target.with_suffix(".npz"), allow_pickle=False) as stored:
        curves = {name: stored[name] for name in stored.files}

    def track(chamber: str, flags: tuple[frozenset[str], ...]) -> Track:
        return Track(**{name: curves[f"{chamber}_{name}"] for name in _COLUMNS}, flags=flags)

    nothing = (frozenset[str](),) * about["n_frames"]
    return Film(
        n_frames=about["n_frames"],
        columns=about["columns"],
        frame_time_ms=about["frame_time_ms"],
        in_mm=about["in_mm"],
        ventricle=track("lv", tuple(frozenset(frame) for frame in about["flags"])),
        atrium=track("la", nothing) if about["atrium"] else None,
    )


def read_masks(target: Path, film: Film, frame: int) -> npt.NDArray[np.bool_]:
    """Return ventricle and atrium of one frame, shape (2, rows, columns)."""
    packed = np.load(target.with_suffix(".npy"), mmap_mode="r")
    return np.unpackbits(packed[:, frame], axis=-1, count=film.columns).astype(bool)


def _write_curves(target: Path, film: Film) -> None:
    tracks = {"lv": film.ventricle} | ({"la": film.atrium} if film.atrium else {})
    curves = {
        f"{chamber}_{name}": getattr(track, name)
        for chamber, track in tracks.items()
        for name in _COLUMNS
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **curves)
    write_atomic(target.with_suffix(".npz"), buffer.getvalue())


def _write_picture(target: Path, film: Film, frames: npt.NDArray[np.uint8]) -> None:
    """Draw end-diastole and end-systole of the first beat."""
    from rarescan.classifiers.echo.draw import draw_phases

    beats = film.figures().beats.beats
    if beats:
        shown = (_phase(target, film, frames, k) for k in (beats[0].ed, beats[0].es))
        write_atomic(target.with_suffix(".png"), draw_phases([*shown]))


def show_film(raw: Path, target: Path, path: Path, clip: dict[str, Any]) -> None:
    """Write a measured clip as a film: contours, curve, beats, and what is odd about it.

    Parameters
    ----------
    raw, target : Path
        The clip's frames and, without suffix, what `follow_film` wrote of it.
    path : Path
        The film, `.mp4` or `.avi`.
    clip : dict
        Its row in `figures.json`.
    """
    from rarescan.classifiers.echo.draw import draw_film

    film = read_film(target)
    if film is None:
        return
    frames = np.load(raw, mmap_mode="r")
    ef = "not measured" if clip["ef"] is None else f"{clip['ef']:.1f} %"
    draw_film(
        path,
        (_phase(target, film, frames, k) for k in range(len(frames))),
        film.figures(),
        titles=(
            f"{clip['study_id']}  {clip['clip_id']}  {clip['view']}  EF {ef}",
            ", ".join(clip["flags"]).replace("_", " ") or "no remarks",
        ),
        remarks=film.ventricle.flags,
        frame_time_ms=film.frame_time_ms,
    )


def _phase(
    target: Path, film: Film, frames: npt.NDArray[np.uint8], k: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    return np.array(frames[k]), read_masks(target, film, k), film.ventricle.axes[k]


def _write_about(target: Path, film: Film, *, rows: int) -> None:
    about = {
        name: getattr(film, name) for name in ("n_frames", "columns", "frame_time_ms", "in_mm")
    }
    about |= {
        "rows": rows,
        "masks_sha256": sha256_file(target.with_suffix(".npy")),
        "flags": [sorted(frame) for frame in film.ventricle.flags],
        "atrium": film.atrium is not None,
    }
    write_json(target.with_suffix(".json"), about)
