"""The `kl` codec: MONAI's AutoencoderKL, trained by the one loop.

`KlCodec` is the way in. Worth its time only with hundreds of scans or with imported weights; what
it loses, no prior can bring back (`reconstruction.report` says what it loses). Its edges must
divide, because MONAI's network crops silently where they do not.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rarescan.errors import SettingError
from rarescan.generative.anatomy import CHANNELS
from rarescan.generative.contract import Batch, Player
from rarescan.generative.networks import level_channels, seeded
from rarescan.generative.reconstruction import edge_loss, similarity
from rarescan.generative.spec import CodecName, GeneratorSpec
from rarescan.generative.tiles import can_be_cut, decode_in_slabs
from rarescan.generative.train import Plan, TrainingData, fit

_KL_WEIGHT = 1e-6
"""On the KL summed over a code, beside the mean absolute error (the public systems' balance)."""
_EDGE_WEIGHT = 0.1
_ADVERSARIAL_WEIGHT = 0.05
_ADVERSARIAL_FROM = 0.2
"""Share of the steps after which a discriminator joins in."""
_DISCRIMINATOR_WIDTH = 16
_LARGEST_BATCH = 4
_RECOMPUTED_FROM = 2**19
"""Voxels of a training image from which on activations are computed again for the gradient."""
_FINE_GRID = 2**20
"""Voxels from which on codes are decoded in slabs."""
_NETWORK, _ARGUMENTS = "network.", "arguments"


class KlAutoencoder(nn.Module):
    """AutoencoderKL with its loss and its discriminator, as something that the loop can train."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self._patch = spec.codec_patch
        self.network: Any = _first_network(spec)
        self.discriminator = seeded(spec, "codec discriminator", _discriminator)

    def players(self) -> list[Player]:
        """Return the autoencoder, and the discriminator that learns from what it made."""
        return [
            Player(name="autoencoder", parameters=list(self.network.parameters()), loss=self.loss),
            Player(
                name="discriminator",
                parameters=list(self.discriminator.parameters()),
                loss=self.discriminator_loss,
            ),
        ]

    def loss(self, batch: Batch) -> Tensor:
        """Return the error of values, edges and structure, the KL, and what gives it away."""
        images, places = self._cut(batch)
        mean, sigma, again = self._reconstructed(images, batch.normal)
        kl = 0.5 * (mean**2 + sigma**2 - 2 * sigma.clamp_min(1e-8).log() - 1).flatten(1).sum(1)
        # The KL of a patch, as if it were that of the whole image.
        total: Tensor = functional.l1_loss(again, images) + _KL_WEIGHT * places * kl.mean()
        total = total + _EDGE_WEIGHT * (edge_loss(again, images) + 1 - similarity(again, images))
        if _is_judged(batch):
            told = self.discriminator(again)[-1]
            total = total + _ADVERSARIAL_WEIGHT * (told - 1).square().mean()
        return total

    def discriminator_loss(self, batch: Batch) -> Tensor:
        """Return the squared error of telling images (1) from reconstructions (0)."""
        images, _ = self._cut(batch)
        if not _is_judged(batch):
            idle: Tensor = self.discriminator(images[:1])[-1].mean() * 0
            return idle
        with torch.no_grad():
            _, _, again = self._reconstructed(images, batch.normal)
        real, fake = self.discriminator(images)[-1], self.discriminator(again)[-1]
        told: Tensor = 0.5 * ((real - 1).square().mean() + fake.square().mean())
        return told

    def held_out_loss(self, images: Tensor, encoded: Tensor) -> float:
        """Return the mean absolute error of the reconstruction."""
        del encoded  # the codec knows no conditions
        with torch.no_grad():
            means = self.network.encode(images)[0]
            return float(functional.l1_loss(self.network.decode(means), images))

    def _cut(self, batch: Batch) -> tuple[Tensor, float]:
        """Return a cube of each image, at a random place, and how many fill an image."""
        images = batch.values
        edges = [min(self._patch, n) for n in images.shape[2:]] if self._patch else []
        if not edges or edges == list(images.shape[2:]):
            return images, 1.0
        random = torch.rand(len(images), 3, generator=_places(batch))
        cubes = []
        for image, shares in zip(images, random.tolist(), strict=True):
            free = [n - e for n, e in zip(image.shape[1:], edges, strict=True)]
            x, y, z = (round(share * n) for share, n in zip(shares, free, strict=True))
            cubes.append(image[:, x : x + edges[0], y : y + edges[1], z : z + edges[2]])
        return torch.stack(cubes), images[0, 0].numel() / prod(edges)

    def _reconstructed(
        self, images: Tensor, normal: Callable[..., Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and deviation of the codes, and the images of codes drawn from them."""
        if images[0, 0].numel() < _RECOMPUTED_FROM or not torch.is_grad_enabled():
            mean, sigma = self.network.encode(images)
            return mean, sigma, self.network.decode(mean + sigma * normal(*mean.shape))
        hidden = _recomputed(self.network.encoder.blocks, images)
        mean = self.network.quant_conv_mu(hidden)
        sigma = (self.network.quant_conv_log_sigma(hidden).clamp(-30, 20) / 2).exp()
        code = self.network.post_quant_conv(mean + sigma * normal(*mean.shape))
        return mean, sigma, _recomputed(self.network.decoder.blocks, code)


def _recomputed(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Return x through the blocks, keeping for the gradient only what lies between them."""
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    return x


def _is_judged(batch: Batch) -> bool:
    return batch.step >= _ADVERSARIAL_FROM * batch.n_steps


def _places(batch: Batch) -> torch.Generator:
    """Return the numbers that choose the cubes: the same for every player of a step."""
    return torch.Generator("cpu").manual_seed(batch.noise.initial_seed())


def _discriminator() -> nn.Module:
    from monai.networks.nets import PatchDiscriminator

    net: nn.Module = PatchDiscriminator(
        spatial_dims=3,
        channels=_DISCRIMINATOR_WIDTH,
        in_channels=CHANNELS,
        num_layers_d=2,
        norm="INSTANCE",
    )
    return net


def autoencoder_arguments(spec: GeneratorSpec) -> dict[str, Any]:
    """Return what MONAI's AutoencoderKL is built with: the spec's sizes, or the imported ones."""
    if spec.codec_weights:
        return _imported_arguments(Path(spec.codec_weights))
    channels = level_channels(spec)
    return {
        "spatial_dims": 3,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "channels": channels,
        "num_res_blocks": 1,
        "attention_levels": (False,) * len(channels),
        "latent_channels": spec.latent_channels,
        "norm_num_groups": 8,
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
    }


def _imported_arguments(folder: Path) -> dict[str, Any]:
    """Return an imported autoencoder's arguments, with our two channels."""
    from rarescan.generative.foreign import read_import

    about = read_import(folder)
    channels = about.arguments.get("in_channels", 1), about.arguments.get("out_channels", 1)
    if about.name != "AutoencoderKL" or about.arguments.get("spatial_dims") != 3:
        raise SettingError(
            f"codec_weights names a {about.name}, which the kl codec cannot start from.",
            remedy="Import an AutoencoderKL of three dimensions, or leave codec_weights empty.",
        )
    if channels not in ((1, 1), (CHANNELS, CHANNELS)):
        raise SettingError(
            f"The autoencoder of codec_weights takes {channels[0]} channels and gives "
            f"{channels[1]}.",
            remedy="Import one for images of one channel.",
        )
    return {**about.arguments, "in_channels": CHANNELS, "out_channels": CHANNELS}


def _first_network(spec: GeneratorSpec) -> Any:
    """Return the network that training starts from."""
    arguments = autoencoder_arguments(spec)
    network = seeded(spec, "codec", lambda: _build(arguments))
    if spec.codec_weights and next(network.parameters()).device.type != "meta":
        from rarescan.generative.foreign import load_network

        old = load_network(Path(spec.codec_weights)).state_dict()
        network.load_state_dict(
            {k: _widened(old[k], value.shape) for k, value in network.state_dict().items()}
        )
    return network


def _widened(weights: Tensor, shape: torch.Size) -> Tensor:
    """Return weights for one channel as weights for two: the second is neither seen nor made."""
    wide = torch.zeros(shape)
    wide[tuple(slice(n) for n in weights.shape)] = weights
    return wide


def _build(arguments: Mapping[str, Any]) -> Any:
    from rarescan.generative.definition import Definition

    return Definition(name="AutoencoderKL", arguments=dict(arguments)).build(
        torch.get_default_device().type
    )


class KlCodec:
    """A trained autoencoder; codes are posterior means, standardised channel by channel."""

    name: ClassVar[CodecName] = "kl"

    def __init__(
        self,
        arguments: Mapping[str, Any],
        grid_shape: tuple[int, ...],
        network: nn.Module,
        *,
        latents: Tensor | None = None,
    ) -> None:
        self.code_shape = _code_shape(arguments, grid_shape)
        self._arguments = arguments
        self._network: Any = network.eval().requires_grad_(False)
        self._in_slabs = prod(grid_shape) >= _FINE_GRID and can_be_cut(network)
        # Mean and standard deviation of each channel over the training persons.
        self._latents = _unit(self.code_shape[0]) if latents is None else latents

    @classmethod
    def fit(
        cls,
        images: Tensor,
        spec: GeneratorSpec,
        *,
        folder: Path,
        device: torch.device,
        plan: Plan | None = None,
    ) -> "KlCodec":
        """Train on images, shape (n, 2, x, y, z); continues from checkpoints in `folder`.

        The codec stays on `device`; it takes images and gives codes on the CPU. `plan` names the
        training and the second place for checkpoints.
        """
        grid_shape, arguments = tuple(images.shape[2:]), autoencoder_arguments(spec)
        _code_shape(arguments, grid_shape)
        n = len(images)
        data = TrainingData(values=images, encoded=torch.zeros(n, 0), classes=torch.zeros(n).long())
        plan = replace(
            plan or Plan.of(spec),
            steps=spec.codec_steps,
            batch_size=training_batch(spec),
            label_dropout=0.0,
            gpus=1,
        )
        model = KlAutoencoder(spec)
        fit(model, data, plan, folder=folder, device=device, what="train the kl codec")
        codec = cls(arguments, grid_shape, model.network)
        codec._latents = _moments(codec.encode(image[None]) for image in images)
        return codec

    @classmethod
    def restore(cls, grid_shape: tuple[int, ...], state: Mapping[str, Tensor]) -> "KlCodec":
        """Return the codec that `state` was taken from."""
        arguments = stored_arguments(state)
        network = _build(arguments)
        network.load_state_dict(
            {k.removeprefix(_NETWORK): v for k, v in state.items() if k.startswith(_NETWORK)}
        )
        return cls(arguments, grid_shape, network, latents=state["latents"])

    def encode(self, images: Tensor) -> Tensor:
        """Return posterior means, standardised."""
        with torch.no_grad():
            means = [
                self._network.encode(part.to(self._device))[0].cpu() for part in images[:, None]
            ]
        return (torch.cat(means) - self._per_channel(0)) / self._per_channel(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images of codes, each decoded by itself."""
        codes = codes.cpu() * self._per_channel(1) + self._per_channel(0)
        if self._in_slabs:
            return torch.cat([decode_in_slabs(self._network, code) for code in codes[:, None]])
        with torch.no_grad():
            parts = [self._network.decode(code.to(self._device)).cpu() for code in codes[:, None]]
        return torch.cat(parts)

    def state(self) -> dict[str, Tensor]:
        """Return the network's weights and definition, and the statistics of its codes."""
        text = json.dumps(self._arguments, sort_keys=True).encode()
        weights = {_NETWORK + name: value for name, value in self._network.state_dict().items()}
        arguments = torch.tensor(list(text), dtype=torch.uint8)
        return {**weights, "latents": self._latents, _ARGUMENTS: arguments}

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self._network.parameters()).device
        return device

    def _per_channel(self, row: int) -> Tensor:
        return self._latents[row].view(-1, 1, 1, 1)


def _unit(n_channels: int) -> Tensor:
    return torch.stack([torch.zeros(n_channels), torch.ones(n_channels)])


def _moments(codes: Iterable[Tensor]) -> Tensor:
    """Return mean and standard deviation of each channel, shape (2, channels)."""
    sums, n = torch.zeros((), dtype=torch.float64), 0
    for code in codes:
        flat = code[0].flatten(1).double()
        sums, n = sums + torch.stack([flat.sum(1), flat.square().sum(1)]), n + flat.shape[1]
    mean = sums[0] / n
    deviation = (sums[1] / n - mean.square()).clamp_min(1e-12).sqrt()
    return torch.stack([mean, deviation]).float()


def stored_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what the network of a stored codec (`KlCodec.state`) is built with."""
    arguments: dict[str, Any] = json.loads(bytes(state[_ARGUMENTS].tolist()))
    return arguments


def kl_code_shape(spec: GeneratorSpec, grid_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a code; raise where the grid does not divide."""
    return _code_shape(autoencoder_arguments(spec), grid_shape)


def training_batch(spec: GeneratorSpec) -> int:
    """Return how many images one training step sees."""
    return min(spec.batch_size, _LARGEST_BATCH)


def _code_shape(arguments: Mapping[str, Any], grid_shape: tuple[int, ...]) -> tuple[int, ...]:
    halvings = len(arguments["channels"]) - 1
    step = 2**halvings
    if any(edge % step for edge in grid_shape):
        raise SettingError(
            f"A grid of {' x '.join(map(str, grid_shape))} voxels cannot be halved {halvings} "
            "times, as this kl codec needs.",
            remedy="Set a smaller depth, or codec to pca.",
        )
    return (arguments["latent_channels"], *(edge // step for edge in grid_shape))
