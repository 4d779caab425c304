"""The `diffusion` family: a rectified flow whose velocity is the Gaussian's plus a network's.

`midpoint` is the solver; x_t = (1 - t) x_0 + t e, v = x_0 - e, t = 0 data, t = 1 noise. MONAI's
schedulers are not used: with few steps they lose 6-20 % of the spread. The Gaussian's velocity
is exact, for a condition and for a hidden diagnosis, so an untrained network samples the floor;
one that does not beat it on validation persons is left out, and that is recorded.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from rarescan.generative.code_store import rows_at_a_time
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Batch, Player, Prior
from rarescan.generative.floor import Floor
from rarescan.generative.networks import (
    N_TIME_FEATURES,
    dense,
    seeded,
    unet,
    waves,
    with_condition,
    zero_last,
)
from rarescan.generative.spec import Family, GeneratorSpec

_JITTER = 0.6
"""Noise mixed into training codes (variance kept), so that persons do not become points."""
_N_HELD_OUT_TIMES = 4
_UNET_TIME_SCALE = 1000.0


def gaussian_velocity(x: Tensor, times: Tensor, mean: Tensor) -> Tensor:
    """Return E[x_0 - e | x_t = x] for x_0 ~ N(mean, I): exact.

    With a = 1 - t and y = x - a mean: mean + (a - t) y / (a^2 + t^2).

    Parameters
    ----------
    x, mean : tensor, shape (n, ...)
    times : tensor, shape (n,), 0 to 1
    """
    t = _like(times, x)
    a = 1 - t
    return mean + (a - t) * (x - a * mean) / (a**2 + t**2)


def mixture_velocity(x: Tensor, times: Tensor, means: Tensor) -> Tensor:
    """Return E[x_0 - e | x_t = x] for an even mixture of N(means[k], I): exact.

    Parameters
    ----------
    x : tensor, shape (n, ...)
    times : tensor, shape (n,), 0 to 1
    means : tensor, shape (k, n, ...)
    """
    a, t = 1 - times, times
    distances = (x[None] - _like(a, x) * means).flatten(2).square().sum(2)
    shares = torch.softmax(-distances / (2 * (a**2 + t**2)), dim=0)
    velocities = torch.stack([gaussian_velocity(x, times, mean) for mean in means])
    return (shares.view(*shares.shape, *[1] * (x.ndim - 1)) * velocities).sum(0)


def midpoint(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Return x at t = 0, started from noise at t = 1; two calls of `velocity` a step.

    Parameters
    ----------
    velocity : callable
        Takes x, shape (n, ...), and t, shape (n,).
    noise : tensor, shape (n, ...)
    steps : int
        Steps of equal length. The error falls with their square.
    """
    x, length = noise, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), 1 - step * length, dtype=x.dtype, device=x.device)
        half = x + length / 2 * velocity(x, t)
        x = x + length * velocity(half, t - length / 2)
    return x


class Diffusion(Prior):
    """Rectified flow on whitened codes."""

    family: ClassVar[Family] = "diffusion"

    learns_hidden: ClassVar[bool] = True

    def __init__(self, spec: GeneratorSpec, floor: Floor, encoder: ConditionEncoder) -> None:
        super().__init__(spec, floor, encoder)
        n_features = encoder.n_features
        self._on_a_grid = len(floor.code_shape) > 1
        self._n_seen = min(spec.components, floor.size)
        if self._on_a_grid:
            build = lambda: unet(spec, floor.code_shape, n_features)  # noqa: E731 - two cases
        else:
            n_in = self._n_seen + n_features + N_TIME_FEATURES
            build = lambda: dense(spec, n_in, self._n_seen)  # noqa: E731
        self.network = zero_last(seeded(spec, "flow", build))

    def players(self) -> list[Player]:
        """Return the velocity network."""
        parameters = list(self.network.parameters())
        return [Player(name="flow", parameters=parameters, loss=self.loss)]

    def loss(self, batch: Batch) -> Tensor:
        """Return the flow-matching error, codes jittered, times logit-normal."""
        data, n = batch.values, len(batch.values)
        mean = self.floor.mean(batch.encoded)
        keep = (1 - _JITTER**2) ** 0.5
        data = mean + keep * (data - mean) + _JITTER * batch.normal(*data.shape)
        times = torch.sigmoid(batch.normal(n))
        return self._error(data, batch.normal(*data.shape), times, batch.encoded).mean()

    def held_out_loss(self, codes: Tensor, encoded: Tensor) -> float:
        """Return the flow-matching error at fixed times and noise."""
        return self._fixed_error(codes, encoded)

    def judge(self, codes: Tensor, encoded: Tensor) -> dict[str, Any]:
        """Keep the network only if its error is below the Gaussian's."""
        if not len(codes):
            self.network_kept = False
            return {"network_kept": False}
        with torch.no_grad():
            own = self._fixed_error(codes, encoded)
            self.network_kept = False
            floor = self._fixed_error(codes, encoded)
        self.network_kept = own < floor
        return {"flow_loss": own, "floor_flow_loss": floor, "network_kept": self.network_kept}

    def sample(self, encoded: Tensor, noise: Tensor) -> Tensor:
        """Return whitened codes by the midpoint rule, the diagnosis guided."""

        def velocity(x: Tensor, times: Tensor) -> Tensor:
            return self.guided_velocity(x, times, encoded, self.spec.guidance)

        start = noise.view(-1, *self.floor.code_shape)
        return midpoint(velocity, start, self.spec.solver_steps)

    def guided_velocity(self, x: Tensor, times: Tensor, encoded: Tensor, guidance: float) -> Tensor:
        """Return the velocity, moved away from that of a hidden diagnosis if guidance > 1."""
        asked = self.velocity(x, times, encoded)
        if guidance == 1:
            return asked
        hidden = self.velocity(x, times, self.encoder.hide_diagnosis(encoded))
        return hidden + guidance * (asked - hidden)

    def velocity(self, x: Tensor, times: Tensor, encoded: Tensor) -> Tensor:
        """Return the Gaussian's velocity plus the network's."""
        base = self._base(x, times, encoded)
        return base + self._correction(x, times, encoded) if self.network_kept else base

    def _base(self, x: Tensor, times: Tensor, encoded: Tensor) -> Tensor:
        known = gaussian_velocity(x, times, self.floor.mean(encoded))
        hidden = encoded[:, self.floor.n_diagnoses] > 0
        if not hidden.any():
            return known
        mixed = mixture_velocity(x, times, self.floor.means_by_diagnosis(encoded))
        return torch.where(_like(hidden, x), mixed, known)

    def _correction(self, x: Tensor, times: Tensor, encoded: Tensor) -> Tensor:
        if self._on_a_grid:
            out: Tensor = self.network(with_condition(x, encoded), times * _UNET_TIME_SCALE)
            return out
        seen = torch.cat([x[:, : self._n_seen], waves(times), encoded], dim=1)
        return torch.nn.functional.pad(self.network(seen), (0, x.shape[1] - self._n_seen))

    def _error(self, data: Tensor, noise: Tensor, times: Tensor, encoded: Tensor) -> Tensor:
        """Return each row's mean squared error of the velocity where the network acts."""
        t = _like(times, data)
        x = (1 - t) * data + t * noise
        error = self.velocity(x, times, encoded) - (data - noise)
        n_counted = self.floor.size if self._on_a_grid else self._n_seen
        return error.flatten(1)[:, :n_counted].square().mean(1)

    def _fixed_error(self, codes: Tensor, encoded: Tensor) -> float:
        device = self.floor.spread.device
        random = torch.Generator("cpu").manual_seed(0)
        errors = []
        # In parts: hundreds of codes of a fine grid do not fit into memory at once.
        size = rows_at_a_time(tuple(codes.shape))
        for rows in torch.split(torch.arange(len(codes)), size):
            part, asked = codes[rows].to(device), encoded[rows].to(device)
            for number in range(_N_HELD_OUT_TIMES):
                noise = torch.randn(part.shape, generator=random).to(part)
                times = torch.full((len(part),), (number + 0.5) / _N_HELD_OUT_TIMES).to(part)
                errors.append(self._error(part, noise, times, asked).mean() * len(part))
        return float(torch.stack(errors).sum() / (len(codes) * _N_HELD_OUT_TIMES))


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))
