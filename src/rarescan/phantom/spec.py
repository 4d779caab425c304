"""Settings of the phantom, and the two populations that it can draw.

`PhantomConfig` is what a user sets; `PRESETS` holds the population parameters. `easy` is told
apart almost perfectly by a small network, `hard` is calibrated so that more patients help.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at

from rarescan.settings import STRICT


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """Which invented persons are written."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    preset: Literal["easy", "hard"] = "easy"
    """How different patients are from controls, and scanners from each other."""
    patients: Annotated[int, at.Ge(0), at.Le(5000)] = 60
    """Persons with the disease."""
    controls: Annotated[int, at.Ge(0), at.Le(5000)] = 120
    """Persons without it."""
    patient: Annotated[str, at.MinLen(1)] = "bvFTD"
    """Diagnosis of the patients."""
    control: Annotated[str, at.MinLen(1)] = "control"
    """Diagnosis of the others."""
    voxel_mm: Annotated[float, at.Ge(0.8), at.Le(1.6)] = 1.5
    """Largest edge of a T1 voxel in the export; the T1 score asks for 1.6 mm or less."""
    faults: bool = True
    """Add what real exports hold too: a lost slice, a person without T1, a QA study, strays."""
    seed: Annotated[int, at.Ge(0)] = 1
    """Who the persons are; the exercise's pseudonym key follows from it too."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One population.

    A unit of atrophy is 10 % of local volume at the core of a region (6 to 8 % in its mean) and
    0.55 in the log-odds of fluid.
    """

    severity: tuple[float, float, float]
    """Mean, standard deviation and floor, units of atrophy."""
    regional: float
    """Standard deviation of everybody's regional atrophy."""
    everywhere: float
    """Standard deviation of the part that all regions share."""
    ageing: float
    """Units of atrophy in 8 years."""
    laterality: float
    """Standard deviation of the side that the disease prefers."""
    deformation_mm: tuple[float, float, float]
    """Size of the random velocity with nodes every 72, 36 and 18 mm."""
    bias: float
    """Standard deviation of the logarithm of the coil's shading."""
    noise: float
    """Standard deviation of the receiver's noise; white matter is 0.87."""
    residual: tuple[float, float, float]
    """What registration leaves: translation mm, rotation rad, scale; standard deviations."""
    sites: int
    contrast: float
    """Standard deviation of a site's tissue brightness, relative; half of it for a person."""
    widest_blur_mm: float
    """Largest full width at half maximum of a site's blur."""

    @property
    def worst(self) -> float:
        """The severity that counts as 1: three standard deviations above the mean."""
        return self.severity[0] + 3 * self.severity[1]


PRESETS: dict[str, Preset] = {
    "easy": Preset(
        severity=(2.8, 0.4, 1.8),
        regional=0.4,
        everywhere=0.3,
        ageing=0.35,
        laterality=0.3,
        deformation_mm=(2.0, 1.0, 0.4),
        bias=0.05,
        noise=0.02,
        residual=(1.0, 0.010, 0.010),
        sites=3,
        contrast=0.015,
        widest_blur_mm=2.0,
    ),
    "hard": Preset(
        severity=(1.6, 0.6, 0.3),
        regional=0.8,
        everywhere=0.4,
        ageing=0.45,
        laterality=0.6,
        deformation_mm=(2.5, 1.2, 0.5),
        bias=0.10,
        noise=0.04,
        residual=(1.5, 0.020, 0.015),
        sites=4,
        contrast=0.03,
        widest_blur_mm=5.0,
    ),
}
