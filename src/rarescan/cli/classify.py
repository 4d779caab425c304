"""`rarescan classify` and `rarescan anomaly`: honest figures on a prepared cohort."""

import json
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
from rarescan.configs.schema import RunConfig
from rarescan.files import read_json


@app.command()
def classify(
    prepared: Prepared,
    classifiers: Out,
    config: Config = "",
    repeats: Annotated[
        int | None, typer.Option(help="Seeds of the split into folds (classify.repeats).")
    ] = None,
    workers: Workers = None,
    device: Device = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train and test a classifier by folds of persons, beside the baselines that it must beat.

    CONFIG may also be a JSON of the mammography system (encoder, epochs, learning_rate, ...).
    """
    foreign: list[str] = []
    if config.endswith(".json"):
        from rarescan.classifiers.foreign_config import translate

        found = translate(Path(config), prepared)
        config, foreign = "", found.overrides
        for note in found.notes:
            typer.echo(note, err=True)
    options = {"classify.repeats": repeats, "workers": workers, "device": device}
    settings = settings_of(config, [*foreign, *(set_ or [])], options)
    _judge(settings, "classify", prepared, classifiers, overwrite=overwrite, as_json=as_json)


@app.command()
def anomaly(
    prepared: Prepared,
    detector: Out,
    config: Config = "",
    normal: Annotated[
        str | None, typer.Option(help="The label of normal scans (anomaly.normal).")
    ] = None,
    workers: Workers = None,
    device: Device = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Learn normal persons only, and test whether scans of others stand out, beside baselines."""
    options = {"anomaly.normal": normal, "workers": workers, "device": device}
    settings = settings_of(config, set_, options)
    _judge(settings, "anomaly", prepared, detector, overwrite=overwrite, as_json=as_json)


def _judge(
    settings: RunConfig, verb: str, prepared: Path, out: Path, *, overwrite: bool, as_json: bool
) -> None:
    """Run a verb that ends in a page of figures, and print its verdict."""
    from rarescan.flows.start import run_verb

    folders = {"prepared": str(prepared), "folder": str(out)}
    folder = run_verb(settings, verb, folders, overwrite=overwrite)
    result = read_json(folder / "classification.json")
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **result}))
    else:
        typer.echo(result["verdict"]["sentence"])
        typer.echo(f"Page: {folder / 'classifiers.html'}")
