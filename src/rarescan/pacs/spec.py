"""Settings of the pacs room: pull, push. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at

from rarescan.settings import STRICT


@dataclass(frozen=True, kw_only=True)
class PushTarget:
    """A research archive that synthetic scans may be sent to."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    address: Annotated[str, at.MinLen(1)]
    """`https://host/dicom-web` (STOW-RS) or `dicom://AE_TITLE@host:port` (C-STORE)."""
    inside: bool = False
    """It belongs to the hospital that the persons behind the model belong to, so that batches
    which may not be released can go there."""


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Where synthetic scans may be sent, and nowhere else."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    targets: dict[str, PushTarget] = field(default_factory=dict)
    """Name of each archive -> its `address` (`https://host/dicom-web` or
    `dicom://AE_TITLE@host:port`), and `inside: true` where it belongs to the hospital itself and
    so may get batches that are not for release."""
    to: str = ""
    """Which of them a batch is sent to."""
    own_ae_title: Annotated[str, at.MinLen(1), at.MaxLen(16)] = "RARESCAN"
    """How we call ourselves to a DICOM archive."""


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """What is fetched from a PACS."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    address: str = ""
    """`https://host/dicom-web` (QIDO-RS and WADO-RS) or `dicom://AE_TITLE@host:port` (C-FIND, then
    C-GET or C-MOVE)."""
    retrieve: Literal["get", "move"] = "get"
    """How a `dicom://` archive sends: `get` over our own connection, `move` to our receiver."""
    own_ae_title: Annotated[str, at.MinLen(1), at.MaxLen(16)] = "RARESCAN"
    """How we call ourselves to a `dicom://` archive."""
    receive_host: str = "127.0.0.1"
    """Address of this machine at which `move` receives."""
    receive_port: Annotated[int, at.Ge(1), at.Le(65535)] = 11112
    """Port at which `move` receives."""
    from_date: str = ""
    """First day of the studies, YYYY-MM-DD."""
    to_date: str = ""
    """Last day of the studies, YYYY-MM-DD; empty: today."""
    persons: str = ""
    """CSV with a column `patient_id` or `accession`: only these are fetched. The file of
    `ingest.labels` will do."""
    modality: Annotated[str, at.MinLen(2), at.MaxLen(16)] = "MR"
    """Modality of the series."""
    description: str = "*"
    """Only series whose description looks like this; `*` stands for any text, `?` for any sign."""
    credentials_file: str = ""
    """File (mode 0600) with `name:password` or `Bearer ...` for DICOMweb. Empty: the environment
    variable RARESCAN_PULL_CREDENTIALS."""
    pause_seconds: Annotated[float, at.Ge(0), at.Le(60)] = 0.2
    """Rest between two studies, so that the archive can serve others."""
