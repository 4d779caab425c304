"""`rarescan echo`: train, measure, the questionnaire over the results, films."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rarescan.cli.main import app
from rarescan.cli.options import Config, Device, Json, Out, Overwrite, Set, Workers, settings_of
from rarescan.errors import InputError, SettingError, nearest
from rarescan.files import read_json

echo_app = typer.Typer(
    help="Echocardiography: find the left heart, measure volumes and ejection fractions.",
    no_args_is_help=True,
)
app.add_typer(echo_app, name="echo")

Source = Annotated[
    Path, typer.Argument(help="EchoNet-Dynamic's format (FileList.csv), or a folder of DICOM.")
]
Results = Annotated[Path, typer.Argument(help="Written by `rarescan echo measure`.")]
Network = Annotated[
    Path | None, typer.Option(help="Finds the chambers; written by `rarescan echo train`.")
]
Views = Annotated[
    Path | None, typer.Option(help="Tells views where no table does: `model` of `classify`.")
]
Table = Annotated[str | None, typer.Option(help="CSV in SOURCE (echo.table, echo.columns).")]
Key = Annotated[
    str | None, typer.Option(help="Pseudonym key (echo.key_file); DICOM takes the usual one.")
]
Database = Annotated[
    str | None, typer.Option(help="SQLAlchemy's address (echo.address); RARESCAN_ECHO without.")
]


@echo_app.command()
def train(
    out: Out,
    source: Annotated[
        Path | None, typer.Option(help="Traced films: FileList.csv and VolumeTracings.csv.")
    ] = None,
    phantoms: Annotated[
        int | None, typer.Option(help="Invented hearts to add (echo.segment.phantoms).")
    ] = None,
    config: Config = "",
    steps: Annotated[int | None, typer.Option(help="echo.segment.steps")] = None,
    table: Table = None,
    key: Key = None,
    device: Device = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train the network that finds ventricle and atrium; judge it on the part VAL."""
    from rarescan.flows import echo

    options = {
        "echo.segment.phantoms": phantoms,
        "echo.segment.steps": steps,
        "echo.table": table,
        "echo.key_file": key,
        "device": device,
    }
    settings = settings_of(config, set_, options)
    folder = echo.train(settings, out, source=source, overwrite=overwrite)
    judged = read_json(folder / "judged.json")
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **judged}))
        return
    typer.echo(folder)
    scores = list(judged["dice"].values())
    if scores:
        typer.echo(
            f"Dice of the left ventricle: {sum(scores) / len(scores):.3f} "
            f"(mean over {len(scores)} validation persons, lowest {min(scores):.3f})."
        )


@echo_app.command()
def measure(
    source: Source,
    out: Out,
    network: Network = None,
    views: Views = None,
    config: Config = "",
    table: Table = None,
    key: Key = None,
    database: Database = None,
    device: Device = None,
    workers: Workers = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure clips: volumes, ejection fraction of every beat, tables and a page."""
    from rarescan.flows import echo

    options = {
        "echo.table": table,
        "echo.key_file": key,
        "echo.address": database,
        "device": device,
        "workers": workers,
    }
    settings, folder = settings_of(config, set_, options), out / "measured"
    echo.measure(settings, source, folder, network=network, views=views, overwrite=overwrite)
    figures = read_json(folder / "figures.json")
    if as_json:
        typer.echo(json.dumps({"folder": str(out), **figures}))
        return
    names = ("study_id", "ef", "edv_ml", "esv_ml", "class", "method")
    rows = [
        {**{name: study[name] for name in names}, "remarks": " ".join(study["flags"])}
        for study in figures["studies"]
    ]
    typer.echo(_table_of(rows))
    typer.echo(folder / "echo.html")


@echo_app.command()
def film(
    source: Source,
    results: Results,
    study: Annotated[str, typer.Argument(help="Its pseudonym, as in the page and the tables.")],
    config: Config = "",
    table: Table = None,
    key: Key = None,
    workers: Workers = None,
    set_: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a film of each clip of a study: contours, area curve, beats, quality flags."""
    from rarescan.flows import echo

    options = {"echo.table": table, "echo.key_file": key, "workers": workers}
    settings = settings_of(config, set_, options)
    folder = echo.film(settings, source, results, study, overwrite=overwrite)
    for path in sorted(folder.glob("*.mp4")):
        typer.echo(path)


STEP_WORDS = {
    "clips": "ingest metadata",
    "views": "tell views",
    "masks": "segment chambers",
    "measured": "measure",
    "ask": "ask the tables",
}
"""The steps, in the words of the questionnaire that users know."""


@echo_app.command()
def inquire(
    out: Out,
    step: Annotated[str, typer.Option(help=f"One of: {', '.join(STEP_WORDS)}.")] = "",
    source: Annotated[Path | None, typer.Option(help="As in `rarescan echo measure`.")] = None,
    network: Network = None,
    views: Views = None,
    question: Annotated[str, typer.Option(help="For --step ask: ef, classes, views, ...")] = "",
    study: Annotated[str, typer.Option(help="For questions of one study.")] = "",
    config: Config = "",
    table: Table = None,
    key: Key = None,
    database: Database = None,
    device: Device = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Do one step, or ask the tables; what no option says is asked for."""
    options = {"echo.table": table, "echo.key_file": key, "echo.address": database}
    settings = settings_of(config, set_, {**options, "device": device})
    chosen = _choice("Which step?", STEP_WORDS, step or ("ask" if question else ""))
    if chosen == "ask":
        _ask(out, settings.echo.address, question=question, study=study, as_json=as_json)
        return
    source = source or Path(typer.prompt("Folder of the clips"))
    if chosen in ("masks", "measured"):
        network = network or Path(typer.prompt("Folder of the network"))
    from rarescan.flows import echo

    folder = echo.measure(
        settings, source, out / chosen, network=network, views=views, overwrite=overwrite
    )
    if as_json:
        typer.echo(json.dumps({"step": chosen, "folder": str(folder)}))
    else:
        typer.echo(f"{STEP_WORDS[chosen]}: {folder}")


def _ask(out: Path, address: str, *, question: str, study: str, as_json: bool) -> None:
    from rarescan.classifiers.echo.questions import OF_ONE_STUDY, QUESTIONS, ask, study_ids
    from rarescan.classifiers.echo.rows import DATABASE, database_of
    from rarescan.classifiers.echo.tables import open_tables

    place = database_of(out, address)
    if not isinstance(place, str) and not (out / DATABASE).is_file():
        raise InputError(
            f"There are no tables in {out}.",
            remedy="Run `rarescan echo measure` first, or name them with --database.",
        )
    chosen = _choice("Which question?", QUESTIONS, question)
    with open_tables(place) as engine:
        if chosen in OF_ONE_STUDY and not study:
            study = _choice("Which study?", dict.fromkeys(study_ids(engine), ""), "")
        rows = ask(engine, chosen, study)
    if as_json:
        typer.echo(json.dumps({"question": chosen, "study": study or None, "rows": rows}))
    else:
        typer.echo(_table_of(rows) if rows else "None.")


def _choice(question: str, words: dict[str, str], given: str) -> str:
    """Return what was given, or ask: by number or by name."""
    names = list(words)
    if not given:
        for number, (name, text) in enumerate(words.items(), start=1):
            typer.echo(f"{number}  {name}{f'  {text}' if text else ''}", err=True)
        given = typer.prompt(question, err=True).strip()
        if given.isdigit() and 0 < int(given) <= len(names):
            return names[int(given) - 1]
    if given not in names:
        raise SettingError(f"'{given}' is none of the choices.", remedy=nearest(given, names))
    return given


def _table_of(rows: list[dict[str, Any]]) -> str:
    """Return rows as columns of text."""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
