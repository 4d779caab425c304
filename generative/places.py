"""Where each family stands against PCA + Gaussian, as measured: one small table.

`read_places` is the way in. `places.json` beside this file is the one that
`python benchmarks/generative FOLDER` writes as `FOLDER/places.json`: to measure again is to copy
it here. Nothing else of the benchmark is read.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from rarescan.files import read_json
from rarescan.generative.spec import Family

_TABLE = Path(__file__).with_name("places.json")


@dataclass(frozen=True, kw_only=True)
class Place:
    """One family's distance to real persons, less the Gaussian's."""

    place: Literal["better", "no better", "worse"]
    """By a paired test at 5 %."""
    difference: float
    """Of squared RBF-MMD in the judge's features; negative is nearer to real persons."""
    se: float
    p: float
    """Two-sided."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """What was measured, and on whom."""

    population: str
    spacing_mm: float
    patients: int
    """Training persons."""
    controls: int
    held_out: int
    """Persons against whom the distances were measured."""
    families: dict[Family, Place]

    @property
    def measured_on(self) -> str:
        """Where the figures hold, in words."""
        return (
            f"{self.population}, {self.patients} patients and {self.controls} controls at "
            f"{self.spacing_mm:g} mm, {self.held_out} persons held out"
        )


@cache
def read_places() -> Places:
    """Return the table that is shipped with the code."""
    stored = read_json(_TABLE)
    about, families = stored["about"], stored["families"]
    return Places(
        **{k: about[k] for k in ("population", "spacing_mm", "patients", "controls", "held_out")},
        families={
            family: Place(**{k: found[k] for k in ("place", "difference", "se", "p")})
            for family, found in families.items()
        },
    )
