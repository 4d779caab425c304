"""EchoNet-Dynamic's tables: which films there are, and the ventricles traced in two frames of each.

`read_films` and `read_tracings` are the way in; `fill_tracing` makes a mask of an axis and its 20
chords. Which of two frames is end-diastole is told by the areas, never by the order of the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rarescan.errors import InputError
from rarescan.imaging.picture_table import Row, read_rows

Array = npt.NDArray[np.float64]

FILMS = "FileList.csv"
TRACINGS = "VolumeTracings.csv"
_FILM_COLUMNS = {"FileName", "EF", "Split"}
_TRACING_COLUMNS = {"FileName", "X1", "Y1", "X2", "Y2", "Frame"}
_FEWEST_LINES = 5
"""An axis and four chords; a tracing with fewer is no outline."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """One row of `FileList.csv`."""

    name: str
    """Without folder and suffix."""
    ef: float
    """Percent; NaN where the table has none."""
    edv_ml: float
    esv_ml: float
    split: str
    """`TRAIN`, `VAL` or `TEST`, as the table has it."""


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """One traced frame."""

    frame: int
    lines: Array
    """Shape (lines, 4): x1, y1, x2, y2 in pixels; the axis first, then chords from the apex on."""


def read_films(folder: Path) -> dict[str, Film]:
    """Read `FileList.csv`: name -> film, in the order of the table.

    Raises
    ------
    SettingError
        The table is missing.
    InputError
        It lacks a column, a row is shifted, or a word stands where a number belongs.
    """
    films = {}
    for number, row in enumerate(_rows(folder / FILMS, _FILM_COLUMNS), start=2):
        name = film_name(row["FileName"])
        ef, edv, esv = (_number(row.get(c, ""), FILMS, number) for c in ("EF", "EDV", "ESV"))
        films[name] = Film(name=name, ef=ef, edv_ml=edv, esv_ml=esv, split=row["Split"].upper())
    return films


def read_tracings(folder: Path) -> dict[str, tuple[Tracing, ...]]:
    """Read `VolumeTracings.csv`: name -> its traced frames, the largest area (diastole) first.

    Raises
    ------
    SettingError
        The table is missing.
    InputError
        It lacks a column, a row is shifted, or a word stands where a number belongs.
    """
    found: dict[tuple[str, int], list[list[float]]] = {}
    for number, row in enumerate(_rows(folder / TRACINGS, _TRACING_COLUMNS), start=2):
        *line, frame = (
            _number(row[c], TRACINGS, number) for c in ("X1", "Y1", "X2", "Y2", "Frame")
        )
        if np.isfinite([*line, frame]).all():
            found.setdefault((film_name(row["FileName"]), int(frame)), []).append(line)
    films: dict[str, list[Tracing]] = {}
    for (name, at), lines in found.items():
        if len(lines) >= _FEWEST_LINES:
            films.setdefault(name, []).append(Tracing(frame=at, lines=np.array(lines)))
    return {name: by_area(traced) for name, traced in films.items()}


def by_area(tracings: Sequence[Tracing]) -> tuple[Tracing, ...]:
    """Return tracings by the area that they enclose, end-diastole (the largest) first."""
    return tuple(sorted(tracings, key=lambda t: (-_area(outline(t.lines)), t.frame)))


def film_name(written: str) -> str:
    """Return a film's name without folder and suffix, so that both tables agree."""
    name = written.strip().replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and suffix.isalnum() and len(suffix) <= 4 else name


def outline(lines: Array) -> Array:
    """Return the outline of an axis and its chords, shape (points, 2): x, y.

    The last chord lies half a disc above the annulus: both its ends are carried on to the base
    of the axis, as flat as the chord, because a point there would cut the corners off.
    """
    axis, chords = lines[0].reshape(2, 2), lines[1:].reshape(-1, 2, 2)
    middles = chords.mean(axis=1)
    apex, base = axis
    if np.linalg.norm(middles[0] - apex) > np.linalg.norm(middles[0] - base):
        apex, base = base, apex
    down = base - apex
    # Both ends of every chord on their own side of the axis, whichever way they were drawn.
    drawn = chords[:, 1] - chords[:, 0]
    turned = down[0] * drawn[:, 1] - down[1] * drawn[:, 0] < 0
    chords = np.where(turned[:, None, None], chords[:, ::-1], chords)
    last = chords[-1] + (base - middles[-1])
    first, second = chords[:, 0], chords[:, 1]
    points: Array = np.concatenate([apex[None], first, last[:1], last[1:], second[::-1]], axis=0)
    return points


def fill_tracing(lines: Array, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return which pixels have their centre inside a traced outline.

    Parameters
    ----------
    lines : float array, shape (n, 4)
        As in `Tracing`.
    shape : (int, int)
        Rows and columns of the frame.
    """
    from matplotlib.path import Path as Outline

    rows, columns = np.indices(shape)
    centres = np.column_stack([columns.ravel(), rows.ravel()])
    inside: npt.NDArray[np.bool_] = Outline(outline(lines)).contains_points(centres).reshape(shape)
    return inside


def _area(points: Array) -> float:
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _rows(path: Path, needed: set[str]) -> Sequence[Row]:
    rows = read_rows(path)
    missing = needed - set(rows[0] if rows else needed)
    if missing:
        raise InputError(
            f"{path.name} has no column {', '.join(sorted(missing))}.",
            remedy="Use EchoNet-Dynamic's columns.",
        )
    return rows


def _number(text: str, table: str, row: int) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        raise InputError(
            f"Row {row} of {table} holds a word where a number belongs.",
            remedy="Correct the row; a comma inside a name shifts all that follows.",
        ) from None
