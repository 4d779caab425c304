"""The size of a heart's chamber from its mask: axis, diameters, area, volume, ejection fraction.

`measure_chamber` measures one mask, `measure_clip` every mask of a clip; `simpson_ml` and
`area_length_ml` make volumes of that. The long axis is the chamber's own principal axis, never a
row or a column of the picture, and both spacings of the pixels count. What a reader would get
wrong: without a spacing there are no millilitres, but there is an ejection fraction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[np.float64]
Spacing = tuple[float, float]

DISCS = 20
AXES_DIFFER = 0.10
"""Above this relative difference the two views do not show the same axis (ASE/EACVI 2015)."""
FEWEST_PIXELS = 40
_ROUND = 1.1
"""Ratio of the principal spreads below which a mask has no long axis of its own."""
_SPECK = 0.02
"""Share of the mask that a second piece may have before it counts."""
_EDGE_PX = 2
"""How far the soft edge of a mask reaches; haze beyond it is no chamber."""
_BAND_PX = 1.5
_STEPS_PER_PIXEL = 2
_MM3_PER_ML = 1000.0


@dataclass(frozen=True, kw_only=True)
class Chamber:
    """One chamber in one frame; lengths in mm where a spacing is known, else in pixels."""

    area_mm2: float
    length_mm: float
    """From the apex to the middle of the annulus."""
    diameters_mm: Array
    """Shape (20,), across the axis, from the apex to the annulus."""
    apex: tuple[float, float]
    """Row and column, in pixels."""
    base: tuple[float, float]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Track:
    """One chamber through a clip; NaN in frames where it is not seen."""

    area_mm2: Array
    """Shape (frames,)."""
    length_mm: Array
    """Shape (frames,)."""
    diameters_mm: Array
    """Shape (frames, 20)."""
    axes: Array
    """Row and column of apex and of base in each frame, shape (frames, 2, 2), pixels."""
    flags: tuple[frozenset[str], ...]
    """What is odd about each frame's mask."""


def measure_clip(
    masks: Iterable[npt.NDArray[np.floating | np.bool_]],
    spacing_mm: Spacing | None,
    atria: Iterable[npt.NDArray[np.floating | np.bool_] | None] | None = None,
) -> Track:
    """Measure a chamber in every frame: masks, and atria where known, as in `measure_chamber`.

    They are taken one by one, in the order of time.
    """
    others = atria if atria is not None else repeat(None)
    pairs = zip(masks, others, strict=False)
    return join_track([measure_chamber(mask, spacing_mm, atrium=other) for mask, other in pairs])


def join_track(chambers: Sequence[Chamber | None]) -> Track:
    """Return a clip's chambers, one a frame, as curves; None where it was not seen."""
    unseen = Chamber(
        area_mm2=np.nan,
        length_mm=np.nan,
        diameters_mm=np.full(DISCS, np.nan),
        apex=(np.nan, np.nan),
        base=(np.nan, np.nan),
        flags=("not_seen",),
    )
    seen = [chamber or unseen for chamber in chambers]
    return Track(
        area_mm2=np.array([c.area_mm2 for c in seen], dtype=np.float64),
        length_mm=np.array([c.length_mm for c in seen], dtype=np.float64),
        diameters_mm=np.array([c.diameters_mm for c in seen]).reshape(-1, DISCS),
        axes=np.array([(c.apex, c.base) for c in seen]).reshape(-1, 2, 2),
        flags=tuple(frozenset(c.flags) for c in seen),
    )


def measure_chamber(
    mask: npt.NDArray[np.floating | np.bool_],
    spacing_mm: Spacing | None,
    *,
    atrium: npt.NDArray[np.floating | np.bool_] | None = None,
) -> Chamber | None:
    """Measure one mask.

    Parameters
    ----------
    mask : bool or float array, shape (rows, columns)
        The chamber, or the share of each pixel that belongs to it (0 to 1). Of several pieces the
        largest is measured and `several_pieces` is flagged.
    spacing_mm : (float, float) or None
        Of the pixels, down and to the right; None measures in pixels.
    atrium : array of the same shape, optional
        Lies behind the annulus; without it the wider end is taken for the annulus.

    Returns
    -------
    Chamber or None
        None where fewer than 40 pixels belong to the chamber.

    Notes
    -----
    The axis is the first principal axis of the pixels in mm. Its ends are where a narrow band
    along it enters and leaves the mask; a diameter is the mean chord of one of 20 equal slices.
    """
    shares, flags = _largest_piece(np.asarray(mask, dtype=np.float64))
    if (shares > 0.5).sum() < FEWEST_PIXELS:
        return None
    spacing = np.array(spacing_mm or (1.0, 1.0), dtype=np.float64)
    centre, along, is_round = _principal_axis(shares, spacing)
    flags += ("round",) if is_round else ()
    flags += ("touches_border",) if _touches_border(shares) else ()
    places, chords, band = _profiles(shares, spacing, centre, along)
    low, high = _ends(places, band)
    diameters = _slices(places, chords, low, high)
    if _starts_at_base(diameters, centre + low * along, centre + high * along, spacing, atrium):
        low, high, diameters = high, low, diameters[::-1]
    return Chamber(
        area_mm2=float(shares.sum() * spacing.prod()),
        length_mm=float(abs(high - low)),
        diameters_mm=diameters,
        apex=_pixel(centre + low * along, spacing),
        base=_pixel(centre + high * along, spacing),
        flags=flags,
    )


def simpson_ml(length_mm: Array | float, first_mm: Array, second_mm: Array | None = None) -> Array:
    """Return volumes by the method of discs: V = pi/4 * L/n * sum of a_i b_i.

    Parameters
    ----------
    length_mm : float or array, shape (...)
        Long axis; biplane: the longer of the two views' axes.
    first_mm, second_mm : arrays, shape (..., n)
        Full diameters of the discs at the same levels in both views. Single plane (b = a)
        without the second.

    Notes
    -----
    Lang et al., J Am Soc Echocardiogr 28 (2015) 1-39.
    """
    first = np.asarray(first_mm, dtype=np.float64)
    second = first if second_mm is None else np.asarray(second_mm, dtype=np.float64)
    discs = (first * second).sum(axis=-1) / first.shape[-1]
    volume: Array = np.pi / 4 * np.asarray(length_mm) * discs / _MM3_PER_ML
    return volume


def biplane_ml(four: tuple[float, Array], two: tuple[float, Array]) -> tuple[float, bool]:
    """Return the biplane volume of (length, diameters) in two views, and whether the axes agree."""
    longer, shorter = max(four[0], two[0]), min(four[0], two[0])
    volume = float(simpson_ml(longer, four[1], two[1]))
    return volume, bool(longer - shorter <= AXES_DIFFER * longer)


def area_length_ml(area_mm2: Array | float, length_mm: Array | float) -> Array:
    """Return volumes by area and length of one view: V = 8 A^2 / (3 pi L)."""
    volume: Array = 8 * np.asarray(area_mm2) ** 2 / (3 * np.pi * np.asarray(length_mm))
    return volume / _MM3_PER_ML


def ejection_fraction(edv: Array | float, esv: Array | float) -> Array:
    """Return EF = 100 (EDV - ESV) / EDV in percent; NaN stays NaN, and nothing is cut off."""
    edv, esv = np.asarray(edv, dtype=np.float64), np.asarray(esv, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction: Array = 100 * (edv - esv) / edv
    return np.where(edv > 0, fraction, np.nan)


def _largest_piece(shares: Array) -> tuple[Array, tuple[str, ...]]:
    """Return the shares around the largest piece alone, and whether there are several."""
    pieces, count = ndimage.label(shares > 0.5)
    if count == 0:
        return shares, ()
    sizes = np.bincount(pieces.ravel())[1:]
    largest = pieces == 1 + int(sizes.argmax())
    others = (pieces > 0) & ~largest
    near = ndimage.binary_dilation(largest, iterations=_EDGE_PX) & ~others
    several = count > 1 and np.sort(sizes)[-2] > _SPECK * sizes.sum()
    return np.where(near, shares, 0.0), ("several_pieces",) if several else ()


def _principal_axis(shares: Array, spacing: Array) -> tuple[Array, Array, bool]:
    """Return centre and direction in mm (down, right), and whether the mask is too round."""
    rows, columns = np.nonzero(shares)
    weights = shares[rows, columns]
    places = np.column_stack([rows, columns]) * spacing
    centre: Array = np.average(places, axis=0, weights=weights)
    spreads, directions = np.linalg.eigh(np.cov(places.T, aweights=weights))
    is_round = bool(spreads[1] < _ROUND**2 * spreads[0])
    return centre, directions[:, 1], is_round


def _profiles(
    shares: Array, spacing: Array, centre: Array, along: Array
) -> tuple[Array, Array, Array]:
    """Return places along the axis, the chord across each, and how full the axis itself is."""
    step = float(spacing.min()) / _STEPS_PER_PIXEL
    across = np.array([-along[1], along[0]])
    offsets = np.argwhere(shares > 0) * spacing - centre
    places, sides = (
        np.arange(np.floor(o.min() / step) - 2, np.ceil(o.max() / step) + 3) * step
        for o in (offsets @ along, offsets @ across)
    )
    lattice = (
        centre[:, None, None]
        + along[:, None, None] * places[None, :, None]
        + across[:, None, None] * sides[None, None, :]
    )
    looked = ndimage.map_coordinates(
        shares, lattice / spacing[:, None, None], order=1, mode="constant", cval=0.0
    )
    band = np.abs(sides) <= _BAND_PX * spacing.min()
    return places, looked.sum(axis=1) * step, looked[:, band].mean(axis=1)


def _ends(places: Array, band: Array) -> tuple[float, float]:
    """Return where the band is first and last half full, interpolated."""
    inside = np.flatnonzero(band >= 0.5)
    if not len(inside):
        # A chamber that bends around its own centre: the mask's extent is all there is.
        return float(places[2]), float(places[-3])
    first, last = int(inside[0]), int(inside[-1])
    step = places[1] - places[0]
    low = places[first] - step * (band[first] - 0.5) / max(band[first] - band[first - 1], 1e-9)
    high = places[last] + step * (band[last] - 0.5) / max(band[last] - band[last + 1], 1e-9)
    return float(low), float(high)


def _slices(places: Array, chords: Array, low: float, high: float) -> Array:
    """Return the mean chord of each of 20 equal slices between two places."""
    step = places[1] - places[0]
    integral = np.concatenate([[0.0], np.cumsum((chords[1:] + chords[:-1]) / 2 * step)])
    edges = np.linspace(low, high, DISCS + 1)
    diameters: Array = np.diff(np.interp(edges, places, integral)) / (edges[1] - edges[0])
    return diameters


def _starts_at_base(
    diameters: Array,
    low: Array,
    high: Array,
    spacing: Array,
    atrium: npt.NDArray[np.floating | np.bool_] | None,
) -> bool:
    """Return whether the first slice lies at the annulus."""
    if atrium is not None and (behind := np.argwhere(np.asarray(atrium) > 0.5)).size:
        centre = behind.mean(axis=0) * spacing
        return bool(np.linalg.norm(centre - low) < np.linalg.norm(centre - high))
    quarter = DISCS // 4
    return bool(diameters[:quarter].mean() > diameters[-quarter:].mean())


def _touches_border(shares: Array) -> bool:
    inside = shares > 0.5
    return bool(inside[[0, -1]].any() or inside[:, [0, -1]].any())


def _pixel(place_mm: Array, spacing: Array) -> tuple[float, float]:
    row, column = place_mm / spacing
    return float(row), float(column)
