"""The room's settings: how a classifier is trained, and which arms are compared.

Light: nothing numeric is imported here.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at

from rarescan.settings import STRICT

Arm = Literal["real", "oversampled", "classical", "classical_synthetic", "placebo"]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """How one network is trained, whatever it is trained on."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    channels: Annotated[tuple[int, ...], at.MinLen(1)] = (8, 16, 32)
    """Channels after each halving of the image; the last is repeated until 4 voxels are left."""
    steps: Annotated[int, at.Ge(10)] = 200
    """Updates of the weights: the same in every arm, however many scans it has."""
    batch_size: Annotated[int, at.Ge(4)] = 16
    """Scans in one step."""
    learning_rate: Annotated[float, at.Gt(0), at.Lt(1)] = 1e-3
    """Highest rate of the one-cycle schedule."""
    weight_decay: Annotated[float, at.Ge(0)] = 1e-3
    """Of AdamW."""
    dropout: Annotated[float, at.Ge(0), at.Lt(1)] = 0.5
    """Before the last layer."""
    augmentation: Annotated[float, at.Ge(0), at.Le(3)] = 1.0
    """Strength of the classical augmentation where an arm uses it; 1 is the measured recipe."""
    seed: int = 0
    """First weights, order, augmentation, dropout."""


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Which ways of training are compared, and how often each is repeated."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    arms: Annotated[tuple[Arm, ...], at.MinLen(1)] = (
        "real",
        "oversampled",
        "classical",
        "classical_synthetic",
        "placebo",
    )
    """`real` as the cohort is; `oversampled` with both classes equally often; `classical` also
    augmented; `classical_synthetic` also with synthetic patients; `placebo` with controls called
    patients in their place, which must harm."""
    seeds: Annotated[int, at.Ge(1), at.Le(50)] = 3
    """Repeats of every arm; a person's scores are averaged over them."""
    synthetic_share: Annotated[float, at.Gt(0), at.Le(20)] = 1.0
    """Synthetic patients, as a multiple of what fills the rare class up to the controls (one for
    each real patient at least)."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
