"""Which scans a step sees."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.classifiers.examples import (
    Examples,
    Pool,
    balanced_pools,
    draw,
    labelled,
    plain_pools,
)
from rarescan.cohort.contracts import Question
from rarescan.cohort.store import open_cohort, open_volumes


def _examples(n_patients: int, n_controls: int, scans_each: int = 1) -> Examples:
    n = (n_patients + n_controls) * scans_each
    return Examples(
        sources=(np.zeros((n, 2, 2, 2), np.float32),),
        rows=tuple((0, i) for i in range(n)),
        labels=tuple(int(i // scans_each < n_patients) for i in range(n)),
        person_ids=tuple(f"P{i // scans_each}" for i in range(n)),
    )


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 30), take=st.integers(1, 20), steps=st.integers(1, 40), seed=st.integers(0, 99)
)
def test_no_person_is_seen_twice_more_than_another(
    n: int, take: int, steps: int, seed: int
) -> None:
    pool = Pool(name="p", persons=tuple((i,) for i in range(n)), stride=take, take=take)
    seen = Counter(p for step in range(steps) for p in draw([pool], seed, step))
    counts = [seen[i] for i in range(n)]
    assert max(counts) - min(counts) <= 1


def test_a_persons_scans_take_turns_and_do_not_multiply_the_person() -> None:
    pool = Pool(name="p", persons=((0, 1, 2), (3,)), stride=2, take=2)
    seen = Counter(position for step in range(30) for position in pool.at(1, step))
    assert seen == {0: 10, 1: 10, 2: 10, 3: 30}


def test_a_step_is_known_without_the_steps_before_it() -> None:
    pools = balanced_pools(_examples(5, 9), 8)
    in_order = [draw(pools, 3, step) for step in range(20)]
    assert draw(pools, 3, 19) == in_order[19]
    assert draw(pools, 4, 19) != in_order[19]


def test_plain_batches_have_the_classes_as_often_as_they_are() -> None:
    examples = _examples(10, 90)
    pools = plain_pools(examples, 20)
    labels = [examples.labels[p] for step in range(50) for p in draw(pools, 0, step)]
    assert np.mean(labels) == pytest.approx(0.1, abs=0.001)


@pytest.mark.parametrize("batch_size", [4, 7, 16])
def test_balanced_batches_are_half_positive(batch_size: int) -> None:
    examples = _examples(3, 90)
    for step in range(10):
        labels = [examples.labels[p] for p in draw(balanced_pools(examples, batch_size), 0, step)]
        assert len(labels) == batch_size
        assert sum(labels) == batch_size - batch_size // 2


def test_added_patients_take_half_of_the_positive_places_and_nothing_else_changes() -> None:
    real, added = _examples(12, 90), _examples(50, 0)
    without = balanced_pools(real, 16)
    with_added = balanced_pools(real, 16, added)
    joined = real.joined(added)
    for step in range(40):
        before, after = draw(without, 7, step), draw(with_added, 7, step)
        assert after[:12] == before[:12]
        assert all(p >= len(real) for p in after[12:])
        assert [joined.labels[p] for p in after] == [0] * 8 + [1] * 8


def test_only_the_questions_diagnoses_of_the_part_are_taken(prepared: Path) -> None:
    cohort = open_cohort(prepared)
    train = labelled(cohort, Question(), "train")
    assert {cohort.partition[p] for p in train.person_ids} == {"train"}
    assert Counter(train.labels) == {
        label: sum(
            scan.condition.diagnosis == diagnosis and cohort.partition[scan.person_id] == "train"
            for scan in cohort.scans
        )
        for label, diagnosis in ((1, "bvFTD"), (0, "control"))
    }
    assert len(labelled(cohort, Question(negative="asthma"))) == 24


def test_reading_gives_the_cohorts_volumes(prepared: Path) -> None:
    cohort = open_cohort(prepared)
    patients = labelled(cohort, Question(), "test").take([1, 0])
    expected = [s.person_id for s in cohort.scans]
    volumes = open_volumes(cohort)
    for image, person in zip(patients.read(), patients.person_ids, strict=True):
        np.testing.assert_array_equal(image, volumes[expected.index(person)])


def test_joined_examples_read_from_their_own_arrays(make_examples: Callable[..., Examples]) -> None:
    first, second = make_examples(4, seed=1), make_examples(6, seed=2)
    both = first.joined(second)
    np.testing.assert_array_equal(both.read([4, 1]), [second.read()[0], first.read()[1]])
    assert both.joined(first).read([10]).tobytes() == first.read([0]).tobytes()
    assert both.take([5], label=0).labels == (0,)
