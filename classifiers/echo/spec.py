"""Settings of echocardiography: the network that finds the chambers, and what counts as normal.

Light: nothing numeric is imported here.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at

from rarescan.settings import STRICT

CHAMBERS = ("lv", "la")
"""Left ventricle and left atrium: the channels of the network."""
JUDGED = "judged.json"
Side = Annotated[int, at.Ge(32), at.Le(1024), at.MultipleOf(16)]


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """The network that finds ventricle and atrium, and how it is trained."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    size_px: Side = 112
    """Edge of the square that frames are brought to; EchoNet's films have 112."""
    channels: Annotated[tuple[int, ...], at.MinLen(2), at.MaxLen(5)] = (12, 24, 48, 96)
    """Channels of the U-Net after each halving."""
    phantoms: Annotated[int, at.Ge(0)] = 0
    """Invented hearts that are added to the traced films; they alone teach the atrium."""
    steps: Annotated[int, at.Ge(1)] = 800
    """Updates of the weights."""
    batch_size: Annotated[int, at.Ge(1)] = 4
    """Frames in one step; many small steps teach more than few large ones."""
    learning_rate: Annotated[float, at.Gt(0), at.Lt(1)] = 6e-3
    """Highest rate of the one-cycle schedule."""
    weight_decay: Annotated[float, at.Ge(0)] = 1e-4
    """Of AdamW."""
    augmentation: Annotated[float, at.Ge(0), at.Le(3)] = 1.0
    """Strength of turns, shifts, scalings and changes of gain; 0 leaves frames as they are."""
    seed: int = 0
    """First weights, order, augmentation."""


@dataclass(frozen=True, kw_only=True)
class FractionConfig:
    """What an ejection fraction is called; a name for a range, never advice."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    scheme: Literal["cuts", "ase2015"] = "cuts"
    """`cuts`: normal, greyzone and abnormal by the two limits below; `ase2015`: normal, mildly,
    moderately and severely abnormal by sex (Lang et al. 2015, table 4)."""
    normal_from: Annotated[float, at.Gt(0), at.Lt(100)] = 60.0
    """Percent; `cuts` only."""
    abnormal_below: Annotated[float, at.Gt(0), at.Lt(100)] = 40.0
    """Percent; `cuts` only."""

    def __post_init__(self) -> None:
        if self.abnormal_below > self.normal_from:
            raise ValueError("abnormal_below must not lie above normal_from")


@dataclass(frozen=True, kw_only=True)
class EchoConfig:
    """How echocardiograms are measured."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    table: str = "labels.csv"
    """A CSV in the source's folder that tells of each file what its header does not; one that is
    not there is not used."""
    columns: dict[str, str] = field(
        default_factory=lambda: {
            "file": "file",
            "person": "patient_or_source",
            "view": "view",
            "spacing_mm": "mm_per_px",
            "sex": "sex",
        }
    )
    """Our word -> the column of `table`; a column that is not there is not used."""
    key_file: str = ""
    """File with the pseudonym key. Empty: names in `FileList.csv` and `table` are pseudonyms
    already; DICOM files take the usual key."""
    address: str = ""
    """SQLAlchemy's address of the database that gets the results. Empty: the environment variable
    RARESCAN_ECHO, where a password is safer than here, else `echo.sqlite` beside the results."""
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    fraction: FractionConfig = field(default_factory=FractionConfig)
    fewest_frames: Annotated[int, at.Ge(2)] = 2
    """Clips with fewer frames are listed and not measured."""
