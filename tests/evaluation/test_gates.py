"""Gates: how often they accuse the honest, how often they find the guilty."""

import numpy as np
import pytest
from scipy import ndimage

from rarescan.cohort.contracts import Question
from rarescan.evaluation import effects, fidelity, intervals, measures, plausibility
from rarescan.evaluation.measures import MEASURES


def rows(n: int, random: np.random.Generator, *, kept: float = 1.0, d: int = 32) -> np.ndarray:
    """Return persons with a power-law spectrum; `kept` is the share of the variance."""
    return np.sqrt(kept) * random.normal(size=(n, d)) / np.sqrt(np.arange(1, d + 1))


def test_the_spread_gate_accuses_few_honest_generators_and_finds_a_third_of_variance_lost():
    outcomes: dict[float, list[str]] = {1.0: [], 0.63: []}
    random = np.random.default_rng(1)
    for kept, found in outcomes.items():
        for _ in range(200):
            gate, _numbers = plausibility.spread_gate(
                rows(50, random), rows(200, random, kept=kept), fewest_persons=20
            )
            found.append(gate.outcome)
    assert outcomes[1.0].count("fail") <= 21  # 6 % promised; 10.5 % is 2.7 SE above
    assert outcomes[1.0].count("pass") >= 170
    assert outcomes[0.63].count("fail") >= 190
    assert outcomes[0.63].count("pass") == 0


@pytest.mark.parametrize("weak", [False, True])
def test_the_spread_gates_own_power_is_that_of_a_simulation(weak):
    # Person-level tails: 5 degrees of freedom leave the gate weak with few persons.
    random = np.random.default_rng(6)
    n, tails = (50, np.inf) if not weak else (15, 3)

    def people(size):
        return rows(size, random) * np.sqrt(
            1 if tails == np.inf else tails / random.chisquare(tails, size)
        ).reshape(-1, 1)

    said = np.mean([plausibility.spread_power(people(n), 200) for _ in range(30)])
    fired = [
        plausibility.spread_gate(people(n), np.sqrt(0.63) * people(200), fewest_persons=10)[0]
        for _ in range(60)
    ]
    assert said == pytest.approx(np.mean([g.outcome == "fail" for g in fired]), abs=0.2)
    assert (said < 0.9) == weak


def test_a_gate_that_would_not_see_a_third_of_variance_lost_cannot_pass():
    random = np.random.default_rng(7)
    real = rows(12, random) * np.sqrt(3 / random.chisquare(3, 12))[:, None]
    gate, numbers = plausibility.spread_gate(real, 1.5 * np.repeat(real, 20, 0), fewest_persons=10)
    assert numbers["power_at_37pct_loss"] < 0.9
    assert gate.outcome == "insufficient"


def test_implausible_brains_are_named_worst_first():
    random = np.random.default_rng(8)
    real, synthetic = vectors(60, random), vectors(40, random)
    synthetic[3, MEASURES.index("grey")] = 20
    synthetic[7, :2] = 20
    names = tuple(f"SYN{i:03d}" for i in range(40))
    _, details = plausibility.plausibility_gate(
        real, synthetic, None, fewest_persons=20, names=names
    )
    assert [row["scan"] for row in details["outliers"]][:2] == ["SYN007", "SYN003"]
    assert details["outliers"][1]["measures"] == ["grey"]
    assert details["measures"]["grey"] == 2


def test_few_real_persons_make_the_spread_insufficient_and_never_pass():
    random = np.random.default_rng(2)
    gate, numbers = plausibility.spread_gate(rows(10, random), rows(200, random), fewest_persons=20)
    assert gate.outcome == "insufficient"
    assert numbers["outcome"] == "insufficient"


def test_a_collapsed_generator_fails_the_spread_gate():
    random = np.random.default_rng(3)
    one = np.repeat(rows(1, random), 50, axis=0)
    gate, _numbers = plausibility.spread_gate(rows(50, random), one, fewest_persons=20)
    assert gate.outcome == "fail"
    assert np.isfinite(gate.statistic)


def test_blur_fails_the_high_frequency_gate_and_equal_detail_passes():
    random = np.random.default_rng(4)

    def field(n, sigma):
        noise = random.normal(size=(n, 16, 16, 16))
        own = 0.45 + 0.05 * random.normal(size=n)
        sharp = [ndimage.gaussian_filter(v, abs(s)) for v, s in zip(noise, own, strict=True)]
        return np.stack([ndimage.gaussian_filter(v, sigma) for v in sharp]).astype(np.float32)

    window = measures.apodised(np.ones((16, 16, 16), bool))
    real, equal, blurred = (
        measures.high_frequency(v, window) for v in (field(30, 0), field(60, 0), field(60, 0.6))
    )
    judged = [
        plausibility.high_frequency_gate(real, other, fewest_persons=20)[0]
        for other in (equal, blurred)
    ]
    assert [gate.outcome for gate in judged] == ["pass", "fail"]
    noisy, numbers = plausibility.high_frequency_gate(real, real + 1, fewest_persons=20)
    assert noisy.outcome == "pass"
    assert "more fine detail" in noisy.reason
    assert numbers["hf_excess"]
    few, _ = plausibility.high_frequency_gate(real[:9], real[9:], fewest_persons=20)
    assert few.outcome == "insufficient"


@pytest.mark.parametrize("persons", [20, 60])
def test_the_sharpness_gates_power_at_no_blur_is_its_level_and_at_a_strong_one_1(persons):
    random = np.random.default_rng(9)
    real = random.normal(size=(30, persons))
    none = [plausibility.blur_power(values, values, 200, seed=i) for i, values in enumerate(real)]
    assert np.mean(none) == pytest.approx(0.05, abs=0.02)
    assert plausibility.blur_power(real[0], real[0] - 3, 200) == 1


def test_the_sharpness_gates_own_power_is_that_of_the_gate_itself():
    # A drop of half a standard deviation is seen by 30 persons in about four of five runs.
    random = np.random.default_rng(10)
    pools = random.normal(size=(25, 30))
    said = np.mean([plausibility.blur_power(values, values - 0.5, 200) for values in pools])
    gates = [
        plausibility.high_frequency_gate(
            random.normal(size=30), random.normal(-0.5, size=200), fewest_persons=20
        )[0]
        for _ in range(300)
    ]
    assert said == pytest.approx(np.mean([g.outcome == "fail" for g in gates]), abs=0.08)


def test_more_persons_and_more_blur_are_noticed_more_often():
    values = np.random.default_rng(11).normal(size=80)
    few, many = (plausibility.blur_power(values[:n], values[:n] - 0.5, 200) for n in (10, 80))
    weak, strong = (plausibility.blur_power(values, values - drop, 200) for drop in (0.1, 0.3))
    assert few < many
    assert weak < strong


def test_a_blur_of_white_noise_costs_the_power_that_its_transfer_function_says():
    volumes = np.random.default_rng(12).normal(size=(2, 48, 48, 48)).astype(np.float32)
    window = np.ones((48, 48, 48), np.float32)
    lost = (
        measures.blurred_high_frequency(volumes, window)
        - measures.high_frequency(volumes, window)[:, None]
    )
    axes = np.meshgrid(*[np.fft.fftfreq(48)] * 3, indexing="ij")
    radius = np.sqrt(sum(f**2 for f in axes))
    for column, sd in zip(lost.T, measures.BLURS_VOXELS, strict=True):
        kept = np.exp(-((2 * np.pi * sd * radius) ** 2))
        bands = [kept[(radius >= a) & (radius < b)].mean() for a, b in ((0.06, 0.25), (0.25, 0.5))]
        assert column == pytest.approx(np.log(bands[1] / bands[0]), abs=0.03)


def test_a_pure_tone_lies_in_its_band():
    x = np.arange(24)
    low, high = (
        np.sin(2 * np.pi * f * x)[:, None, None] * np.ones((24, 24, 24)) for f in (1 / 8, 1 / 3)
    )
    volumes = np.stack([low, high, low + high]).astype(np.float32)
    values = measures.high_frequency(volumes, np.ones((24, 24, 24), np.float32))
    assert values[0] < -8
    assert values[1] > 8
    assert values[2] == pytest.approx(0, abs=1e-3)


def vectors(n: int, random: np.random.Generator, *, frontal: float = 0.0) -> np.ndarray:
    """Return region vectors of n persons whose frontal lobes are smaller by `frontal` SD."""
    values = random.normal(size=(n, len(MEASURES)))
    values[:, MEASURES.index("frontal_left")] -= frontal
    values[:, MEASURES.index("frontal_right")] -= frontal
    return values


def test_hedges_g_has_its_closed_form():
    positive, negative = np.array([[1.0], [3.0]]), np.array([[0.0], [0.0], [2.0], [2.0]])
    g, se = effects.hedges_g(positive, negative)
    pooled = np.sqrt((1 * 2 + 3 * 4 / 3) / 4)
    assert g[0] == pytest.approx((1 - 3 / 15) / pooled)
    assert se[0] == pytest.approx(np.sqrt(6 / 8 + g[0] ** 2 / 12))


@pytest.mark.parametrize(
    ("synthetic_effect", "words"),
    [(1.5, ""), (-1.5, "opposite"), (0.0, "washed out"), (4.0, "caricature")],
)
def test_effects_of_the_diagnosis_are_compared_with_real_ones(synthetic_effect, words):
    random = np.random.default_rng(5)
    found = effects.Effects.of(
        (vectors(60, random, frontal=1.5), vectors(90, random)),
        (vectors(80, random, frontal=synthetic_effect), vectors(120, random)),
    )
    assert found is not None
    assert words in found.wrong()
    assert bool(words) == bool(found.wrong())
    assert found.table()["frontal_left"]["real"] == pytest.approx(-1.5, abs=0.6)


def test_effects_of_too_few_persons_are_not_computed():
    random = np.random.default_rng(6)
    some = vectors(9, random)
    assert effects.Effects.of((some[:2], some), (some, some)) is None


def test_brains_outside_the_real_range_fail_plausibility():
    random = np.random.default_rng(7)
    real, good = vectors(100, random), vectors(100, random)
    bad = good.copy()
    bad[:20, 3] = 30.0
    outcomes = {}
    for name, synthetic in (("good", good), ("bad", bad), ("few", bad[14:])):
        gate, numbers = plausibility.plausibility_gate(real, synthetic, None, fewest_persons=20)
        outcomes[name] = gate.outcome
    assert outcomes == {"good": "pass", "bad": "fail", "few": "insufficient"}
    assert numbers["measures"] == {"brain_ml": 6}
    reversed_ = effects.Effects.of(
        (vectors(60, random, frontal=2), vectors(60, random)),
        (vectors(60, random), vectors(60, random, frontal=2)),
    )
    gate, _numbers = plausibility.plausibility_gate(real, good, reversed_, fewest_persons=20)
    assert gate.outcome == "fail"


def test_condition_fidelity_counts_what_the_network_sees():
    p = np.array([0.9, 0.8, 0.2, 0.1, 0.4, 0.6, 0.5])
    asked = ["bvFTD", "bvFTD", "bvFTD", "control", "control", "control", "other"]
    chances = np.column_stack([1 - p, p]).astype(np.float32)
    found = fidelity.condition_fidelity(chances, asked, Question(), synthetic=True)
    assert found["agreement"].value == pytest.approx(4 / 6)
    assert found["agreement"].n_synthetic == 6
    assert found["by_diagnosis"]["bvFTD"].value == pytest.approx(2 / 3)
    assert (found["agreement"].low, found["agreement"].high) == intervals.clopper_pearson(4, 6)
    assert found["auc"].value == pytest.approx(7 / 9)
    nobody = fidelity.condition_fidelity(chances, ["other"] * 7, Question(), synthetic=True)
    assert nobody["agreement"] is nobody["auc"] is None


def test_age_is_read_from_anatomy_that_carries_it_and_not_from_noise():
    random = np.random.default_rng(8)

    def people(n, strength):
        ages = random.uniform(45, 80, n)
        anatomy = random.normal(size=(n, 6))
        anatomy[:, 0] += strength * (ages - 62) / 10
        return anatomy, ages

    found = fidelity.age_fidelity(people(100, 3), people(40, 3), people(200, 0))
    assert found["real"].value > 0.8
    assert found["synthetic"].low < 0 < found["synthetic"].high
    unknown = (np.zeros((20, 6)), np.full(20, np.nan))
    assert fidelity.age_fidelity(people(100, 3), people(40, 3), unknown) is None


def test_clopper_pearson_has_the_level_it_promises():
    random = np.random.default_rng(9)
    hits = random.binomial(30, 0.9, 2000)
    inside = [low <= 0.9 <= high for low, high in map(intervals.clopper_pearson, hits, [30] * 2000)]
    assert np.mean(inside) >= 0.95 - 0.01
    assert intervals.clopper_pearson(0, 0) == (0.0, 1.0)


def test_holm_steps_down_and_stays_monotone():
    assert intervals.holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert intervals.holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])


def test_a_perfect_auc_of_few_persons_is_not_certain():
    value, low, high = intervals.auc_interval(np.array([0.8, 0.9, 0.7]), np.array([0.1, 0.2]))
    assert (value, high) == (1.0, 1.0)
    assert low == pytest.approx(0.025 ** (1 / 2))
