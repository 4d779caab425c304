"""Variety within a set: MS-SSIM of pairs against MONAI's numbers, and what a narrow set shows."""

import numpy as np
import pytest
from scipy import ndimage

from rarescan.evaluation import diversity


def volumes(n, seed, shape=(40, 48, 40)):
    noise = np.random.default_rng(seed).normal(size=(n, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 2))
    return np.clip(0.5 + 0.2 * smooth / smooth.std(), 0, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "expected"), [((40, 48, 40), 0.788638), ((20, 24, 20), 0.798159)]
)
def test_the_similarity_is_that_of_monai(shape, expected):
    # monai 1.6.1: MultiScaleSSIMMetric(spatial_dims=3, data_range=1, kernel_size=4,
    # weights=the first four (three) of its default, over their sum).
    a, b = volumes(2, 5, shape)
    assert diversity.ms_ssim(a, 0.6 * a + 0.4 * b) == pytest.approx(expected, abs=1e-5)


def test_a_volume_is_like_itself_and_the_order_of_two_does_not_matter():
    a, b = volumes(2, 1, (20, 24, 20))
    assert diversity.ms_ssim(a, a) == pytest.approx(1)
    assert diversity.ms_ssim(a, b) == pytest.approx(diversity.ms_ssim(b, a))
    assert diversity.ms_ssim(a, b) < 0.9


def test_pairs_are_of_different_persons_and_nobody_is_in_two(monkeypatch):
    persons = ("A", "A", "B", "C", "D", "E")
    marked = np.arange(6, dtype=np.float32)[:, None, None, None] * np.ones((6, 4, 4, 4), np.float32)
    seen = []
    monkeypatch.setattr(
        diversity, "ms_ssim", lambda a, b: seen.append((a[0, 0, 0], b[0, 0, 0])) or 0.5
    )
    found = diversity.pair_similarity(marked[diversity.paired(persons, seed=1)])
    assert len(found) == 2
    paired = [row for pair in seen for row in pair]
    assert len(set(paired)) == 4
    assert 1 not in paired  # the second scan of A


def test_a_narrow_set_is_more_alike_and_worth_fewer_persons():
    real, made = volumes(24, 2, (20, 24, 20)), volumes(24, 3, (20, 24, 20))
    narrow = made.mean(axis=0) + 0.3 * (made - made.mean(axis=0))
    scores = [
        diversity.similarity_score("ms_ssim", diversity.pair_similarity(one), synthetic=True)
        for one in (real, made, narrow)
    ]
    assert scores[0].low < scores[1].high
    assert scores[1].low < scores[0].high
    assert scores[2].low > scores[0].high
    assert (scores[2].n_synthetic, scores[2].better, scores[2].sufficient) == (24, "neither", True)
    assert diversity.similarity_score("ms_ssim", np.array([0.5]), synthetic=True) is None


def test_half_the_persons_twice_are_worth_half_as_many():
    rows = np.random.default_rng(0).normal(size=(60, 8))
    twins = np.repeat(rows[:30], 2, axis=0)
    ratio = diversity.vendi_ratio(rows, twins, sigma2=0.01, seed=0)
    # So narrow a kernel counts different rows.
    assert ratio.value == pytest.approx(0.5, abs=0.01)
    assert ratio.n_real == ratio.n_synthetic == 60
