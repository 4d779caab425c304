"""`rarescan bench`: does generation help, where, and against what."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from rarescan.cli.main import app
from rarescan.cli.options import Device, Json, Overwrite, Set, Workers, settings_of

bench = typer.Typer(
    help="Does generation help: on invented cohorts, and on real persons made rare.",
    no_args_is_help=True,
)
app.add_typer(bench, name="bench")
_log = logging.getLogger("rarescan")


@bench.command()
def utility(
    config: Annotated[
        str, typer.Argument(help="Settings with a section `utility`: a YAML file or a preset.")
    ] = "utility",
    workers: Workers = None,
    device: Device = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compare arms with and without synthetic persons on invented cohorts, drawn anew many times.

    Writes utility.json, utility.html and results.parquet below the run's folder, and prints one
    verdict for each question. Repeating the command runs what is missing.
    """
    from rarescan.flows.plan import workers_of
    from rarescan.flows.start import run_utility
    from rarescan.flows.utility_draw import SUMMARY, core_seconds, draw_folders

    settings = settings_of(config, set_, {"workers": workers, "device": device})
    n, minutes = len(draw_folders(settings)), core_seconds(settings) / 60
    _log.info(
        "%d draws, about %.0f minutes of one core, so %.0f on %d",
        *(n, minutes, minutes / workers_of(settings), workers_of(settings)),
    )
    _show(run_utility(settings, overwrite=overwrite) / SUMMARY, as_json)


@bench.command()
def thinned(
    config: Annotated[
        str, typer.Argument(help="Settings with a source and a section `thinned`: YAML or preset.")
    ] = "thinned",
    workers: Workers = None,
    device: Device = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a disease of real persons rare, and compare arms with and without synthetic persons.

    Prepares the source, trains generators and arms anew in every fold, and writes thinned.json,
    utility.html and predictions.parquet below the run's folder. Repeating the command runs what
    is missing.
    """
    from rarescan.flows.plan import Places
    from rarescan.flows.start import run_verb

    settings = settings_of(config, set_, {"workers": workers, "device": device})
    folder = Places(settings.root).root / "thinned"
    result = run_verb(settings, "thinned", {"folder": str(folder)}, overwrite=overwrite)
    _show(result / "thinned.json", as_json)


def _show(result: Path, as_json: bool) -> None:
    """Print a verdict for each question, or the whole result."""
    from rarescan.evaluation.utility_page import read_entries, title

    if as_json:
        typer.echo(result.read_text())
        return
    for entry in read_entries(result):
        typer.echo(f"{entry['question']}, {title(entry)}: {entry['sentence']}")
    typer.echo(str(result.parent / "utility.html"))
