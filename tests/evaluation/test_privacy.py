"""The gates on data and batches, and the statistics behind them."""

import numpy as np
import pytest

from rarescan.evaluation import privacy
from rarescan.evaluation.copies import Matches


def rows(n: int, random: np.random.Generator, d: int = 32) -> np.ndarray:
    return random.normal(size=(n, d)) / np.sqrt(np.arange(1, d + 1))


def matches(*scores: float) -> Matches:
    values = np.array(scores)
    return Matches(values, values / 2, np.zeros(len(values), np.intp))


def scale_of(strangers: Matches, planted: Matches) -> privacy.Calibration:
    return privacy.calibrate(strangers, {"exact": planted})


def test_conformal_p_values_of_strangers_are_uniform():
    random = np.random.default_rng(1)
    p = [privacy.conformal_p(random.normal(size=1), random.normal(size=19))[0] for _ in range(4000)]
    for level in (0.05, 0.25, 0.5):
        assert np.mean(np.array(p) <= level + 1e-12) == pytest.approx(level, abs=0.025)
    assert privacy.conformal_p(np.array([-9.0]), np.zeros(19))[0] == 1 / 20


def test_a_batch_passes_with_fifty_strangers_only_and_leaning_withholds_the_pass():
    random = np.random.default_rng(2)
    training, batch = rows(40, random), rows(200, random)
    enough = privacy.feature_nearness(batch, rows(60, random), training)
    assert privacy.batch_gate(enough).outcome == "pass"
    few = privacy.feature_nearness(batch, rows(20, random), training)
    assert privacy.batch_gate(few).outcome == "insufficient"
    batch[:40] = training + 0.05 * rows(40, random)
    leaning = privacy.feature_nearness(batch, rows(60, random), training)
    gate = privacy.batch_gate(leaning)
    assert gate.outcome == "insufficient"
    assert "nearer to training persons" in gate.reason
    assert set(range(40)) <= set(leaning["suspicious"])


def test_a_person_in_two_parts_fails_the_data_gate_and_a_lookalike_withholds_the_pass():
    apart = scale_of(matches(*[0.2] * 20), matches(*[1.2] * 20))
    alike = scale_of(matches(*[0.2] * 19, 2.0), matches(*[1.2] * 20))
    assert privacy.data_gate(["A", "B"], ["C"], apart).outcome == "pass"
    gate = privacy.data_gate(["A", "B"], ["B"], apart)
    assert (gate.outcome, gate.reason[:9]) == ("fail", "1 persons")
    assert privacy.data_gate(["A", "B"], ["C"], alike).outcome == "insufficient"


def test_a_scan_is_flagged_a_quarter_of_the_way_to_planted_copies():
    scale = scale_of(matches(*[2.0] * 20), matches(*[6.0] * 20))
    assert list(scale.flagged(matches(2.0, 2.99, 3.01, 6.0))) == [False, False, True, True]
    cannot = scale_of(matches(6.0), matches(2.0))
    assert not cannot.flagged(matches(9.0)).any()
    assert cannot.blind_to() == ["exact"]
