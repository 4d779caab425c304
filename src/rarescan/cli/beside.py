"""The verbs beside the way: settings, keys, lineage, schedules."""

import json
from pathlib import Path
from typing import Annotated

import typer

from rarescan.cli.main import app
from rarescan.cli.options import Json, Set, settings_of
from rarescan.configs.schema import dump_config, load_config
from rarescan.errors import SettingError

config_app = typer.Typer(help="Show or check settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")


@config_app.command()
def show(
    config: Annotated[str, typer.Argument(help="File or preset.")] = "", set_: Set = None
) -> None:
    """Print every key with its resolved value, as YAML that runs."""
    typer.echo(dump_config(settings_of(config, set_)), nl=False)


@config_app.command()
def check(config: Annotated[str, typer.Argument(help="File or preset.")], set_: Set = None) -> None:
    """Check a configuration without running it."""
    settings = settings_of(config, set_)
    typer.echo(f"{config} is valid; results will go to {settings.root}.")


key_app = typer.Typer(help="The key behind the pseudonyms.", no_args_is_help=True)
app.add_typer(key_app, name="key")


@key_app.command()
def new(
    path: Annotated[
        Path | None, typer.Argument(help="Where; ~/.config/rarescan/pseudonym.key without.")
    ] = None,
) -> None:
    """Make a key file (mode 0600). Whoever has it can re-identify the pseudonyms."""
    from rarescan.imaging.identity import new_key

    written = new_key(path)
    typer.echo(
        f"{written}\nKeep a copy in a safe place: the same key gives the same pseudonyms in a "
        "later export. Never send it with data."
    )


@app.command()
def trace(
    path: Annotated[Path, typer.Argument(help="Any file or folder that rarescan wrote.")],
    as_json: Json = False,
) -> None:
    """Walk the recipes from a result back to the pseudonymous series."""
    from rarescan.flows.lineage import trace_back

    chain = trace_back(path)
    if as_json:
        typer.echo(json.dumps(chain, indent=1))
        return
    for link in chain:
        typer.echo(f"{'  ' * link['depth']}{link['step']}  {link['id']}  {link['folder']}")


@app.command()
def deploy(
    configs: Annotated[list[str], typer.Argument(help="Settings whose `schedule` is set.")],
    local: Annotated[
        bool, typer.Option("--local", help="Serve from this process until it is stopped.")
    ] = False,
) -> None:
    """Serve the flows with the schedules of their settings."""
    if not local:
        raise SettingError("Only serving from this machine is available.", remedy="Add --local.")
    from rarescan.flows.deploy import serve_local

    serve_local([load_config(config) for config in configs])
