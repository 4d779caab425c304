"""Contours over echocardiograms: the two phases of a beat as a picture, a whole clip as a film.

`draw_phases` and `draw_film` are the way in. Orange is the left ventricle with its axis, blue the
left atrium; a circle marks end-diastole, a square end-systole. Nothing but pixels, figures and
remarks is drawn: the frames hold tissue only.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from rarescan.classifiers.echo.measure import FilmFigures
from rarescan.classifiers.overlay import Rgb, write_frames

Phase = tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.float64]]
"""Frame (rows, columns), ventricle and atrium (2, rows, columns), apex and base (2, 2)."""

_HEIGHT_PX = 224
_FILM_HEIGHT_PX = 336
_PANEL_PX, _LINE_PX, _MARGIN_PX = 140, 16, 10
_NARROWEST_PX = 320
_COLOURS = ((230, 159, 0), (86, 180, 233))
"""Ventricle and atrium: Okabe and Ito's orange and sky blue."""
_ED, _ES, _TEXT = (213, 94, 0), (0, 158, 115), (235, 235, 235)
_UNKNOWN_RATE = 15.0
"""Frames a second of a film whose clip does not say it."""


def draw_phases(phases: Sequence[Phase]) -> bytes:
    """Return frames side by side with their contours and the ventricle's axis, as PNG."""
    pictures = [np.asarray(_contours(*phase, height=_HEIGHT_PX)) for phase in phases]
    buffer = io.BytesIO()
    whole = Image.fromarray(np.concatenate(pictures, axis=1))
    whole.quantize(64).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def draw_film(
    path: Path,
    frames: Iterable[Phase],
    figures: FilmFigures,
    *,
    titles: Sequence[str],
    remarks: Sequence[frozenset[str]],
    frame_time_ms: float | None,
) -> Path:
    """Write a clip with its contours, the curve of its area, its beats and what is odd about it.

    Parameters
    ----------
    path : Path
        `.mp4` or `.avi`.
    frames : iterable of Phase
        One a frame, in the order of time; read as they are needed.
    figures : FilmFigures
        The curve and the beats.
    titles : sequence of str
        Lines above the curve: whose clip it is (pseudonyms), what was measured, quality flags.
    remarks : sequence of frozenset
        What is odd about each frame's mask; drawn in that frame.
    frame_time_ms : float or None
        Sets the speed; 15 frames a second where it is unknown.

    Raises
    ------
    MissingExtraError
        The extra `video` is not installed.
    """
    rate = 1000 / frame_time_ms if frame_time_ms else _UNKNOWN_RATE
    return write_frames(path, _shown(frames, figures, titles, remarks), frames_per_second=rate)


def _shown(
    frames: Iterable[Phase],
    figures: FilmFigures,
    titles: Sequence[str],
    remarks: Sequence[frozenset[str]],
) -> Iterator[Rgb]:
    font = ImageFont.load_default(13)
    marks = {beat.ed: ("ED", _ED) for beat in figures.beats.beats}
    marks |= {beat.es: ("ES", _ES) for beat in figures.beats.beats}
    panel: Image.Image | None = None
    for number, phase in enumerate(frames):
        picture = _contours(*phase, height=_FILM_HEIGHT_PX)
        width = max(picture.width + picture.width % 2, _NARROWEST_PX)
        sheet = Image.new("RGB", (width, _FILM_HEIGHT_PX + _PANEL_PX))
        sheet.paste(picture, ((width - picture.width) // 2, 0))
        panel = panel or _panel(width, figures, titles)
        sheet.paste(panel, (0, _FILM_HEIGHT_PX))
        draw = ImageDraw.Draw(sheet)
        x = _across(number, len(figures.area), width)
        draw.line([x, _FILM_HEIGHT_PX + _LINE_PX * len(titles), x, sheet.height], fill=_TEXT)
        if number in marks:
            word, colour = marks[number]
            draw.text((width - 34, 6), word, fill=colour, font=ImageFont.load_default(20))
        odd = ", ".join(sorted(remarks[number])).replace("_", " ")
        draw.text((6, _FILM_HEIGHT_PX - 20), odd, fill=_COLOURS[0], font=font)
        yield np.asarray(sheet)


def _across(frame: int, n_frames: int, width: int) -> float:
    return _MARGIN_PX + (width - 2 * _MARGIN_PX) * frame / max(n_frames - 1, 1)


def _panel(width: int, figures: FilmFigures, titles: Sequence[str]) -> Image.Image:
    """Return the titles, and the area over time with the beats' marks."""
    panel = Image.new("RGB", (width, _PANEL_PX))
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(11)
    for number, line in enumerate(titles):
        draw.text((_MARGIN_PX, _LINE_PX * number), line, fill=_TEXT, font=font)
    area, top = figures.area, _LINE_PX * len(titles) + _MARGIN_PX
    if not np.isfinite(area).any():
        return panel
    low, high = float(np.nanmin(area)), float(np.nanmax(area))
    share = (area - low) / max(high - low, 1e-9)
    down = _PANEL_PX - _MARGIN_PX - (_PANEL_PX - _MARGIN_PX - top) * share
    places = [(_across(k, len(area), width), float(y)) for k, y in enumerate(down)]
    draw.line([place for place in places if np.isfinite(place[1])], fill=_COLOURS[1], width=2)
    for beat in figures.beats.beats:
        (x, y), (u, v) = places[beat.ed], places[beat.es]
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=_ED)
        draw.rectangle([u - 4, v - 4, u + 4, v + 4], fill=_ES)
    return panel


def _contours(
    frame: npt.NDArray[np.uint8],
    masks: npt.NDArray[np.bool_],
    axis: npt.NDArray[np.float64],
    *,
    height: int,
) -> Image.Image:
    """Return a frame, enlarged, with the chambers' outlines and the ventricle's axis."""
    scale = height / frame.shape[0]
    size = (round(frame.shape[1] * scale), height)
    grey = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
    picture = np.array(grey.convert("RGB"))
    for mask, colour in zip(masks, _COLOURS, strict=True):
        large = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        picture[large & ~binary_erosion(large, iterations=2)] = colour
    drawn = Image.fromarray(picture)
    if np.isfinite(axis).all():
        ends = [((x + 0.5) * scale, (y + 0.5) * scale) for y, x in axis]
        ImageDraw.Draw(drawn).line([ends[0], ends[1]], fill=_COLOURS[0], width=1)
    return drawn
