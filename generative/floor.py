"""The conditional Gaussian in code space: the floor that every family starts from.

`Floor.fit` is the way in. Codes given a condition are N(m(condition), S): the mean is linear in
the encoded condition, S is pooled over the training persons. `whiten` takes codes to the space
in which S is the identity, where the networks work; `unwhiten` takes samples back. With this the
Gaussian's flow has a closed form (`diffusion.gaussian_velocity`), and a network that outputs
zero samples exactly this Gaussian.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from rarescan.generative.code_store import columns_at_a_time

_GRID_RANK = 16
"""Directions of covariance kept for grid codes. With all of them the training persons would have
no variance left across their span, where every new person has some."""
_SHRINKAGE = 0.1
_RIDGE = 1.0
"""Persons' worth of evidence against an effect of age, sex, site or severity."""


class Floor(nn.Module):
    """A conditional Gaussian: mean linear in the condition, low-rank + diagonal covariance.

    The covariance is D (i I + Q diag(gains^2 - i) Q') D with orthonormal directions Q, the
    standard deviations `spread` on the diagonal of D, and i = `isotropic`.
    """

    slopes: Tensor
    spread: Tensor
    directions: Tensor
    gains: Tensor
    isotropic: Tensor

    def __init__(
        self, code_shape: tuple[int, ...], n_diagnoses: int, tensors: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.code_shape, self.n_diagnoses = code_shape, n_diagnoses
        self.size = int(torch.Size(code_shape).numel())
        for name in ("slopes", "spread", "directions", "gains", "isotropic"):
            self.register_buffer(name, tensors[name].float())

    @classmethod
    def fit(cls, codes: Tensor, encoded: Tensor, n_diagnoses: int) -> "Floor":
        """Return the Gaussian of training codes.

        Parameters
        ----------
        codes : float32 tensor, shape (n, *code_shape)
            One row a training person; may lie on a memory map, and is read in blocks of columns.
        encoded : float32 tensor, shape (n, features)
            Their conditions; the first columns are the one-hot diagnosis and "hidden".
        n_diagnoses : int
            How many.
        """
        values, design = codes.flatten(1), encoded.double()
        slopes, spread, freedom = _slopes(values, design, n_diagnoses)
        spread[spread < 1e-6 * spread.max()] = 0
        blocks = partial(_standard_residuals, values, design, slopes, spread)
        directions, variances = _directions(blocks, freedom, codes.ndim > 2)
        # What the directions leave out of the total variance is spread evenly, so that the
        # Gaussian's total variance is the training persons'.
        left = 1 - variances.sum() / (spread > 0).sum()
        isotropic = _SHRINKAGE + (1 - _SHRINKAGE) * left.clamp_min(0)
        tensors = {
            "slopes": slopes,
            "spread": spread,
            "directions": directions,
            "gains": (isotropic + (1 - _SHRINKAGE) * variances).sqrt(),
            "isotropic": isotropic,
        }
        return cls(tuple(codes.shape[1:]), n_diagnoses, tensors)

    def code_mean(self, encoded: Tensor) -> Tensor:
        """Return the mean code of each condition, shape (n, size)."""
        return encoded @ self.slopes

    def mean(self, encoded: Tensor) -> Tensor:
        """Return the mean whitened code of each condition, shape (n, *code_shape)."""
        return self._scaled(self.code_mean(encoded) * _inverse(self.spread), inverse=True)

    def whiten(self, codes: Tensor) -> Tensor:
        """Return codes with pooled covariance I, same shape."""
        return self._scaled(codes.flatten(1) * _inverse(self.spread), inverse=True)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """Return the codes of whitened ones, same shape."""
        scaled = self._scaled(whitened.flatten(1), inverse=False)
        return (scaled.flatten(1) * self.spread).view(whitened.shape)

    def means_by_diagnosis(self, encoded: Tensor) -> Tensor:
        """Return the whitened mean for each diagnosis in turn, shape (diagnoses, n, *code_shape).

        Everything but the diagnosis is taken from `encoded`.
        """
        asked = []
        for number in range(self.n_diagnoses):
            other = encoded.clone()
            other[:, : self.n_diagnoses + 1] = 0
            other[:, number] = 1
            asked.append(self.mean(other))
        return torch.stack(asked)

    def _scaled(self, values: Tensor, *, inverse: bool) -> Tensor:
        """Multiply rows by the root of the standardised covariance, or by its inverse."""
        base, gains = self.isotropic.sqrt(), self.gains
        if inverse:
            base, gains = 1 / base, 1 / gains
        along = (values @ self.directions) * (gains - base)
        return (base * values + along @ self.directions.T).view(-1, *self.code_shape)


def n_directions(n_persons: int, code_shape: tuple[int, ...]) -> int:
    """Return how many directions of covariance so many persons give at most."""
    possible = min(n_persons, int(torch.Size(code_shape).numel()))
    return min(possible, _GRID_RANK) if len(code_shape) > 1 else possible


def _inverse(spread: Tensor) -> Tensor:
    """Return 1 / spread, and 0 where a code position never varies."""
    return torch.where(spread > 0, 1 / spread.clamp_min(1e-30), 0.0)


def _ridge(design: Tensor, values: Tensor, n_diagnoses: int) -> tuple[Tensor, float]:
    """Return slopes and how many parameters they cost (the trace of the hat matrix).

    Diagnoses are not shrunk. The "hidden" diagnosis is the even mean of all of them.
    """
    penalty = torch.full((design.shape[1],), _RIDGE, dtype=design.dtype)
    penalty[:n_diagnoses] = 1e-9
    gram = design.T @ design
    solved = torch.linalg.solve(gram + penalty.diag(), torch.cat([design.T @ values, gram], 1))
    slopes, hat = solved[:, : values.shape[1]], solved[:, values.shape[1] :]
    slopes[n_diagnoses] = slopes[:n_diagnoses].mean(0)
    return slopes, float(hat.trace())


def _slopes(values: Tensor, design: Tensor, n_diagnoses: int) -> tuple[Tensor, Tensor, float]:
    """Return slopes, standard deviations about them, and the degrees of freedom that are left."""
    parts, freedom = [], 0.0
    for columns in columns_at_a_time(values):
        block = values[:, columns].double()
        slopes, n_fitted = _ridge(design, block, n_diagnoses)
        freedom = len(values) - n_fitted
        block -= design @ slopes
        parts.append((slopes, (block.square_().sum(0) / freedom).sqrt()))
    return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts]), freedom


def _standard_residuals(
    values: Tensor, design: Tensor, slopes: Tensor, spread: Tensor
) -> Iterator[Tensor]:
    """Yield blocks of columns of the standardised residuals, float64, shape (n, columns)."""
    for columns in columns_at_a_time(values):
        residuals = values[:, columns].double()
        residuals -= design @ slopes[:, columns]
        residuals *= _inverse(spread[columns])
        yield residuals


def _directions(
    blocks: Callable[[], Iterator[Tensor]], freedom: float, on_a_grid: bool
) -> tuple[Tensor, Tensor]:
    """Return orthonormal directions and variances of the standardised residuals, largest first."""
    gram = sum((block @ block.T for block in blocks()), torch.zeros((), dtype=torch.float64))
    values, vectors = torch.linalg.eigh(gram / freedom)
    keep = values.flip(0) > values[-1] * 1e-9
    rank = min(int(keep.sum()), _GRID_RANK) if on_a_grid else int(keep.sum())
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    length = (values * freedom).sqrt()
    directions = torch.cat([(block.T @ vectors / length).float() for block in blocks()])
    directions *= directions.gather(0, directions.abs().argmax(0)[None]).sign()
    return directions, values
