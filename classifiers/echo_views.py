"""Echocardiography: which view a clip shows.

The side of the picture on which the left ventricle lies is part of the view, so nothing is
mirrored.
"""

from rarescan.classifiers.augment_planes import PlaneAugmentation
from rarescan.classifiers.contract import Modality
from rarescan.classifiers.planes import build, prepare

MODALITY = Modality(
    name="echo_views",
    build=build,
    prepare=prepare,
    augment=PlaneAugmentation(
        turn_degrees=6, zoom=0.08, shift=0.06, gain=0.15, offset=0.02, noise_max=0.04
    ),
    top=3,
)
