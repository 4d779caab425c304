"""Mammography: whole films or patches, normal / benign / malignant.

Every film shows its breast on the same side (the preparation mirrors the others), so nothing is
mirrored here. At 256 pixels microcalcifications are gone: nothing near the literature's figures
can be expected of such films.
"""

from rarescan.classifiers.augment_planes import PlaneAugmentation
from rarescan.classifiers.contract import Modality
from rarescan.classifiers.planes import build, prepare

MODALITY = Modality(
    name="mammography",
    build=build,
    prepare=prepare,
    augment=PlaneAugmentation(
        turn_degrees=5, zoom=0.06, shift=0.04, gain=0.1, offset=0.02, noise_max=0.02
    ),
    classes=("normal", "benign", "malignant"),
)
