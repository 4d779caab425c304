"""Figures that compare classifiers on the same persons."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from rarescan.classifiers.compression.agreement import (
    Judged,
    agreement,
    balanced_accuracy,
    compare_all,
)


def _judged(rows: list[tuple[str, int, int]], n_classes: int = 3) -> Judged:
    """Return answers from (person, truth, label said)."""
    said = np.full((len(rows), n_classes), 0.1 / (n_classes - 1), np.float32)
    said[range(len(rows)), [label for *_, label in rows]] = 0.9
    return Judged(
        person_ids=tuple(person for person, *_ in rows),
        truth=tuple(truth for _, truth, _ in rows),
        probabilities=said,
    )


def test_a_person_counts_once_however_many_scans_there_are() -> None:
    many = [("A", 0, 0)] * 30 + [("B", 0, 1), ("C", 1, 1), ("D", 1, 1)]
    # Class 0: A all right, B all wrong: 0.5. Class 1: 1. Scans alone would say 30 / 31 and 1.
    assert balanced_accuracy(_judged(many, 2)) == pytest.approx(0.75)


def test_a_person_may_be_of_two_classes() -> None:
    rows = [("A", 0, 0), ("A", 1, 0), ("A", 1, 1), ("B", 2, 2)]
    assert balanced_accuracy(_judged(rows)) == pytest.approx((1 + 0.5 + 1) / 3)
    assert _judged(rows).shares().count().tolist() == [1, 1, 1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=3, max_size=30))
def test_with_one_scan_a_person_it_is_scikit_learns(rows: list[tuple[int, int]]) -> None:
    rows += [(0, 0), (1, 1), (2, 0)]
    ours = balanced_accuracy(_judged([(f"P{i}", *row) for i, row in enumerate(rows)]))
    truth, said = zip(*rows, strict=True)
    assert ours == pytest.approx(balanced_accuracy_score(truth, said))


def _population(seed: int, flips: int) -> Judged:
    random = np.random.default_rng(seed)
    rows = [(f"P{i % 40:02d}", i % 2, int(random.random() < 0.2) ^ i % 2) for i in range(160)]
    for i in range(flips):
        rows[i] = (*rows[i][:2], 1 - rows[i][2])
    return _judged(rows, 2)


def test_t36_the_order_of_rows_changes_no_figure() -> None:
    one = _population(0, 0)
    order = np.random.default_rng(1).permutation(160)
    other = Judged(
        person_ids=tuple(one.person_ids[i] for i in order),
        truth=tuple(one.truth[i] for i in order),
        probabilities=one.probabilities[order],
    )
    assert compare_all({"a": one}, "a") == compare_all({"a": other}, "a")


def test_t36_answers_about_other_rows_are_refused() -> None:
    one, other = _judged([("A", 0, 0), ("B", 1, 1)], 2), _judged([("B", 1, 1), ("A", 0, 0)], 2)
    with pytest.raises(ValueError, match="different scans"):
        compare_all({"a": one, "b": other}, "a")
    with pytest.raises(ValueError, match="different numbers of rows"):
        Judged(person_ids=("A",), truth=(0, 1), probabilities=one.probabilities)


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(np.array([0, 1]), id="labels"),
        pytest.param(np.array([[0, 1], [1, 0]]), id="one-hot labels"),
        pytest.param(np.log(np.array([[0.3, 0.7], [0.5, 0.5]])), id="T44 log-softmax"),
    ],
)
def test_t37_labels_in_the_place_of_scores_are_refused(answers: np.ndarray) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        Judged(person_ids=("A", "B"), truth=(0, 1), probabilities=answers)


def test_the_same_answers_lose_nothing_with_certainty() -> None:
    same = compare_all({"a": _population(0, 0), "b": _population(0, 0)}, "a")["b"]
    assert same["loss"] == {"value": 0, "low": 0, "high": 0}
    assert same["agreement"] == 1


def test_a_paired_loss_has_a_narrower_interval_than_the_accuracies() -> None:
    found = compare_all({"a": _population(0, 0), "b": _population(0, 8)}, "a")
    width = {
        name: found["b"][name]["high"] - found["b"][name]["low"]
        for name in ("loss", "balanced_accuracy")
    }
    assert width["loss"] < 0.7 * width["balanced_accuracy"]
    assert found["b"]["agreement"] == pytest.approx(1 - 8 / 160)


def test_the_interval_of_many_persons_covers_the_truth() -> None:
    # 30 independent cohorts of 40 persons, one scan each, right with probability 0.8.
    covered = 0
    for seed in range(30):
        random = np.random.default_rng(seed)
        rows = [(f"P{i}", i % 2, i % 2 if random.random() < 0.8 else 1 - i % 2) for i in range(40)]
        interval = compare_all({"a": _judged(rows, 2)}, "a", seed)["a"]["balanced_accuracy"]
        covered += interval["low"] <= 0.8 <= interval["high"]
    assert covered >= 25


def test_few_persons_are_called_insufficient() -> None:
    few = [(f"P{i}", int(i < 4), int(i < 4)) for i in range(20)]
    assert not compare_all({"a": _judged(few, 2)}, "a")["a"]["sufficient"]
    enough = [(f"P{i}", int(i < 5), int(i < 5)) for i in range(20)]
    assert compare_all({"a": _judged(enough, 2)}, "a")["a"]["sufficient"]


def test_agreement_compares_labels_not_probabilities() -> None:
    one = _judged([("A", 0, 0), ("B", 1, 1)], 2)
    softer = Judged(
        person_ids=one.person_ids,
        truth=one.truth,
        probabilities=0.5 + 0.2 * (one.probabilities - 0.5),
    )
    assert agreement(one, softer) == 1
