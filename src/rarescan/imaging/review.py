"""What waits for a human: scans and persons to confirm, labels without a counterpart.

`write_lists` writes the lists beside a cohort, `write_forms` copies them as forms to fill in, and
`read_answers` reads a form back for the next ingest. Lists hold pseudonyms and figures only.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rarescan.cohort.store import read_events, tables
from rarescan.errors import InputError, SettingError
from rarescan.files import write_atomic
from rarescan.imaging.labels import read_table
from rarescan.imaging.persons import Pair
from rarescan.imaging.plan import CONFIRMABLE, Event
from rarescan.imaging.reasons import WORDS

SCANS, PERSONS, LABELS = "review.tsv", "persons_to_confirm.tsv", "unmatched_labels.tsv"
_FIGURES = ("day", "score", "matrix", "voxel_mm", "tr_ms", "te_ms", "ti_ms")
_COLUMNS = {
    SCANS: ("stack_id", "person_id", "code", *_FIGURES, "n_files", "because"),
    PERSONS: ("person_id", "other", "because"),
    LABELS: ("row", "person_id", "because"),
}
_FORMS = {SCANS: ("scans.csv", "confirmed"), PERSONS: ("persons.csv", "same")}

Row = dict[str, Any]


def write_lists(root: Path, events: Iterable[Event], doubts: Mapping[Pair, str]) -> None:
    """Write the three lists into the tables of a cohort.

    Parameters
    ----------
    root : Path
        The cohort.
    events : iterable
        All events of the ingest.
    doubts : mapping
        Pair of pseudonyms -> why they may be one person.
    """
    events = list(events)
    pairs = sorted((*sorted(pair), because) for pair, because in doubts.items())
    lists: dict[str, list[Row]] = {
        SCANS: [_scan(e) for e in events if e["code"] in CONFIRMABLE],
        PERSONS: [{"person_id": pair[0], "other": pair[-2], "because": pair[-1]} for pair in pairs],
        LABELS: _unmatched(events),
    }
    for name, rows in lists.items():
        _write(tables(root) / name, _COLUMNS[name], rows, "\t")


def _scan(event: Event) -> Row:
    return {**event, **event["detail"], "because": WORDS[event["code"]]}


def _unmatched(events: Sequence[Event]) -> list[Row]:
    """Return rows without a scan, then persons without a row."""
    rows = [
        {
            "row": e["detail"]["row"],
            "person_id": e["person_id"],
            "because": "no accepted scan" if e["person_id"] else "nobody in the export",
        }
        for e in events
        if e["code"] == "LABEL_WITHOUT_SCAN"
    ]
    persons = {e["person_id"] for e in events if e["code"] == "UNLABELLED"}
    return rows + [{"person_id": p, "because": "no row of the labels"} for p in sorted(persons)]


def _write(path: Path, columns: Sequence[str], rows: Iterable[Row], separator: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerows([columns, *([row.get(column, "") for column in columns] for row in rows)])
    write_atomic(path, text.getvalue())


def waiting(root: Path) -> dict[str, list[dict[str, str]]]:
    """Return the scans and persons of a cohort that wait for an answer, by list."""
    if not read_events(root) and not (tables(root) / SCANS).exists():
        raise InputError(
            f"{root} holds no lists to confirm.",
            remedy="Name a cohort that `rarescan ingest` made of an export.",
        )
    return {name: read_table(tables(root) / name) for name in _FORMS}


def write_forms(root: Path, folder: Path) -> list[Path]:
    """Write the open questions as forms with an empty column for the answer; return which."""
    written = []
    for name, rows in waiting(root).items():
        form, answer = _FORMS[name]
        if rows:
            _write(folder / form, (*_COLUMNS[name], answer, "who"), rows, ",")
            written.append(folder / form)
    return written


def read_answers(path: str, form: str) -> dict[tuple[str, ...], bool]:
    """Return what a human answered in a form: stack or pair of persons -> yes or no.

    Parameters
    ----------
    path : str
        The filled form; empty: no answers.
    form : str
        `SCANS` or `PERSONS`.

    Raises
    ------
    SettingError
        The form is missing or lacks a column.
    InputError
        An answer is neither yes nor no, or a question has two answers.
    """
    answer = _FORMS[form][1]
    keys = ("stack_id",) if form == SCANS else ("person_id", "other")
    answers: dict[tuple[str, ...], bool] = {}
    for number, row in enumerate(read_table(Path(path)) if path else [], start=2):
        if not {*keys, answer} <= row.keys():
            raise SettingError(
                f"The form {Path(path).name} lacks a column.",
                remedy=f"It needs {', '.join((*keys, answer))}; `rarescan review` writes it.",
            )
        given, question = row[answer].lower(), tuple(row[key] for key in keys)
        said = given == "yes"
        if given not in ("", "yes", "no") or (given and answers.setdefault(question, said) != said):
            raise InputError(
                f"Row {number} of {Path(path).name} has an unclear answer.",
                remedy="Write yes or no, once a question; leave open ones empty.",
            )
    return answers
