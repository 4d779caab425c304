"""The table that says what each picture shows: read, checked for shifted rows, in our words.

`read_pictures` is the way in. A label comes from the table and from nowhere else: names of files
are read by nobody. Every column that is used has a type, and columns that hold numbers in all
rows but a few hold a number in each: a comma too many moves a row's values one column on, and
with them the person.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rarescan.errors import InputError, SettingError, nearest
from rarescan.imaging import identity
from rarescan.imaging.labels import number_or_none, sex_or_none
from rarescan.imaging.spec import PicturesConfig

Row = dict[str, str]
_EMPTY = frozenset(("", "n/a", "na", "nan", "none", "null", "-", "?", "unknown"))
_COLUMNS = (
    *("file", "person", "label", "diagnosis", "item", "plane", "source", "site", "licence"),
    *("probe", "age_years", "sex", "severity", "box"),
)
_NUMBERS = frozenset(("age_years", "severity"))
_MOSTLY, _FEWEST_ROWS = 0.95, 20


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the table says of one file."""

    file: Path
    person: str
    """Pseudonym."""
    item: str
    """Pseudonym of the clip, film or visit: `C0001`."""
    label: str | None = None
    diagnosis: str
    """The worst of the person's."""
    plane: str = ""
    source: str | None = None
    licence: str = ""
    probe: str = ""
    age_years: float | None = None
    sex: Literal["F", "M"] | None = None
    severity: float | None = None
    box: tuple[float, ...] | None = None
    """Part of the picture that is taken: row0, row1, column0, column1 as shares of its size."""
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    fault: str = ""
    """Reason code why the file is not to be read."""
    secrets: tuple[str, ...] = ()
    """Texts of the source that may stand in nothing that is written."""


def read_pictures(source: Path, config: PicturesConfig, key: bytes | None) -> list[Picture]:
    """Return what the table says of each file that the settings keep.

    Parameters
    ----------
    source : Path
        The folder that the table's file names are relative to.
    config : PicturesConfig
        The table, its columns and the words in it.
    key : bytes, optional
        Of the pseudonyms; without it the table's are kept.

    Raises
    ------
    SettingError
        The table is missing or lacks a column that the settings name.
    InputError
        A row is shifted, empty where it must not be, or has a word that is no label; no row is
        kept. Messages name rows, never what stands in them.
    """
    if not config.table:
        raise SettingError("No table is named.", remedy="Set pictures.table to the CSV.")
    return pictures_of(read_rows(source / config.table), source, config, key)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV or TSV file as trimmed text; every row has every column.

    Line breaks within quotes are part of a cell, as in the tables of CBIS-DDSM.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise SettingError(
            f"The table {path.name} is missing or is no text in UTF-8.",
            remedy="Set pictures.table to a CSV file that can be read.",
        ) from None
    separator = max("\t;,", key=text.partition("\n")[0].count)
    cells = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    names = [name.strip() for name in cells[0]] if cells else []
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise InputError(
            f"The table has {len(twice)} columns twice.", remedy="Give each column its own name."
        )
    rows = []
    for number, values in enumerate(cells[1:], start=2):
        if values and len(values) != len(names):
            raise _shifted(number, f"has {len(values)} cells, the first line {len(names)}")
        if values:
            rows.append({n: v.strip() for n, v in zip(names, values, strict=True)})
    return rows


def _shifted(number: int, what: str) -> InputError:
    return InputError(
        f"Row {number} of the table {what}: its columns may be shifted.",
        remedy="Put cells that hold a separator into quotes, and check whose row it is.",
    )


def pictures_of(
    rows: Sequence[Row], source: Path, config: PicturesConfig, key: bytes | None
) -> list[Picture]:
    """Return what rows of any layout say, checked; parameters are those of `read_pictures`."""
    names = _require_columns(rows, config)
    _require_types(rows, names, config)
    kept = [
        (number, row | {ours: row[theirs] for ours, theirs in names.items()})
        for number, row in enumerate(rows, start=2)
        if all(row[column] == value for column, value in config.keep.items())
    ]
    if not kept:
        raise InputError(
            f"None of {len(rows)} rows of the table is selected.",
            remedy="Check pictures.keep, and that the table is the right one.",
        )
    items = _item_names([row for _, row in kept], key)
    pictures = [
        _picture(row, number, source, config, key, items[_item_of(row)]) for number, row in kept
    ]
    return with_worst(pictures, config)


def _require_columns(rows: Sequence[Row], config: PicturesConfig) -> dict[str, str]:
    """Return our column -> the table's, for those that are there."""
    present = list(rows[0]) if rows else []
    unknown = [name for name in config.columns if name not in _COLUMNS]
    if unknown:
        raise SettingError(
            f"pictures.columns: '{unknown[0]}' is none of our columns.",
            remedy=nearest(unknown[0], list(_COLUMNS)),
        )
    needed = [config.columns.get(name, name) for name in ("file", "person")]
    for column in (*needed, *config.columns.values(), *config.keep, *config.metadata):
        if column not in present:
            raise SettingError(
                f"The table has no column '{column}'.",
                remedy=f"Correct pictures.columns, keep or metadata. {nearest(column, present)}",
            )
    named = {ours: config.columns.get(ours, ours) for ours in _COLUMNS}
    return {ours: theirs for ours, theirs in named.items() if theirs in present}


def _require_types(rows: Sequence[Row], names: Mapping[str, str], config: PicturesConfig) -> None:
    """Raise where a row has no number in a column of numbers, or the reverse of a word."""
    declared = {names[ours] for ours in _NUMBERS & names.keys()} | {*config.metadata}
    used = {*names.values(), *config.metadata, *config.keep}
    columns = list(rows[0])
    numeric = {c for c in columns if c in declared or _mostly_numbers(rows, c)}
    for number, row in enumerate(rows, start=2):
        odd = [c for c in numeric if not _is_empty(row[c]) and number_or_none(row[c]) is None]
        if any(c in used for c in odd) or len(odd) > 1:
            raise _shifted(number, f"has a text in {len(odd)} columns of numbers")
        for ours in ("file", "person"):
            if _is_empty(row[names[ours]]):
                raise _shifted(number, f"has nothing in the column '{names[ours]}'")


def _mostly_numbers(rows: Sequence[Row], column: str) -> bool:
    filled = [row[column] for row in rows if not _is_empty(row[column])]
    numbers = sum(number_or_none(cell) is not None for cell in filled)
    return len(filled) >= _FEWEST_ROWS and numbers >= _MOSTLY * len(filled)


def _is_empty(cell: str) -> bool:
    return cell.casefold() in _EMPTY


def _item_of(row: Mapping[str, str]) -> tuple[str, str]:
    return row["person"], row.get("item") or row["file"]


def _item_names(rows: Sequence[Row], key: bytes | None) -> dict[tuple[str, str], str]:
    """Return item -> its pseudonym: keyed, or by the order of the table, never by its text."""
    items = list(dict.fromkeys(map(_item_of, rows)))
    if key is None:
        return {item: f"C{number:04d}" for number, item in enumerate(items, start=1)}
    return {item: "C" + identity.token(key, "item", "\x1f".join(item)) for item in items}


def _picture(
    row: Row, number: int, source: Path, config: PicturesConfig, key: bytes | None, item: str
) -> Picture:
    label = _word(row.get("label", ""), number, config.labels, config)
    has_diagnosis = "diagnosis" in row
    diagnosis = _word(row.get("diagnosis", ""), number, config.diagnoses, config)
    place = row.get("site") or row.get("source") or None
    return Picture(
        file=source / _inside(row["file"], number),
        person=pseudonym(row["person"], number, key),
        item=item,
        label=label,
        diagnosis=(diagnosis if has_diagnosis else label) or "",
        plane=row.get("plane", ""),
        source=place,
        licence=row.get("licence") or config.licence,
        probe=re.sub(r"[^a-z0-9]", "", row.get("probe", "").casefold()),
        age_years=identity.shown_age(number_or_none(row.get("age_years"))),
        sex=sex_or_none(row.get("sex")),
        severity=number_or_none(row.get("severity")),
        box=_box(row.get("box", ""), number),
        numbers={name: number_or_none(row[name]) for name in config.metadata},
        secrets=(row["person"], row.get("item", "")) if key else (row.get("item", ""),),
    )


def _inside(name: str, number: int) -> Path:
    """Return a file's name below the source folder."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise InputError(
            f"Row {number} of the table names a file outside the folder of pictures.",
            remedy="Name files relative to the folder that is ingested.",
        )
    return path


def _box(text: str, number: int) -> tuple[float, ...] | None:
    if _is_empty(text):
        return None
    shares = [number_or_none(share) for share in text.split()]
    row0, row1, column0, column1 = [-1.0 if s is None else s for s in (*shares, *[None] * 4)][:4]
    if len(shares) != 4 or not (0 <= row0 < row1 <= 1 and 0 <= column0 < column1 <= 1):
        raise _shifted(number, "has a box that is no part of a picture")
    return row0, row1, column0, column1


def pseudonym(person: str, number: int, key: bytes | None) -> str:
    """Return the keyed pseudonym of a person, or the table's own reduced to what BIDS allows."""
    if key is not None:
        return identity.person_id(key, None, person)
    plain = re.sub(r"[^A-Za-z0-9]", "", person.removeprefix("sub-"))
    if not plain:
        raise _shifted(number, "has a person without letter or digit")
    return plain


def _word(text: str, number: int, known: Sequence[str], config: PicturesConfig) -> str | None:
    """Return a label or diagnosis in our words; None where the cell is empty."""
    if _is_empty(text):
        return None
    word = config.words.get(text, text)
    if known and word not in known:
        raise InputError(
            f"Row {number} of the table has a label that is none of {', '.join(known)}.",
            remedy="Add it to pictures.labels (or diagnoses), translate it by pictures.words, or "
            "leave such rows out by pictures.keep; if it is no label, the row is shifted.",
        )
    return word


def with_worst(pictures: Sequence[Picture], config: PicturesConfig) -> list[Picture]:
    """Give every picture the worst diagnosis of its person; severities become 0 to 1."""
    order = config.diagnoses or config.labels
    rank = {word: place for place, word in enumerate(order)}
    worst: dict[str, str] = {}
    for p in pictures:
        found = [d for d in (worst.get(p.person), p.diagnosis) if d]
        worst[p.person] = max(found, key=lambda d: rank.get(d, -1), default="")
    most = max((p.severity for p in pictures if p.severity is not None), default=None)
    return [
        replace(
            p,
            diagnosis=worst[p.person] or "unknown",
            severity=None if p.severity is None or not most else p.severity / most,
        )
        for p in pictures
    ]
