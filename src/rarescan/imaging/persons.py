"""Who is who in an export: the files of the index, each under one pseudonym.

`register_persons` looks at the whole export once and says whose each file is; `persons` then gives
all series of one person after another. A person is the union of the identities that a human
confirmed to be one. What only looks like one person (same name, birth date and sex under two
numbers, equal pixels) stays two pseudonyms and becomes a `Doubt`: its persons are never divided
between training and test, and the pair is listed. Names and numbers are compared, never kept.
"""

import json
import os
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

from rarescan.cohort.store import tables
from rarescan.errors import InputError
from rarescan.files import Recipe, content_id, read_json, read_recipe, write_json
from rarescan.imaging import identity
from rarescan.imaging.header import Header
from rarescan.imaging.index import Index, build_index
from rarescan.imaging.labels import Labels
from rarescan.imaging.stacks import File
from rarescan.imaging.unpack import open_source, require_source

ERASED = "erased.json"
Pair = frozenset[str]
"""Two pseudonyms that may be one person; one pseudonym, where names differ under it."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """The readable files of one series of one person, exact duplicates removed."""

    files: tuple[File, ...]
    facts: frozenset[str]
    person: str = ""
    """Pseudonym; empty where no identity is known."""


@dataclass(kw_only=True)
class Register:
    """What a look at the whole export says about its persons."""

    doubts: dict[Pair, str] = field(default_factory=dict)
    """Pair -> why it may be one person; confirmed pairs are not in it."""
    by_patient: dict[str, str] = field(default_factory=dict)
    """Normalised patient ID -> pseudonym."""
    by_accession: dict[str, str] = field(default_factory=dict)
    facts: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Pseudonym -> reason codes that hold for all series of the person."""
    answers: Mapping[Pair, bool] = field(default_factory=dict)
    """Pair -> whether a human confirmed that it is one person."""

    def doubt(self, persons: Iterable[str], because: str) -> None:
        """Note that persons may be one, unless a human said that they are not."""
        first, *others = sorted({*persons})
        for other in others or [first]:
            pair = frozenset((first, other))
            if pair not in self.answers:
                self.doubts.setdefault(pair, because)

    def forget(self, erased: Collection[str]) -> None:
        """Keep the pseudonyms of erased persons (by fingerprint) out of every list."""
        gone = {p for p in self.by_accession.values() if fingerprint(p) in erased}
        gone |= {p for p in self.by_patient.values() if fingerprint(p) in erased}
        self.doubts = {pair: why for pair, why in self.doubts.items() if not pair & gone}
        for known in (self.by_patient, self.by_accession):
            known |= {number: "" for number, person in known.items() if person in gone}


def register_persons(
    index: Index, key: bytes, labels: Labels | None, answers: Mapping[Pair, bool]
) -> Register:
    """Give every readable file its person, in the index, and say who is in doubt.

    Parameters
    ----------
    index : Index
        The whole export. Gets the table `owners`.
    key : bytes
        Of the pseudonyms.
    labels : Labels, optional
        A row with an accession and a patient ID says whose that study is, whatever its files say.
    answers : mapping
        Pair -> whether a human confirmed that both pseudonyms are one person. The person keeps
        the alphabetically first pseudonym.
    """
    register, one = Register(answers=answers), _merged(answers)
    mapped = labels.patients if labels else {}
    owners: Owners = {}
    seen = _Seen()
    with closing(index.connect()) as database:
        for patient, issuer, birth, name, sex, accession, others in _identities(database):
            study = identity.normalise(accession)
            known = mapped.get(study, patient)
            own = identity.person_id(key, issuer, known) if known else ""
            person = one.get(own, own)
            mixes = (person, None) if own in one else (known, issuer)
            owners[patient, issuer, accession] = (person, known * (known != patient), *mixes)
            register.by_patient.setdefault(known, person)
            register.by_accession.setdefault(study, person) if study else None
            if own:
                seen.births[own] |= {birth} - {None}
                for other in json.loads(others or "[]"):
                    seen.linked[identity.person_id(key, issuer, other)].add(person)
                words = identity.name_words(name)
                seen.names[person] |= {words} - {frozenset()}
                if words and birth and sex:
                    twin = identity.token(key, "twin", f"{sorted(words)}{birth}{sex}")
                    seen.alike[twin].add(person)
        _write_owners(database, owners)
    _note_doubts(register, seen, one)
    return register


@dataclass(frozen=True)
class _Seen:
    """What the headers say of each pseudonym, and which share a name or name each other."""

    names: dict[str, set[Any]] = field(default_factory=lambda: defaultdict(set))
    births: dict[str, set[Any]] = field(default_factory=lambda: defaultdict(set))
    alike: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    linked: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def _note_doubts(register: Register, seen: _Seen, one: Mapping[str, str]) -> None:
    no_person = {one.get(own, own) for own, found in seen.births.items() if len(found) > 1}
    for person in no_person:
        register.facts[person].add("NO_IDENTITY")
    groups = [(same, "same name, birth date and sex") for same in seen.alike.values()]
    groups += [
        ({one.get(own, own), *seen.linked[own]}, "one number names the other")
        for own in sorted(seen.births.keys() & seen.linked.keys())
    ]
    for same, because in groups:
        if len(same - no_person) > 1:
            register.doubt(same - no_person, because)
    for person, variants in seen.names.items():
        if any(not (a <= b or b <= a) for a, b in product(variants, variants)):
            register.doubt([person], "different names under one number")
            if not register.answers.get(frozenset((person,))):
                register.facts[person].add("NAME_DIFFERS")


def _merged(answers: Mapping[Pair, bool]) -> dict[str, str]:
    """Return pseudonym -> the first one of the same person, for confirmed pairs."""
    return unions(pair for pair, same in answers.items() if same)


def unions(pairs: Iterable[Iterable[str]]) -> dict[str, str]:
    """Return member -> first member of its group, where pairs that share a member are one group."""
    group: dict[str, set[str]] = {}
    for pair in pairs:
        members = set().union(*(group.get(member, {member}) for member in pair))
        group |= dict.fromkeys(members, members)
    return {member: min(members) for member, members in group.items()}


_PLACE = {f.name: f"json_extract(header, '$[{k}]')" for k, f in enumerate(fields(Header))}


def _identities(database: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    columns = ", ".join(_PLACE[name] for name in ("patient_name", "sex", "accession", "other_ids"))
    yield from database.execute(
        f"SELECT DISTINCT patient, issuer, birth, {columns} FROM files WHERE code IS NULL"
    )


Owners = dict[tuple[str | None, ...], tuple[str | None, ...]]
"""Patient ID, issuer, accession of a file -> pseudonym, patient ID if the labels say another, and
the two values by which files of different persons are told apart."""
_OWNER = ("person", "patient", "who", "issuer")


def _write_owners(database: sqlite3.Connection, owners: Owners) -> None:
    database.create_function("owner", 4, lambda k, *file: owners[file][k])
    whose = f"patient, issuer, {_PLACE['accession']}"
    columns = ", ".join(f"owner({k}, {whose}) AS {name}" for k, name in enumerate(_OWNER))
    database.executescript(
        "DROP TABLE IF EXISTS owners;"
        f"CREATE TABLE owners AS SELECT number, {columns} FROM files WHERE code IS NULL;"
        "CREATE INDEX by_person ON owners(person);"
    )


def persons(index: Index, register: Register) -> Iterator[list[Series]]:
    """Yield all series of one person after another; files of nobody come study by study."""
    with closing(index.connect()) as database:
        mixed = {kind: _with_several_persons(database, kind) for kind in ("study", "series")}
        rows = database.execute(
            "SELECT person, owners.patient, study, series, number, header FROM owners "
            "JOIN files USING (number) ORDER BY person, study, series, number"
        )
        for (person, _), of_person in groupby(rows, key=lambda r: (r[0], "" if r[0] else r[2])):
            found = []
            for (study, series), group in groupby(of_person, key=lambda r: (r[2], r[3])):
                files, facts = _files(group)
                if study in mixed["study"] or series in mixed["series"]:
                    facts.add("MIXED_PATIENTS")
                facts |= register.facts.get(person, set())
                found.append(Series(files=files, facts=frozenset(facts), person=person))
            yield found


def _files(rows: Iterable[tuple[Any, ...]]) -> tuple[tuple[File, ...], set[str]]:
    """Return the files of a series under the patient ID that the labels give them, if any."""
    files, facts = [], set()
    for _, patient, _, _, number, stored in rows:
        header = Header.from_json(stored)
        if patient:
            header = replace(header, patient_id=patient)
            facts.add("MAPPED")
        files.append(File(number=number, header=header))
    return tuple(files), facts


def _with_several_persons(database: sqlite3.Connection, kind: str) -> set[str]:
    # An absent issuer or birth date is NULL, which COUNT(DISTINCT) leaves out.
    rows = database.execute(
        f"SELECT {kind} FROM files JOIN owners USING (number) WHERE {kind} != '' GROUP BY {kind} "
        "HAVING MAX(COUNT(DISTINCT who), COUNT(DISTINCT owners.issuer), COUNT(DISTINCT birth)) > 1"
    )
    return {row[0] for row in rows}


def read_erased(folder: Path) -> tuple[str, ...]:
    """Return the fingerprints of the persons who were erased from a folder and must stay away."""
    try:
        return tuple(read_json(erased_list(folder))["persons"])
    except FileNotFoundError:
        return ()


def write_erased(folder: Path, erased: Iterable[str], **more: Any) -> None:
    """Note who was erased from a folder; where nobody was, nothing is written."""
    persons = sorted({*erased})
    if persons:
        write_json(erased_list(folder), {"persons": persons, **more})


def erased_list(folder: Path) -> Path:
    """Return where a result notes who was erased from it: with its tables, if it has any."""
    return (tables(folder) if tables(folder).is_dir() else folder) / ERASED


def with_erased(recipe: Recipe, erased: Iterable[str]) -> Recipe:
    """Return the recipe of a cohort without some persons."""
    persons = sorted({*erased})
    more = {"erased": content_id(persons)} if persons else {}
    kept = {name: value for name, value in recipe.inputs.items() if name != "erased"}
    return replace(recipe, inputs=kept | more)


def fingerprint(person: str) -> str:
    """Return what is kept of an erased person: a hash of the pseudonym."""
    return content_id(person)


def rotate_key(
    old: Path, new: Path, export: Path, table: Path, *, workers: int | None = None
) -> Path:
    """Make a new key, and the table by which the hospital can follow every person to it.

    The pseudonyms of a cohort cannot be renamed without the numbers behind them, so the cohort is
    made again from the export with the new key; whoever has only the old pseudonyms has lost them.

    Parameters
    ----------
    old : Path
        File of the key so far.
    new : Path
        File of the new key; made unless it is there.
    export : Path
        The export that the cohort was made of.
    table : Path
        Gets the columns `old` and `new`, mode 0600. It connects the two worlds, so it may not lie
        in a result.
    workers : int, optional
        Number of processes.

    Raises
    ------
    InputError
        The table exists or would lie in a result, or the export cannot be read.
    """
    inside = any(read_recipe(parent) is not None for parent in table.resolve().parents)
    if table.exists() or inside:
        raise InputError(
            f"{table} is there already." if table.exists() else f"{table} would lie in a result.",
            remedy="Name a new file outside every cohort, where only the hospital can read it.",
        )
    require_source(export)
    keys = [identity.read_key(str(old))]
    keys.append(identity.read_key(str(new if new.exists() else identity.new_key(new))))
    private = table.with_name(f".{table.name}.private")
    try:
        index = build_index(open_source(export, private), private, workers=workers)
        with closing(index.connect()) as database:
            found = {(row[0], row[1]) for row in _identities(database)}
    finally:
        shutil.rmtree(private, ignore_errors=True)
    pairs = sorted(
        [identity.person_id(k, issuer, id_) for k in keys] for id_, issuer in found if id_
    )
    with os.fdopen(os.open(table, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.writelines("\t".join(pair) + "\n" for pair in [["old", "new"], *pairs])
    return table
