"""Settings of the imaging room: ingest, adopt, prepare. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at

from rarescan.settings import STRICT

Declared = Literal["stripped", "template_space", "bias_corrected"]


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How a PACS export becomes a cohort."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    labels: str = ""
    """CSV with `patient_id` or `accession`, `diagnosis` and, where known, `age_years`, `sex`,
    `site`. Empty: every person is of the diagnosis `unknown`."""
    key_file: str = ""
    """File with the pseudonym key. Empty: the environment variable RARESCAN_KEY (64 hexadecimal
    digits), else ~/.config/rarescan/pseudonym.key."""
    accept_review: bool = False
    """Take scans that look like T1 but that a person should confirm (score 45 to 64)."""
    confirmed_scans: str = ""
    """Filled form of `rarescan review`: which scans of the list are T1 (`stack_id`, `confirmed`
    yes or no)."""
    confirmed_persons: str = ""
    """Filled form of `rarescan review`: which pseudonyms are one person (`person_id`, `other`,
    `same` yes or no)."""
    allow_gadolinium: bool = False
    """Take scans with contrast agent."""
    allow_lossy: bool = False
    """Take scans that were compressed with loss."""
    fewest_age_years: Annotated[int, at.Ge(0), at.Le(120)] = 18
    """Younger persons are left out."""
    licence: str = ""
    """Under which terms the scans may be used; written beside every scan."""
    name: str = "MRI cohort"
    """Name of the data set, as it stands in `dataset_description.json`."""


@dataclass(frozen=True, kw_only=True)
class AdoptConfig:
    """How NIfTI files that are already there become a cohort."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    table: str = ""
    """CSV or TSV with one row a scan, relative to the source folder or absolute. Not used for a
    BIDS dataset, whose `participants.tsv` is the table."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column -> the table's, for `file`, `person`, `diagnosis`, `session`, `age_years`,
    `sex`, `site`, `licence`. Columns that are not named here keep our names."""
    where: dict[str, str] = field(default_factory=dict)
    """Column of the table -> the value that a row must have to be taken."""
    already: tuple[Declared, ...] = ()
    """What was done to these scans before, and what `prepare` therefore skips."""
    key_file: str = ""
    """File with the pseudonym key. Empty: the persons' names in the table are pseudonyms
    already, and are kept."""
    licence: str = ""
    """Under which terms the scans may be used, where the table has no such column."""
    name: str = "MRI cohort"
    """Name of the data set, as it stands in `dataset_description.json`."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How a scan is brought to the template grid."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    spacing_mm: Annotated[float, at.Ge(1), at.Le(8)] = 1.0
    """Edge of one cubic voxel, in millimetres: 1, 2, 4 or 8."""
    registration_starts: Literal[1, 27] = 27
    """Rotations that the registration starts from; 1 is enough for heads within 15 degrees."""
    bias_correction: Literal["none", "coarse", "full"] = "full"
    """Effort of the N4 bias field correction."""
    strip: Literal["auto", "deepbet", "template", "command"] = "auto"
    """How the brain is found; `auto` takes `strip_command` where there is one, then deepbet where
    it is installed, then the template's own mask."""
    strip_command: tuple[str, ...] = ()
    """A program and its arguments, run once a scan without a shell. `{in}` becomes the head's
    NIfTI file, `{out}` the NIfTI file that it must write: what is above 0 there is brain."""
    strip_minutes: Annotated[float, at.Gt(0), at.Le(600)] = 30.0
    """The longest that `strip_command` may take for one scan."""

    def __post_init__(self) -> None:
        if self.spacing_mm not in (1, 2, 4, 8):
            raise ValueError(f"spacing_mm is {self.spacing_mm:g}; it must be 1, 2, 4 or 8")
        words = " ".join(self.strip_command)
        named = "{in}" in words and "{out}" in words
        if not named and (self.strip_command or self.strip == "command"):
            raise ValueError("strip_command must name a program, {in} and {out}")


Region = Literal["all", "sector", "object"]


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """How pictures and clips (ultrasound, films, slices) become a cohort."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    layout: Literal["table", "dicom", "cbis", "mias"] = "table"
    """`table`: a CSV with a row a file, as `table` and `columns` say; `dicom`: DICOM files, told
    apart by their headers; `cbis`: CBIS-DDSM as JPEG; `mias`: mini-MIAS (`Info.txt` and films)."""
    table: str = ""
    """The CSV or TSV, relative to the source folder or absolute. For `dicom` a CSV with
    `patient_id` or `accession`, `diagnosis` and, where known, `age_years`, `sex`, `site`; for
    `mias` the file of its text table."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column -> the table's, for `file`, `person`, `label`, `diagnosis`, `item`, `plane`,
    `source`, `site`, `licence`, `probe`, `age_years`, `sex`, `severity`, `box`. Columns that are
    not named here keep our names; `file` and `person` must be there. An `item` is the clip, film
    or visit that a row belongs to: without the column, every file is its own. A `box` is the part
    that is taken: first row, last row, first column, last column, as shares of the picture."""
    keep: dict[str, str] = field(default_factory=dict)
    """Column of the table -> the value that a row must have to be taken."""
    labels: tuple[str, ...] = ()
    """The labels in order, the worst last. A row with another word is an error."""
    diagnoses: tuple[str, ...] = ()
    """The diagnoses in order, the worst last, where the table has a column `diagnosis` beside the
    label; otherwise the label is the diagnosis. A person has the worst of the own ones."""
    words: dict[str, str] = field(default_factory=dict)
    """The table's word -> our label or diagnosis; words not named here are kept."""
    metadata: tuple[str, ...] = ()
    """Further columns of numbers that are kept beside each scan, for baselines without pictures."""
    modality: Annotated[str, at.Predicate(str.isalnum)] = "OT"
    """What the pictures are, letters and digits: `US` lung ultrasound, `ECHO` heart ultrasound,
    `MG` mammography, `MR2D` slices of brains, or a word of your own."""
    origin: Literal["real", "phantom"] = "real"
    """Whether the pictures show persons."""
    unit: Literal["frame", "film"] = "frame"
    """`frame`: a picture out of a clip or stack; `film`: a picture by itself."""
    frames_per_clip: Annotated[int, at.Ge(1), at.Le(1000)] = 6
    """Evenly spaced frames taken of a clip; a shorter clip gives all of its frames."""
    show: Region = "all"
    """What is kept; the rest becomes black. `sector`: the fan or box that an ultrasound probe
    sees; `object`: the one bright thing on dark ground (breast, brain). Text and marks go."""
    key_file: str = ""
    """File with the pseudonym key. Empty: the persons' names in the table are pseudonyms already,
    and are kept; `dicom` then takes RARESCAN_KEY or ~/.config/rarescan/pseudonym.key."""
    licence: str = ""
    """Under which terms the pictures may be used, where the table has no such column."""
    name: str = "Pictures"
    """Name of the data set, as it stands in `dataset_description.json`."""


@dataclass(frozen=True, kw_only=True)
class PlanesConfig:
    """How pictures are brought to one grid."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    rows: Annotated[int, at.Ge(8), at.Le(4096)] = 64
    """Pixels from top to bottom."""
    columns: Annotated[int, at.Ge(8), at.Le(4096)] = 64
    """Pixels from left to right."""
    planes: tuple[str, ...] = ()
    """Planes that make one scan of a person's visit, in order, by the table's column `plane`.
    Empty: every picture is a scan."""
    crop: Literal["none", "content"] = "content"
    """`content`: the black margin is cut off first."""
    aspect: Literal["keep", "ignore"] = "keep"
    """`keep`: black is added at the sides until the picture fits; `ignore`: it is stretched."""
    mirror: Literal["none", "left"] = "none"
    """`left`: pictures are mirrored so that the broad side (the chest wall) is on the left."""
