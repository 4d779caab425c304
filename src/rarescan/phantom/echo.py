"""Invented hearts: clips of the left ventricle whose contours, volumes and beats are exactly known.

`draw_heart` invents a person's heart, `film` gives its clip and `chambers` the masks of ventricle
and atrium in every frame. A half-ellipsoid contracts under a wall; speckle is a correlated complex
field. No papillary muscles, no foreshortening, and the speckle does not move with the tissue: it
tests code and units, not clinical accuracy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from rarescan.seeds import derive, generator

Array = npt.NDArray[np.float64]
View = Literal["a4c", "a2c"]
VIEWS: tuple[View, ...] = ("a4c", "a2c")

SYSTOLE = 0.35
"""Share of the cycle from end-diastole to end-systole."""
_TAUGHT_PHASES = (0.0, 0.35, 0.175, 0.7)
"""Of the cycle: the frames of an invented heart that are taught."""
_ROWS = _COLUMNS = 112
_PROBE_ROW = 4
_SECTOR_HALF_ANGLE_DEG = 38.0
_SECTOR_RADIUS_PX = 106.0
_MEMORY = 0.75
"""Correlation of the speckle between frames."""
_BLUR_PX = (0.7, 1.1)
_TISSUE, _MYOCARDIUM, _BLOOD, _VALVE = 0.12, 0.55, 0.006, 0.8
_RANGE_DB = 50.0


@dataclass(frozen=True, kw_only=True)
class Heart:
    """What is true of one invented heart and of how it was filmed."""

    edv_ml: float
    esv_ml: float
    length_ed_mm: float
    """From the apex to the annulus at end-diastole."""
    heart_rate_bpm: float = 70.0
    roundness: float = 0.95
    """Radius across the two-chamber view by that across the four-chamber view."""
    wall_mm: float = 10.0
    depth_mm: float = 18.0
    """Of the apex, below the probe."""
    tilt_deg: float = 0.0
    spacing_mm: tuple[float, float] = (1.4, 1.4)
    """Of the pixels, down and to the right."""
    gain: float = 0.35

    @property
    def ef(self) -> float:
        """Ejection fraction in percent."""
        return 100 * (self.edv_ml - self.esv_ml) / self.edv_ml


def draw_heart(seed: int, index: int) -> Heart:
    """Return one heart of the population; the same for a seed and a number, in any order."""
    random = generator(seed, "heart", index)
    healthy = random.random() < 0.55
    ef = min(random.normal(0.62, 0.05) if healthy else random.uniform(0.18, 0.58), 0.8)
    edv = random.uniform(75, 130)
    spacing = random.uniform(1.25, 1.5)
    length = 72 + 0.22 * (edv - 75) + random.normal(0, 2)
    edv *= 1 + 1.1 * max(0.0, 0.55 - ef)
    return Heart(
        edv_ml=edv,
        esv_ml=edv * (1 - ef),
        length_ed_mm=length,
        heart_rate_bpm=random.uniform(62, 95),
        roundness=random.uniform(0.88, 1.0),
        wall_mm=random.uniform(8, 12),
        depth_mm=random.uniform(14, 22),
        tilt_deg=random.uniform(-12, 12),
        spacing_mm=(spacing, spacing),
        gain=random.uniform(0.25, 0.5),
    )


def contraction(heart: Heart, times_s: Array) -> Array:
    """Return how far the heart has contracted, 0 at end-diastole to 1 at end-systole."""
    phase = np.mod(times_s * heart.heart_rate_bpm / 60, 1.0)
    shortening = np.sin(np.pi / 2 * phase / SYSTOLE) ** 2
    filling = np.cos(np.pi / 2 * (phase - SYSTOLE) / (1 - SYSTOLE)) ** 2
    return np.where(phase < SYSTOLE, shortening, filling)


def volumes_ml(heart: Heart, times_s: Array) -> Array:
    """Return the volume of the ventricle at each time, shape (n,)."""
    return heart.edv_ml - (heart.edv_ml - heart.esv_ml) * contraction(heart, times_s)


def lengths_mm(heart: Heart, times_s: Array) -> Array:
    """Return the length of the ventricle's axis at each time, shape (n,)."""
    shortest = heart.length_ed_mm * (1 - 0.22 * heart.ef / 100)
    return heart.length_ed_mm - (heart.length_ed_mm - shortest) * contraction(heart, times_s)


def radii_mm(heart: Heart, times_s: Array, view: View) -> Array:
    """Return the radius at the annulus in one view; V = 2/3 pi R4 R2 L of a half-ellipsoid."""
    volume_mm3 = 1000 * volumes_ml(heart, times_s)
    four = np.sqrt(volume_mm3 / (2 / 3 * np.pi * heart.roundness * lengths_mm(heart, times_s)))
    return four if view == "a4c" else heart.roundness * four


def chambers(heart: Heart, view: View, times_s: Array) -> npt.NDArray[np.bool_]:
    """Return what is ventricle and what is atrium, shape (frames, 2, 112, 112)."""
    z, x = _axes(heart)
    lengths, radii = lengths_mm(heart, times_s), radii_mm(heart, times_s, view)
    ventricle = np.stack([_half_ellipse(z, x, *size) for size in zip(lengths, radii, strict=True)])
    atrium = np.stack([((z - length - 20) / 20) ** 2 + (x / 18) ** 2 < 1 for length in lengths])
    return np.stack([ventricle, atrium & ~ventricle], axis=1)


def film(heart: Heart, view: View, times_s: Array, *, seed: int) -> npt.NDArray[np.uint8]:
    """Return a clip of the heart, uint8, shape (frames, 112, 112), row 0 at the probe."""
    random = generator(seed, "speckle", view)
    z, x = _axes(heart)
    sector = _sector()
    lengths, radii = lengths_mm(heart, times_s), radii_mm(heart, times_s, view)
    masks = chambers(heart, view, times_s)
    field = _field(random)
    frames = []
    for number, (length, radius) in enumerate(zip(lengths, radii, strict=True)):
        if number:
            field = _MEMORY * field + np.sqrt(1 - _MEMORY**2) * _field(random)
        echo = np.full(z.shape, _TISSUE)
        outer = _half_ellipse(z + heart.wall_mm, x, length + heart.wall_mm, radius + heart.wall_mm)
        echo[outer] = _MYOCARDIUM
        echo[masks[number].any(axis=0)] = _BLOOD
        echo[(np.abs(z - length) < 1.5) & (np.abs(x) < radius)] = _VALVE
        envelope = np.sqrt(echo) * np.abs(field) * heart.gain
        decibel = 20 * np.log10(np.maximum(envelope, 1e-9))
        grey = np.clip((decibel + _RANGE_DB) / _RANGE_DB, 0, 1) * sector
        frames.append(np.rint(255 * grey).astype(np.uint8))
    return np.stack(frames)


def lessons(
    n: int, *, seed: int = 0
) -> Iterator[tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
    """Yield invented hearts to learn from, both views of each.

    Yields
    ------
    (str, uint8 array, bool array)
        The person, four frames of a beat, and ventricle and atrium in them, shape (4, 2, 112, 112).
    """
    for index in range(n):
        heart = draw_heart(seed, index)
        times = np.array(_TAUGHT_PHASES) * 60 / heart.heart_rate_bpm
        for view in VIEWS:
            shown = film(heart, view, times, seed=derive(seed, index))
            yield f"PHANTOM{index:04d}", shown, chambers(heart, view, times)


def frame_times_s(n_frames: int, fps: float = 30.0, *, start: float = 0.0) -> Array:
    """Return the times of evenly spaced frames; `start` is where in the cycle, in seconds."""
    return start + np.arange(n_frames) / fps


def _axes(heart: Heart) -> tuple[Array, Array]:
    """Return for every pixel how far it lies along and across the ventricle's axis, in mm."""
    down_mm, right_mm = heart.spacing_mm
    depth = (np.arange(_ROWS) - _PROBE_ROW)[:, None] * down_mm - heart.depth_mm
    side = (np.arange(_COLUMNS) - (_COLUMNS - 1) / 2)[None, :] * right_mm
    tilt = np.deg2rad(heart.tilt_deg)
    return (
        depth * np.cos(tilt) + side * np.sin(tilt),
        side * np.cos(tilt) - depth * np.sin(tilt),
    )


def _half_ellipse(z: Array, x: Array, length: float, radius: float) -> npt.NDArray[np.bool_]:
    u = 1 - z / length
    inside: npt.NDArray[np.bool_] = (
        (z > 0) & (z < length) & (np.abs(x) < radius * np.sqrt(np.clip(1 - u**2, 0, 1)))
    )
    return inside


def _sector() -> npt.NDArray[np.bool_]:
    down = np.arange(_ROWS)[:, None] - _PROBE_ROW
    side = np.arange(_COLUMNS)[None, :] - (_COLUMNS - 1) / 2
    angle = np.abs(np.arctan2(side, down))
    inside: npt.NDArray[np.bool_] = (angle < np.deg2rad(_SECTOR_HALF_ANGLE_DEG)) & (
        np.hypot(side, down) < _SECTOR_RADIUS_PX
    )
    return inside


def _field(random: np.random.Generator) -> npt.NDArray[np.complex128]:
    """Return fully developed speckle of mean power 1."""
    parts = [gaussian_filter(random.normal(size=(_ROWS, _COLUMNS)), _BLUR_PX) for _ in range(2)]
    field: npt.NDArray[np.complex128] = parts[0] + 1j * parts[1]
    field /= np.sqrt(np.mean(np.abs(field) ** 2))
    return field
