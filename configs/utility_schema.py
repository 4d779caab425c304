"""The settings of `rarescan bench utility`: questions, arms, draws, and what knowledge is used.

`UtilityConfig` is the section `utility` of the configuration. The batch that an arm names
(`strong+vae`) is made by the candidate of that name below `train`, or as `knowledge` and `fill`
say here.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at

from rarescan.classifiers.arm_table import arm_spec
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.generative.spec import FillConfig, KnowledgeConfig
from rarescan.settings import STRICT


@dataclass(frozen=True, kw_only=True)
class KnownConfig:
    """A batch made from outside knowledge, and how good that knowledge is."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    study_persons: Annotated[int, at.Ge(10)] = 100
    """Of the invented study whose map is used; none of them is in the draw."""
    likeness: Annotated[float, at.Ge(0), at.Le(1)] = 1.0
    """1: the study is of the draw's disease; less: of one whose regional pattern correlates."""
    how: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    """Its `pattern` is the study's map, whatever stands there."""


@dataclass(frozen=True, kw_only=True)
class AskedConfig:
    """One question: which draws, with how many patients, which arms."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    question: Literal["few", "scanner", "confounded", "age", "none"] = "few"
    """See `phantom.questions`."""
    patients: Annotated[tuple[Annotated[int, at.Ge(4)], ...], at.MinLen(1)] = (12,)
    """Training patients; smaller numbers are the first of the largest."""
    arms: Annotated[tuple[str, ...], at.MinLen(1)] = ("real", "classical", "oracle")
    """Names of `classifiers.arm_table`."""

    def __post_init__(self) -> None:
        for arm in self.arms:
            arm_spec(arm)

    @property
    def batches(self) -> tuple[str, ...]:
        """Names of the batches that its arms need."""
        found = dict.fromkeys(
            spec.batch for spec in map(arm_spec, self.arms) if spec.kind == "generative"
        )
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class UtilityConfig:
    """Where do synthetic persons help: invented cohorts, drawn anew many times."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    questions: dict[str, AskedConfig] = field(default_factory=dict)
    """By name; what follows a dot does not count for the results (`few.curve` is `few`)."""
    knowledge: dict[str, KnownConfig] = field(default_factory=dict)
    """Batches made from a published map, by the name that arms give them."""
    fill: dict[str, FillConfig] = field(default_factory=dict)
    """Batches of training persons at other sites or ages, by the name that arms give them."""
    tuning_draws: Annotated[int, at.Ge(0), at.Le(100)] = 4
    """Draws 0, 1, ... choose the free arm to beat and the generative arm that is judged."""
    judged_draws: Annotated[int, at.Ge(3), at.Le(1000)] = 12
    """How many draws judge; nothing else may look at them."""
    first_judged: Annotated[int, at.Ge(100)] = 100
    """Number of the first of them. Take others once these have been looked at."""
    controls: Annotated[int, at.Ge(20), at.Le(500)] = 120
    """Training controls of a draw."""
    oracle_patients: Annotated[int, at.Ge(4), at.Le(500)] = 120
    """Training patients of the oracle in `few`."""
    test: Annotated[int, at.Ge(20), at.Le(1000)] = 400
    """Test persons of a draw, half of them patients."""
    spacing_mm: Literal[4, 8] = 8
    """Edge of a voxel."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """How every arm is trained."""

    @property
    def draws(self) -> tuple[int, ...]:
        """Numbers of all draws, those that choose first."""
        return (
            *range(self.tuning_draws),
            *range(self.first_judged, self.first_judged + self.judged_draws),
        )
