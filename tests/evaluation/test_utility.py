from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from rarescan.errors import InputError
from rarescan.evaluation.utility import Result, interval, judge, summarise

KINDS = {"real": "free", "classical": "free", "vae": "generative", "oracle": "oracle"}


def _results(gain: float, *, draws: int = 16, noise: float = 0.01, seed: int = 0) -> list[Result]:
    rng = np.random.default_rng(seed)
    level = {"real": 0.70, "classical": 0.76, "vae": 0.76 + gain, "oracle": 0.82}
    return [
        Result(
            question="few",
            draw=draw,
            patients=12,
            arm=arm,
            kind=KINDS[arm],
            measures={"auc": level[arm] + luck + rng.normal(0, noise)},
        )
        for draw, luck in enumerate(rng.normal(0, 0.05, draws))
        for arm in level
    ]


def test_the_interval_is_students_over_draws() -> None:
    values = np.random.default_rng(1).normal(0.02, 0.03, 12)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = interval(values)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))


def test_the_arm_to_beat_is_chosen_on_other_draws_than_those_that_judge() -> None:
    # `real` is lucky in the draws that judge, and must not be what is beaten there.
    results = [
        r if r.arm != "real" or r.draw < 4 else Result(**{**vars(r), "measures": {"auc": 0.99}})
        for r in _results(0.0)
    ]
    (found,) = summarise(results, tuning_draws=4)
    assert found["best_free"] == "classical"
    assert (found["draws"], found["chosen_on"]) == (12, 4)


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.05, "use"), (-0.05, "do_not_use"), (0.0, "do_not_use")]
)
def test_the_verdict_follows_the_interval(gain: float, verdict: str) -> None:
    (found,) = summarise(_results(gain), tuning_draws=4)
    assert found["verdict"] == verdict


def test_wide_intervals_decide_nothing() -> None:
    wide = {"difference": {"value": 0.01, "low": -0.05, "high": 0.07, "n": 8}}
    assert judge(wide, "vae", "classical")[0] == "undecided"


def test_without_a_true_difference_at_most_5_of_100_say_use() -> None:
    verdicts = [
        summarise(_results(0.0, seed=seed), tuning_draws=4)[0]["verdict"] for seed in range(400)
    ]
    assert verdicts.count("use") <= 0.05 * len(verdicts)


def test_the_share_is_the_part_of_the_oracles_lead_that_is_reached() -> None:
    (found,) = summarise(_results(0.03, noise=1e-4), tuning_draws=4)
    share = found["arms"]["vae"]["share"]
    assert share["low"] < 0.5 < share["high"]
    assert share["high"] - share["low"] < 0.02
    assert found["arms"]["oracle"]["share"]["value"] == pytest.approx(1)


def test_the_interval_of_the_share_covers_the_true_one() -> None:
    shares = [
        summarise(_results(0.03, seed=seed), tuning_draws=4)[0]["arms"]["vae"]["share"]
        for seed in range(200)
    ]
    assert np.mean([s is None or s["low"] <= 0.5 <= s["high"] for s in shares]) >= 0.92


def test_a_lead_that_is_not_told_from_0_has_no_share() -> None:
    results = [
        Result(**{**vars(r), "measures": {"auc": r.measures["auc"] - 0.06}})
        if r.arm == "oracle"
        else r
        for r in _results(0.0)
    ]
    (found,) = summarise(results, tuning_draws=4)
    assert found["arms"]["vae"]["share"] is None


def test_unfinished_draws_are_left_out_and_too_few_are_refused() -> None:
    results = _results(0.0)[:-1]
    (found,) = summarise(results, tuning_draws=4)
    assert found["draws"] == 11
    with pytest.raises(InputError, match="2 whole draws"):
        summarise(_results(0.0, draws=6), tuning_draws=4)


def test_what_was_refused_and_what_may_harm_stands_beside_the_difference() -> None:
    placebo = [
        replace(r, arm="placebo", kind="placebo", measures={"auc": r.measures["auc"] - 0.05})
        for r in _results(0.0)
        if r.arm == "classical"
    ]
    results = [replace(r, refused=r.arm == "vae" and r.draw > 13) for r in _results(-0.03)]
    (found,) = summarise(results + placebo, tuning_draws=4)
    arms = found["arms"]
    assert {arm: arms[arm]["refused"] for arm in ("vae", "classical")} == {"vae": 2, "classical": 0}
    assert found["bites"] is True
    assert not arms["vae"]["harmless"]
    assert arms["classical"]["harmless"]
    (without,) = summarise(results, tuning_draws=4)
    assert without["bites"] is None
