"""The `vae` family: latent variables plus a learned noise that is sampled too.

A VAE whose noise is left out, or whose latents are drawn from N(0, I), loses a quarter and more
of the persons' variety. Here the noise variance of every code dimension is learned and drawn,
and latents come from a Gaussian per diagnosis, fitted to the training persons' posteriors.
What is modelled is the deviation of a whitened code from its condition's mean.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from rarescan.generative.code_store import rows_at_a_time
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Batch, Player, Prior
from rarescan.generative.floor import Floor
from rarescan.generative.networks import seeded, variational, zero_last
from rarescan.generative.spec import Family, GeneratorSpec

_SHRINKAGE = 0.1
_LARGEST_SHARE = 0.9
"""Of a dimension's variance, what latents may carry at most; noise carries the rest."""
_N_CALIBRATION = 512
_JITTER = 0.6
"""Share of noise in training codes (variance kept): latents must not learn persons by heart."""


class Vae(Prior):
    """Variational autoencoder on whitened codes, with a fitted latent sampler."""

    family: ClassVar[Family] = "vae"
    latent_means: Tensor
    latent_root: Tensor
    decoded_scale: Tensor
    noise_scale: Tensor

    def __init__(self, spec: GeneratorSpec, floor: Floor, encoder: ConditionEncoder) -> None:
        super().__init__(spec, floor, encoder)
        on_a_grid = len(floor.code_shape) > 1
        self._seen_shape = floor.code_shape if on_a_grid else (min(spec.components, floor.size),)
        self.network = seeded(spec, "vae", lambda: variational(spec, self._seen_shape))
        zero_last(self.network.decode)
        # One noise variance a dimension, or a channel of a grid code.
        noise_shape = (self._seen_shape[0], *[1] * (len(self._seen_shape) - 1))
        self.log_variance = nn.Parameter(torch.zeros(noise_shape))
        self.register_buffer("latent_means", torch.zeros(floor.n_diagnoses, spec.latent))
        self.register_buffer("latent_root", torch.eye(spec.latent))
        self.register_buffer("decoded_scale", torch.ones(noise_shape))
        self.register_buffer("noise_scale", torch.ones(noise_shape))

    @property
    def noise_size(self) -> int:
        """Latents, then the noise of every code dimension."""
        return self.spec.latent + self.floor.size

    def players(self) -> list[Player]:
        """Return encoder, decoder and noise as one."""
        parameters = [*self.network.parameters(), self.log_variance]
        return [Player(name="vae", parameters=parameters, loss=self.loss)]

    def loss(self, batch: Batch) -> Tensor:
        """Return the negative evidence bound a dimension; KL warmed up over the first half."""
        warm = min(1.0, 2 * batch.step / batch.n_steps)
        draw = batch.normal(len(batch.values), self.spec.latent)
        deviation = self._deviation(batch.values, batch.encoded)
        keep = (1 - _JITTER**2) ** 0.5
        jittered = keep * deviation + _JITTER * batch.normal(*deviation.shape)
        return self._negative_bound(jittered, draw, warm)

    def held_out_loss(self, codes: Tensor, encoded: Tensor) -> float:
        """Return the negative evidence bound at the posterior means."""
        draw = torch.zeros(len(codes), self.spec.latent, device=codes.device)
        return float(self._negative_bound(self._deviation(codes, encoded), draw, 1.0))

    def _negative_bound(self, deviation: Tensor, draw: Tensor, kl_weight: float) -> Tensor:
        mean, log_var = self._posterior(deviation)
        error = deviation - self._decode(mean + (0.5 * log_var).exp() * draw)
        misfit = 0.5 * (self.log_variance + error.square() / self.log_variance.exp())
        kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1)
        return misfit.mean() + kl_weight * kl.mean() / deviation[0].numel()

    def close(self, codes: Tensor, encoded: Tensor) -> None:
        """Fit the latent sampler to training persons and calibrate the noise."""
        with torch.no_grad():
            mean, log_var, variance = self._looked_at(codes, encoded)
            encoded = encoded.to(mean)
            own = encoded[:, : self.floor.n_diagnoses]
            centres = (own.T @ mean) / own.sum(0)[:, None]
            within = (mean - own @ centres).T @ (mean - own @ centres) / (len(mean) - len(centres))
            within = (1 - _SHRINKAGE) * within + _SHRINKAGE * within.diagonal().diag()
            covariance = within + log_var.exp().mean(0).diag()
            self.latent_means.copy_(centres)
            self.latent_root.copy_(torch.linalg.cholesky(covariance))
            self._calibrate(variance)

    def _looked_at(self, codes: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return posteriors and the variance of a dimension, codes taken as they fit in memory."""
        parts, device = [], self.floor.spread.device
        for rows in torch.split(torch.arange(len(codes)), rows_at_a_time(tuple(codes.shape))):
            deviation = self._deviation(codes[rows].to(device), encoded[rows].to(device))
            variance = deviation.square().mean([0, *range(2, deviation.ndim)])
            parts.append((*self._posterior(deviation), variance * (len(rows) / len(codes))))
        mean, log_var, variances = zip(*parts, strict=True)
        return torch.cat(mean), torch.cat(log_var), torch.stack(variances).sum(0)

    def _calibrate(self, variance: Tensor) -> None:
        """Let decoded + noise have the variance of the training persons, dimension by dimension."""
        random = torch.Generator("cpu").manual_seed(0)
        n = _N_CALIBRATION if len(self._seen_shape) == 1 else _N_CALIBRATION // 8
        draws = torch.randn(n, self.spec.latent, generator=random).to(variance)
        classes = torch.arange(n, device=variance.device) % self.floor.n_diagnoses
        decoded = self._decode(self.latent_means[classes] + draws @ self.latent_root.T)
        places = [0, *range(2, decoded.ndim)]
        centred = decoded - decoded.mean(0)
        carried = centred.square().mean(places).view_as(self.noise_scale)
        wanted = variance.view_as(self.noise_scale)
        learned = self.log_variance.exp()
        share = (carried / (carried + learned)).clamp_max(_LARGEST_SHARE)
        self.decoded_scale.copy_((share * wanted / carried.clamp_min(1e-12)).sqrt())
        self.noise_scale.copy_(((1 - share) * wanted).sqrt())

    def sample(self, encoded: Tensor, noise: Tensor) -> Tensor:
        """Return mean + decoded latents + noise."""
        draws, rest = noise[:, : self.spec.latent], noise[:, self.spec.latent :]
        classes = encoded[:, : self.floor.n_diagnoses].argmax(1)
        decoded = self._decode(self.latent_means[classes] + draws @ self.latent_root.T)
        rest = rest.view(-1, *self.floor.code_shape)
        n_seen = self._seen_shape[0]
        seen = self.decoded_scale * decoded + self.noise_scale * rest[:, :n_seen]
        return self.floor.mean(encoded) + torch.cat([seen, rest[:, n_seen:]], dim=1)

    def _deviation(self, codes: Tensor, encoded: Tensor) -> Tensor:
        return (codes - self.floor.mean(encoded))[:, : self._seen_shape[0]]

    def _posterior(self, deviation: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.network.encode_forward(deviation)
        return mean, log_var.clamp(-10, 10)

    def _decode(self, latents: Tensor) -> Tensor:
        decoded: Tensor = self.network.decode_forward(latents, use_sigmoid=False)
        return decoded
