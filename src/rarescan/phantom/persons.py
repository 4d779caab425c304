"""What is true of each person: anatomy, disease and site, before any image exists.

`draw_person` is the way in. Anatomy, disease and acquisition have random streams of their own,
so the same person without the disease (the control twin) differs from the patient by the disease
alone: same folds, same scanner, same noise.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from rarescan.phantom.spec import PRESETS, PhantomConfig
from rarescan.seeds import derive, generator

REGIONS = (
    "frontal",
    "anterior_temporal",
    "insula",
    "parietal",
    "occipital",
    "posterior_temporal",
)
"""In the order in which their numbers are drawn."""
SIDES = ("left", "right")
AMPLITUDES = tuple(f"{region}_{side}" for region in REGIONS for side in SIDES)
SITE_NAMES = ("A", "B", "C", "D")

_MEAN_LATERALITY = 0.15
"""To the right: with none, flipping an image would be an exact symmetry of the population."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """The truth about one person."""

    index: int
    person_id: str
    diagnosis: str
    age_years: float
    sex: Literal["F", "M"]
    site: str
    severity: float
    """0 for controls; 1 is three standard deviations above the patients' mean."""
    laterality: float
    """Below 0 the disease prefers the left, above 0 the right."""
    subtype: float
    """0 temporal to 1 frontal."""
    atrophy: tuple[float, ...]
    """Units of atrophy (see `spec.Preset`) in the order of `AMPLITUDES`."""
    ventricles: float
    """Widening of the ventricles, share of local volume."""

    def as_row(self) -> dict[str, Any]:
        """Return plain values for a table, one column for each region and side."""
        row = {k: v for k, v in vars(self).items() if k != "atrophy"}
        return row | dict(zip((f"atrophy_{n}" for n in AMPLITUDES), self.atrophy, strict=True))


@dataclass(frozen=True, kw_only=True)
class Site:
    """One scanner's way of seeing."""

    grey: float
    white: float
    fluid: float
    blur_mm: float
    """Full width at half maximum."""
    noise: float
    """Standard deviation in each of the receiver's two channels; white matter is 0.87."""
    bias: float | None = None
    """Standard deviation of the logarithm of the coil's shading; the preset's without."""


def draw_person(
    config: PhantomConfig,
    index: int,
    *,
    severity: float | None = None,
    pattern: tuple[float, ...] | None = None,
) -> Person:
    """Return what is true of one person.

    Parameters
    ----------
    config : PhantomConfig
        The population.
    index : int
        0 to patients + controls - 1; larger ones are further controls.
    severity : float, optional
        Gives the person this severity instead of their own, 0 (the control twin) to 1, and
        leaves everything else, the diagnosis on paper too, as it is.
    pattern : tuple of float, optional
        Weight of each of `REGIONS` in the disease instead of the preset's own, which depend on
        the person's subtype.
    """
    preset = PRESETS[config.preset]
    rng = generator(config.seed, "phantom", index, "anatomy")
    age = float(np.clip(rng.normal(64, 8), 45, 82))
    decades = (age - 64) / 8
    sex: Literal["F", "M"] = "F" if rng.integers(2) else "M"
    shared = rng.normal(0, preset.everywhere)
    by_region = rng.normal(0, 0.8 * preset.regional, (len(REGIONS), 1))
    by_side = rng.normal(0, 0.6 * preset.regional, (len(REGIONS), 2))
    healthy = shared + by_region + by_side + preset.ageing * decades
    ventricles = 0.6 * decades + rng.normal(0, 0.6)

    patient = is_patient(config, index)
    own, laterality, subtype, disease = _disease(config, index, pattern)
    strength = (own if patient else 0.0) if severity is None else severity * preset.worst
    return Person(
        index=index,
        person_id=f"PH{index + 1:05d}",
        diagnosis=config.patient if patient else config.control,
        age_years=round(age, 1),
        sex=sex,
        site=SITE_NAMES[int(stream(config, index, "site").integers(preset.sites))],
        severity=float(min(strength / preset.worst, 1.0)),
        laterality=laterality,
        subtype=subtype,
        atrophy=tuple(float(v) for v in (healthy + strength * disease).ravel()),
        ventricles=float(0.35 * (ventricles + 0.5 * strength)),
    )


def _disease(
    config: PhantomConfig, index: int, pattern: tuple[float, ...] | None
) -> tuple[float, float, float, Any]:
    """Return severity, laterality, subtype and the regional pattern of unit severity."""
    preset = PRESETS[config.preset]
    rng = generator(config.seed, "phantom", index, "disease")
    mean, deviation, floor = preset.severity
    severity = float(np.clip(rng.normal(mean, deviation), floor, preset.worst))
    laterality = float(rng.normal(_MEAN_LATERALITY, preset.laterality))
    subtype = float(rng.uniform())
    own = (0.7 + 0.6 * subtype, 1.1 - 0.7 * subtype, 0.9, 0.15, 0.0, 0.25)
    weights = np.array(own if pattern is None else pattern)
    weights = weights * (1 + rng.normal(0, 0.2, len(REGIONS)))
    sides = np.maximum(0, [1 - laterality, 1 + laterality])
    return severity, laterality, subtype, weights[:, None] * sides


def stream(config: PhantomConfig, index: int, purpose: str) -> np.random.Generator:
    """Return the random numbers of one purpose of one person's acquisition."""
    return generator(config.seed, "phantom", index, "acquisition", purpose)


def is_patient(config: PhantomConfig, index: int) -> bool:
    """Say whether a person has the disease; patients are scattered among the controls."""
    return index in _patients(config)


@cache
def _patients(config: PhantomConfig) -> frozenset[int]:
    order = sorted(
        range(config.patients + config.controls),
        key=lambda index: derive(config.seed, "phantom", index, "diagnosis"),
    )
    return frozenset(order[: config.patients])


@cache
def draw_site(config: PhantomConfig, name: str) -> Site:
    """Return a scanner's brightness of the tissues, blur and noise."""
    preset = PRESETS[config.preset]
    rng = generator(config.seed, "phantom", "site", name)
    grey, white, fluid = np.array([0.65, 0.87, 0.25]) * (1 + rng.normal(0, preset.contrast, 3))
    return Site(
        grey=float(grey),
        white=float(white),
        fluid=float(fluid),
        blur_mm=float(rng.uniform(0, preset.widest_blur_mm)),
        noise=float(preset.noise * rng.uniform(0.6, 1.4)),
    )
