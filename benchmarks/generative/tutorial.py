"""MONAI's tutorial of 3-D latent diffusion with MONAI 1.6.1's classes: what ours is held against.

`train_autoencoder`, `train_network` and `draw` are the ways in. Sizes, losses, rates and noise are
those of the tutorial `generation/3d_ldm`. What differs, always in its favour or for lack of a file:
the diagnosis is a class embedding, because ours is asked for one too; images are padded to
multiples of 16 voxels, because MONAI's autoencoder crops in silence; samples of latents are not
clipped to -1..1; the perceptual loss is left out, because it downloads a network.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from monai.inferers import LatentDiffusionInferer
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet, PatchDiscriminator
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, RFlowScheduler
from torch import Tensor, nn
from torch.nn import functional

Objective = Literal["noise", "flow"]
Solver = Literal["ddpm-1000", "ddim-50", "rflow-30"]

BATCH, RATE = 2, 1e-4
KL_WEIGHT, ADVERSARIAL_WEIGHT, EPOCHS_BEFORE_ADVERSARIAL = 1e-6, 0.01, 5
LATENTS, MULTIPLE = 3, 16
_BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "schedule": "scaled_linear_beta",
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "clip_sample": False,
}


def autoencoder() -> nn.Module:
    """Return the tutorial's autoencoder: 2.3 million weights, a fourth of each edge."""
    net: nn.Module = AutoencoderKL(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(32, 64, 64),
        latent_channels=LATENTS,
        num_res_blocks=1,
        norm_num_groups=16,
        attention_levels=(False, False, True),
    )
    return net


def network(n_classes: int) -> nn.Module:
    """Return the tutorial's U-Net: 3.0 million weights, with one class a diagnosis."""
    net: nn.Module = DiffusionModelUNet(
        spatial_dims=3,
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_res_blocks=1,
        channels=(32, 64, 64),
        attention_levels=(False, True, True),
        num_head_channels=(0, 64, 64),
        num_class_embeds=n_classes,
    )
    return net


def padded(volumes: Tensor) -> Tensor:
    """Return volumes (n, x, y, z) with a channel, their edges multiples of 16 voxels."""
    after: list[int] = []
    for edge in reversed(volumes.shape[1:]):
        after += [0, -edge % MULTIPLE]
    return functional.pad(volumes[:, None], after)


@dataclass(frozen=True)
class Spent:
    """What a training took."""

    seconds: float
    steps: int


def _steps(images: Tensor, budget_s: float) -> Iterator[tuple[int, Tensor]]:
    """Yield (epoch, rows of a batch) until the CPU seconds are spent; one step at least."""
    start, epoch = time.process_time(), 0
    while True:
        order = torch.randperm(len(images))
        for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
            yield epoch, rows
            if time.process_time() - start > budget_s:
                return
        epoch += 1


def train_autoencoder(net: nn.Module, images: Tensor, budget_s: float) -> Spent:
    """Train by L1, KL and, from the sixth epoch on, against a patch discriminator."""
    start, step = time.process_time(), 0
    rival: nn.Module = PatchDiscriminator(
        spatial_dims=3, num_layers_d=3, channels=32, in_channels=1, out_channels=1
    )
    adversarial = PatchAdversarialLoss(criterion="least_squares")
    own = torch.optim.Adam(net.parameters(), lr=RATE)
    others = torch.optim.Adam(rival.parameters(), lr=RATE)
    net.train()
    for step, (epoch, rows) in enumerate(_steps(images, budget_s), 1):  # noqa: B007 - counted
        batch = images[rows]
        again, mu, sigma = net(batch)
        kl = 0.5 * (mu**2 + sigma**2 - torch.log(sigma**2) - 1).flatten(1).sum(1).mean()
        loss = functional.l1_loss(again, batch) + KL_WEIGHT * kl
        meets_rival = epoch >= EPOCHS_BEFORE_ADVERSARIAL
        if meets_rival:
            fooled = adversarial(rival(again)[-1], target_is_real=True, for_discriminator=False)
            loss = loss + ADVERSARIAL_WEIGHT * fooled
        _move(own, loss)
        if meets_rival:
            told = [
                adversarial(rival(seen)[-1], target_is_real=real, for_discriminator=True)
                for seen, real in ((again.detach(), False), (batch, True))
            ]
            _move(others, ADVERSARIAL_WEIGHT * (told[0] + told[1]) / 2)
    net.eval()
    return Spent(time.process_time() - start, step)


def _move(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def latent_scale(net: nn.Module, images: Tensor) -> float:
    """Return the tutorial's scale factor: 1 over the deviation of a first batch's latents."""
    with torch.no_grad():
        return float(1 / net.encode_stage_2_inputs(images[:BATCH]).std())  # type: ignore[operator]


@dataclass(frozen=True)
class Latents:
    """A frozen autoencoder, and the scale of its latents."""

    net: nn.Module
    scale: float


def train_network(
    net: nn.Module, latents: Latents, images: Tensor, labels: Tensor, objective: Objective,
    budget_s: float,
) -> Spent:  # fmt: skip
    """Train to tell the noise (DDPM) or the velocity (RFlow); batches are encoded anew."""
    start, step = time.process_time(), 0
    scheduler: Any = (
        DDPMScheduler(**_BETAS)
        if objective == "noise"
        else RFlowScheduler(use_discrete_timesteps=True)
    )
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    net.train()
    for step, (_, rows) in enumerate(_steps(images, budget_s), 1):  # noqa: B007 - counted
        batch = images[rows]
        with torch.no_grad():
            codes = latents.net.encode_stage_2_inputs(batch) * latents.scale  # type: ignore[operator]
        noise = torch.randn_like(codes)
        if objective == "noise":
            times, target = torch.randint(0, 1000, (len(rows),)), noise
        else:
            times, target = scheduler.sample_timesteps(codes), codes - noise
        noisy = scheduler.add_noise(codes, noise, times)
        told = net(noisy, times, class_labels=labels[rows])
        _move(optimiser, functional.mse_loss(told.float(), target.float()))
    net.eval()
    return Spent(time.process_time() - start, step)


def _scheduler(solver: Solver) -> Any:
    if solver == "rflow-30":
        scheduler: Any = RFlowScheduler(use_discrete_timesteps=True)
        scheduler.set_timesteps(num_inference_steps=30)
        return scheduler
    scheduler = DDPMScheduler(**_BETAS) if solver == "ddpm-1000" else DDIMScheduler(**_BETAS)
    scheduler.set_timesteps(num_inference_steps=int(solver.split("-")[1]))
    return scheduler


def draw(
    net: nn.Module, latents: Latents, labels: Tensor, shape: tuple[int, int, int], solver: Solver
) -> Tensor:
    """Return volumes (n, x, y, z), as decoded; the seed is torch's own, as in the tutorial."""
    edges = [-(-edge // MULTIPLE) * MULTIPLE // 4 for edge in shape]
    noise = torch.randn(len(labels), LATENTS, *edges)
    scheduler = _scheduler(solver)
    inferer = LatentDiffusionInferer(scheduler, scale_factor=latents.scale)
    asked: Callable[..., Tensor] = partial(net, class_labels=labels)
    images: Tensor = inferer.sample(
        input_noise=noise,
        autoencoder_model=latents.net,
        diffusion_model=asked,
        scheduler=scheduler,
        verbose=False,
    )
    x, y, z = shape
    return images[:, 0, :x, :y, :z]
