"""Lung ultrasound: frames of clips and published stills, COVID-19 / pneumonia / regular.

"regular" means neither of the two, not healthy. Up stays up; left and right may be exchanged,
because a probe is turned as often as not.
"""

from rarescan.classifiers.augment_planes import PlaneAugmentation
from rarescan.classifiers.contract import Modality
from rarescan.classifiers.planes import build, prepare

MODALITY = Modality(
    name="ultrasound",
    build=build,
    prepare=prepare,
    augment=PlaneAugmentation(
        turn_degrees=6, zoom=0.08, shift=0.06, mirror=True, gain=0.15, offset=0.02, noise_max=0.04
    ),
    classes=("covid", "pneumonia", "regular"),
    top=3,
)
