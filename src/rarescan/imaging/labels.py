"""The hospital's own table: who has which diagnosis, joined before pseudonyms are made.

`read_labels` reads and checks it, `Labels.find` looks a person up. Messages name rows, never
what stands in them.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rarescan.errors import InputError, SettingError, nearest
from rarescan.imaging.identity import normalise


@dataclass(frozen=True, kw_only=True)
class Label:
    """One row of the table."""

    row: int
    diagnosis: str
    age_years: float | None = None
    sex: Literal["F", "M"] | None = None
    site: str | None = None


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The table, by patient and by accession number, both normalised."""

    by_patient: dict[str, Label]
    by_accession: dict[str, Label]

    def find(self, patient_id: str | None, accessions: Iterable[str | None]) -> Label | None:
        """Return the label of a person, by patient ID first."""
        found = self.by_patient.get(normalise(patient_id))
        by_accession = (self.by_accession.get(normalise(a)) for a in accessions)
        return found or next((label for label in by_accession if label), None)


def read_labels(path: Path) -> Labels:
    """Read the table.

    Parameters
    ----------
    path : Path
        CSV in UTF-8 (comma or semicolon) with `patient_id` or `accession`, `diagnosis` and, where
        known, `age_years`, `sex` (F or M), `site`.

    Raises
    ------
    SettingError
        There is no such file, or it lacks columns.
    InputError
        A row has no diagnosis, or one person has two.
    """
    rows = read_table(path)
    columns = list(rows[0]) if rows else []
    if "diagnosis" not in columns or not {"patient_id", "accession"} & {*columns}:
        raise SettingError(
            f"The labels {path.name} need the columns diagnosis and patient_id (or accession).",
            remedy=f"Add them to its first line ({nearest('diagnosis', columns)})",
        )
    labels = Labels(by_patient={}, by_accession={})
    for number, row in enumerate(rows, start=2):
        label = _label(row, number)
        for table, column in (
            (labels.by_patient, "patient_id"),
            (labels.by_accession, "accession"),
        ):
            name = normalise(row.get(column))
            if name and table.setdefault(name, label).diagnosis != label.diagnosis:
                raise InputError(
                    f"The labels give one person two diagnoses (rows {table[name].row} and "
                    f"{number}).",
                    remedy="Keep one diagnosis a person.",
                )
    return labels


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV or TSV file as trimmed text; `n/a` is empty, as in BIDS."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise SettingError(
            f"The table {path} is missing or is no text in UTF-8.",
            remedy="Name a CSV file that can be read.",
        ) from None
    first = text.partition("\n")[0]
    separator = max("\t;,", key=first.count)
    rows = csv.DictReader(text.splitlines(), delimiter=separator)
    return [{k.strip(): _cell(v) for k, v in row.items() if k} for row in rows]


def _cell(text: str | None) -> str:
    trimmed = (text or "").strip()
    return "" if trimmed == "n/a" else trimmed


def _label(row: dict[str, str], number: int) -> Label:
    if not row["diagnosis"]:
        raise InputError(
            f"Row {number} of the labels has no diagnosis.", remedy="Fill it in or remove the row."
        )
    return Label(
        row=number,
        diagnosis=row["diagnosis"],
        age_years=number_or_none(row.get("age_years")),
        sex=sex_or_none(row.get("sex")),
        site=row.get("site") or None,
    )


def number_or_none(text: str | None) -> float | None:
    """Return a number, or None where a cell holds none."""
    try:
        return float((text or "").replace(",", "."))
    except ValueError:
        return None


def sex_or_none(text: str | None) -> Literal["F", "M"] | None:
    """Return F or M, or None where a cell says neither."""
    first = (text or "").strip()[:1].upper()
    return "F" if first in ("F", "W") else "M" if first == "M" else None
