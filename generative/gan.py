"""The `gan` family: a generator that starts as the Gaussian floor, against one discriminator.

The generator is mean + noise + network(noise, condition), its last layer zero at the start. Real
and fake codes are augmented alike before the discriminator sees them, which keeps tens of
persons from being learned by heart; the one stabiliser is R1 (the squared gradient on real
codes). The weakest of the three families at this size.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Batch, Player, Prior
from rarescan.generative.floor import Floor
from rarescan.generative.networks import critic, dense, seeded, unet, with_condition, zero_last
from rarescan.generative.spec import Family, GeneratorSpec

_R1_WEIGHT = 1.0
_R1_EVERY = 4
_GENERATOR_RATE, _DISCRIMINATOR_RATE = 0.2, 0.4
_BETAS = (0.0, 0.99)
_JITTER, _GAIN, _CUT = 0.2, 0.1, 0.25


class Gan(Prior):
    """Generative adversarial network on whitened codes."""

    family: ClassVar[Family] = "gan"

    def __init__(self, spec: GeneratorSpec, floor: Floor, encoder: ConditionEncoder) -> None:
        super().__init__(spec, floor, encoder)
        n_features, shape = encoder.n_features, floor.code_shape
        self._on_a_grid = len(shape) > 1
        n_seen = shape[0] if self._on_a_grid else min(spec.components, floor.size)
        self._n_seen = n_seen
        if self._on_a_grid:
            network = seeded(spec, "generator", lambda: unet(spec, shape, n_features))
            judge = seeded(spec, "discriminator", lambda: critic(spec, shape, n_features))
        else:
            network = seeded(spec, "generator", lambda: dense(spec, n_seen + n_features, n_seen))
            judge = seeded(spec, "discriminator", lambda: dense(spec, n_seen + n_features, 1))
        self.network, self.discriminator = zero_last(network), judge

    def players(self) -> list[Player]:
        """Return the discriminator, which moves first, and the generator."""
        return [
            Player(
                name="discriminator",
                parameters=list(self.discriminator.parameters()),
                loss=self.discriminator_loss,
                rate=_DISCRIMINATOR_RATE,
                betas=_BETAS,
            ),
            Player(
                name="generator",
                parameters=list(self.network.parameters()),
                loss=self.generator_loss,
                rate=_GENERATOR_RATE,
                betas=_BETAS,
            ),
        ]

    def generator_loss(self, batch: Batch) -> Tensor:
        """Return the non-saturating logistic loss of fakes taken for real."""
        fake = self.sample(batch.encoded, batch.normal(len(batch.values), self.noise_size))
        return functional.softplus(-self._augmented_score(fake, batch)).mean()

    def discriminator_loss(self, batch: Batch) -> Tensor:
        """Return the logistic loss of telling real from fake, with R1 at some steps."""
        noise = batch.normal(len(batch.values), self.noise_size)
        fake_score = self._augmented_score(self.sample(batch.encoded, noise).detach(), batch)
        real = batch.values.detach().requires_grad_()
        real_score = self._augmented_score(real, batch)
        loss = functional.softplus(fake_score).mean() + functional.softplus(-real_score).mean()
        if batch.step % _R1_EVERY:
            return loss
        slope = torch.autograd.grad(real_score.sum(), real, create_graph=True)[0]
        penalty = slope.square().flatten(1).sum(1).mean()
        total: Tensor = loss + _R1_EVERY * _R1_WEIGHT / 2 * penalty
        return total

    def held_out_loss(self, codes: Tensor, encoded: Tensor) -> float:
        """Return the energy distance between samples and validation persons."""
        random = torch.Generator("cpu").manual_seed(0)
        noise = torch.randn(len(codes), self.noise_size, generator=random).to(codes)
        fake, real = self.sample(encoded, noise).flatten(1), codes.flatten(1)
        return float(2 * torch.cdist(fake, real).mean() - _mean_pair(fake) - _mean_pair(real))

    def sample(self, encoded: Tensor, noise: Tensor) -> Tensor:
        """Return whitened codes: mean + noise + correction."""
        noise = noise.view(-1, *self.floor.code_shape)
        seen = with_condition(noise[:, : self._n_seen], encoded)
        if self._on_a_grid:
            correction: Tensor = self.network(seen, torch.zeros(len(seen), device=seen.device))
        else:
            correction = self.network(seen)
            correction = functional.pad(correction, (0, noise.shape[1] - self._n_seen))
        return self.floor.mean(encoded) + noise + correction

    def score(self, codes: Tensor, encoded: Tensor) -> Tensor:
        """Return the discriminator's score of codes as they are, shape (n,)."""
        found: Tensor = self.discriminator(with_condition(codes[:, : self._n_seen], encoded))
        return found[:, 0]

    def _augmented_score(self, codes: Tensor, batch: Batch) -> Tensor:
        """Return the discriminator's score of codes with gain, jitter and a cut-out."""
        mean = self.floor.mean(batch.encoded)[:, : self._n_seen]
        deviation = codes[:, : self._n_seen] - mean
        ones = [1] * (deviation.ndim - 1)
        gain = 1 + _GAIN * (2 * batch.uniform(len(deviation), *ones) - 1)
        keep = batch.uniform(len(deviation), self._n_seen, *ones[1:]) > _CUT
        jitter = _JITTER * batch.normal(*deviation.shape)
        changed = mean + (deviation * gain + jitter) * keep
        return self.score(changed, batch.encoded)


def _mean_pair(values: Tensor) -> Tensor:
    n = len(values)
    total: Tensor = torch.cdist(values, values).sum() / max(n * (n - 1), 1)
    return total
