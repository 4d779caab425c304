"""Paired differences where every fold has trainings of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rarescan.errors import InputError
from rarescan.evaluation.intervals import Z95, auc_difference
from rarescan.evaluation.thinned import CHOSEN, summarise

KINDS = {
    "real": "free",
    "classical": "free",
    "classical+vae": "generative",
    "classical+gan": "generative",
    "placebo": "placebo",
}
Scores = Mapping[str, Sequence[float]]


def rows_of(
    fold: int, scores: Scores, truth: Sequence[int], *, part: str = "test", **more: Any
) -> list[dict[str, Any]]:
    """Return the rows of one fold; persons are named by their place."""
    common = {"patients": 10, "repeat": 0, "model": "network", "seed": 0, "part": part}
    return [
        {**common, "fold": fold, "arm": arm, "person_id": f"P{place}", "truth": t, "score": score}
        | more
        for arm, values in scores.items()
        for place, (score, t) in enumerate(zip(values, truth, strict=True))
    ]


def drawn(
    fold: int, arms: Sequence[str], truth: Sequence[int], *, shift: float = 0.0, cohort: int = 0
) -> Scores:
    """Return a fold's scores: what is seen of a person is the same in all folds and arms.

    `shift` helps generative arms.
    """
    ill = np.array(truth)
    seen = np.random.default_rng(cohort).normal(ill * 0.8, 1)
    random = np.random.default_rng([cohort, fold])
    helped = {arm: shift * (KINDS.get(arm) == "generative") for arm in arms}
    return {
        arm: (seen + random.normal(0, 0.5, len(ill)) + helped[arm] * ill).tolist() for arm in arms
    }


TRUTH = [1] * 30 + [0] * 25


def test_with_the_same_scores_in_every_fold_the_interval_is_delongs() -> None:
    scores = drawn(0, ("classical", "classical+vae"), TRUTH)
    rows = [row for fold in range(3) for row in rows_of(fold, scores, TRUTH)]
    (entry,) = summarise(rows, KINDS)
    truth = np.array(TRUTH) == 1
    both = np.array([scores["classical"], scores["classical+vae"]])
    value, se = auc_difference(both[:, truth], both[:, ~truth])
    found = entry["arms"]["classical+vae"]["difference"]
    assert found["value"] == pytest.approx(value)
    assert found["high"] - found["value"] == pytest.approx(Z95 * se)


def test_the_lottery_of_training_widens_the_interval_by_students_t() -> None:
    # One patient beats a share of the controls that differs between folds; nothing else does.
    truth = [1, 1] + [0] * 100
    rows, shares = [], (0.5, 0.6, 0.7, 0.8)
    for fold, share in enumerate(shares):
        base = [0.5, 0.5, *np.linspace(0, 1, 100)]
        better = [share, share, *np.linspace(0, 1, 100)]
        rows += rows_of(fold, {"classical": base, "classical+vae": better}, truth)
    (entry,) = summarise(rows, KINDS)
    found = entry["arms"]["classical+vae"]["difference"]
    gains = np.array(shares) - 0.5
    lottery = stats.t.ppf(0.975, 3) * gains.std(ddof=1) / 2
    assert found["value"] == pytest.approx(gains.mean(), abs=0.01)
    assert found["high"] - found["value"] > 0.98 * lottery


def test_repeats_do_not_make_the_lottery_smaller_than_one_repeats_folds() -> None:
    def half(repeats: int) -> float:
        rows = []
        for repeat in range(repeats):
            for fold in range(4):
                scores = drawn(fold, ("classical", "classical+vae"), TRUTH)
                rows += rows_of(fold, scores, TRUTH, repeat=repeat)
        (entry,) = summarise(rows, KINDS)
        found = entry["arms"]["classical+vae"]["difference"]
        return float(found["high"] - found["value"])

    assert half(4) > 0.6 * half(1)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.floats(0.1, 10))
def test_a_fold_whose_scores_lie_higher_or_wider_changes_nothing(
    shifts: list[float], factor: float
) -> None:
    plain, moved = [], []
    for fold, shift in enumerate(shifts):
        # In sixteenths, so that equal scores stay equal when they are moved.
        whole = {
            arm: np.round(16 * np.array(values)) / 16
            for arm, values in drawn(fold, ("classical", "classical+vae"), TRUTH).items()
        }
        plain += rows_of(fold, {a: v.tolist() for a, v in whole.items()}, TRUTH)
        others = {
            a: (round(16 * shift) + v * 2 ** round(factor)).tolist() for a, v in whole.items()
        }
        moved += rows_of(fold, others, TRUTH)
    assert summarise(plain, KINDS) == summarise(moved, KINDS)


def test_the_arms_that_are_compared_are_chosen_on_validation_persons() -> None:
    """The better free arm of the test persons must not be what is beaten, nor the better batch."""
    perfect, blind = [0.9] * 5 + [0.1] * 5, [0.5] * 10
    truth = [1] * 5 + [0] * 5
    rows = []
    for fold in range(3):
        rows += rows_of(
            fold,
            {"real": perfect, "classical": blind, "classical+vae": blind, "classical+gan": perfect},
            truth,
        )
        held = {"real": blind, "classical": perfect} | (
            {"classical+vae": perfect, "classical+gan": blind}
        )
        rows += rows_of(fold, held, truth, part="validation")
    (entry,) = summarise(rows, KINDS)
    assert entry["chosen"] == {"free": {"classical": 3}, "generative": {"classical+vae": 3}}
    assert entry["arms"]["real"]["difference"]["value"] == pytest.approx(0.5)
    assert entry["arms"][CHOSEN]["difference"]["value"] == 0


def test_equal_ranks_are_no_proof_of_equality() -> None:
    truth = [1] * 5 + [0] * 5
    scores = {"classical": np.linspace(1, 0, 10), "classical+vae": np.linspace(0.9, 0.1, 10)}
    rows = [row for fold in range(3) for row in rows_of(fold, scores, truth)]
    (entry,) = summarise(rows, KINDS)
    assert entry["arms"]["classical+vae"]["difference"]["high"] > 0.3
    assert entry["verdict"] == "undecided"


def test_baselines_stand_beside_the_network_and_are_never_what_is_beaten() -> None:
    truth = [1] * 5 + [0] * 5
    rows = []
    for fold in range(2):
        rows += rows_of(fold, drawn(fold, ("classical", "classical+vae"), truth), truth)
        rows += rows_of(fold, {"real": [0.5] * 10}, truth, model="linear")
        rows += rows_of(fold, {"covariates": [0.9] * 5 + [0.1] * 5}, truth, model="baseline")
    linear, network = summarise(rows, KINDS)
    assert (linear["model"], network["model"]) == ("linear", "network")
    assert network["arms"]["covariates"]["kind"] == "baseline"
    assert network["arms"]["covariates"]["measures"]["auc"]["mean"] == 1
    assert "covariates" not in linear["arms"]
    assert network["chosen"]["free"] == {"classical": 2}


def test_no_gain_is_reported_as_no_gain_in_95_of_100_cohorts() -> None:
    """Claim of the field: without a difference, `use` is said in at most 5 of 100."""
    used = 0
    for seed in range(100):
        rows = []
        for fold in range(5):
            scores = drawn(fold, ("classical", "classical+vae"), TRUTH, cohort=seed)
            rows += rows_of(fold, scores, TRUTH)
        used += summarise(rows, KINDS)[0]["verdict"] == "use"
    assert used <= 5


def test_a_gain_that_is_there_is_found() -> None:
    found = 0
    for seed in range(10):
        rows = []
        for fold in range(5):
            scores = drawn(fold, ("classical", "classical+vae"), TRUTH, shift=1.0, cohort=seed)
            rows += rows_of(fold, scores, TRUTH)
        found += summarise(rows, KINDS)[0]["verdict"] == "use"
    assert found >= 9


@pytest.mark.parametrize(("placebo", "bites"), [([0.5] * 55, True), (None, False)])
def test_a_comparison_in_which_the_placebo_loses_nothing_says_so(
    placebo: list[float] | None, bites: bool
) -> None:
    rows = []
    for fold in range(3):
        scores = dict(drawn(fold, ("classical", "classical+vae"), TRUTH))
        rows += rows_of(fold, scores | {"placebo": placebo or scores["classical"]}, TRUTH)
    assert summarise(rows, KINDS)[0]["bites"] is bites


def test_what_cannot_be_compared_is_refused() -> None:
    scores = drawn(0, ("classical", "classical+vae"), TRUTH)
    with pytest.raises(InputError, match="one training only"):
        summarise(rows_of(0, scores, TRUTH), KINDS)
    with pytest.raises(InputError, match="no arm that costs nothing"):
        summarise(rows_of(0, {"classical+vae": scores["classical+vae"]}, TRUTH), KINDS)
    fewer = rows_of(0, {"classical": scores["classical"]}, TRUTH) + rows_of(
        0, {"classical+vae": scores["classical+vae"][:-1]}, TRUTH[:-1]
    )
    with pytest.raises(InputError, match="different persons"):
        summarise(fewer, KINDS)
