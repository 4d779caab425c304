"""What the modalities of pictures share: their input and the network that reads it.

`build` and `prepare` stand in the rows of `ultrasound`, `echo_views`, `mammography` and `mri2d`.
"""

import torch

from rarescan.classifiers.augment_planes import PlaneAugmentation
from rarescan.classifiers.contract import ImageNetwork, Labels, Modality, Shape
from rarescan.classifiers.networks import build_network
from rarescan.classifiers.spec import ClassifierConfig

_CENTRE, _SPREAD = 0.25, 0.25


def build(shape: Shape, config: ClassifierConfig, labels: Labels) -> ImageNetwork:
    """Return an untrained network for pictures of shape (rows, columns, planes)."""
    *edges, n_planes = shape
    return build_network(tuple(edges), config, labels, n_channels=n_planes)


def prepare(pictures: torch.Tensor) -> torch.Tensor:
    """Return stored values 0 to 1 as network input, shape (n, planes, rows, columns).

    One fixed map for all pictures: background -1, mean of a usual picture near 0.
    """
    return (pictures.permute(0, 3, 1, 2) - _CENTRE) / _SPREAD


PICTURES = Modality(
    name="pictures",
    build=build,
    prepare=prepare,
    augment=PlaneAugmentation(
        turn_degrees=4, zoom=0.05, shift=0.04, gain=0.1, offset=0.02, noise_max=0.02
    ),
)
"""Pictures of any other kind."""
