"""Weights set to zero, and the network trained on so that it does not miss them.

`prune` is the way in. The zeros are part of the weights while it trains: a step cannot undo
them. What the reader would get wrong: zeros make a file no smaller and a CPU no faster. They
compress well when a model is sent, and 2:4 speeds up GPUs since Ampere (Mishra et al. 2021,
arXiv 2104.08378).
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

Pattern = Literal["magnitude", "two_of_four"]
_PRUNED = (nn.Conv2d, nn.Conv3d, nn.Linear)


class _Kept(nn.Module):
    """Multiplies a weight by its mask, wherever the weight is used."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


def magnitude_mask(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Return 0 for the `share` of a layer's weights that are nearest to zero, else 1.

    Each layer loses the same share: a common threshold can empty a layer.
    """
    n_zero = int(share * weight.numel())
    order = weight.detach().abs().flatten().argsort(stable=True)
    mask = torch.ones(weight.numel(), dtype=weight.dtype, device=weight.device)
    mask[order[:n_zero]] = 0
    return mask.reshape(weight.shape)


def two_of_four_mask(weight: torch.Tensor) -> torch.Tensor:
    """Return 1 for the two largest of every four weights along the input channels, else 0.

    Parameters
    ----------
    weight : tensor, shape (out, in, ...)
        `in` divisible by 4.
    """
    groups = weight.detach().abs().movedim(1, -1).unflatten(-1, (-1, 4))  # type: ignore[no-untyped-call]
    kept = groups.argsort(dim=-1, descending=True, stable=True)[..., :2]
    mask = torch.zeros_like(groups).scatter_(-1, kept, 1.0)
    return mask.flatten(-2).movedim(-1, 1).contiguous()


def prune(
    network: nn.Module,
    pattern: Pattern,
    retrain: Callable[[nn.Module], nn.Module],
    *,
    share: float = 0.5,
) -> nn.Module:
    """Return a copy of a network with zeros among its weights, trained on.

    Parameters
    ----------
    network : module
        Trained; it is left as it is.
    pattern : {"magnitude", "two_of_four"}
        The smallest weights of each layer, or two of every four input channels (layers whose
        channels are no multiple of four stay whole).
    retrain : callable
        Trains the module that it is given and returns it, or one with the same layers. Whatever
        it does, the weights stay zero.
    share : float
        Of each layer's weights with `magnitude`, 0 to 1.

    Raises
    ------
    ValueError
        What `retrain` returned does not have the zeros: it trained something else.
    """
    masked = deepcopy(network)
    masks = {}
    for name, layer in layers(masked, pattern):
        weight = layer.get_parameter("weight")
        mask = magnitude_mask(weight, share) if pattern == "magnitude" else two_of_four_mask(weight)
        parametrize.register_parametrization(layer, "weight", _Kept(mask))
        masks[name] = mask.bool()
    trained = retrain(masked)
    for name, mask in masks.items():
        _bake(trained.get_submodule(name), mask)
    return trained


def _bake(layer: nn.Module, mask: torch.Tensor) -> None:
    """Write the zeros into the weight itself."""
    if parametrize.is_parametrized(layer, "weight"):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    weight = layer.get_parameter("weight")
    if weight.shape != mask.shape or bool(weight.detach()[~mask.to(weight.device)].any()):
        raise ValueError("the retrained network has weights where the pruned one had zeros")


def layers(network: nn.Module, pattern: Pattern) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that a pattern applies to, with their names."""
    for name, layer in network.named_modules():
        if not isinstance(layer, _PRUNED):
            continue
        divisible = layer.weight.shape[1] % 4 == 0
        if pattern == "magnitude" or divisible:
            yield name, layer


def zero_share(network: nn.Module) -> float:
    """Return the share of zeros among the weights of all convolutions and linear layers."""
    weights: list[torch.Tensor] = [layer.weight for _, layer in layers(network, "magnitude")]  # type: ignore[misc]
    total = sum(w.numel() for w in weights)
    return sum(int((w == 0).sum()) for w in weights) / max(total, 1)
