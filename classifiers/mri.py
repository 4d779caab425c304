"""T1-weighted MRI on the brain grid: a small 3D network with a flat head.

`MRI` is the way in: the modality's row for the training loop. Blocks of a strided convolution,
batch norm and ReLU halve the volume until 4 voxels an edge are left, so the same settings work
at 8, 4, 2 and 1 mm; the flat head keeps *where* something is.
"""

import math

import torch
from monai.networks.blocks import Convolution
from torch import nn

from rarescan.classifiers.augment import augment
from rarescan.classifiers.contract import ImageNetwork, Modality, Shape
from rarescan.classifiers.spec import ClassifierConfig

_SMALLEST_EDGE = 4


class FlatNetwork(ImageNetwork):
    """Strided convolutions, flatten, dropout, one logit."""

    def __init__(self, shape: Shape, config: ClassifierConfig) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        before, edges = 1, shape
        while not blocks or max(edges) > _SMALLEST_EDGE:
            after = config.channels[min(len(blocks), len(config.channels) - 1)]
            blocks.append(_block(before, after))
            before, edges = after, tuple((edge + 1) // 2 for edge in edges)
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(config.dropout)
        self.last = nn.Linear(before * math.prod(edges), 1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, flattened: shape (n, channels * x * y * z)."""
        features: torch.Tensor = self.blocks(images).flatten(1)
        return features

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of the positive diagnosis, shape (n,)."""
        logits: torch.Tensor = self.last(self.dropout(features)).squeeze(1)
        return logits


def _block(before: int, after: int) -> nn.Module:
    return Convolution(
        spatial_dims=3,
        in_channels=before,
        out_channels=after,
        kernel_size=3,
        strides=2,
        adn_ordering="NA",
        norm="batch",
        act="relu",
        bias=False,
    )


def prepare(volumes: torch.Tensor) -> torch.Tensor:
    """Return stored values 0 to 1 as network input, shape (n, 1, x, y, z).

    Stored values are intensities relative to 1.6 times the brain's mean; the fixed map centres
    the brain and gives background -1.2.
    """
    return ((volumes * 1.6 - 0.6) / 0.5).unsqueeze(1)


MRI = Modality(name="mri", build=FlatNetwork, prepare=prepare, augment=augment)
