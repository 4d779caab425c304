from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.errors import InputError
from rarescan.imaging import identity
from rarescan.imaging.index import Index, build_index
from rarescan.imaging.labels import read_labels
from rarescan.imaging.persons import Register, persons, register_persons, rotate_key, unions

KEY, OTHER = bytes(32), bytes(range(32))
Made = tuple[Index, Register]


def pseudonym(patient: str, issuer: str | None = None) -> str:
    return identity.person_id(KEY, issuer, patient)


@pytest.fixture
def indexed(
    tmp_path: Path, make_dataset: Any, make_head: Any, save_dataset: Any
) -> Callable[..., Index]:
    """Return the maker of an index with one small file a given identity."""
    voxels = make_head(0, 16)

    def make(*identities: dict[str, Any]) -> Index:
        for k, values in enumerate(identities):
            ds = make_dataset(voxels, 0, f"{k}", **values)
            save_dataset(ds, tmp_path / "in" / f"{k}.dcm")
        return build_index(tmp_path / "in", tmp_path / "private", workers=1)

    return make


def test_one_name_birth_date_and_sex_under_two_numbers_is_a_doubt_and_two_persons(
    indexed: Callable[..., Index],
) -> None:
    same = {"PatientName": "Müller^Anna", "StudyInstanceUID": "1.2.3"}
    index = indexed(
        {**same, "PatientID": "A1"},
        {**same, "PatientID": "B2", "PatientName": "MULLER^ANNA M", "StudyInstanceUID": "1.2.4"},
        {**same, "PatientID": "C3", "PatientBirthDate": "19550321", "StudyInstanceUID": "1.2.5"},
    )
    register = register_persons(index, KEY, None, {})
    pair = frozenset((pseudonym("A1"), pseudonym("B2")))
    assert register.doubts == {pair: "same name, birth date and sex"}
    found = [group[0].person for group in persons(index, register)]
    assert sorted(found) == sorted(map(pseudonym, ("A1", "B2", "C3")))


def test_a_number_that_names_another_is_a_doubt(indexed: Callable[..., Index]) -> None:
    index = indexed(
        {"PatientID": "A1", "PatientName": "One", "StudyInstanceUID": "1.2.3"},
        {"PatientID": "B2", "PatientName": "Two", "StudyInstanceUID": "1.2.4"}
        | {"OtherPatientIDs": ["Z9", "a1"]},
        {"PatientID": "C3", "PatientName": "Three", "StudyInstanceUID": "1.2.5"},
    )
    register = register_persons(index, KEY, None, {})
    pair = frozenset((pseudonym("A1"), pseudonym("B2")))
    assert register.doubts == {pair: "one number names the other"}


def test_a_human_joins_or_parts_the_pair(indexed: Callable[..., Index]) -> None:
    index = indexed(
        {"PatientID": "A1", "StudyInstanceUID": "1.2.3"},
        {"PatientID": "B2", "StudyInstanceUID": "1.2.4"},
    )
    pair = frozenset((pseudonym("A1"), pseudonym("B2")))
    one = register_persons(index, KEY, None, {pair: True})
    (group,) = persons(index, one)
    assert {series.person for series in group} == {min(pair)}
    assert one.doubts == {}
    two = register_persons(index, KEY, None, {pair: False})
    assert len(list(persons(index, two))) == 2
    assert two.doubts == {}


def test_confirmed_numbers_in_one_study_are_not_mixed_and_unconfirmed_ones_are(
    indexed: Callable[..., Index],
) -> None:
    index = indexed(
        {"PatientID": "A1", "StudyInstanceUID": "1.2.3"},
        {"PatientID": "B2", "StudyInstanceUID": "1.2.3"},
    )
    pair = frozenset((pseudonym("A1"), pseudonym("B2")))
    for answers, facts in (({}, {"MIXED_PATIENTS"}), ({pair: True}, set())):
        register = register_persons(index, KEY, None, answers)
        found = [series.facts for group in persons(index, register) for series in group]
        assert set().union(*found) == facts


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ("Mustermann^Erika", "MUSTERMANN^ERIKA^^Dr.", False),
        ("Mustermann^Erika", "Erika Mustermann", False),
        ("Mustermann^Erika", "Mustermann^Erika^Maria", False),
        ("Mustermann^Erika", "Anonymous", False),
        ("Mustermann^Erika", "Schmidt^Erika", True),
        ("Mustermann^Erika", "Mustermann^Hans", True),
    ],
)
def test_two_names_under_one_number_are_noticed_and_two_writings_are_not(
    indexed: Callable[..., Index], one: str, other: str, differ: bool
) -> None:
    index = indexed({"PatientName": one}, {"PatientName": other})
    register = register_persons(index, KEY, None, {})
    person = pseudonym("00471199")
    assert (register.doubts == {frozenset((person,)): "different names under one number"}) == differ
    assert ("NAME_DIFFERS" in register.facts[person]) == differ
    confirmed = register_persons(index, KEY, None, {frozenset((person,)): True})
    assert not confirmed.facts[person]
    assert not confirmed.doubts


def test_a_name_means_the_same_in_latin_1_and_in_utf_8_that_does_not_say_so() -> None:
    latin = b"M\xfcller^J\xf6rg".decode("latin-1")
    utf = "Müller^Jörg".encode().decode("latin-1")
    assert identity.name_words(latin) == identity.name_words(utf) == {"muller", "jorg"}


def test_two_birth_dates_under_one_number_are_nobody_and_make_no_doubts(
    indexed: Callable[..., Index],
) -> None:
    index = indexed(
        {"PatientID": "0", "StudyInstanceUID": "1.2.3"},
        {"PatientID": "0", "StudyInstanceUID": "1.2.4", "PatientBirthDate": "19660101"},
        {"PatientID": "A1", "StudyInstanceUID": "1.2.5"},
    )
    register = register_persons(index, KEY, None, {})
    assert register.facts[pseudonym("0")] == {"NO_IDENTITY"}
    assert register.doubts == {}


def test_the_labels_say_whose_a_study_without_a_number_is(
    indexed: Callable[..., Index], tmp_path: Path
) -> None:
    (tmp_path / "l.csv").write_text("patient_id,accession,diagnosis\nA1,ACC9,bvFTD\n")
    index = indexed(
        {"PatientID": None, "AccessionNumber": "ACC9", "StudyInstanceUID": "1.2.3"},
        {"PatientID": None, "AccessionNumber": "ACC8", "StudyInstanceUID": "1.2.4"},
        {"PatientID": "A1", "StudyInstanceUID": "1.2.5"},
    )
    register = register_persons(index, KEY, read_labels(tmp_path / "l.csv"), {})
    groups = list(persons(index, register))
    assert [(g[0].person, len(g)) for g in groups] == [("", 1), (pseudonym("A1"), 2)]
    mapped = [s for s in groups[1] if "MAPPED" in s.facts]
    assert [s.files[0].header.patient_id for s in mapped] == ["a1"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh"))))
def test_unions_are_the_connected_components(pairs: list[tuple[str, str]]) -> None:
    found = unions(pairs)
    assert all(found[a] == found[b] for a, b in pairs)
    assert found.keys() == {member for pair in pairs for member in pair}
    assert all(found[head] == head <= member for member, head in found.items())
    # Nothing joins two members without a chain of pairs between them.
    for member, head in found.items():
        reached = {head}
        for _ in pairs:
            reached |= {m for pair in pairs if {*pair} & reached for m in pair}
        assert member in reached


def test_a_rotated_key_gives_disjoint_pseudonyms_that_only_the_table_connects(
    indexed: Callable[..., Index], tmp_path: Path
) -> None:
    indexed({"PatientID": "A1"}, {"PatientID": "B2"}, {"PatientID": None})
    old = identity.new_key(tmp_path / "old.key")
    table = rotate_key(old, tmp_path / "new.key", tmp_path / "in", tmp_path / "t.tsv", workers=1)
    assert table.stat().st_mode & 0o777 == 0o600
    head, *rows = [line.split("\t") for line in table.read_text().splitlines()]
    assert head == ["old", "new"]
    keys = [identity.read_key(str(tmp_path / name)) for name in ("old.key", "new.key")]
    expected = {tuple(identity.person_id(k, None, n) for k in keys) for n in ("A1", "B2")}
    assert {tuple(row) for row in rows} == expected
    assert not {row[0] for row in rows} & {row[1] for row in rows}
    assert not (tmp_path / ".t.tsv.private").exists()
    (tmp_path / "result").mkdir()
    (tmp_path / "result/recipe.json").write_text('{"step": "ingest", "schema": 1}')
    for place, words in ((table, "already"), (tmp_path / "result/t.tsv", "in a result")):
        with pytest.raises(InputError, match=words):
            rotate_key(old, tmp_path / "new.key", tmp_path / "in", place)
