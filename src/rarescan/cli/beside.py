"""The verbs beside the way: settings, keys, lineage, schedules."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rarescan.cli.main import app
from rarescan.cli.options import (
    CohortIn,
    Config,
    Export,
    Json,
    Out,
    Overwrite,
    Prepared,
    Set,
    Workers,
    settings_of,
)
from rarescan.configs.schema import dump_config, load_config
from rarescan.errors import GateRefusedError, SettingError

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


@key_app.command()
def rotate(
    old: Annotated[Path, typer.Argument(help="File of the key so far.")],
    new: Annotated[Path, typer.Argument(help="File of the new key; made unless it is there.")],
    export: Export,
    table: Annotated[Path, typer.Argument(help="Gets old and new pseudonyms (mode 0600).")],
    workers: Workers = None,
) -> None:
    """Make a new key and the table from old to new pseudonyms; then ingest again with it."""
    from rarescan.imaging.persons import rotate_key

    written = rotate_key(old, new, export, table, workers=workers)
    typer.echo(
        f"{written}\nIngest the export again with {new}; then remove the old cohort. The table "
        "connects both: keep it with the keys, and send it to nobody."
    )


@app.command()
def review(
    cohort: CohortIn,
    forms: Annotated[
        Path | None, typer.Option(help="Folder for forms to fill in (scans.csv, persons.csv).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which scans and persons a human must confirm, and write the forms for it."""
    from rarescan.imaging.review import waiting, write_forms

    lists = waiting(cohort)
    written = write_forms(cohort, forms) if forms else []
    if as_json:
        typer.echo(json.dumps(lists, indent=1))
        return
    for rows in lists.values():
        for row in rows:
            typer.echo("  ".join(value for value in row.values() if value))
    counts = [len(rows) for rows in lists.values()]
    typer.echo(f"{counts[0]} scans and {counts[1]} pairs of persons wait for an answer.")
    for path in written:
        typer.echo(f"{path}: answer yes or no, and name it as ingest.confirmed_{path.stem}.")


@app.command()
def erase(
    person: Annotated[str, typer.Argument(help="Pseudonym, as in participants.tsv (RS...).")],
    runs: Annotated[Path, typer.Option(help="Folder of runs, of one run, or of results.")] = Path(
        "runs"
    ),
    set_: Set = None,
) -> None:
    """Remove a person from cohorts and caches; mark what learned from them."""
    from rarescan.flows.erase import erase_person

    done = erase_person(person, runs, settings_of(None, set_).registry)
    for what, items in vars(done).items():
        for item in items:
            typer.echo(f"{what}  {item}")
    typer.echo(
        f"Removed from {len(done.cleaned)} cohorts; {len(done.marked)} results and "
        f"{len(done.versions)} registered models are marked. The export itself is not touched: "
        "remove the person there too."
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
        indent = "  " * link["depth"]
        typer.echo(f"{indent}{link['step']}  {link['id']}  {link['folder']}")
        for stack, scan in link["detail"].get("series", {}).items():
            typer.echo(f"{indent}  {stack}  {scan}")


@app.command()
def dicom(
    synthetic: Annotated[Path, typer.Argument(help="A batch written by `rarescan generate`.")],
    folder: Out,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a batch of synthetic persons as DICOM series, marked as synthetic in every file."""
    from rarescan.imaging.dicom_out import write_dicom

    typer.echo(write_dicom(synthetic, folder, workers=workers, overwrite=overwrite))


@app.command()
def pull(
    folder: Out,
    address: Annotated[
        str | None, typer.Option(help="https://host/dicom-web or dicom://AE@host:port.")
    ] = None,
    persons: Annotated[str | None, typer.Option(help="CSV of persons (pull.persons).")] = None,
    from_date: Annotated[str | None, typer.Option(help="YYYY-MM-DD (pull.from_date).")] = None,
    to_date: Annotated[str | None, typer.Option(help="YYYY-MM-DD (pull.to_date).")] = None,
    config: Config = "",
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fetch series from a PACS into FOLDER/export, which `ingest` reads; repeating it continues."""
    from rarescan.pacs.pull import pull_series

    options = {
        "pull.address": address,
        "pull.persons": persons,
        "pull.from_date": from_date,
        "pull.to_date": to_date,
    }
    done = pull_series(folder, settings_of(config, set_, options).pull, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(asdict(done), default=str))
        return
    typer.echo(f"{done.export}\n{done.n_series} series with {done.n_files} files are complete.")
    if done.n_incomplete:
        typer.echo(
            f"{done.n_incomplete} series came incomplete and lie in {folder / 'incomplete'}, which "
            "nobody reads; repeat the command to ask for them again."
        )


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Written by `rarescan dicom`.")],
    to: Annotated[str | None, typer.Option(help="Which of `push.targets` (push.to).")] = None,
    config: Config = "",
    set_: Set = None,
) -> None:
    """Send synthetic series to a research archive that the settings name, and to no other."""
    from rarescan.pacs.push import push_batch

    settings = settings_of(config, set_, {"push.to": to}).push
    typer.echo(f"{push_batch(folder, settings)} series sent to {settings.to}.")


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="The reference: a folder of images or a feature file.")],
    b: Annotated[str, typer.Argument(help="What is held against it.")],
    extractor: Annotated[
        str,
        typer.Option(
            help="pyramid (any image), regions (brain grid) or one of evaluate.extractors."
        ),
    ] = "pyramid",
    config: Config = "",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Print distances between two folders (NIfTI, PNG, DICOM) or feature files (npz, csv)."""
    from rarescan.evaluation.comparison import compare as distances
    from rarescan.evaluation.comparison import named_extractor

    settings = settings_of(config, set_).evaluate
    eye = named_extractor(extractor, settings.extractors)
    found = distances(Path(a), Path(b), extractor=eye, seed=settings.seed)
    typer.echo(json.dumps(found.as_dict()) if as_json else found.table())


@app.command("import-weights")
def import_weights(
    source: Annotated[
        Path, typer.Argument(help="A checkpoint, a MONAI bundle, or a generator of ours.")
    ],
    folder: Out,
    network: Annotated[
        Path | None,
        typer.Option(help="JSON or YAML with the network's class (_target_) and its arguments."),
    ] = None,
    part: Annotated[str, typer.Option(help="Which network, where there are several.")] = "",
    pair: Annotated[
        Path | None, typer.Option(help="Safetensors: input.x and output.* of the original.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Take over weights of monai-generative 0.2.3, MONAI or rarescan; no pickle is executed."""
    from rarescan.generative.foreign import import_weights as take_over
    from rarescan.generative.foreign import read_import

    take_over(source, folder, network=network, part=part, pair=pair, overwrite=overwrite)
    about = read_import(folder)
    if as_json:
        typer.echo(json.dumps(asdict(about)))
        return
    errors = [f"{name} {error:.1g}" for name, error in (about.parity or {}).items()]
    typer.echo(f"{folder}\n{about.name} from {about.origin}.")
    typer.echo(
        f"It gives the original's output: relative error {', '.join(errors)}."
        if errors
        else "Names and shapes fit; that it gives the original's output was NOT checked (--pair)."
    )


@app.command("export-bundle")
def export_bundle(
    model: Annotated[Path, typer.Argument(help="One generator, as runs/demo/models/diffusion.")],
    folder: Out,
    decision: Annotated[
        Path | None, typer.Option(help="Written by `rarescan select`; that of the model's run.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Of the weights; stands in the bundle.")] = "",
    despite_gates: Annotated[
        bool, typer.Option("--despite-gates", help="For use inside, whatever the gates said.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a generator as a MONAI bundle, which samples without rarescan."""
    from rarescan.generative.bundle import export_bundle as write_bundle

    written = write_bundle(
        model,
        folder,
        decision=decision,
        licence=licence,
        despite_gates=despite_gates,
        overwrite=overwrite,
    )
    typer.echo(written)


@app.command()
def monitor(
    run: Annotated[Path, typer.Argument(help="A run's folder, as runs/demo.")],
    cohort: Prepared,
    config: Config = "",
    workers: Workers = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 on drift or a champion that fails a check.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hold a prepared cohort's new persons against those that RUN's champion learned from."""
    from rarescan.flows.start import run_verb

    own = run / "config.yaml"
    chosen = config or (str(own) if own.is_file() else "")
    settings = settings_of(chosen, set_, {"workers": workers})
    folders = {"run": str(run), "cohort": str(cohort)}
    folder = run_verb(settings, "monitor", folders, overwrite=overwrite)
    text = (folder / "monitor.json").read_text()
    found = json.loads(text)
    typer.echo(text if as_json else f"{found['verdict']}\n{folder / 'monitor.html'}")
    fails = found["champion"].get("outcome") == "fails"
    if strict and (fails or found["verdict"] == "drift"):
        raise GateRefusedError(
            "The champion fails a check on the grown cohort."
            if fails
            else "New scans differ from those that the champion learned from.",
            remedy=f"Read {folder / 'monitor.html'}; run without --strict to accept any verdict.",
        )


@app.command()
def deploy(
    configs: Annotated[
        list[str], typer.Argument(help="Settings with `schedule` or `monitor.schedule`.")
    ],
    local: Annotated[
        bool, typer.Option("--local", help="Serve from this process until it is stopped.")
    ] = False,
    together: Annotated[
        str, typer.Option("--together", help="A cron line: run all of them side by side then.")
    ] = "",
) -> None:
    """Serve the flows with the schedules of their settings."""
    if not local:
        raise SettingError("Only serving from this machine is available.", remedy="Add --local.")
    from rarescan.flows.deploy import serve_local

    serve_local([load_config(config) for config in configs], together)
