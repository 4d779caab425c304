"""T1-weighted MRI on the brain grid: a small 3D network with a flat head.

`MRI` is the way in: the modality's row for the training loop. The network halves the volume until
4 voxels an edge are left, so the same settings work at 8, 4, 2 and 1 mm; its flat head keeps
*where* something is.
"""

import torch

from rarescan.classifiers.augment import augment
from rarescan.classifiers.contract import ImageNetwork, Labels, Modality, Shape
from rarescan.classifiers.networks import build_network
from rarescan.classifiers.spec import ClassifierConfig


def build(shape: Shape, config: ClassifierConfig, labels: Labels) -> ImageNetwork:
    """Return an untrained network for volumes."""
    return build_network(shape, config, labels, n_channels=1)


def prepare(volumes: torch.Tensor) -> torch.Tensor:
    """Return stored values 0 to 1 as network input, shape (n, 1, x, y, z).

    Stored values are intensities relative to 1.6 times the brain's mean; the fixed map centres
    the brain and gives background -1.2.
    """
    return ((volumes * 1.6 - 0.6) / 0.5).unsqueeze(1)


MRI = Modality(name="mri", build=build, prepare=prepare, augment=augment)
