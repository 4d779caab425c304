"""Other packages' numbers: torchmetrics itself, and what the others gave on the same features.

The stored values came from the packages' own code (torch-fidelity 0.4.0, clean-fid 0.1.35,
prdc 0.2) on the features of `made` and `grid`, in float64.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from rarescan.errors import InputError, SettingError
from rarescan.evaluation import fid, inception_score, kid, prdc
from rarescan.evaluation.conventions import Subsets

TORCH_FIDELITY = {
    "fid": 1.5594199520637702,
    "kid": (0.23211270808025208, 0.5658289143701706),
    "is": (1.3493689089893492, 0.197240306548503),
    "precision": 25 / 30,
    "recall": 38 / 40,
}
CLEAN_FID = {"fid": 1.5594199520637648, "kid": -0.10831302022289538, "small": 0.20355601410261429}
PRDC = {
    "precision": 0.8666666666666667,
    "recall": 0.975,
    "density": 0.7666666666666667,
    "coverage": 0.95,
}
GRID_PRDC = {
    "precision": 0.4,
    "recall": 0.96,
    "density": 0.16666666666666666,
    "coverage": 0.2,
}


class Identity(nn.Module):
    """Hands precomputed features to torchmetrics, which then computes on them."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.num_features = d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def made() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return real and synthetic features and logits, rounded to be the same anywhere."""
    random = np.random.default_rng(13)
    x = np.round(random.normal(size=(40, 6)) + 0.2, 3)
    y = np.round(1.2 * random.normal(size=(30, 6)), 3)
    return x, y, np.round(2 * random.normal(size=(25, 4)), 3)


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Return points with many equal distances, where < and <= differ."""
    x = [[i, j] for i in range(5) for j in range(5)]
    y = [[i, 5] for i in range(5)] + [[0, 1], [3, 3], [2, 6], [6, 6], [6, 5]]
    return np.array(x, float), np.array(y, float)


def sd_in(method: str) -> float:
    return float(method.split("SD ")[-1].removeprefix("is ").split(",")[0])


def fed(judge, x, y):
    judge.set_dtype(torch.float64)
    judge.update(torch.from_numpy(x), real=True)
    judge.update(torch.from_numpy(y), real=False)
    return judge.compute()


@pytest.mark.parametrize("n", [12, 30])
def test_fid_of_unequal_sets_equals_torchmetrics(n):
    x, y, _ = made()
    theirs = float(fed(FrechetInceptionDistance(feature=Identity(6)), x, y[:n]))
    assert fid(x, y[:n], convention="torchmetrics").value == pytest.approx(theirs, rel=1e-6)


def test_torchmetrics_loses_digits_where_there_are_fewer_persons_than_features():
    # The rank is 3 of 6: the noise of its zero eigenvalues goes through a square root. Ours is
    # checked against 50-digit arithmetic in the vector V1.
    x, y, _ = made()
    theirs = float(fed(FrechetInceptionDistance(feature=Identity(6)), x[:4], y[:4]))
    assert fid(x[:4], y[:4]).value == pytest.approx(theirs, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all:UserWarning")
def test_kid_draws_the_subsets_that_torchmetrics_draws():
    x, y, _ = made()
    judge = KernelInceptionDistance(feature=Identity(6), subsets=7, subset_size=20)
    torch.manual_seed(4)
    mean, sd = (float(v) for v in fed(judge, x, y))
    ours = kid(x, y, convention="torchmetrics", subsets=Subsets(number=7, size=20, seed=4))
    assert ours.value == pytest.approx(mean, rel=1e-6)
    assert sd_in(ours.method) == pytest.approx(sd, rel=1e-4)
    assert (ours.low, ours.high) == (None, None)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save all:UserWarning")
@pytest.mark.parametrize("splits", [4, 10])  # 25 rows in 10 splits: torch.chunk makes 9
def test_inception_score_shuffles_and_splits_as_torchmetrics_does(splits):
    _, _, logits = made()
    judge = InceptionScore(feature=Identity(4), splits=splits)
    judge.update(torch.from_numpy(logits))
    torch.manual_seed(4)
    mean, sd = (float(v) for v in judge.compute())
    ours = inception_score(logits, logits=True, splits=splits, convention="torchmetrics", seed=4)
    assert ours.value == pytest.approx(mean, rel=1e-6)
    assert sd_in(ours.method) == pytest.approx(sd, rel=1e-4)


def test_torch_fidelity_agrees():
    x, y, logits = made()
    name = "torch-fidelity"
    assert fid(x, y, convention=name).value == pytest.approx(TORCH_FIDELITY["fid"], rel=1e-6)
    ours = kid(x, y, convention=name, subsets=Subsets(number=7, size=20))
    assert ours.value == pytest.approx(TORCH_FIDELITY["kid"][0], rel=1e-6)
    assert sd_in(ours.method) == pytest.approx(TORCH_FIDELITY["kid"][1], rel=1e-4)
    score = inception_score(logits, logits=True, convention=name)
    assert score.value == pytest.approx(TORCH_FIDELITY["is"][0], rel=1e-6)
    assert sd_in(score.method) == pytest.approx(TORCH_FIDELITY["is"][1], rel=1e-4)
    found = prdc(x, y, convention=name)
    assert set(found) == {"precision", "recall"}
    assert all(found[k].value == pytest.approx(TORCH_FIDELITY[k], rel=1e-6) for k in found)


def test_clean_fid_agrees_and_shrinks_its_subsets_to_the_smaller_set():
    x, y, _ = made()
    name = "clean-fid"
    assert fid(x, y, convention=name).value == pytest.approx(CLEAN_FID["fid"], rel=1e-6)
    for size, key in ((20, "kid"), (1000, "small")):
        ours = kid(x, y, convention=name, subsets=Subsets(number=7, size=size, seed=5))
        assert ours.value == pytest.approx(CLEAN_FID[key], rel=1e-6)


def test_prdc_agrees():
    found = prdc(*made()[:2], convention="prdc")
    assert {k: s.value for k, s in found.items()} == pytest.approx(PRDC, rel=1e-6)


def test_points_on_the_edge_of_a_ball_count_for_torch_fidelity_only():
    x, y = grid()
    strict = prdc(x, y, neighbours=3)
    assert {k: s.value for k, s in strict.items()} == pytest.approx(GRID_PRDC, rel=1e-6)
    edges = prdc(x, y, convention="torch-fidelity")
    assert edges["precision"].value == pytest.approx(0.7)
    assert edges["recall"].value == 1


def test_a_convention_says_what_it_needs():
    x, y, _ = made()
    with pytest.raises(InputError, match="Subsets of 1000 cannot be drawn from 40 and 30"):
        kid(x, y, convention="torchmetrics")
    with pytest.raises(SettingError, match="Did you mean 'torchmetrics'"):
        fid(x, y, convention="torchmetric")
