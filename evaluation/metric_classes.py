"""The same estimators as torchmetrics metrics: update, compute, reset, merge across processes.

`FrechetDistance`, `KernelDistance`, `RbfDistance`, `Prdc` and `InceptionScore` keep features and
give the values of `library`, whatever the size of batches; `StreamedFrechetDistance` keeps only
mean and covariance. Without `feature` they take rows of features, one a person; with a module,
what the module takes.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from rarescan.evaluation import metrics
from rarescan.evaluation.moments import Moments, frechet


class _TwoSets(Metric):
    """Keeps the features of both sets, in float64 as soon as they come."""

    is_differentiable = False
    full_state_update = False
    higher_is_better = False
    real: list[Tensor]
    synthetic: list[Tensor]

    def __init__(self, feature: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.feature = feature
        for name in ("real", "synthetic"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, inputs: Tensor, real: bool) -> None:
        """Add a batch of real (or synthetic) persons, shape (n, d) without `feature`."""
        features = inputs if self.feature is None else self.feature(inputs)
        (self.real if real else self.synthetic).append(features.detach().double())

    def set_dtype(self, dst_type: str | torch.dtype) -> "Metric":  # noqa: ARG002
        """Keep float64: distances of float32 sums are wrong in the digits that matter."""
        return self

    def _sets(self) -> tuple[metrics.Array, metrics.Array]:
        empty = torch.empty(0, 0, dtype=torch.float64)
        sets = (
            dim_zero_cat(state) if len(state) else empty for state in (self.real, self.synthetic)
        )
        real, synthetic = (rows.cpu().numpy() for rows in sets)
        return metrics.require_comparable(real, synthetic)

    def _tensor(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)


class FrechetDistance(_TwoSets):
    """Fréchet distance of all rows (`metrics.fid`; "torchmetrics" in `library.fid`)."""

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar."""
        return self._tensor(metrics.fid(*self._sets()))


class KernelDistance(_TwoSets):
    """Kernel inception distance of the whole sets (`metrics.kid`)."""

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the distance and its jackknife standard error, float64 scalars."""
        found = metrics.kid(*self._sets())
        return self._tensor(found.value), self._tensor(found.se)


class RbfDistance(_TwoSets):
    """Unbiased squared RBF-MMD (`metrics.mmd`).

    Parameters
    ----------
    sigma2 : float, optional
        The frozen bandwidth; from the real set, at each `compute`, by default.
    """

    def __init__(
        self, feature: nn.Module | None = None, *, sigma2: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(feature, **kwargs)
        self.sigma2 = sigma2

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the distance and its jackknife standard error, float64 scalars."""
        found = metrics.mmd(*self._sets(), sigma2=self.sigma2)
        return self._tensor(found.value), self._tensor(found.se)


class Prdc(_TwoSets):
    """Precision, recall, density and coverage (`metrics.prdc`)."""

    higher_is_better = True

    def __init__(
        self,
        feature: nn.Module | None = None,
        *,
        neighbours: int = metrics.NEIGHBOURS,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, **kwargs)
        self.neighbours = neighbours

    def compute(self) -> dict[str, Tensor]:
        """Return four float64 scalars by name."""
        found = metrics.prdc(*self._sets(), neighbours=self.neighbours)
        return {name: self._tensor(value) for name, value in found.items()}


class InceptionScore(Metric):
    """Inception score of class logits, not shuffled (`metrics.inception_score`)."""

    is_differentiable = False
    full_state_update = False
    higher_is_better = True
    logits: list[Tensor]

    def __init__(self, feature: nn.Module | None = None, *, splits: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.feature, self.splits = feature, splits
        self.add_state("logits", default=[], dist_reduce_fx="cat")

    def update(self, inputs: Tensor) -> None:
        """Add a batch; logits of shape (n, classes) without `feature`."""
        logits = inputs if self.feature is None else self.feature(inputs)
        self.logits.append(logits.detach().double())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return mean and SD over splits (divisor: splits), float64 scalars."""
        p = dim_zero_cat(self.logits).softmax(dim=1).cpu().numpy()
        mean, sd = metrics.inception_score(p, splits=self.splits)
        both = torch.tensor((mean, sd), dtype=torch.float64, device=self.device)
        return both[0], both[1]


def _merge(packed: Tensor) -> Tensor:
    """Return the packed moments of all processes together."""
    merged = _unpack(packed[0])
    for one in packed[1:]:
        merged = merged.plus(_unpack(one)) if merged.n else _unpack(one)
    return _pack(merged).to(packed.device)


def _pack(moments: Moments) -> Tensor:
    size = np.full((1, len(moments.mean)), float(moments.n))
    return torch.from_numpy(np.vstack([size, moments.mean[None], moments.scatter]))


def _unpack(packed: Tensor) -> Moments:
    rows = packed.cpu().numpy()
    return Moments(n=int(rows[0, 0]), mean=rows[1], scatter=rows[2:])


class StreamedFrechetDistance(Metric):
    """Fréchet distance that keeps mean and covariance only, for very many rows.

    Parameters
    ----------
    n_features : int
        Columns of the features.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = False
    real: Tensor
    synthetic: Tensor

    def __init__(self, n_features: int, feature: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.feature = feature
        for name in ("real", "synthetic"):
            # One state, because number, mean and scatter can only be merged together.
            empty = torch.zeros(n_features + 2, n_features, dtype=torch.float64)
            self.add_state(name, default=empty, dist_reduce_fx=_merge)

    def update(self, inputs: Tensor, real: bool) -> None:
        """Add a batch of real (or synthetic) persons, shape (n, d) without `feature`."""
        features = inputs if self.feature is None else self.feature(inputs)
        name = "real" if real else "synthetic"
        batch = _pack(Moments.of(features.detach().double().cpu().numpy()))
        setattr(self, name, _merge(torch.stack([getattr(self, name).cpu(), batch])).to(self.device))

    def set_dtype(self, dst_type: str | torch.dtype) -> "Metric":  # noqa: ARG002
        """Keep float64."""
        return self

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar."""
        value = frechet(_unpack(self.real), _unpack(self.synthetic))
        return torch.tensor(value, dtype=torch.float64, device=self.device)
