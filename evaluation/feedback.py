"""Readers' ratings: can they tell synthetic scans from real ones, and what did they remark.

`summarise` is the way in: a CSV of ratings, joined to a prepared cohort and a batch by scan. It
decides nothing; the report shows it. Readers become numbers and real scans stay unnamed, because
a report has no identifiers. Rows that cannot be read are told by their line, never guessed.
"""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from rarescan.cohort.contracts import Cohort, Score
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError
from rarescan.evaluation.intervals import auc_interval

Array = npt.NDArray[np.float64]

FEEDBACK = "feedback.json"
_NEEDED = ("scan_id", "reader", "real_or_synthetic")
_IN_WORDS = {"yes": 100.0, "synthetic": 100.0, "no": 0.0, "real": 0.0}
_FEWEST_PERSONS = 10
_LONGEST_REMARK = 300
_MOST_REMARKS, _MOST_PROBLEMS = 100, 50
_METHOD = "synthetic against real persons, DeLong over persons"


@dataclass(frozen=True, kw_only=True)
class _Rating:
    """One row of the file that could be read."""

    person: str
    synthetic: bool
    reader: str
    value: float
    """0 (surely real) to 100 (surely synthetic)."""
    remark: str


class _RowError(Exception):
    """What is wrong with one row."""


def summarise(table: Path, prepared: Path, batch: Path) -> dict[str, Any]:
    """Return what readers' ratings say, as plain JSON values.

    Parameters
    ----------
    table : Path
        CSV (comma or semicolon, UTF-8) with the columns scan_id (or the file's name), reader,
        real_or_synthetic (0: surely real, to 100: surely synthetic; or real/no, synthetic/yes)
        and, if wanted, remark.
    prepared, batch : Path
        The cohorts that hold the real and the synthetic scans.

    Returns
    -------
    dict
        `readers`: for each the persons rated and the AUC of telling synthetic from real (0.5:
        they cannot be told) as a Score or None; `together`: the same of all readers' mean ranks;
        `remarks`: reader, origin, synthetic person, text of at most 300 characters; `problems`:
        line and what is wrong with it; `n_rows`, `n_remarks`, `n_problems`; `batch_id`.

    Raises
    ------
    InputError
        The file is no such table, or no row of it could be read.
    """
    drawn = open_cohort(batch)
    known = _scans(open_cohort(prepared), synthetic=False) | _scans(drawn, synthetic=True)
    ratings: list[_Rating] = []
    problems: list[dict[str, Any]] = []
    rated: set[tuple[str, str]] = set()
    for line, row in _rows(table):
        try:
            ratings.append(_rating(row, known, rated))
        except _RowError as error:
            problems.append({"line": line, "problem": str(error)})
    if not ratings:
        first = f" Line {problems[0]['line']}: {problems[0]['problem']}." if problems else ""
        raise InputError(
            f"No rating of {table.name} could be used.{first}",
            remedy="Correct the file: scan_id names a scan of the run, real_or_synthetic is a "
            "number from 0 to 100, yes or no.",
        )
    by_reader: dict[str, list[_Rating]] = defaultdict(list)
    for rating in ratings:
        by_reader[rating.reader].append(rating)
    numbers = {reader: f"reader {i}" for i, reader in enumerate(by_reader, start=1)}
    remarks = [
        {
            "reader": numbers[rating.reader],
            "origin": "synthetic" if rating.synthetic else "real",
            "person": rating.person if rating.synthetic else "",
            "text": rating.remark,
        }
        for rating in ratings
        if rating.remark
    ]
    return {
        "schema": 1,
        "batch_id": drawn.cohort_id,
        "n_rows": len(ratings) + len(problems),
        "readers": [{"reader": numbers[r], **_judged(own)} for r, own in by_reader.items()],
        "together": _together(by_reader),
        "remarks": remarks[:_MOST_REMARKS],
        "n_remarks": len(remarks),
        "problems": problems[:_MOST_PROBLEMS],
        "n_problems": len(problems),
    }


def _scans(cohort: Cohort, *, synthetic: bool) -> dict[str, tuple[str, bool]]:
    """Return how a scan may be called -> its person and whether it is synthetic."""
    return {
        name: (scan.person_id, synthetic)
        for scan in cohort.scans
        for name in (scan.scan_id, _stem(scan.path))
        if name
    }


def _stem(text: str) -> str:
    name = PurePosixPath(text.strip().replace("\\", "/")).name
    return name.removesuffix(".gz").removesuffix(".nii").removesuffix(".json")


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line and cells of each row."""
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"There is no {table}.", remedy="Correct report.feedback.") from None
    except UnicodeDecodeError:
        raise InputError(
            f"{table.name} is no UTF-8 text.", remedy="Save it as CSV in UTF-8."
        ) from None
    head = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text), delimiter=";" if head.count(";") else ",")
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        missing = [name for name in _NEEDED if name not in names]
        if missing:
            raise InputError(
                f"{table.name} has no column '{missing[0]}'.",
                remedy=f"Its first line must name {', '.join(_NEEDED)} and, if wanted, remark.",
            )
        for cells in rows:
            if any(cell.strip() for cell in cells):
                yield rows.line_num, dict(zip(names, cells, strict=False))
    except csv.Error:
        raise InputError(
            f"Line {rows.line_num} of {table.name} is no CSV.",
            remedy="Save the table again as CSV.",
        ) from None


def _rating(
    row: Mapping[str, str],
    known: Mapping[str, tuple[str, bool]],
    rated: set[tuple[str, str]],
) -> _Rating:
    cells = {name: row.get(name, "").strip() for name in (*_NEEDED, "remark")}
    empty = [name for name in _NEEDED if not cells[name]]
    if empty:
        raise _RowError(f"{empty[0]} is empty")
    scan = _stem(cells["scan_id"])
    if scan not in known:
        raise _RowError("the run and the batch have no such scan")
    value = _value(cells["real_or_synthetic"])
    person, synthetic = known[scan]
    if (cells["reader"], scan) in rated:
        raise _RowError("this reader has rated this scan before; the first rating counts")
    rated.add((cells["reader"], scan))
    return _Rating(
        person=person,
        synthetic=synthetic,
        reader=cells["reader"],
        value=value,
        remark=_shown(cells["remark"]),
    )


def _value(text: str) -> float:
    word = text.lower().removesuffix("%").strip()
    if word in _IN_WORDS:
        return _IN_WORDS[word]
    try:
        value = float(word.replace(",", "."))
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise _RowError("real_or_synthetic is no number from 0 to 100, nor yes or no")
    return value


def _shown(remark: str) -> str:
    """Return a remark on one line, without control characters, at most 300 characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in remark).split())
    return line if len(line) <= _LONGEST_REMARK else f"{line[: _LONGEST_REMARK - 1]}…"


def _by_person(ratings: list[_Rating], values: Array) -> tuple[dict[str, float], dict[str, float]]:
    """Return person -> mean value, of synthetic and of real persons."""
    found: tuple[dict[str, list[float]], ...] = (defaultdict(list), defaultdict(list))
    for rating, value in zip(ratings, values, strict=True):
        found[not rating.synthetic][rating.person].append(float(value))
    synthetic, real = ({p: float(np.mean(v)) for p, v in part.items()} for part in found)
    return synthetic, real


def _judged(ratings: list[_Rating]) -> dict[str, Any]:
    synthetic, real = _by_person(ratings, np.array([rating.value for rating in ratings]))
    counts = {"n_real": len(real), "n_synthetic": len(synthetic)}
    return counts | {"auc": _auc(synthetic, real)}


def _together(by_reader: Mapping[str, list[_Rating]]) -> dict[str, Any] | None:
    """Return the AUC of all readers' mean ranks, which no reader's own scale can bend."""
    every = [rating for ratings in by_reader.values() for rating in ratings]
    ranks = [
        (rankdata([rating.value for rating in ratings]) - 0.5) / len(ratings)
        for ratings in by_reader.values()
    ]
    return _auc(*_by_person(every, np.concatenate(ranks)))


def _auc(synthetic: Mapping[str, float], real: Mapping[str, float]) -> dict[str, Any] | None:
    if min(len(synthetic), len(real)) < 2:
        return None
    value, low, high = auc_interval(np.array([*synthetic.values()]), np.array([*real.values()]))
    score = Score(
        name="auc",
        value=value,
        low=low,
        high=high,
        better="neither",
        n_real=len(real),
        n_synthetic=len(synthetic),
        sufficient=min(len(synthetic), len(real)) >= _FEWEST_PERSONS,
        method=_METHOD,
    )
    return asdict(score)
