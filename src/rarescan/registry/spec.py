"""Settings of the registry."""

from dataclasses import dataclass
from typing import Any, ClassVar

from rarescan.settings import STRICT


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """Where runs and models are kept."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    tracking_uri: str = ""
    """An MLflow server or database; empty: `MLFLOW_TRACKING_URI`, else `<runs>/mlflow/`."""
    experiment: str = "rarescan"
    """The MLflow experiment in which runs appear."""
    model_name: str = "rarescan-generator"
    """The registered model; its alias `champion` names the version to generate from."""
