"""Who is who in an export: the files of the index, grouped by person.

`persons` is the way in: all series of one person after another, with what only a look at the
whole export shows (two patients in one series, two birth dates under one number).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from rarescan.imaging.header import Header
from rarescan.imaging.index import Index
from rarescan.imaging.stacks import File


@dataclass(frozen=True, kw_only=True)
class Series:
    """The readable files of one series of one person, exact duplicates removed."""

    files: tuple[File, ...]
    facts: frozenset[str]


def persons(index: Index) -> Iterator[list[Series]]:
    """Yield all series of one person after another."""
    with closing(index.connect()) as database:
        database.execute("CREATE INDEX IF NOT EXISTS by_patient ON files(patient)")
        mixed = {kind: _with_several_patients(database, kind) for kind in ("study", "series")}
        two_births = _with_two_birth_dates(database)
        rows = database.execute(
            "SELECT patient, issuer, study, series, number, header FROM files "
            "WHERE code IS NULL ORDER BY patient, issuer, study, series, number"
        )
        for (patient, _), of_person in groupby(rows, key=itemgetter(0, 1)):
            found = []
            for (study, series), group in groupby(of_person, key=itemgetter(2, 3)):
                files = (File(number=r[4], header=Header.from_json(r[5])) for r in group)
                facts = {"NO_IDENTITY"} if patient in two_births else set()
                if study in mixed["study"] or series in mixed["series"]:
                    facts.add("MIXED_PATIENTS")
                found.append(Series(files=tuple(files), facts=frozenset(facts)))
            yield found


def _with_several_patients(database: sqlite3.Connection, kind: str) -> set[str]:
    # An absent issuer or birth date is NULL, which COUNT(DISTINCT) leaves out.
    rows = database.execute(
        f"SELECT {kind} FROM files WHERE code IS NULL AND {kind} != '' GROUP BY {kind} "
        "HAVING MAX(COUNT(DISTINCT patient), COUNT(DISTINCT issuer), COUNT(DISTINCT birth)) > 1"
    )
    return {row[0] for row in rows}


def _with_two_birth_dates(database: sqlite3.Connection) -> set[str]:
    rows = database.execute(
        "SELECT patient FROM files WHERE code IS NULL GROUP BY patient, issuer "
        "HAVING COUNT(DISTINCT birth) > 1"
    )
    return {row[0] for row in rows}
