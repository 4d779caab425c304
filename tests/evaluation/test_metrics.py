"""Distances: closed forms, identities, other packages' numbers on the same features, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.errors import InputError
from rarescan.evaluation import metrics, table
from rarescan.evaluation.moments import Moments, frechet
from rarescan.evaluation.relative import compare


def draw(n: int, d: int, seed: int, *, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    spectrum = 1 / np.sqrt(np.arange(1, d + 1))
    return shift + scale * np.random.default_rng(seed).normal(size=(n, d)) * spectrum


def with_moments(n: int, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return rows whose sample mean and covariance (divisor n - 1) are exactly these."""
    rows = np.random.default_rng(0).normal(size=(n, len(mean)))
    rows -= rows.mean(axis=0)
    whitened = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def test_fid_of_commuting_gaussians_has_its_closed_form():
    a, b = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.25])
    x = with_moments(50, np.zeros(3), np.diag(a))
    y = with_moments(80, np.array([1.0, 2.0, 2.0]), np.diag(b))
    expected = 9 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert metrics.fid(x, y) == pytest.approx(expected, rel=1e-10)


def test_many_persons_with_many_features_take_another_way_to_the_same_fid(monkeypatch):
    x, y = draw(620, 300, 1), draw(700, 300, 2, shift=0.3)
    wide = metrics.fid(x, y)
    monkeypatch.setattr(metrics, "_WIDE", 10**6)
    assert wide == pytest.approx(metrics.fid(x, y), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 40), m=st.integers(3, 40), d=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_frechet_of_moments_equals_fid_even_where_covariances_are_singular(n, m, d, seed):
    x, y = draw(n, d, seed), draw(m, d, seed + 1, shift=1.0)
    x, y = (np.pad(rows, ((0, 0), (0, 2))) for rows in (x, y))  # two dead features
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(metrics.fid(x, y), abs=1e-8)


def test_scores_of_few_persons_with_many_features_are_those_of_all_features():
    x, y = draw(20, 300, 8) + 5, draw(24, 300, 9)
    sigma2 = metrics.frozen_bandwidth(x)
    rows = table.score_pair(x, y, sigma2=sigma2, seed=0)
    assert rows["mmd"].value == pytest.approx(metrics.mmd(x, y, sigma2=sigma2).value, rel=1e-10)
    assert rows["kid"].value == pytest.approx(metrics.kid(x, y).value, rel=1e-12)
    assert rows["recall"].value == metrics.prdc(x, y)["recall"]
    raw = metrics.fid_at_equal_n(x, y, seed=0)[0]
    assert rows["fid"].value == pytest.approx(raw.value, rel=1e-10)
    many = table.score_pair(draw(220, 500, 1), draw(220, 500, 2), sigma2=sigma2, seed=0)
    assert many["fid"].sufficient
    assert not many["fid_jackknife"].sufficient  # fewer persons than half the features


def test_identical_sets_are_at_distance_zero():
    x = draw(40, 8, 5)
    assert metrics.fid(x, x) == pytest.approx(0, abs=1e-9)
    assert metrics.prdc(x, x) == {
        "precision": 1.0,
        "recall": 1.0,
        "density": pytest.approx(1.0),
        "coverage": 1.0,
    }
    # The unbiased MMD of a set with itself is below zero by exactly the diagonal terms.
    sigma2 = metrics.frozen_bandwidth(x)
    kernel = metrics.rbf(x, x, sigma2)
    off_diagonal = (kernel.sum() - 40) / (40 * 39)
    assert metrics.mmd(x, x).value == pytest.approx(2 * (off_diagonal - kernel.mean()))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 12), m=st.integers(3, 12), d=st.integers(1, 15), seed=st.integers(0, 10**6))
def test_leave_one_out_fids_equal_fids_without_that_row(n, m, d, seed):
    x, y = draw(n, d, seed), draw(m, d, seed + 1, shift=1.0)
    fast = metrics._fid_without_each(x, y)
    slow = [metrics.fid(np.delete(x, i, axis=0), y) for i in range(n)]
    assert fast == pytest.approx(slow, abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 9), m=st.integers(3, 9), seed=st.integers(0, 10**6))
def test_mmd_interval_is_the_delete_one_jackknife(n, m, seed):
    x, y = draw(n, 3, seed), draw(m, 3, seed + 1)
    without_x = np.array([metrics.mmd(np.delete(x, i, 0), y, sigma2=1.0).value for i in range(n)])
    without_y = np.array([metrics.mmd(x, np.delete(y, j, 0), sigma2=1.0).value for j in range(m)])
    variance = sum((len(v) - 1) ** 2 / len(v) * np.var(v, ddof=1) for v in (without_x, without_y))
    assert metrics.mmd(x, y, sigma2=1.0).se == pytest.approx(np.sqrt(variance))


def test_mmd_intervals_cover_the_truth_for_a_wrong_generator():
    real_population, wrong_population = draw(3000, 8, 6), draw(3000, 8, 7, shift=0.3)
    sigma2 = metrics.frozen_bandwidth(real_population[:500])
    truth = metrics.mmd(real_population[:1500], wrong_population[:1500], sigma2=sigma2).value
    covered = 0
    for k in range(100):
        rows = np.random.default_rng(k)
        x = real_population[rows.choice(3000, 50, replace=False)]
        y = wrong_population[rows.choice(3000, 50, replace=False)]
        estimate = metrics.mmd(x, y, sigma2=sigma2)
        covered += abs(estimate.value - truth) < 1.96 * estimate.se
    assert covered >= 88  # 95 nominal; 88 is three standard errors below it


def test_the_corrected_fid_of_a_perfect_generator_is_near_zero_where_the_raw_one_is_not():
    raw, corrected = zip(
        *(metrics.fid_jackknife(draw(50, 16, 2 * k), draw(50, 16, 2 * k + 1)) for k in range(8)),
        strict=True,
    )
    assert np.mean([r.value for r in raw]) > 0.4
    assert abs(np.mean([c.value for c in corrected])) < 0.15


def test_scores_say_what_may_be_read_from_them():
    x, y = draw(36, 8, 8), draw(100, 8, 9)
    rows = table.score_pair(x, y, sigma2=metrics.frozen_bandwidth(x), seed=0)
    assert set(rows) == {
        "mmd", "kid", "fid", "fid_jackknife", "precision", "recall", "density", "coverage",
    }  # fmt: skip
    assert rows["mmd"].sufficient
    assert not rows["fid"].sufficient
    assert (rows["fid"].n_real, rows["fid"].n_synthetic) == (36, 36)
    assert (rows["mmd"].n_real, rows["mmd"].n_synthetic) == (36, 100)
    assert all(score.low < score.value < score.high for score in rows.values() if score.value != 1)
    far = table.score_pair(x, x + 100, sigma2=1.0, seed=0)["recall"]
    assert (far.value, far.low) == (0, 0)
    assert far.high == pytest.approx(1 - 0.025 ** (1 / 36))  # 0 of 36, not "surely none"
    uninformative = table.inception_score_row(np.full((9, 2), 0.5), "from nothing")
    assert uninformative.value == pytest.approx(1)
    assert uninformative.better == "neither"
    assert not uninformative.sufficient


def test_same_seed_gives_the_same_scores_and_another_seed_other_draws():
    x, y = draw(30, 4, 10), draw(60, 4, 11)
    first, again, other = (table.score_pair(x, y, sigma2=1.0, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first["fid"].value != other["fid"].value
    assert first["mmd"] == other["mmd"]


@pytest.mark.parametrize(
    ("real", "synthetic", "words"),
    [
        (np.ones((5, 3)) * np.nan, np.zeros((5, 3)), "'real' hold NaN"),
        (draw(5, 3, 0), np.where(np.eye(5, 3) > 0, np.inf, 1.0), "NaN or infinity"),
        (np.ones((5, 3)), draw(5, 3, 0), "same features"),
        (draw(5, 3, 0), draw(5, 4, 0), "3 columns, those of .synthetic. 4"),
        (draw(1, 3, 0), draw(5, 3, 0), "1 person"),
        (np.zeros((5, 3, 2)), draw(5, 3, 0), "3 axes"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused_with_a_remedy(real, synthetic, words):
    with pytest.raises(InputError, match=words) as caught:
        metrics.require_comparable(real, synthetic)
    assert caught.value.remedy.endswith(".")


def test_duplicated_persons_have_no_bandwidth():
    with pytest.raises(InputError, match="duplicated"):
        metrics.frozen_bandwidth(np.repeat(draw(1, 3, 0), 6, axis=0))


def test_too_few_persons_have_no_neighbours():
    with pytest.raises(InputError, match="more than 5 persons"):
        metrics.prdc(draw(5, 3, 0), draw(50, 3, 1))


def test_the_relative_test_keeps_its_level_and_finds_the_worse_candidate():
    false_alarms = found = 0
    for k in range(200):
        real, a, b = (draw(50, 16, 3 * k + i) for i in range(3))
        worse = draw(100, 16, 10_000 + k, scale=0.7)
        sigma2 = metrics.frozen_bandwidth(real)
        false_alarms += compare(real, a, b, sigma2=sigma2).p_worse < 0.05
        found += compare(real, worse, b, sigma2=sigma2).p_worse < 0.05
    assert false_alarms <= 20  # 5 % nominal, 3.7 % measured by others; 10 % is 3 SE above
    assert found >= 180


def test_the_relative_test_is_antisymmetric():
    real, a, b = (draw(20, 4, i) for i in range(3))
    one, other = compare(real, a, b, sigma2=1.0), compare(real, b, a, sigma2=1.0)
    assert one.difference == pytest.approx(-other.difference)
    assert one.se == pytest.approx(other.se)
    assert one.p_worse == pytest.approx(other.p_better)
    assert compare(real, a, a, sigma2=1.0).p_worse == pytest.approx(0.5)
