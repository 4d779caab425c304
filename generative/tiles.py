"""Decode a large code in slabs, with the result of decoding it whole.

`decode_in_slabs` is the way in. A network cut into overlapping tiles shows seams, because group
normalisation takes its mean and variance over the whole image. Here every layer is computed slab
by slab along the first axis: convolutions see one position more on either side, and statistics
are those of the whole image. Only a slab is on the device at a time; what lies between two layers
is in the machine's memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_HALO = 1
"""Positions that a convolution of 3 x 3 x 3 sees beyond its own."""


def decode_in_slabs(network: Any, code: Tensor, *, slab: int = 16) -> Tensor:
    """Return what `network.decode(code)` returns, to rounding.

    Parameters
    ----------
    network : MONAI AutoencoderKL without attention, in evaluation mode
        On the device where slabs are computed.
    code : float32 tensor, shape (1, channels, x, y, z)
    slab : int
        Positions of a slab along x, before each layer.

    Returns
    -------
    float32 tensor, on the CPU
    """
    device = next(network.parameters()).device
    slabs = _Slabs(device=device, size=slab)
    with torch.no_grad():
        x: Tensor = network.post_quant_conv(code.to(device)).cpu()
        for block in network.decoder.blocks:
            x = _through(block, x, slabs)
    return x


def can_be_cut(network: Any) -> bool:
    """Return whether every layer of the decoder is one that slabs can go through."""
    blocks = getattr(getattr(network, "decoder", None), "blocks", [])
    known = {"AEKLResBlock", "Convolution", "GroupNorm", "UpSample"}
    return bool(len(blocks)) and {type(block).__name__ for block in blocks} <= known


@dataclass(frozen=True, kw_only=True)
class _Slabs:
    """How tensors on the CPU are taken through a layer on the device."""

    device: torch.device
    size: int

    def apply(self, layer: Callable[[Tensor], Tensor], x: Tensor, *, scale: int = 1) -> Tensor:
        """Return `layer(x)` of a layer that sees one position beyond and enlarges by `scale`."""
        parts = []
        for first, last in self.ranges(x):
            low, high = max(first - _HALO, 0), min(last + _HALO, x.shape[2])
            made = layer(x[:, :, low:high].to(self.device))
            parts.append(made[:, :, scale * (first - low) : scale * (last - low)].cpu())
        return torch.cat(parts, dim=2)

    def ranges(self, x: Tensor) -> Iterator[tuple[int, int]]:
        for first in range(0, x.shape[2], self.size):
            yield first, min(first + self.size, x.shape[2])


def _through(block: nn.Module, x: Tensor, slabs: _Slabs) -> Tensor:
    """Return a block's output."""
    name, parts = type(block).__name__, dict(block.named_children())
    if name == "AEKLResBlock":
        first, second = _normalised(parts["norm1"], x, slabs), parts["conv1"]
        h = slabs.apply(lambda part: second(functional.silu(first(part))), x)
        again, last = _normalised(parts["norm2"], h, slabs), parts["conv2"]
        h = slabs.apply(lambda part: last(functional.silu(again(part))), h)
        return h.add_(slabs.apply(parts["nin_shortcut"], x))
    if name == "GroupNorm":
        return slabs.apply(_normalised(block, x, slabs), x)
    return slabs.apply(block, x, scale=2 if name == "UpSample" else 1)


def _normalised(norm: Any, x: Tensor, slabs: _Slabs) -> Callable[[Tensor], Tensor]:
    """Return the normalisation by the statistics of the whole of x, as a function of a slab."""
    groups: int = norm.num_groups
    total = torch.zeros(2, len(x), groups, dtype=torch.float64)
    for first, last in slabs.ranges(x):
        part = x[:, :, first:last].to(slabs.device).reshape(len(x), groups, -1)
        moments = part.sum(2, dtype=torch.float64), part.double().square().sum(2)
        total += torch.stack(moments).cpu()
    mean, square = total / (x[0].numel() // groups)
    scale = (square - mean.square() + norm.eps).rsqrt()
    each = x.shape[1] // groups
    centre, gain = (v.float().repeat_interleave(each, 1).to(slabs.device) for v in (mean, scale))
    ones = [1, 1, 1]

    def normalise(part: Tensor) -> Tensor:
        gains = (gain * norm.weight).view(*gain.shape, *ones)
        made: Tensor = (part - centre.view(*centre.shape, *ones)) * gains
        made = made + norm.bias.view(1, -1, *ones)
        return made

    return normalise
