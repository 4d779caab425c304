"""MONAI's tutorial of 3-D latent diffusion with MONAI 1.6.1's classes: what ours is held against.

`train_autoencoder`, `train_network` and `draw` are the ways in. Losses, noise and network are those
of the tutorial `3d_ldm`. What differs, always in its favour or for lack of a file: rates, and the
autoencoder's channels and depth, are searched (`AUTOENCODERS`, `RATES`), because the tutorial's own
are for a hundred epochs of a GPU; the diagnosis is a class embedding, because ours is asked for one
too; samples of latents are not clipped to -1..1; the perceptual loss is left out, because it
downloads a network; latents are padded to what the U-Net can halve and cropped again here, because
MONAI's own inferer gives a latent with an odd edge back shifted by a voxel.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from monai.inferers import DiffusionInferer
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet, PatchDiscriminator
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, RFlowScheduler
from torch import Tensor, nn
from torch.nn import functional

Objective = Literal["noise", "flow"]
Solver = Literal["ddpm-1000", "ddim-50", "rflow-30"]

BATCH = 2
KL_WEIGHT, ADVERSARIAL_WEIGHT, EPOCHS_BEFORE_ADVERSARIAL = 1e-6, 0.01, 5
LATENTS = 3
_NETWORK_CHANNELS = (32, 64, 64)
_SMALL_EDGE = 32
"""Images with a shorter edge vanish in a discriminator of three layers."""
_BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "schedule": "scaled_linear_beta",
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "clip_sample": False,
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is searched of an autoencoder; the defaults are the tutorial's."""

    channels: tuple[int, ...] = (32, 64, 64)
    """Of each level; each but the first halves the edges."""
    rate: float = 1e-4

    @property
    def factor(self) -> int:
        """How many voxels a latent has along each edge."""
        return 2 ** (len(self.channels) - 1)


AUTOENCODERS = (
    Sizes(),
    Sizes(channels=(16, 32, 32), rate=5e-4),
    Sizes(channels=(16, 32, 32), rate=1e-3),
    Sizes(channels=(16, 32), rate=5e-4),
)
"""The tutorial's own; half as wide; half as wide with a latent for two voxels instead of four."""
RATES = (1e-4, 5e-4)
"""Of the U-Net: the tutorial's, and a faster one."""


def autoencoder(sizes: Sizes) -> nn.Module:
    """Return the tutorial's autoencoder; 2.3 million weights at its own sizes."""
    below = len(sizes.channels) - 1
    net: nn.Module = AutoencoderKL(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=sizes.channels,
        latent_channels=LATENTS,
        num_res_blocks=1,
        norm_num_groups=16,
        # With a halving less, the lowest level has eight times the places.
        attention_levels=(*[False] * below, below > 1),
    )
    return net


def network(n_classes: int) -> nn.Module:
    """Return the tutorial's U-Net: 3.0 million weights, with one class a diagnosis."""
    net: nn.Module = DiffusionModelUNet(
        spatial_dims=3,
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_res_blocks=1,
        channels=_NETWORK_CHANNELS,
        attention_levels=(False, True, True),
        num_head_channels=(0, 64, 64),
        num_class_embeds=n_classes,
    )
    return net


def with_channel(volumes: Tensor, sizes: Sizes) -> Tensor:
    """Return volumes (n, x, y, z) with a channel; raise where MONAI would crop them in silence."""
    if any(edge % sizes.factor for edge in volumes.shape[1:]):
        raise ValueError(f"{tuple(volumes.shape[1:])} does not divide by {sizes.factor}")
    return volumes[:, None]


def _padding(edges: Sequence[int]) -> list[tuple[int, int]]:
    """Return what is added before and after each edge so that the U-Net can halve it."""
    step = 2 ** (len(_NETWORK_CHANNELS) - 1)
    missing = [-edge % step for edge in edges]
    return [(m // 2, m - m // 2) for m in missing]


def _padded(codes: Tensor) -> Tensor:
    """Return latents (n, channels, x, y, z) that the U-Net can halve, zeros around them."""
    flat = [n for pair in reversed(_padding(codes.shape[2:])) for n in pair]
    return functional.pad(codes, flat)


def _cropped(codes: Tensor, edges: Sequence[int]) -> Tensor:
    """Undo `_padded`."""
    pairs = zip(_padding(edges), edges, strict=True)
    return codes[:, :, *[slice(before, before + edge) for (before, _), edge in pairs]]


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


def train_autoencoder(net: nn.Module, images: Tensor, rate: float, budget_s: float) -> Spent:
    """Train by L1, KL and, from the sixth epoch on, against a patch discriminator."""
    start, step = time.process_time(), 0
    layers = 3 if min(images.shape[2:]) >= _SMALL_EDGE else 2
    rival: nn.Module = PatchDiscriminator(
        spatial_dims=3, num_layers_d=layers, channels=32, in_channels=1, out_channels=1
    )
    adversarial = PatchAdversarialLoss(criterion="least_squares")
    own = torch.optim.Adam(net.parameters(), lr=rate)
    others = torch.optim.Adam(rival.parameters(), lr=rate)
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


def reconstruction_error(net: nn.Module, images: Tensor) -> float:
    """Return the mean |image - reconstruction| of the latents' means."""
    with torch.no_grad():
        each = [
            functional.l1_loss(net.decode(net.encode(part)[0]), part, reduction="sum")  # type: ignore[operator]
            for part in images.split(8)
        ]
    return float(torch.stack(each).sum() / images.numel())


def latent_scale(net: nn.Module, images: Tensor) -> float:
    """Return the tutorial's scale factor: 1 over the deviation of a first batch's latents."""
    with torch.no_grad():
        return float(1 / net.encode_stage_2_inputs(images[:BATCH]).std())  # type: ignore[operator]


@dataclass(frozen=True)
class Latents:
    """A frozen autoencoder, the scale of its latents, and how many voxels an edge of them has."""

    net: nn.Module
    scale: float
    factor: int


def train_network(
    net: nn.Module, latents: Latents, data: tuple[Tensor, Tensor], objective: Objective,
    *, rate: float, budget_s: float,
) -> Spent:  # fmt: skip
    """Train to tell the noise (DDPM) or the velocity (RFlow); batches are encoded anew.

    `data` are images and the number of each one's diagnosis.
    """
    start, step = time.process_time(), 0
    images, labels = data
    scheduler = _noiser(objective)
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    net.train()
    for step, (_, rows) in enumerate(_steps(images, budget_s), 1):  # noqa: B007 - counted
        codes = _codes(latents, images[rows])
        times = (
            torch.randint(0, 1000, (len(rows),))
            if objective == "noise"
            else scheduler.sample_timesteps(codes)
        )
        _move(optimiser, _network_loss(net, scheduler, codes, times, labels[rows]))
    net.eval()
    return Spent(time.process_time() - start, step)


def _noiser(objective: Objective) -> Any:
    if objective == "noise":
        return DDPMScheduler(**_BETAS)
    return RFlowScheduler(use_discrete_timesteps=True)


def _codes(latents: Latents, images: Tensor) -> Tensor:
    with torch.no_grad():
        codes = latents.net.encode_stage_2_inputs(images) * latents.scale  # type: ignore[operator]
    return _padded(codes)


def _network_loss(
    net: nn.Module, scheduler: Any, codes: Tensor, times: Tensor, labels: Tensor
) -> Tensor:
    noise = torch.randn_like(codes)
    target = noise if isinstance(scheduler, DDPMScheduler) else codes - noise
    told = net(scheduler.add_noise(codes, noise, times), times, class_labels=labels)
    return functional.mse_loss(told.float(), target.float())


def network_error(
    net: nn.Module, latents: Latents, data: tuple[Tensor, Tensor], objective: Objective
) -> float:
    """Return the mean squared error at eight fixed times; draws from torch's own generator."""
    images, labels = data
    scheduler, errors = _noiser(objective), []
    with torch.no_grad():
        for rows in torch.arange(len(images)).split(16):
            codes = _codes(latents, images[rows])
            for time_ in range(62, 1000, 125):
                times = torch.full((len(rows),), time_)
                error = _network_loss(net, scheduler, codes, times, labels[rows])
                errors.append(error * len(rows))
    return float(torch.stack(errors).sum() / (8 * len(images)))


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
    edges = [edge // latents.factor for edge in shape]
    noise = torch.randn_like(_padded(torch.empty(len(labels), LATENTS, *edges)))
    scheduler = _scheduler(solver)
    asked: Callable[..., Tensor] = partial(net, class_labels=labels)
    codes = DiffusionInferer(scheduler).sample(
        input_noise=noise, diffusion_model=asked, scheduler=scheduler, verbose=False
    )
    images: Tensor = latents.net.decode_stage_2_outputs(_cropped(codes, edges) / latents.scale)  # type: ignore[operator]
    return images[:, 0]
