"""Settings of scoring and selecting."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at

from rarescan.settings import STRICT

ExtractorKind = Literal[
    "inception",
    "medicalnet-10",
    "medicalnet-18",
    "medicalnet-34",
    "medicalnet-50",
    "radimagenet-resnet50",
    "radimagenet-inception",
    "torchscript-2d",
    "torchscript-3d",
    "onnx-2d",
    "onnx-3d",
]
_OWN_EXTRACTORS = ("domain-train", "regions", "pyramid", "scaled")


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """A network of others that looks at images beside our own; its file comes by path."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    """What its scores are called: small letters, digits, `-`, `_` and `.`."""
    kind: ExtractorKind
    """Whose network the file holds; `torchscript` and `onnx` files hold their own graph."""
    path: Annotated[str, at.MinLen(1)]
    """The file; nothing is ever downloaded."""
    sha256: Annotated[str, at.Len(64, 64)]
    """SHA-256 of the file, in hexadecimal; it must agree."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", self.name):
            raise ValueError(f"name is '{self.name}'; use small letters, digits, -, _ and .")
        if self.name in _OWN_EXTRACTORS:
            raise ValueError(f"name is '{self.name}', which is an extractor of our own")


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
    extractors: tuple[ExtractorConfig, ...] = ()
    """Networks of others that look at all images too, as `[{name, kind, path, sha256}, ...]`, to
    compare with papers and as further opinions; they never decide."""

    def __post_init__(self) -> None:
        names = [extractor.name for extractor in self.extractors]
        if len(set(names)) < len(names):
            raise ValueError("extractors has two entries of one name")


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """How the best candidate is chosen."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    alpha: Annotated[float, at.Gt(0), at.Lt(0.5)] = 0.05
    """Level of the tests that keep candidates in the selection set and replace a champion."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a report takes in beside the run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    feedback: str = ""
    """CSV of readers' ratings: scan_id, reader, real_or_synthetic, remark; empty: none."""
    batch: str = ""
    """The batch that the readers looked at; empty: the run's own."""


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """How new scans are held against those that the champion learned from."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    cohort: str = ""
    """The prepared cohort that `rarescan deploy` watches."""
    schedule: str = ""
    """When it looks, as a cron line ("0 6 * * 1"); empty: never."""
    alpha: Annotated[float, at.Gt(0), at.Lt(0.5)] = 0.05
    """Level of all tests for drift together (Holm)."""
    fewest_persons: Annotated[int, at.Ge(5)] = 10
    """New persons below which nothing is said of drift."""
    seed: int = 0
    """Permutations."""
