"""Ranking persons at small n: what the reference's tables say, in small; benchmarks/ranking.py
and benchmarks/coverage.py hold the whole of them."""

import numpy as np
import pytest
from scipy.stats import norm

from rarescan.cohort.contracts import FeatureSet
from rarescan.evaluation import metrics, relative
from rarescan.evaluation.features import PRIMARY, SECOND
from rarescan.evaluation.ranking import SCALED, Entrant, Race


def persons(n: int, random: np.random.Generator, *, kept: float = 1.0, d: int = 64) -> np.ndarray:
    """Return Gaussian persons with a power-law spectrum of mean variance 1."""
    spectrum = 1 / np.arange(1, d + 1)
    return np.sqrt(kept) * random.normal(size=(n, d)) * np.sqrt(spectrum / spectrum.mean())


def race(sets, *, level=0.05, private=(), entrants=None, second=None) -> Race:
    def features(rows, extractor):
        return {
            name: FeatureSet(
                values=values.astype(np.float32),
                person_ids=tuple(f"{name}{i}" for i in range(len(values))),
                extractor=extractor,
            )
            for name, values in rows.items()
        }

    found = {PRIMARY: features(sets, PRIMARY)}
    sigma2 = {PRIMARY: metrics.frozen_bandwidth(sets["validation"])}
    if second:
        found[SECOND] = features(second, SECOND)
        sigma2[SECOND] = metrics.frozen_bandwidth(second["validation"])
    return Race(sigma2, found, entrants or {}, frozenset(private), level)


def test_with_50_persons_the_mmd_sees_lost_variance_that_the_fid_prefers():
    right = {"fid": 0, "mmd": 0}
    for draw in range(40):
        random = np.random.default_rng([1, draw])
        real, perfect, shrunk = (persons(50, random, kept=k) for k in (1, 1, 0.63))
        sigma2 = metrics.frozen_bandwidth(real)
        right["fid"] += metrics.fid(real, perfect) < metrics.fid(real, shrunk)
        near, far = (metrics.mmd(real, rows, sigma2=sigma2).value for rows in (perfect, shrunk))
        right["mmd"] += near < far
    assert right["mmd"] >= 37
    assert right["fid"] <= 20


def test_the_corrected_error_of_a_difference_is_its_spread_over_draws():
    found = []
    for draw in range(80):
        random = np.random.default_rng([2, draw])
        real, a, b = persons(50, random), persons(150, random), persons(150, random)
        found.append(relative.compare(real, a, b, sigma2=30.0))
    spread = np.std([test.difference for test in found])
    assert np.mean([test.se for test in found]) == pytest.approx(spread, rel=0.25)
    assert np.mean([test.se_plain for test in found]) > 1.1 * spread


def test_the_selection_set_holds_the_best_and_leaves_the_clearly_worse_out():
    inside = alone = 0
    for draw in range(20):
        random = np.random.default_rng([3, draw])
        sets = {
            "validation": persons(50, random),
            "right": persons(300, random, kept=0.9),
            "wrong": persons(300, random, kept=0.5),
        }
        found = race(sets).selection(["right", "wrong"])
        inside += "right" in found.names
        alone += found.names == ("right",)
    assert inside == 20
    assert alone >= 17


def test_sides_that_are_computed_once_give_the_comparison_of_arrays():
    random = np.random.default_rng(4)
    real, a, b = persons(30, random), persons(60, random), persons(50, random, kept=0.8)
    sides = [relative.Side.of(real, rows, 20.0) for rows in (a, b)]
    assert relative.compare_sides(*sides) == relative.compare(real, a, b, sigma2=20.0)
    turned = relative.compare_sides(*reversed(sides))
    assert turned.difference == -relative.compare_sides(*sides).difference


def test_scaled_features_are_the_second_distance_where_no_second_extractor_is():
    random = np.random.default_rng(5)
    real, near = persons(60, random), persons(400, random)
    blurred = near.copy()
    blurred[:, 32:] *= 0.2
    sets = {"validation": real, "sharp": persons(400, random), "blurred": blurred}
    found = race(sets)
    assert found.selection(["sharp", "blurred"], SCALED).names == ("sharp",)
    assert found.pick(["sharp", "blurred"]) == ("sharp", "is nearer by the second distance")


def test_persons_needed_grow_with_the_level_of_proof():
    random = np.random.default_rng(6)
    sets = {"validation": persons(30, random)}
    sets |= {"a": persons(100, random), "b": persons(100, random, kept=0.95)}
    found = race(sets).selection(["a", "b"])
    loose, strict = (found.persons_needed(30, level) for level in (0.05, 0.01))
    assert strict / loose == pytest.approx((norm.isf(0.01) / norm.isf(0.05)) ** 2)
    assert loose >= 30


def test_one_candidate_needs_no_test_and_an_unknown_family_counts_as_least_simple():
    random = np.random.default_rng(7)
    rows = persons(50, random)
    sets = {"validation": persons(30, random), "a": rows, "b": rows}
    alone = race(sets).selection(["a"])
    assert (alone.names, alone.persons_needed(30, 0.05)) == (("a",), None)
    families = {"a": Entrant(family="other"), "b": Entrant(family="diffusion")}
    assert race(sets, entrants=families).pick(["a", "b"])[0] == "b"
    assert race(sets).pick(["b", "a"]) == ("a", "comes first in the alphabet")


@pytest.mark.parametrize("n", [20, 50])
def test_intervals_of_mmd_and_kid_hold_the_truth(n):
    held = {"mmd": 0, "kid": 0}
    for draw in range(60):
        random = np.random.default_rng([8, n, draw])
        real, rows = persons(n, random), persons(3 * n, random)
        sigma2 = metrics.frozen_bandwidth(real)
        for name, found in (
            ("mmd", metrics.mmd(real, rows, sigma2=sigma2)),
            ("kid", metrics.kid(real, rows)),
        ):
            held[name] += abs(found.value) <= 1.96 * found.se
    assert min(held.values()) >= 54  # 92 % promised are 55; one less than that by chance
