"""From masks followed through clips to a study's figures: volumes, ejection fraction, its name.

`measure_film` makes one clip's figures, `measure_study` joins the views of a study by biplane
Simpson, `name_fraction` says what a fraction is called. Every figure carries the flags of what it
was made from; a figure that cannot be made is NaN, never a default.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from rarescan.classifiers.echo.beats import (
    Beats,
    beat_fractions,
    clip_fraction,
    find_beats,
    outlying,
    smooth,
)
from rarescan.classifiers.echo.spec import FractionConfig
from rarescan.classifiers.echo.volumes import (
    Track,
    area_length_ml,
    biplane_ml,
    ejection_fraction,
    simpson_ml,
)

Array = npt.NDArray[np.float64]
Shape = tuple[float, Array]
"""Length and 20 diameters of a ventricle."""

_LIMITS_ASE = {"M": (52.0, 41.0, 30.0), "F": (54.0, 41.0, 30.0)}
"""Normal from, mildly abnormal from, moderately abnormal from; percent (Lang et al. 2015)."""
_ASE_NAMES = ("normal", "mildly abnormal", "moderately abnormal", "severely abnormal")
_DOUBTS = frozenset({"axis_jumps", "round", "several_pieces", "slipped", "touches_border"})
_AXIS_JUMPS = 0.15
"""Relative difference of neighbouring frames' lengths, above which the axis is not trusted."""


@dataclass(frozen=True, kw_only=True)
class FilmFigures:
    """What was measured in one clip; volumes are NaN where the pixels' spacing is unknown."""

    beats: Beats
    area: Array
    """Shape (frames,), smoothed, mm^2 or pixels."""
    ef: float
    """Percent, the median over beats, single-plane Simpson."""
    ef_by_beat: Array
    ef_area_length: float
    edv_ml: float
    esv_ml: float
    la_volume_ml: float
    """Largest volume of the atrium (at end-systole), area-length."""
    heart_rate_bpm: float
    diastole_ms: float
    ed_shape: Shape | None
    """At end-diastole, the median over beats; for the biplane volume."""
    es_shape: Shape | None
    in_mm: bool
    flags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StudyFigures:
    """What was measured in one study."""

    ef: float
    edv_ml: float
    esv_ml: float
    method: str
    """`biplane`, `mean_of_views`, `single_plane_<view>` or `none`."""
    flags: tuple[str, ...]


def measure_film(
    ventricle: Track,
    *,
    frame_time_ms: float | None,
    in_mm: bool,
    atrium: Track | None = None,
) -> FilmFigures:
    """Measure one clip.

    Parameters
    ----------
    ventricle : Track
        The left ventricle in every frame.
    frame_time_ms : float or None
        Without it durations are NaN; fractions and volumes are not.
    in_mm : bool
        Whether the track is in mm; else volumes are NaN.
    atrium : Track, optional
        The left atrium in the same frames.
    """
    slipped = outlying(ventricle.area_mm2)
    ventricle = _without(ventricle, slipped)
    length = smooth(ventricle.length_mm, frame_time_ms)
    diameters = smooth(ventricle.diameters_mm, frame_time_ms)
    area = smooth(ventricle.area_mm2, frame_time_ms)
    beats = find_beats(ventricle.area_mm2, frame_time_ms)
    volume = simpson_ml(length, diameters)
    by_beat = beat_fractions(volume, beats)
    known = in_mm and bool(beats.beats)
    ed, es = ([getattr(beat, phase) for beat in beats.beats] for phase in ("ed", "es"))
    return FilmFigures(
        beats=beats,
        area=area,
        ef=clip_fraction(by_beat),
        ef_by_beat=by_beat,
        ef_area_length=clip_fraction(beat_fractions(area_length_ml(area, length), beats)),
        edv_ml=float(np.median(volume[ed])) if known else float("nan"),
        esv_ml=float(np.median(volume[es])) if known else float("nan"),
        la_volume_ml=_atrium_ml(atrium, es, frame_time_ms) if known else float("nan"),
        heart_rate_bpm=beats.heart_rate_bpm,
        diastole_ms=clip_fraction(np.array([beat.diastole_ms for beat in beats.beats])),
        ed_shape=_shape(length, diameters, ed),
        es_shape=_shape(length, diameters, es),
        in_mm=in_mm,
        flags=_flags(ventricle, beats, [*ed, *es], in_mm),
    )


def measure_study(films: Mapping[str, Sequence[FilmFigures]]) -> StudyFigures:
    """Join the clips of one study.

    Parameters
    ----------
    films : mapping
        View (`a4c`, `a2c`, or any other word) -> its clips.

    Returns
    -------
    StudyFigures
        Biplane where both apical views were measured in mm: every pair of clips, and the median
        over the pairs. Without a spacing the mean of both views' fractions; with one view alone
        that view's.
    """
    able = {view: [film for film in clips if np.isfinite(film.ef)] for view, clips in films.items()}
    four, two = able.get("a4c", []), able.get("a2c", [])
    in_mm = all(film.in_mm for film in [*four, *two])
    if four and two and in_mm:
        return _biplane(four, two)
    if four and two:
        mean = float(np.mean([np.median([film.ef for film in clips]) for clips in (four, two)]))
        return StudyFigures(
            ef=mean,
            edv_ml=float("nan"),
            esv_ml=float("nan"),
            method="mean_of_views",
            flags=_joined([*four, *two]),
        )
    for view in ("a4c", "a2c", *sorted(able)):
        if clips := able.get(view):
            ef, edv, esv = (
                _median([getattr(film, name) for film in clips])
                for name in ("ef", "edv_ml", "esv_ml")
            )
            lacking = "one_view" if view in ("a4c", "a2c") else "view_unknown"
            flags = tuple(sorted({*_joined(clips), lacking}))
            return StudyFigures(
                ef=ef, edv_ml=edv, esv_ml=esv, method=f"single_plane_{view}", flags=flags
            )
    nothing = float("nan")
    return StudyFigures(
        ef=nothing, edv_ml=nothing, esv_ml=nothing, method="none", flags=("nothing_measured",)
    )


def name_fraction(
    ef: float, config: FractionConfig, sex: str | None = None, *, flags: Sequence[str] = ()
) -> str:
    """Return what an ejection fraction is called; `unknown` for NaN.

    By `ase2015` a person of unknown sex gets a name only where both sexes' limits agree. With two
    remarks or more on the outlines it is `doubtful`: the number stands, its range is not named.
    """
    if not np.isfinite(ef):
        return "unknown"
    if len(_DOUBTS.intersection(flags)) > 1:
        return "doubtful"
    if config.scheme == "cuts":
        if ef >= config.normal_from:
            return "normal"
        return "abnormal" if ef < config.abnormal_below else "greyzone"
    names = {
        _ASE_NAMES[sum(ef < limit for limit in limits)]
        for known, limits in _LIMITS_ASE.items()
        if sex not in _LIMITS_ASE or known == sex
    }
    return names.pop() if len(names) == 1 else "depends on sex"


def _without(track: Track, frames: npt.NDArray[np.bool_]) -> Track:
    """Return a track in which some frames count as not seen."""
    if not frames.any():
        return track
    return replace(
        track,
        area_mm2=np.where(frames, np.nan, track.area_mm2),
        length_mm=np.where(frames, np.nan, track.length_mm),
        diameters_mm=np.where(frames[:, None], np.nan, track.diameters_mm),
        flags=tuple(
            flags | {"slipped"} if slipped else flags
            for flags, slipped in zip(track.flags, frames, strict=True)
        ),
    )


def _atrium_ml(atrium: Track | None, es: Sequence[int], frame_time_ms: float | None) -> float:
    if atrium is None or not np.isfinite(atrium.area_mm2).any():
        return float("nan")
    area, length = (smooth(v, frame_time_ms) for v in (atrium.area_mm2, atrium.length_mm))
    return float(np.median(area_length_ml(area, length)[list(es)]))


def _shape(length: Array, diameters: Array, frames: Sequence[int]) -> Shape | None:
    if not frames:
        return None
    chosen = list(frames)
    return float(np.median(length[chosen])), np.median(diameters[chosen], axis=0)


def _flags(track: Track, beats: Beats, used: Sequence[int], in_mm: bool) -> tuple[str, ...]:
    """Return the clip's flags: of its beats, and of the masks that the figures rest on."""
    flags = {*beats.flags, *(flag for frame in used for flag in track.flags[frame])}
    flags |= {"slipped"} & {flag for frame in track.flags for flag in frame}
    length = track.length_mm
    jumps = np.abs(np.diff(length)) > _AXIS_JUMPS * length[1:]
    if jumps.any():
        flags.add("axis_jumps")
    if not in_mm:
        flags.add("no_spacing")
    return tuple(sorted(flags))


def _joined(films: Sequence[FilmFigures]) -> tuple[str, ...]:
    return tuple(sorted({flag for film in films for flag in film.flags}))


def _median(values: Sequence[float]) -> float:
    return clip_fraction(np.array(values))


def _biplane(four: Sequence[FilmFigures], two: Sequence[FilmFigures]) -> StudyFigures:
    found, agree = [], True
    for a, b in product(four, two):
        if a.ed_shape and a.es_shape and b.ed_shape and b.es_shape:
            edv, alike_ed = biplane_ml(a.ed_shape, b.ed_shape)
            esv, alike_es = biplane_ml(a.es_shape, b.es_shape)
            found.append((float(ejection_fraction(edv, esv)), edv, esv))
            agree &= alike_ed and alike_es
    ef, edv, esv = (_median([row[column] for row in found]) for column in range(3))
    figures = StudyFigures(
        ef=ef, edv_ml=edv, esv_ml=esv, method="biplane", flags=_joined([*four, *two])
    )
    if agree:
        return figures
    return replace(figures, flags=tuple(sorted({*figures.flags, "lengths_differ"})))
