"""`rarescan classify-grid`: a folder of experiments, compared in one table."""

from pathlib import Path
from typing import Annotated

import typer

from rarescan.cli.main import app
from rarescan.cli.options import (
    Config,
    Device,
    Json,
    Out,
    Overwrite,
    Prepared,
    Set,
    Workers,
    settings_of,
)
from rarescan.errors import InputError
from rarescan.files import read_json


@app.command("classify-grid")
def classify_grid(
    configs: Annotated[
        Path, typer.Argument(help="Folder of experiments: YAML with `classify:`, or JSON.")
    ],
    prepared: Prepared,
    folder: Out,
    config: Config = "",
    workers: Workers = None,
    device: Device = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run `classify` for every file of a folder; finished ones are skipped.

    One that fails stops no other; the command then ends with 4 and the table says why.
    """
    from rarescan.flows.start import run_verb

    settings = settings_of(config, set_, {"workers": workers, "device": device})
    folders = {"configs": str(configs), "prepared": str(prepared), "folder": str(folder)}
    try:
        run_verb(settings, "classify_grid", folders, overwrite=overwrite)
    except InputError:
        _show(folder, as_json)
        raise
    _show(folder, as_json)


def _show(folder: Path, as_json: bool) -> None:
    path = folder / "grid.json"
    if path.is_file():
        typer.echo(path.read_text() if as_json else read_json(path)["table"])
