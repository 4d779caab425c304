import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rarescan.cohort.store import open_cohort, read_events, tables
from rarescan.errors import InputError, SettingError
from rarescan.imaging.ingest import ingest_export
from rarescan.imaging.review import PERSONS, SCANS, read_answers, waiting, write_forms, write_lists
from rarescan.imaging.spec import IngestConfig


@pytest.fixture(scope="module")
def given(
    tmp_path_factory: pytest.TempPathFactory, write_series: Any, make_head: Any
) -> tuple[Path, IngestConfig]:
    """A sound person, the same under another number, and a scan that a human must confirm."""
    folder = tmp_path_factory.mktemp("review")
    write_series(folder / "in/a")
    write_series(folder / "in/b", PatientID="TWIN2", voxels=make_head(2), StudyDate="20190701")
    unclear = {"InversionTime": None, "ScanningSequence": "GR", "SequenceVariant": ["SK", "SP"],
               "RepetitionTime": "20", "FlipAngle": "25", "PatientName": "Andere^Anna"}  # fmt: skip
    write_series(folder / "in/c", PatientID="DRITTE3", voxels=make_head(3), **unclear)
    (folder / "k").write_text("5a" * 32)
    (folder / "k").chmod(0o600)
    (folder / "labels.csv").write_text(
        "patient_id,diagnosis\n00471199,bvFTD\nDRITTE3,control\nNOBODY,control\n"
    )
    return folder / "in", IngestConfig(
        key_file=str(folder / "k"), labels=str(folder / "labels.csv")
    )


@pytest.fixture(scope="module")
def cohort(given: tuple[Path, IngestConfig]) -> Path:
    return ingest_export(given[0], given[0].parent / "cohort", given[1], workers=2)


def filled(path: Path, column: str, answer: str) -> str:
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    with path.open("w") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows([row | {column: answer} for row in rows])
    return str(path)


def test_what_waits_is_listed_with_pseudonyms_and_figures_only(
    cohort: Path, given: tuple[Path, IngestConfig]
) -> None:
    lists = waiting(cohort)
    (scan,) = lists[SCANS]
    events = [e for e in read_events(cohort) if e["code"] == "REVIEW"]
    assert (scan["stack_id"], scan["person_id"]) == (
        events[0]["stack_id"],
        events[0]["person_id"],
    )
    assert 45 <= int(scan["score"]) < 65
    assert (scan["matrix"], scan["voxel_mm"], scan["tr_ms"]) == (
        "96 x 96 x 96", "1.5 x 1.5 x 1.5", "20.0")  # fmt: skip
    assert scan["day"] < "1930"
    (pair,) = lists[PERSONS]
    assert pair["because"] == "same name, birth date and sex"
    (used,) = open_cohort(cohort).scans
    assert used.person_id in (pair["person_id"], pair["other"])
    assert used.flags[-1] == f"perhaps_{pair['person_id']}"
    text = "".join(path.read_text() for path in tables(cohort).glob("*.tsv"))
    for token in ("00471199", "TWIN2", "DRITTE3", "NOBODY", "Anna", "2019", "mprage"):
        assert token not in text


def test_labels_and_persons_without_a_counterpart_are_listed(cohort: Path) -> None:
    lines = (tables(cohort) / "unmatched_labels.tsv").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    assert sorted((row, because, bool(person)) for row, person, because in rows) == [
        ("", "no row of the labels", True),
        ("3", "no accepted scan", True),
        ("4", "nobody in the export", False),
    ]


def test_a_confirmed_scan_is_taken_and_a_refused_one_stays_away(
    cohort: Path, given: tuple[Path, IngestConfig], tmp_path: Path
) -> None:
    (form, _) = write_forms(cohort, tmp_path)
    assert form.name == "scans.csv"
    for answer, n_scans in (("no", 1), ("yes", 2)):
        config = replace(given[1], confirmed_scans=filled(form, "confirmed", answer))
        again = ingest_export(given[0], tmp_path / answer, config, workers=2)
        assert len(open_cohort(again).scans) == n_scans
        codes = {e["code"] for e in read_events(again)}
        assert ("CONFIRMED" in codes, "REVIEW" in codes) == (answer == "yes", answer == "no")


def test_a_confirmed_pair_becomes_one_person_with_two_sessions(
    cohort: Path, given: tuple[Path, IngestConfig], tmp_path: Path
) -> None:
    (_, form) = write_forms(cohort, tmp_path)
    config = replace(given[1], confirmed_persons=filled(form, "same", "yes"))
    scans = open_cohort(ingest_export(given[0], tmp_path / "one", config, workers=2)).scans
    assert [scan.session for scan in scans] == ["01", "02"]
    assert len({scan.person_id for scan in scans}) == 1
    assert {scan.condition.diagnosis for scan in scans} == {"bvFTD"}
    assert not any(flag.startswith("perhaps_") for scan in scans for flag in scan.flags)


def test_an_export_with_nothing_but_doubtful_scans_leaves_its_list_and_says_so(
    given: tuple[Path, IngestConfig], tmp_path: Path
) -> None:
    for _ in range(2):
        with pytest.raises(InputError) as error:
            ingest_export(given[0] / "c", tmp_path / "cohort", given[1], workers=1)
        assert "rarescan review cohort" in error.value.remedy
    (form,) = write_forms(tmp_path / "cohort", tmp_path)
    config = replace(given[1], confirmed_scans=filled(form, "confirmed", "yes"))
    ingest_export(given[0] / "c", tmp_path / "cohort", config, workers=1, overwrite=True)
    assert len(open_cohort(tmp_path / "cohort").scans) == 1


def test_only_doubtful_scans_can_be_confirmed(make_stack: Any) -> None:
    from rarescan.imaging.plan import Plan

    config = IngestConfig()
    for values in ({"position_mm": None}, {"burned_in": "YES"}, {"patient_id": None}):
        stack = make_stack(**values)
        plan = Plan(key=bytes(32), config=config, labels=None)
        trusting = replace(plan, confirmed={plan._stack_id(stack): True})
        refused = plan._decide("RSX", stack, ())[0]
        assert refused is not None
        assert trusting._decide("RSX", stack, ())[0] == refused


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("stack_id\nST1\n", SettingError),
        ("stack_id,confirmed\nST1,maybe\n", InputError),
        ("stack_id,confirmed\nST1,yes\nST1,no\n", InputError),
    ],
)
def test_unclear_answers_are_refused(tmp_path: Path, text: str, error: type[Exception]) -> None:
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(error):
        read_answers(str(tmp_path / "f.csv"), SCANS)


def test_open_questions_are_no_answers(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("person_id,other,same\nA,B,\nA,C,YES\nA,D,no\n")
    assert read_answers(str(tmp_path / "f.csv"), PERSONS) == {("A", "C"): True, ("A", "D"): False}
    assert read_answers("", PERSONS) == {}


def test_a_folder_without_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rarescan ingest"):
        waiting(tmp_path)


def test_where_nothing_waits_there_are_no_forms(tmp_path: Path) -> None:
    write_lists(tmp_path, [], {})
    assert write_forms(tmp_path, tmp_path / "forms") == []
