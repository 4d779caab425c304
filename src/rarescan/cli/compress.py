"""`rarescan compress`: a smaller classifier, and what it costs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from rarescan.cli.main import app
from rarescan.cli.options import Config, Device, Json, Out, Overwrite, Prepared, Set, settings_of
from rarescan.files import read_json


@app.command()
def compress(
    model: Annotated[
        Path, typer.Argument(help="A trained network, as classifiers/model (`classify`).")
    ],
    prepared: Prepared,
    folder: Out,
    config: Config = "",
    most_loss: Annotated[
        float | None, typer.Option(help="Balanced accuracy it may lose (compress.most_loss).")
    ] = None,
    device: Device = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Try smaller forms of a network (int8, fp16, pruned) and write the smallest that is as good.

    Chosen on validation persons, confirmed on test persons; times are this machine's.
    """
    from rarescan.flows.start import run_verb

    settings = settings_of(config, set_, {"compress.most_loss": most_loss, "device": device})
    folders = {"model": str(model), "prepared": str(prepared), "folder": str(folder)}
    written = run_verb(settings, "compress", folders, overwrite=overwrite)
    content = read_json(written / "compress.json")
    if as_json:
        typer.echo(json.dumps({"folder": str(written), **content}))
        return
    typer.echo(content["table"])
    typer.echo(f"Model: {written / 'model'}")
