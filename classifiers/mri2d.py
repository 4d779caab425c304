"""Three planes of a brain as three channels of one picture.

Nothing is mirrored: a brain is not its mirror image.
"""

from rarescan.classifiers.augment_planes import PlaneAugmentation
from rarescan.classifiers.contract import Modality
from rarescan.classifiers.planes import build, prepare

MODALITY = Modality(
    name="mri2d",
    unit="session",
    build=build,
    prepare=prepare,
    augment=PlaneAugmentation(
        turn_degrees=3, zoom=0.03, shift=0.03, gain=0.08, offset=0.016, noise_max=0.025
    ),
)
