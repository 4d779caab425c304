"""Beats of a clip from the curve of the ventricle's area alone; no heart rate is needed.

`find_beats` gives each beat's end-diastole and end-systole, `smooth` quietens the curves that
volumes are read from, and `clip_fraction` is the clip's ejection fraction: the median over its
beats. A percentile above it would grow with the number of beats, and cutting off low values would
lose the sickest. What a reader would get wrong: frame 0 is the first in time.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.ndimage import median_filter
from scipy.signal import find_peaks, savgol_filter

from rarescan.classifiers.echo.volumes import ejection_fraction

Array = npt.NDArray[np.float64]

_WINDOW_MS = 200.0
_LONGEST_WINDOW = 31
_FRAME_MS = 33.3
"""Assumed for the smoothing alone where the clip does not say."""
_PROMINENCE = 0.35
"""Of the curve's range: what a dip must stand out by to be an end-systole."""
_SHORTEST_BEAT_MS = 270.0
"""A heart rate of 220 a minute."""
_FLAT = 0.01
"""Relative range of the area below which nothing beats."""
_NOISE_RANGES = 5.0
"""Range by frame-to-frame noise; white noise alone reaches 4 to 5 when it is smoothed."""
_NEIGHBOURS = 5
_SD_BY_MAD = 1.4826
_OUTLYING = 6.0
"""Standard deviations from its neighbours, above which a frame's mask is taken for a slip."""
_LEAST_SLIP = 0.25
"""Of the curve's range; below it a frame is kept, because the tip of a dip is far from its median
too."""
_SPARSE_FRAMES_A_BEAT = 8
"""Below it the true extremes fall between frames."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One beat: positions of frames."""

    ed: int
    """End-diastole, the largest area before the contraction (or after it, see `find_beats`)."""
    es: int
    """End-systole, the smallest area."""
    systole_ms: float
    """From end-diastole to end-systole; NaN without a frame time or where `ed` comes later."""
    diastole_ms: float
    """From end-systole to the next end-diastole; NaN where the clip ends before it."""


@dataclass(frozen=True, kw_only=True)
class Beats:
    """The beats of one clip."""

    beats: tuple[Beat, ...]
    cycle_ms: float
    """Median distance between equal phases of neighbouring beats; NaN below one full cycle."""
    flags: tuple[str, ...]

    @property
    def heart_rate_bpm(self) -> float:
        """Heart rate from the curve; NaN where the clip holds no full cycle."""
        return 60_000.0 / self.cycle_ms


def smooth(values: Array, frame_time_ms: float | None) -> Array:
    """Return curves without their noise: a parabola fitted around each frame (Savitzky-Golay).

    A parabola keeps the height of a peak, which a mean would lower.

    Parameters
    ----------
    values : float array, shape (frames, ...)
        Gaps (NaN) are bridged by a straight line; a curve that is all gaps stays so.
    frame_time_ms : float or None
        Sets how many frames 200 ms are.
    """
    filled = _bridged(np.asarray(values, dtype=np.float64))
    window = round(_WINDOW_MS / (frame_time_ms or _FRAME_MS)) | 1
    window = min(window, _LONGEST_WINDOW, len(filled) - 1 + len(filled) % 2)
    if window < 5:
        return filled
    known = np.isfinite(filled)
    smoothed: Array = savgol_filter(np.where(known, filled, 0.0), window, polyorder=2, axis=0)
    return np.where(known, smoothed, np.nan)


def outlying(area: Array) -> npt.NDArray[np.bool_]:
    """Return in which frames the mask slipped: its area is far from that of the frames around.

    A slip of one frame (into the atrium, say) would be the largest area of the beat. Judged
    against the median of five frames, so that a slope or a peak is no slip. Shape (frames,).
    """
    area = np.asarray(area, dtype=np.float64)
    if len(area) < 2 * _NEIGHBOURS or not np.isfinite(area).any():
        return np.zeros(len(area), dtype=bool)
    filled = _bridged(area)
    away = np.abs(filled - median_filter(filled, _NEIGHBOURS, mode="nearest"))
    usual = _SD_BY_MAD * float(np.median(away))
    extent = float(np.subtract(*np.percentile(filled, (95, 5))))
    slipped: npt.NDArray[np.bool_] = away > max(_OUTLYING * usual, _LEAST_SLIP * extent)
    return slipped & np.isfinite(area)


def find_beats(area: Array, frame_time_ms: float | None) -> Beats:
    """Return the beats of a clip.

    Parameters
    ----------
    area : float array, shape (frames,)
        Area of the ventricle, any unit; NaN where it was not seen.
    frame_time_ms : float or None
        Without it the phases are found all the same, only their durations are NaN.

    Returns
    -------
    Beats
        `flags`: `less_than_one_beat` (the extremes of the clip stand for a beat), `two_frames`,
        `no_cycle` (nothing beats, or it was not seen: no beat), `few_frames_a_beat` (the true
        extremes fall between frames), `gaps` (frames in which it was not seen).

    Notes
    -----
    An end-systole is a dip inside the clip that stands out by a third of the curve's range. Its
    end-diastole is the largest area since the dip before. Where that is the clip's first frame,
    diastole may have been cut off; then the one after the dip is taken if it lies inside.
    """
    area = np.asarray(area, dtype=np.float64)
    seen = np.isfinite(area)
    flags: tuple[str, ...] = () if seen.all() else ("gaps",)
    if seen.sum() < 2 or 2 * seen.sum() < len(area):
        return Beats(beats=(), cycle_ms=np.nan, flags=(*flags, "no_cycle"))
    curve = smooth(area, frame_time_ms)
    if _is_flat(area, curve):
        return Beats(beats=(), cycle_ms=np.nan, flags=(*flags, "no_cycle"))
    dips = _dips(curve, frame_time_ms)
    if not dips:
        flags += ("less_than_one_beat", *(("two_frames",) if len(area) == 2 else ()))
        beat = Beat(
            ed=int(curve.argmax()), es=int(curve.argmin()), systole_ms=np.nan, diastole_ms=np.nan
        )
        return Beats(beats=(beat,), cycle_ms=np.nan, flags=flags)
    ed, complete = _diastoles(curve, dips)
    if not complete:
        flags += ("less_than_one_beat",)
    frame_ms = np.nan if frame_time_ms is None else frame_time_ms
    cycle = _cycle_frames(dips, ed)
    if cycle < _SPARSE_FRAMES_A_BEAT:
        flags += ("few_frames_a_beat",)
    beats = [
        Beat(
            ed=chosen,
            es=dip,
            systole_ms=(dip - chosen) * frame_ms if chosen < dip else np.nan,
            diastole_ms=_until_next(dip, ed) * frame_ms,
        )
        for dip, chosen in zip(dips, _chosen(dips, ed, curve), strict=True)
    ]
    return Beats(beats=tuple(beats), cycle_ms=cycle * frame_ms, flags=flags)


def beat_fractions(volume: Array, beats: Beats) -> Array:
    """Return each beat's ejection fraction in percent, shape (beats,), from a curve of volumes."""
    ed, es = ([getattr(beat, phase) for beat in beats.beats] for phase in ("ed", "es"))
    volume = np.asarray(volume, dtype=np.float64)
    return ejection_fraction(volume[ed], volume[es]) if ed else np.empty(0)


def clip_fraction(fractions: Array) -> float:
    """Return the median over beats; NaN beats are left out, and no beat gives NaN."""
    known = np.asarray(fractions, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if known.size else float("nan")


def _bridged(values: Array) -> Array:
    flat = values.reshape(len(values), -1).copy()
    for column in flat.T:
        known = np.isfinite(column)
        if known.any() and not known.all():
            column[~known] = np.interp(np.flatnonzero(~known), np.flatnonzero(known), column[known])
    return flat.reshape(values.shape)


def _is_flat(area: Array, curve: Array) -> bool:
    """Return whether the curve's range is noise."""
    extent = float(np.ptp(curve))
    noise = _SD_BY_MAD * float(np.nanmedian(np.abs(area - curve)))
    return extent <= max(_FLAT * float(np.max(curve)), _NOISE_RANGES * noise)


def _dips(curve: Array, frame_time_ms: float | None) -> list[int]:
    apart = max(round(_SHORTEST_BEAT_MS / frame_time_ms), 1) if frame_time_ms else 1
    dips, _ = find_peaks(-curve, prominence=_PROMINENCE * np.ptp(curve), distance=apart)
    return [int(dip) for dip in dips]


def _diastoles(curve: Array, dips: list[int]) -> tuple[list[int], bool]:
    """Return the largest frame before, between and after the dips, and if one lies inside."""
    edges = [0, *dips, len(curve) - 1]
    ed = [low + int(curve[low : high + 1].argmax()) for low, high in pairwise(edges)]
    return ed, any(0 < frame < len(curve) - 1 for frame in ed)


def _chosen(dips: list[int], ed: list[int], curve: Array) -> list[int]:
    chosen = []
    for number in range(len(dips)):
        before, after = ed[number], ed[number + 1]
        inside = after < len(curve) - 1
        if before > 0 or (not inside and curve[before] >= curve[after]):
            chosen.append(before)
        else:
            chosen.append(after)
    return chosen


def _cycle_frames(dips: list[int], ed: list[int]) -> float:
    """Return the median number of frames of a cycle; NaN where none is whole."""
    gaps = [*np.diff(dips), *np.diff([frame for frame in ed[1:-1]])]
    if not gaps and len(ed) > 1 and ed[0] == 0:
        # The clip may begin at end-diastole, as clips that start at the R wave do.
        gaps = [ed[1] - ed[0]]
    return float(np.median(gaps)) if gaps else float("nan")


def _until_next(dip: int, ed: list[int]) -> float:
    later = [frame for frame in ed if frame > dip]
    return float(later[0] - dip) if later else float("nan")
