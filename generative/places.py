"""Where each family stands against PCA + Gaussian, as measured: one small table.

`places.json` of `python benchmarks/generative FOLDER` holds the same keys, whenever it is measured
again; the advisor reads this table.
"""

from dataclasses import dataclass
from typing import Literal

from rarescan.generative.spec import Family

MEASURED_ON = "the easy phantom, 40 patients and 80 controls, 4 mm, pca codes"


@dataclass(frozen=True, kw_only=True)
class Place:
    """One family's distance to real persons, less the Gaussian's."""

    place: Literal["better", "no better", "worse"]
    """By a paired test at 5 %."""
    difference: float
    """Of squared RBF-MMD in the judge's features; negative is nearer to real persons."""
    se: float


PLACES: dict[Family, Place] = {
    "transfer": Place(place="no better", difference=0.0008, se=0.0086),
    "diffusion": Place(place="no better", difference=-0.0013, se=0.0077),
    "vae": Place(place="no better", difference=0.0024, se=0.0079),
    "gan": Place(place="no better", difference=-0.0009, se=0.0076),
}
"""600 samples a family against 93 held-out persons."""
