"""The `kl` codec: MONAI's AutoencoderKL, trained by the one loop.

`KlCodec` is the way in. Worth its time only with hundreds of scans; what it loses, no prior can
bring back. Its edges must divide, because MONAI's network crops silently where they do not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rarescan.errors import SettingError
from rarescan.generative.anatomy import CHANNELS
from rarescan.generative.contract import Batch, Player
from rarescan.generative.networks import level_channels, seeded
from rarescan.generative.spec import CodecName, GeneratorSpec
from rarescan.generative.train import Plan, TrainingData, fit

_KL_WEIGHT = 1e-6
"""On the KL summed over a code, beside the mean absolute error (the public systems' balance)."""
_LARGEST_BATCH = 4


class KlAutoencoder(nn.Module):
    """AutoencoderKL with its loss, as something that the loop can train."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.network = seeded(spec, "codec", lambda: _build(spec))

    def players(self) -> list[Player]:
        """Return the whole autoencoder."""
        return [Player(name="autoencoder", parameters=list(self.parameters()), loss=self.loss)]

    def loss(self, batch: Batch) -> Tensor:
        """Return mean absolute error + weighted KL, on the images of a batch."""
        mean, sigma = self.network.encode(batch.values)
        sample = mean + sigma * batch.normal(*mean.shape)
        kl = 0.5 * (mean**2 + sigma**2 - 2 * sigma.clamp_min(1e-8).log() - 1).flatten(1).sum(1)
        error = functional.l1_loss(self.network.decode(sample), batch.values)
        total: Tensor = error + _KL_WEIGHT * kl.mean()
        return total

    def held_out_loss(self, images: Tensor, encoded: Tensor) -> float:
        """Return the mean absolute error of the reconstruction."""
        del encoded  # the codec knows no conditions
        with torch.no_grad():
            means = self.network.encode(images)[0]
            return float(functional.l1_loss(self.network.decode(means), images))


def _build(spec: GeneratorSpec) -> Any:
    from monai.networks.nets import AutoencoderKL

    channels = level_channels(spec)
    return AutoencoderKL(
        spatial_dims=3,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        channels=channels,
        num_res_blocks=1,
        attention_levels=[False] * len(channels),
        latent_channels=spec.latent_channels,
        norm_num_groups=8,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )


class KlCodec:
    """A trained autoencoder; codes are posterior means."""

    name: ClassVar[CodecName] = "kl"

    def __init__(
        self, spec: GeneratorSpec, grid_shape: tuple[int, ...], model: KlAutoencoder
    ) -> None:
        step = _step(spec, grid_shape)
        self.code_shape = (spec.latent_channels, *(edge // step for edge in grid_shape))
        self._model = model.eval().requires_grad_(False)

    @classmethod
    def fit(
        cls, images: Tensor, spec: GeneratorSpec, *, folder: Path, device: torch.device
    ) -> "KlCodec":
        """Train on images, shape (n, 2, x, y, z); continues from checkpoints in `folder`."""
        grid_shape = tuple(images.shape[2:])
        _step(spec, grid_shape)
        n = len(images)
        data = TrainingData(values=images, encoded=torch.zeros(n, 0), classes=torch.zeros(n).long())
        plan = Plan(
            steps=spec.codec_steps,
            batch_size=min(spec.batch_size, _LARGEST_BATCH),
            learning_rate=spec.learning_rate,
            ema_decay=spec.ema_decay,
            checkpoint_every=spec.checkpoint_every,
            seed=spec.seed,
        )
        model = KlAutoencoder(spec)
        fit(model, data, plan, folder=folder, device=device, what="train the kl codec")
        return cls(spec, grid_shape, model.cpu())

    @classmethod
    def restore(
        cls, spec: GeneratorSpec, grid_shape: tuple[int, ...], state: Mapping[str, Tensor]
    ) -> "KlCodec":
        """Return the codec that `state` was taken from."""
        model = KlAutoencoder(spec)
        model.load_state_dict(dict(state))
        return cls(spec, grid_shape, model)

    def encode(self, images: Tensor) -> Tensor:
        """Return posterior means."""
        mean: Tensor = self._model.network.encode(images)[0]
        return mean

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images of codes."""
        images: Tensor = self._model.network.decode(codes.cpu())
        return images

    def state(self) -> dict[str, Tensor]:
        """Return the network's weights."""
        return dict(self._model.state_dict())


def _step(spec: GeneratorSpec, grid_shape: tuple[int, ...]) -> int:
    """Return how many voxels along an edge become one position, where they divide."""
    step: int = 2 ** (spec.depth - 1)
    if any(edge % step for edge in grid_shape):
        raise SettingError(
            f"A grid of {' x '.join(map(str, grid_shape))} voxels cannot be halved "
            f"{spec.depth - 1} times, as a kl codec of depth {spec.depth} needs.",
            remedy="Set a smaller depth, or codec to pca.",
        )
    return step
