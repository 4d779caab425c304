"""What does not fit into memory, and the torchmetrics classes: one value however it is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rarescan.errors import InputError
from rarescan.evaluation import metric_classes, metrics
from rarescan.evaluation.moments import Moments, frechet, load_moments
from rarescan.evaluation.streamed import kid_of_blocks, mmd_of_blocks


def draw(n: int, seed: int, *, shift: float = 0.0, d: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 50), at=st.integers(1, 49), offset=st.sampled_from([0.0, 1e6]))
def test_moments_are_the_same_in_any_blocks_and_any_order(size, at, offset):
    rows = draw(50, 1) + offset
    one_by_one = Moments.fold(cut(rows, size))
    merged = Moments.of(rows[at:]).plus(Moments.of(rows[:at]))
    for found in (one_by_one, merged):
        assert found.n == 50
        assert found.mean == pytest.approx(rows.mean(axis=0), rel=1e-12)
        # Sums of raw squares would be wrong in the third digit at this offset.
        assert found.covariance == pytest.approx(np.cov(rows.T), abs=1e-8)


def test_a_fid_of_stored_moments_is_that_of_the_rows(tmp_path):
    x, y = draw(200, 1), draw(300, 2, shift=0.2)
    path = tmp_path / "real.npz"
    Moments.fold(cut(x, 64)).save(path, extractor="ours", weights_sha256="ab")
    with np.load(path) as stored:
        assert set(stored) == {"mean", "cov", "n", "extractor", "weights_sha256"}
        assert stored["cov"] == pytest.approx(np.cov(x.T))
    real, extractor, weights = load_moments(path)
    assert (extractor, weights) == ("ours", "ab")
    assert frechet(real, Moments.of(y)) == pytest.approx(metrics.fid(x, y), rel=1e-10)
    (tmp_path / "other.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"other.npz holds no mean"):
        load_moments(tmp_path / "other.npz")
    with pytest.raises(InputError, match="at least two persons"):
        frechet(Moments.of(x[:1]), real)
    with pytest.raises(InputError, match="do not add up"):
        real.plus(Moments.of(x[:, :3]))


@pytest.mark.parametrize("size", [7, 50, 400])
def test_blocks_are_cut_anew_and_give_the_mean_of_their_estimates(size):
    x, y = draw(210, 1), draw(203, 2, shift=0.3)
    parts = [metrics.kid(a, b).value for a, b in zip(cut(x, 50)[:4], cut(y, 50)[:4], strict=True)]
    found = kid_of_blocks(cut(x, size), cut(y, size), rows=50)
    assert found.value == pytest.approx(np.mean(parts))
    assert found.se == pytest.approx(stats.sem(parts))
    rbf = mmd_of_blocks(iter(cut(x, size)), cut(y, size), sigma2=2.0, rows=50)
    first = [metrics.mmd(x[i : i + 50], y[i : i + 50], sigma2=2.0).value for i in range(0, 200, 50)]
    assert rbf.value == pytest.approx(np.mean(first))
    with pytest.raises(InputError, match="1 blocks of 150 persons"):
        kid_of_blocks([x], [y], rows=150)


def test_block_estimates_of_equal_populations_are_zero_within_their_error():
    x, y = draw(4000, 3), draw(4000, 4)
    found = mmd_of_blocks([x], [y], sigma2=metrics.frozen_bandwidth(x[:500]), rows=100)
    assert abs(found.value) < 3 * found.se


CLASSES = {
    "fid": metric_classes.FrechetDistance,
    "kid": metric_classes.KernelDistance,
    "mmd": metric_classes.RbfDistance,
    "prdc": metric_classes.Prdc,
    "streamed": lambda **how: metric_classes.StreamedFrechetDistance(6, **how),
}


def expected(name: str, x: np.ndarray, y: np.ndarray) -> object:
    if name in ("fid", "streamed"):
        return metrics.fid(x, y)
    if name == "prdc":
        return metrics.prdc(x, y)
    found = metrics.kid(x, y) if name == "kid" else metrics.mmd(x, y)
    return (found.value, found.se)


def plain(value: object) -> object:
    if isinstance(value, dict):
        return {k: float(v) for k, v in value.items()}
    return tuple(map(float, value)) if isinstance(value, tuple) else float(value)


def fed(name: str, x: np.ndarray, y: np.ndarray, size: int, **how: object):
    metric = CLASSES[name](**how)
    for rows, real in ((x, True), (y, False)):
        for batch in cut(rows, size):
            metric.update(torch.from_numpy(batch), real)
    return metric


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_a_metric_gives_the_functions_value_in_any_batches_and_after_a_merge(name):
    x, y = draw(40, 1), draw(30, 2, shift=0.3)
    want = pytest.approx(expected(name, x, y), rel=1e-9)
    for size in (1, 16, 100):
        assert plain(fed(name, x, y, size).half().compute()) == want
    one, other = fed(name, x[:10], y[:25], 8), fed(name, x[10:], y[25:], 8)
    one.merge_state(other)
    assert plain(one.compute()) == want
    one.reset()
    one.merge_state(fed(name, x, y, 16))
    assert plain(one.compute()) == want


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_a_metric_survives_its_state_dict_and_refuses_to_compute_on_nothing(name):
    x, y = draw(40, 1), draw(30, 2, shift=0.3)
    metric, other = fed(name, x, y, 16), CLASSES[name]()
    metric.persistent(True)
    other.persistent(True)
    with pytest.raises(InputError):
        other.compute()
    other = CLASSES[name]()
    other.load_state_dict(metric.state_dict(), strict=False)
    assert plain(other.compute()) == pytest.approx(plain(metric.compute()), rel=1e-12)


@pytest.mark.parametrize("name", CLASSES)
def test_two_processes_gather_one_value(name):
    x, y = draw(40, 1), draw(30, 2, shift=0.3)
    there = fed(name, x[1::2], y[1::2], 8)
    states = iter([there.real, there.synthetic])

    def gather(mine, group=None):
        other = next(states)
        return [mine, torch.cat(other) if isinstance(other, list) else other]

    how = {"dist_sync_fn": gather, "distributed_available_fn": lambda: True}
    here = fed(name, x[0::2], y[0::2], 8, **how)
    assert plain(here.compute()) == pytest.approx(expected(name, x, y), rel=1e-9)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
def test_inception_score_metric_and_feature_modules():
    logits = draw(20, 3, d=5)
    metric = metric_classes.InceptionScore(splits=2)
    for batch in cut(logits, 6):
        metric.update(torch.from_numpy(batch))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert plain(metric.compute()) == pytest.approx(metrics.inception_score(p, splits=2))
    x, y = draw(40, 1), draw(30, 2)
    judged = metric_classes.RbfDistance(torch.nn.Flatten(), sigma2=2.0)
    for rows, real in ((x, True), (y, False)):
        judged.update(torch.from_numpy(rows.reshape(-1, 2, 3)), real)
    assert float(judged.compute()[0]) == pytest.approx(metrics.mmd(x, y, sigma2=2.0).value)
