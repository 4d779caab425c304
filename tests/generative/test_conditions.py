from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.cohort.contracts import Condition
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError
from rarescan.generative.conditions import (
    ConditionEncoder,
    balanced_conditions,
    draw_conditions,
)

ALL = ("age_years", "sex", "site", "severity")
PEOPLE = [
    Condition(diagnosis="bvFTD", age_years=70, sex="F", site="A", severity=0.4),
    Condition(diagnosis="bvFTD", age_years=60, sex="M", site="B", severity=0.6),
    Condition(diagnosis="control", age_years=50, sex="F", site="A", severity=0.0),
]


def encoder() -> ConditionEncoder:
    return ConditionEncoder.fit(PEOPLE, ALL)  # type: ignore[arg-type]


def test_a_condition_becomes_the_numbers_that_were_agreed() -> None:
    row = encoder().encode([PEOPLE[0]])[0]
    deviation = 10 / (200 / 3) ** 0.5
    expected = [1, 0, 0, deviation, 1, 1, 1, 1, 0, 1, 0.4, 1]
    assert row.tolist() == pytest.approx(expected)


def test_what_is_not_known_is_flagged_and_not_zero_years_old() -> None:
    known = encoder().encode([Condition(diagnosis="control", age_years=60)])[0]
    unknown = encoder().encode([Condition(diagnosis="control")])[0]
    assert known.tolist() == pytest.approx([0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    assert unknown.tolist() == [0, 1, 0] + [0] * 9


def test_only_what_differs_between_training_persons_is_a_condition() -> None:
    same = [Condition(diagnosis=d, age_years=60, sex="F", site="A") for d in ("a", "b")]
    assert ConditionEncoder.fit(same, ALL).n_features == 3  # type: ignore[arg-type]
    assert ConditionEncoder.fit(PEOPLE, ("sex",)).n_features == 5


def test_the_encoder_survives_json() -> None:
    assert ConditionEncoder.from_dict(encoder().as_dict()) == encoder()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition(diagnosis="bvFDT"), "Did you mean 'bvFTD'.*bvFTD, control"),
        (Condition(diagnosis="control", site="C"), "site 'C'.*A, B"),
        (Condition(diagnosis="control", age_years=20), "from 45 to 75"),
        (Condition(diagnosis="control", age_years=float("nan")), "from 45 to 75"),
    ],
)
def test_what_cannot_be_served_is_refused_with_what_can(condition: Condition, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder().encode([condition])


def test_what_the_cohort_lacks_is_not_claimed_to_be_obeyed() -> None:
    few = ConditionEncoder.fit(PEOPLE, ("sex",))
    assert few.served(PEOPLE[0]) == Condition(diagnosis="bvFTD", sex="F")


def test_dropping_hides_each_condition_independently_in_its_share() -> None:
    rows = encoder().encode(PEOPLE[:1]).repeat(4000, 1)
    dropped = encoder().drop(rows, 0.25, torch.Generator().manual_seed(0))
    hidden = dropped[:, 2] == 1
    assert (dropped[hidden, :2] == 0).all()
    gone = [hidden, dropped[:, 4] == 0, dropped[:, 6] == 0, dropped[:, 9] == 0]
    for column in gone:
        assert column.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (gone[0] & gone[1]).float().mean().item() == pytest.approx(0.0625, abs=0.015)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 90), seed=st.integers(0, 10**6))
def test_drawn_conditions_keep_the_mix_and_balanced_ones_are_even(
    cohort: Path, n: int, seed: int
) -> None:
    people = open_cohort(cohort)
    drawn, even = draw_conditions(people, n, seed), balanced_conditions(people, n, seed)
    assert len(drawn) == len(even) == n
    patients = Counter(c.diagnosis for c in drawn)["bvFTD"]
    assert abs(patients - n * 9 / 21) <= 1
    counts = Counter(c.diagnosis for c in even)
    assert abs(counts["bvFTD"] - counts["control"]) <= 1
    assert drawn == draw_conditions(people, n, seed)


def test_no_drawn_condition_repeats_a_persons_age(cohort: Path) -> None:
    people = open_cohort(cohort)
    ages = {s.condition.age_years for s in people.scans}
    drawn = draw_conditions(people, 50, 1)
    assert not ages & {c.age_years for c in drawn}
    assert all(c.age_years == round(c.age_years or 0.5) for c in drawn)
    assert all(45 <= (c.age_years or 0) <= 80 for c in drawn)


def test_a_batch_can_ask_for_some_diagnoses(cohort: Path) -> None:
    people = open_cohort(cohort)
    drawn = balanced_conditions(people, 7, 1, diagnoses=["bvFTD"])
    assert {c.diagnosis for c in drawn} == {"bvFTD"}
    with pytest.raises(InputError, match="bvFTD, control"):
        balanced_conditions(people, 7, 1, diagnoses=["AD"])


def test_a_cohort_without_a_partition_is_refused(cohort: Path) -> None:
    people = open_cohort(cohort)
    people.partition.clear()
    with pytest.raises(InputError, match="rarescan prepare"):
        draw_conditions(people, 3, 0)
