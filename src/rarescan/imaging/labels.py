"""The hospital's own table: who has which diagnosis, joined before pseudonyms are made.

`read_labels` reads and checks it, `Labels.find` looks a person up. Messages name rows, never
what stands in them.
"""

import csv
import math
from collections.abc import Iterable, Mapping
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
    patients: dict[str, str]
    """Accession -> patient ID, where a row has both: whose study that is."""

    def find(
        self, patient_ids: Iterable[str | None], accessions: Iterable[str | None]
    ) -> list[Label]:
        """Return the labels of one person, those that name a study first, each once.

        Raises
        ------
        InputError
            They give two diagnoses.
        """
        found = [self.by_accession.get(normalise(a)) for a in accessions]
        found += [self.by_patient.get(normalise(p)) for p in patient_ids]
        labels = list({label.row: label for label in found if label}.values())
        for label in labels[1:]:
            _require_equal(labels[0], label, ("diagnosis",))
        return labels

    def rows(self) -> dict[int, tuple[str, str]]:
        """Return row -> (patient ID, accession) of all rows."""
        rows = {label.row: (patient, "") for patient, label in self.by_patient.items()}
        for accession, label in self.by_accession.items():
            rows[label.row] = (self.patients.get(accession, ""), accession)
        return rows


def _require_equal(first: Label, other: Label, names: Iterable[str]) -> None:
    different = [n for n in names if getattr(first, n) != getattr(other, n)]
    if different:
        raise InputError(
            f"The labels contradict themselves: rows {first.row} and {other.row} name one person "
            f"and differ in {', '.join(different)}.",
            remedy="Keep one value a person.",
        )


def read_labels(path: Path) -> Labels:
    """Read the table.

    Parameters
    ----------
    path : Path
        CSV in UTF-8 (comma, semicolon or tab) with `patient_id` or `accession`, `diagnosis` and,
        where known, `age_years`, `sex` (F or M), `site`. A row with patient_id and accession also
        says whose that study is.

    Raises
    ------
    SettingError
        There is no such file, or it lacks columns.
    InputError
        A row has no diagnosis or names nobody, or two rows contradict each other.
    """
    rows = read_table(path)
    columns = list(rows[0]) if rows else []
    if "diagnosis" not in columns or not {"patient_id", "accession"} & {*columns}:
        raise SettingError(
            f"The labels {path.name} need the columns diagnosis and patient_id (or accession).",
            remedy=f"Add them to its first line ({nearest('diagnosis', columns)})",
        )
    labels = Labels(by_patient={}, by_accession={}, patients={})
    for number, row in enumerate(rows, start=2):
        _add(labels, row, _label(row, number))
    return labels


def _add(labels: Labels, row: Mapping[str, str], label: Label) -> None:
    patient, accession = (normalise(row.get(name)) for name in ("patient_id", "accession"))
    if accession:
        _require_equal(labels.by_accession.setdefault(accession, label), label, _VALUES)
        if patient and labels.patients.setdefault(accession, patient) != patient:
            raise InputError(
                f"Row {label.row} of the labels gives a study to another person than row "
                f"{labels.by_accession[accession].row}.",
                remedy="Keep one patient_id an accession.",
            )
    if patient:
        # Two studies of one person may differ in age, never in who the person is.
        same = ("diagnosis", "sex") if accession else _VALUES
        _require_equal(labels.by_patient.setdefault(patient, label), label, same)


_VALUES = ("diagnosis", "age_years", "sex", "site")


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
    if not (row.get("patient_id") or row.get("accession")):
        raise InputError(
            f"Row {number} of the labels names nobody.", remedy="Fill it in or remove the row."
        )
    if not row["diagnosis"]:
        raise InputError(
            f"Row {number} of the labels has no diagnosis.", remedy="Fill it in or remove the row."
        )
    age = number_or_none(row.get("age_years"))
    if age is not None and not 0 <= age <= 120:
        raise InputError(
            f"Row {number} of the labels has an impossible age.", remedy="Write it in years."
        )
    return Label(
        row=number,
        diagnosis=row["diagnosis"],
        age_years=age,
        sex=sex_or_none(row.get("sex")),
        site=row.get("site") or None,
    )


def number_or_none(text: str | None) -> float | None:
    """Return a finite number, or None where a cell holds none."""
    try:
        number = float((text or "").replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def sex_or_none(text: str | None) -> Literal["F", "M"] | None:
    """Return F or M, or None where a cell says neither."""
    first = (text or "").strip()[:1].upper()
    return "F" if first in ("F", "W") else "M" if first == "M" else None
