"""Settings of scoring and selecting."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import annotated_types as at

from rarescan.settings import STRICT


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How candidates are scored."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    n_synthetic: Annotated[int, at.Ge(2)] = 200
    """Synthetic scans drawn from each candidate; 1000 or more separate close candidates."""
    seed: int = 0
    """Draws of equal size for FID, half samples, canaries."""
    fewest_persons: Annotated[int, at.Ge(2)] = 20
    """Real validation persons below which no gate can pass."""
    copy_shift_mm: Annotated[float, at.Ge(0), at.Le(20)] = 8.0
    """How far a copy may be shifted along each axis and still be found."""
    canary_persons: Annotated[int, at.Ge(1)] = 60
    """Training persons whose planted copies prove in each run that copies would be found."""
    inception_weights: str = ""
    """File with the TF-FID Inception-v3 weights, to compare with papers; empty: not used."""
    inception_sha256: str = ""
    """SHA-256 of that file, in hexadecimal; it must agree."""


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """How the best candidate is chosen."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    alpha: Annotated[float, at.Gt(0), at.Lt(0.5)] = 0.05
    """Level of the tests that keep candidates in the selection set and replace a champion."""
