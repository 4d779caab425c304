"""The verbs, in the order of the way.

Each takes input and output folders first, then options. Every option equals one key of the
settings and wins over the file; `--set` reaches any key.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from rarescan.cli.main import app
from rarescan.cli.options import (
    CohortIn,
    Config,
    Device,
    Evaluation,
    Export,
    Json,
    Models,
    Out,
    Overwrite,
    Prepared,
    Set,
    Workers,
    settings_of,
)
from rarescan.configs.schema import RunConfig
from rarescan.errors import GateRefusedError, InputError, SettingError
from rarescan.files import read_json


def _run(
    config: RunConfig,
    verb: str,
    folders: Mapping[str, Path | str | None],
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Run one verb as a flow and print where its result is."""
    from rarescan.flows.start import run_verb

    plain = {key: None if value is None else str(value) for key, value in folders.items()}
    folder = run_verb(config, verb, plain, overwrite=overwrite)
    _print_folder(folder, as_json=as_json)


def _print_folder(folder: Path, *, as_json: bool) -> None:
    if as_json:
        recipe = folder / "recipe.json"
        typer.echo(
            json.dumps({"folder": str(folder), **(read_json(recipe) if recipe.exists() else {})})
        )
    else:
        typer.echo(folder)


@app.command()
def phantom(
    folder: Out,
    config: Config = "",
    preset: Annotated[str | None, typer.Option(help="easy or hard (phantom.preset).")] = None,
    patients: Annotated[int | None, typer.Option(help="phantom.patients")] = None,
    controls: Annotated[int | None, typer.Option(help="phantom.controls")] = None,
    seed: Annotated[int | None, typer.Option(help="phantom.seed")] = None,
    workers: Workers = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a PACS export of invented persons, with the truth beside it."""
    options = {
        "phantom.preset": preset,
        "phantom.patients": patients,
        "phantom.controls": controls,
        "phantom.seed": seed,
        "workers": workers,
    }
    settings = settings_of(config, set_, options)
    _run(settings, "phantom", {"folder": folder}, overwrite=overwrite, as_json=as_json)


@app.command()
def ingest(
    export: Export,
    cohort: Out,
    config: Config = "",
    kind: Annotated[str | None, typer.Option(help="dicom, bids, table or pictures.")] = None,
    labels: Annotated[str | None, typer.Option(help="CSV of diagnoses (ingest.labels).")] = None,
    key_file: Annotated[str | None, typer.Option(help="Pseudonym key (ingest.key_file).")] = None,
    workers: Workers = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a pseudonymous BIDS cohort of an export; refused series go to a list with reasons."""
    options = {
        "source.kind": kind,
        "ingest.labels": labels,
        "ingest.key_file": key_file,
        "workers": workers,
    }
    settings = settings_of(config, set_, options)
    if settings.source.kind == "phantom":
        settings = settings_of(config, set_, {**options, "source.kind": "dicom"})
    folders = {"source": export, "folder": cohort}
    _run(settings, "ingest", folders, overwrite=overwrite, as_json=as_json)


@app.command()
def prepare(
    cohort: CohortIn,
    prepared: Out,
    config: Config = "",
    spacing_mm: Annotated[float | None, typer.Option(help="prepare.spacing_mm")] = None,
    workers: Workers = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Bring scans to the template grid, stripped and scaled; divide the persons once."""
    settings = settings_of(config, set_, {"prepare.spacing_mm": spacing_mm, "workers": workers})
    folders = {"cohort": cohort, "folder": prepared}
    _run(settings, "prepare", folders, overwrite=overwrite, as_json=as_json)


@app.command()
def train(
    prepared: Prepared,
    models: Annotated[
        Path | None, typer.Argument(help="Where the result goes; not needed with --plan.")
    ] = None,
    family: Annotated[
        str, typer.Option(help="Which candidate of `train:` (vae, gan, diffusion, ...).")
    ] = "diffusion",
    config: Config = "",
    steps: Annotated[int | None, typer.Option(help="train.<family>.steps")] = None,
    device: Device = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what fits this cohort, and train nothing.")
    ] = False,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="With --plan: what an hour of the machine costs.")
    ] = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train one candidate into MODELS/<family>; repeating the command resumes."""
    if plan:
        _print_plan(
            settings_of(config, set_, {"device": device}), prepared, price_per_hour, as_json
        )
        return
    if models is None:
        raise typer.BadParameter(
            "Missing; it is needed unless --plan is given.", param_hint="MODELS"
        )
    settings = settings_of(config, set_, {f"train.{family}.steps": steps, "device": device})
    folders = {"prepared": prepared, "folder": models / family}
    _run(settings, "train", folders, overwrite=overwrite, as_json=as_json)


def _print_plan(config: RunConfig, prepared: Path, price: float | None, as_json: bool) -> None:
    from rarescan.cohort.store import open_cohort
    from rarescan.generative.advise import advise
    from rarescan.generative.train import choose_device
    from rarescan.threads import one_thread

    with one_thread():
        told = advise(
            open_cohort(prepared), device=choose_device(config.device), price_per_hour=price
        )
    typer.echo(json.dumps(told.as_dict()) if as_json else told.table())


@app.command()
def evaluate(
    prepared: Prepared,
    models: Models,
    evaluation: Out,
    config: Config = "",
    n_synthetic: Annotated[int | None, typer.Option(help="evaluate.n_synthetic")] = None,
    workers: Workers = None,
    device: Device = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score every candidate below MODELS against validation persons, with intervals and gates."""
    settings = settings_of(
        config, set_, {"evaluate.n_synthetic": n_synthetic, "workers": workers, "device": device}
    )
    folders = {"prepared": prepared, "models": models, "folder": evaluation}
    _run(settings, "evaluate", folders, overwrite=overwrite, as_json=as_json)


@app.command()
def select(
    prepared: Prepared,
    models: Models,
    evaluation: Evaluation,
    decision: Out,
    config: Config = "",
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Decide which candidate becomes champion and register it; exit 3 when none may."""
    settings = settings_of(config, set_)
    folders = {"prepared": prepared, "models": models, "evaluation": evaluation, "folder": decision}
    _run(settings, "select", folders, overwrite=overwrite, as_json=as_json)
    stored = read_json(decision / "decision.json")
    if stored["champion"] is None:
        reasons = "; ".join(text for _, text in stored["reasons"])
        raise GateRefusedError(
            f"No candidate may be registered: {reasons}",
            remedy=f"See {decision / 'decision.json'}; train longer or with another family.",
        )


@app.command()
def generate(
    prepared: Prepared,
    synthetic: Out,
    model: Annotated[
        str,
        typer.Option(
            help="Address of a version, as models:/rarescan-generator/3; with --from also a folder."
        ),
    ] = "",
    n: Annotated[int | None, typer.Option(help="How many persons (generate.n).")] = None,
    seed: Annotated[int | None, typer.Option(help="generate.seed")] = None,
    source: Annotated[
        str, typer.Option("--from", help="Change this scan instead: a scan id or a NIfTI file.")
    ] = "",
    diagnosis: Annotated[str, typer.Option(help="With --from: what it should become.")] = "",
    severity: Annotated[
        float, typer.Option(help="With --from: 0 as it is, 1 the average patient, up to 2.")
    ] = 1.0,
    from_diagnosis: Annotated[
        str, typer.Option(help="With --from FILE: the diagnosis of its person.")
    ] = "",
    config: Config = "",
    workers: Workers = None,
    device: Device = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a batch of synthetic persons from the champion (ages and sites as in PREPARED)."""
    settings = settings_of(
        config,
        set_,
        {"generate.n": n, "generate.seed": seed, "workers": workers, "device": device},
    )
    if source:
        from rarescan.flows.counterfactual import Wish, counterfactual

        wish = Wish(source=source, diagnosis=diagnosis, severity=severity, own=from_diagnosis)
        counterfactual(settings, prepared, synthetic, wish, model=model, overwrite=overwrite)
        _print_folder(synthetic, as_json=as_json)
        return
    folders: dict[str, Path | str | None] = {
        "prepared": prepared,
        "folder": synthetic,
        "model_uri": model,
    }
    _run(settings, "generate", folders, overwrite=overwrite, as_json=as_json)


@app.command()
def retrain(
    prepared: Prepared,
    synthetic: Annotated[Path, typer.Argument(help="A batch written by `rarescan generate`.")],
    classifiers: Out,
    config: Config = "",
    command: Annotated[
        str | None,
        typer.Option(help="Your program: 'python train.py {train} {test} {scores}' (no shell)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Your model that only scores: ONNX, or models:/name/1.")
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="person, or site after `rarescan hold-out`.")
    ] = None,
    workers: Workers = None,
    device: Device = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 unless the verdict is `use`.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train the classifier in every arm and say, with an interval, whether the batch helped."""
    options = {
        "retrain.command": None if command is None else _words(command),
        "retrain.model": model,
        "retrain.held_out": held_out,
        "workers": workers,
        "device": device,
    }
    settings = settings_of(config, set_, options)
    folders = {"prepared": prepared, "batch": synthetic, "folder": classifiers}
    _run(settings, "retrain", folders, overwrite=overwrite, as_json=as_json)
    if strict:
        _require_use([read_json(classifiers / "gain.json")["verdict"]])


def _words(command: str) -> list[str]:
    """Return a command's words, as a shell would divide them."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise SettingError(
            f"The command cannot be divided into words: {error}.",
            remedy="Close its quotation marks.",
        ) from None


@app.command("hold-out")
def hold_out(
    prepared: Prepared,
    folder: Out,
    site: Annotated[str, typer.Option(help="The site that nothing may see before `retrain`.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Divide a prepared cohort anew: one site's persons test, the others train and validate."""
    from rarescan.flows.retrain import hold_out as write

    _print_folder(write(prepared, folder, site, overwrite=overwrite), as_json=as_json)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, as runs/demo.")],
    feedback: Annotated[
        str | None, typer.Option(help="CSV of readers' ratings (report.feedback).")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="The batch that they looked at (report.batch).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write report.html and report.json of a run again."""
    if not (run / "prepared").is_dir():
        raise InputError(
            f"{run} is no run folder.", remedy="Name the folder that `rarescan run` wrote."
        )
    from rarescan.flows.verbs import report as write

    options = {"report.feedback": feedback, "report.batch": batch}
    path = write(settings_of(None, None, options), run)
    typer.echo((run / "report.json").read_text() if as_json else path)


@app.command()
def run(
    configs: Annotated[
        list[str], typer.Argument(help="YAML files or presets (demo, ...); several: side by side.")
    ],
    name: Annotated[str | None, typer.Option(help="The run's name (name).")] = None,
    workers: Workers = None,
    device: Device = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 unless the verdict is `use`.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Go the whole way, from what came in to the report; repeating it continues."""
    from rarescan.flows.plan import Places, finished_report, require_apart, source_of

    options = {"name": name, "workers": workers, "device": device}
    runs = [settings_of(config, set_, options) for config in configs]
    require_apart(runs)
    for one in runs:
        source_of(one)
        if one.retrain.held_out == "site":
            raise SettingError(
                "A run divides persons, not sites, so `retrain.held_out: site` cannot hold.",
                remedy="Prepare, then `rarescan hold-out PREPARED OTHER --site NAME`, and train, "
                "select, generate and retrain from OTHER.",
            )
    waiting = [one for one in runs if overwrite or finished_report(one) is None]
    if waiting:
        from rarescan.flows.start import run_augment, run_together

        if len(waiting) == 1:
            run_augment(waiting[0], overwrite=overwrite)
        else:
            run_together(waiting, overwrite=overwrite)
    contents = [read_json(Places(one.root).root / "report.json") for one in runs]
    if as_json:
        typer.echo(json.dumps(contents if len(contents) > 1 else contents[0]))
    else:
        for one, content in zip(runs, contents, strict=True):
            typer.echo(content["verdict"]["sentence"])
            typer.echo(f"Report: {Places(one.root).report}")
    if strict:
        _require_use([content["verdict"]["code"] for content in contents])


def _require_use(verdicts: Sequence[str]) -> None:
    if any(verdict != "use" for verdict in verdicts):
        raise GateRefusedError(
            f"The verdict is '{', '.join(verdicts)}', not 'use'.",
            remedy="Read the report or gain.json; without --strict any verdict is accepted.",
        )
