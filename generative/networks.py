"""The networks of the families, built from MONAI's, for vector codes and for grid codes.

Vector codes (`pca`) get fully connected networks on the leading components; grid codes (`haar`,
`kl`) get convolutional ones. Everything is built with a seed of its own, and what corrects the
Gaussian floor ends in a layer of zeros, so that an untrained network is the floor. MONAI is
imported when a network is built: the baselines do without it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rarescan.errors import SettingError
from rarescan.generative.spec import GeneratorSpec
from rarescan.seeds import derive

_N_WAVES = 8
Module = TypeVar("Module", bound=nn.Module)


def seeded(spec: GeneratorSpec, name: str, build: Callable[[], Module]) -> Module:
    """Return `build()`, with initial weights that depend on the spec's seed and the name only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(spec.seed, "initial weights", name))
        return build()


def dense(spec: GeneratorSpec, n_in: int, n_out: int) -> nn.Module:
    """Return a fully connected network with the spec's hidden layers."""
    from monai.networks.nets import FullyConnectedNet

    net: nn.Module = FullyConnectedNet(n_in, n_out, [spec.width] * spec.depth, act="SWISH")
    return net


def unet(spec: GeneratorSpec, code_shape: tuple[int, ...], n_features: int) -> nn.Module:
    """Return a diffusion U-Net whose extra input channels are the encoded condition."""
    from monai.networks.nets import DiffusionModelUNet

    require_halving(spec, code_shape)
    net: nn.Module = DiffusionModelUNet(**unet_arguments(spec, code_shape, n_features))
    return net


def unet_arguments(
    spec: GeneratorSpec, code_shape: tuple[int, ...], n_features: int
) -> dict[str, Any]:
    """Return what MONAI's DiffusionModelUNet is built with."""
    channels = level_channels(spec)
    return {
        "spatial_dims": 3,
        "in_channels": code_shape[0] + n_features,
        "out_channels": code_shape[0],
        "num_res_blocks": 1,
        "channels": channels,
        "attention_levels": (*[False] * (len(channels) - 1), True),
        "norm_num_groups": 8 if spec.width % 16 else 16,
        "num_head_channels": min(64, spec.width),
        "resblock_updown": True,
        "use_flash_attention": True,
    }


def level_channels(spec: GeneratorSpec) -> tuple[int, ...]:
    """Return the channels of each resolution level: width, then twice the width."""
    return (spec.width, *[2 * spec.width] * (spec.depth - 1))


def require_halving(spec: GeneratorSpec, code_shape: tuple[int, ...]) -> None:
    """Raise where a grid code cannot be halved as often as the network needs."""
    step = 2 ** (spec.depth - 1)
    if any(edge % step for edge in code_shape[1:]):
        raise SettingError(
            f"A code of {' x '.join(map(str, code_shape[1:]))} positions cannot be halved "
            f"{spec.depth - 1} times, as depth {spec.depth} needs.",
            remedy="Set a smaller depth, levels to 1, or codec to pca.",
        )


def zero_last(network: Module) -> Module:
    """Set the last linear or convolution layer to zero and return the network."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    for parameter in layers[-1].parameters():
        nn.init.zeros_(parameter)
    return network


def with_condition(values: Tensor, encoded: Tensor) -> Tensor:
    """Append the encoded condition: as features of a vector, or as constant channels."""
    if values.ndim == 2:
        return torch.cat([values, encoded], dim=1)
    channels = encoded[:, :, None, None, None].expand(-1, -1, *values.shape[2:])
    return torch.cat([values, channels], dim=1)


def waves(times: Tensor) -> Tensor:
    """Return sin and cos of pi w t for w = 1 .. 8, shape (n, 16), of times, shape (n,)."""
    angles = torch.pi * times[:, None] * torch.arange(1, _N_WAVES + 1).to(times)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


N_TIME_FEATURES = 2 * _N_WAVES


def variational(spec: GeneratorSpec, shape: tuple[int, ...]) -> Any:
    """Return a variational autoencoder (MONAI's, with `encode_forward` and `decode_forward`)."""
    from monai.networks.nets import VarAutoEncoder, VarFullyConnectedNet

    if len(shape) == 1:
        hidden = [spec.width] * spec.depth
        return VarFullyConnectedNet(shape[0], shape[0], spec.latent, hidden, hidden, act="SWISH")
    require_halving(spec, shape)
    return VarAutoEncoder(
        spatial_dims=3,
        in_shape=shape,
        out_channels=shape[0],
        latent_size=spec.latent,
        channels=level_channels(spec) if spec.depth > 1 else (spec.width, spec.width),
        strides=(1, *[2] * (spec.depth - 1)) if spec.depth > 1 else (1, 1),
        use_sigmoid=False,
    )


def critic(spec: GeneratorSpec, code_shape: tuple[int, ...], n_features: int) -> nn.Module:
    """Return a convolutional network that gives a grid code and its condition one score."""
    from monai.networks.nets import Critic

    net: nn.Module = Critic(
        in_shape=(code_shape[0] + n_features, *code_shape[1:]),
        channels=(spec.width, 2 * spec.width),
        strides=(2, 2),
        num_res_units=0,
        act=("LEAKYRELU", {"negative_slope": 0.2}),
        norm=None,
        # MONAI's default of 0.25 draws from torch's global generator: no two runs were equal.
        dropout=None,
    )
    return net
