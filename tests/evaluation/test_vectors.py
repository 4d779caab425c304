"""Known answers, computed elsewhere (50-digit arithmetic, prdc, torchmetrics, hand calculation)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rarescan.evaluation import intervals, metrics, plausibility, privacy, relative


@pytest.fixture(scope="module")
def vectors(real_data: Path) -> dict[str, Any]:
    path = real_data.parent / "reference" / "evaluation_vectors.json"
    if not path.is_file():
        pytest.skip(f"the reference vectors are not at {path}")
    return json.loads(path.read_text())["vectors"]


def pair(vectors: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    inputs = vectors[name]["inputs"]
    return np.array(inputs["X"]), np.array(inputs["Y"])


def test_v0_fid_by_hand(vectors):
    x, y = pair(vectors, "V0_fid_by_hand")
    assert metrics.fid(x, y) == pytest.approx(19 / 3, abs=1e-12)


def test_v1_fid_of_singular_covariances_and_its_invariances(vectors):
    x, y = pair(vectors, "V1_fid_rank_deficient")
    expected = vectors["V1_fid_rank_deficient"]["expected"]["fid_ddof1"]
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 7)))
    assert metrics.fid(x, y) == pytest.approx(expected, abs=1e-9)
    assert metrics.fid(y, x) == pytest.approx(expected, abs=1e-9)
    assert metrics.fid(x @ rotation, y @ rotation) == pytest.approx(expected, abs=1e-9)
    assert metrics.fid(x + 100, y + 100) == pytest.approx(expected, abs=1e-9)
    padded = [np.pad(rows, ((0, 0), (0, 5))) for rows in (x, y)]
    assert metrics.fid(*padded) == pytest.approx(expected, abs=1e-9)
    assert metrics.fid(x, x) == pytest.approx(0, abs=1e-9)


def test_v2_fid_jackknife(vectors):
    x, y = pair(vectors, "V2_fid_jackknife")
    expected = vectors["V2_fid_jackknife"]["expected"]
    raw, corrected = metrics.fid_jackknife(x, y)
    assert raw.value == pytest.approx(expected["fid_ddof1"], abs=1e-8)
    assert corrected.value == pytest.approx(expected["fid_jackknife"], abs=1e-8)
    assert corrected.se == raw.se == pytest.approx(expected["fid_jackknife_se"], abs=1e-8)


def test_v3_kid(vectors):
    x, y = pair(vectors, "V2_fid_jackknife")
    expected = vectors["V3_kid"]["expected"]
    whole = metrics.kid(x, y)
    assert whole.value == pytest.approx(expected["kid_unbiased"], abs=1e-10)
    assert whole.se == pytest.approx(expected["kid_jackknife_se"], abs=1e-10)
    assert metrics.kid(x, y[:8]).value == pytest.approx(expected["equal_size_unbiased"], abs=1e-10)


def test_v4_mmd(vectors):
    x, y = pair(vectors, "V2_fid_jackknife")
    expected = vectors["V4_mmd"]["expected"]
    median = expected["median_squared_distance_XX"]
    assert metrics.frozen_bandwidth(x) == pytest.approx(median / 4, abs=1e-10)
    for sigma2, key in ((1.0, "1"), (median, "median"), (None, "median_over_4")):
        estimate = metrics.mmd(x, y, sigma2=sigma2)
        assert estimate.value == pytest.approx(expected[f"mmd2_unbiased_sigma2_{key}"], abs=1e-10)
        assert estimate.se == pytest.approx(expected[f"mmd2_unbiased_se_sigma2_{key}"], abs=1e-10)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_v5_prdc(vectors, k):
    inputs = vectors["V5_prdc"]["inputs"]
    found = metrics.prdc(np.array(inputs["X_real"]), np.array(inputs["Y_fake"]), neighbours=k)
    assert found == pytest.approx(vectors["V5_prdc"]["expected"][f"k{k}"], abs=1e-12)


def test_v6_inception_score(vectors):
    logits = np.array(vectors["V6_inception_score"]["inputs"]["logits"])
    expected = vectors["V6_inception_score"]["expected"]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert metrics.inception_score(p)[0] == pytest.approx(expected["splits1"], abs=1e-10)
    mean, sd = metrics.inception_score(p, splits=2)
    assert mean == pytest.approx(expected["splits2_mean"], abs=1e-10)
    assert sd == pytest.approx(expected["splits2_std_ddof0"], abs=1e-10)
    assert metrics.inception_score(np.eye(4))[0] == pytest.approx(4, abs=1e-9)


def test_v7_vendi(vectors):
    x = np.array(vectors["V5_prdc"]["inputs"]["X_real"])
    expected = vectors["V7_vendi"]["expected"]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert metrics.vendi(unit @ unit.T) == pytest.approx(expected["vendi_cosine"], abs=1e-9)
    median = 4 * metrics.frozen_bandwidth(x)
    kernel = metrics.rbf(x, x, median)
    assert metrics.vendi(kernel) == pytest.approx(expected["vendi_rbf_median"], abs=1e-9)
    assert metrics.vendi(np.eye(5)) == pytest.approx(5)
    assert metrics.vendi(np.ones((5, 5))) == pytest.approx(1)


def test_v8_conformal_p_batch_p_and_upper_bounds(vectors):
    inputs, expected = (vectors["V8_privacy"][k] for k in ("inputs", "expected"))
    p = privacy.conformal_p(np.array(inputs["synthetic"]), np.array(inputs["held_out"]))
    assert p == pytest.approx(expected["p"], abs=1e-12)
    assert privacy.batch_p(30, n=200, k=1, m=20) == pytest.approx(
        expected["batch_p_N200_k1_m20_c30"], abs=1e-9
    )
    assert privacy.batch_p(25, n=200, k=2, m=50) == pytest.approx(
        expected["batch_p_N200_k2_m50_c25"], abs=1e-9
    )
    for trials, bound in expected["cp_upper95_0_of"].items():
        assert intervals.upper_bound_of_share(0, int(trials)) == pytest.approx(bound, abs=1e-9)
    assert intervals.upper_bound_of_share(1, 200) == pytest.approx(
        expected["cp_upper95_1_of_200"], abs=1e-9
    )


def test_v9_spread_gate(vectors):
    inputs, expected = (vectors["V9_spread_gate"][k] for k in ("inputs", "expected"))
    x, y = np.array(inputs["X_real"]), np.array(inputs["Y_fake"])
    log_mean, mean_log = plausibility.spread_statistics(x, y)
    assert mean_log.value == pytest.approx(expected["L"], abs=1e-9)
    assert mean_log.se == pytest.approx(expected["se"], abs=1e-9)
    assert mean_log.df == pytest.approx(expected["df"], abs=1e-8)
    assert mean_log.t == pytest.approx(expected["t"], abs=1e-9)
    assert log_mean.value == pytest.approx(expected["V"], abs=1e-9)
    assert log_mean.se == pytest.approx(expected["V_se"], abs=1e-9)
    assert log_mean.df == pytest.approx(expected["V_df"], abs=1e-8)
    assert mean_log.critical(0.03) == pytest.approx(expected["L_critical_3pct"], abs=1e-9)
    assert log_mean.critical(0.03) == pytest.approx(expected["V_critical_3pct"], abs=1e-9)
    assert mean_log.critical(0.05) == pytest.approx(expected["critical"], abs=1e-9)


def test_v10_delong(vectors):
    inputs, expected = (vectors["V10_delong"][k] for k in ("inputs", "expected"))
    positive, negative = np.array(inputs["cases"]), np.array(inputs["controls"])
    # The vector promises "no ties", yet its second score has one (0.5), which it counts as lost.
    negative[1, 0] += 1e-9
    auc, covariance = intervals.delong(positive, negative)
    assert auc == pytest.approx(expected["auc"], abs=1e-10)
    assert covariance == pytest.approx(np.array(expected["cov"]), abs=1e-10)
    difference, se = intervals.auc_difference(positive, negative)
    assert difference / se == pytest.approx(expected["z_B_minus_A"], abs=1e-10)


def test_v11_relative_similarity(vectors):
    inputs, expected = (vectors["V11_relative_mmd"][k] for k in ("inputs", "expected"))
    real, a, b = (np.array(inputs[k]) for k in ("X", "A", "B"))
    sigma2 = metrics.frozen_bandwidth(real)
    result = relative.compare(real, a, b, sigma2=sigma2)
    assert sigma2 == pytest.approx(expected["sigma2"], abs=1e-10)
    assert result.difference == pytest.approx(expected["D"], abs=1e-10)
    assert result.se_plain == pytest.approx(expected["se"], abs=1e-10)
    assert result.se == pytest.approx(expected["se_corrected"], abs=1e-10)
    assert result.p_worse == pytest.approx(expected["p_A_worse_corrected"], abs=1e-10)
    assert stats.norm.sf(result.difference / result.se_plain) == pytest.approx(
        expected["p_A_worse"], abs=1e-10
    )
