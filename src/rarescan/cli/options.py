"""What the verbs share: their folders, their options, and how options become settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rarescan.configs.schema import RunConfig, load_config

Config = Annotated[
    str, typer.Option("--config", "-c", help="Settings: a YAML file or a preset's name.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Set any key: --set prepare.spacing_mm=4")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace results made with other settings.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Processes at the same time (workers).")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda (device).")]
Export = Annotated[Path, typer.Argument(help="What the PACS gave: a folder or an archive.")]
CohortIn = Annotated[Path, typer.Argument(help="A cohort written by `rarescan ingest`.")]
Prepared = Annotated[Path, typer.Argument(help="A cohort written by `rarescan prepare`.")]
Models = Annotated[Path, typer.Argument(help="A folder with one trained candidate a subfolder.")]
Evaluation = Annotated[Path, typer.Argument(help="Written by `rarescan evaluate`.")]
Out = Annotated[Path, typer.Argument(help="Where the result goes.")]


def settings_of(
    config: str | None, assignments: list[str] | None, options: Mapping[str, Any] | None = None
) -> RunConfig:
    """Read the settings; options that were given win."""
    given = [
        f"{key}={json.dumps(value)}" for key, value in (options or {}).items() if value is not None
    ]
    return load_config(config or None, [*(assignments or []), *given])
