"""`rarescan echo`: train, measure, and the questionnaire over the results."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from rarescan.classifiers.echo_spec import EchoConfig, FractionConfig, SegmentConfig
from rarescan.cli.main import app
from rarescan.cli.options import Json, Out, Overwrite, Workers
from rarescan.errors import InputError, SettingError, nearest

if TYPE_CHECKING:
    from rarescan.flows.echo import Job

echo_app = typer.Typer(
    help="Echocardiography: find the left heart, measure volumes and ejection fractions.",
    no_args_is_help=True,
)
app.add_typer(echo_app, name="echo")

Source = Annotated[
    Path, typer.Argument(help="EchoNet-Dynamic's format (FileList.csv), or a folder of DICOM.")
]
Network = Annotated[
    Path | None, typer.Option(help="Finds the chambers; written by `rarescan echo train`.")
]
Views = Annotated[
    Path | None, typer.Option(help="A classifier package that tells views, where no table does.")
]
Table = Annotated[
    str, typer.Option(help="CSV in SOURCE: file, patient_or_source, view, mm_per_px, sex.")
]
Key = Annotated[
    str, typer.Option(help="File of the pseudonym key; DICOM takes the usual key without.")
]
Scheme = Annotated[
    str, typer.Option(help="What fractions are called: cuts (two limits) or ase2015 (by sex).")
]
NormalFrom = Annotated[float, typer.Option(help="EF in percent, scheme cuts.")]
AbnormalBelow = Annotated[float, typer.Option(help="EF in percent, scheme cuts.")]
Database = Annotated[
    str, typer.Option(help="SQLAlchemy's address; OUT/echo.sqlite without.", envvar="RARESCAN_ECHO")
]
Place = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


@echo_app.command()
def train(
    out: Out,
    source: Annotated[
        Path | None, typer.Option(help="Traced films: FileList.csv and VolumeTracings.csv.")
    ] = None,
    phantoms: Annotated[
        int, typer.Option(min=0, help="Invented hearts to add; they also teach the atrium.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Updates of the weights.")] = 800,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Edge of frames, pixels.")] = 112,
    seed: int = 0,
    table: Table = EchoConfig.table,
    key: Key = "",
    device: Place = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train the network that finds ventricle and atrium; judge it on the part VAL."""
    from rarescan.flows.echo_train import train as train_network

    if size % 16:
        raise SettingError(f"{size} pixels cannot be halved.", remedy="Use a multiple of 16.")
    segment = SegmentConfig(steps=steps, size_px=size, seed=seed)
    config = EchoConfig(table=table, key_file=key, segment=segment)
    folder = train_network(
        source, out, config, phantoms=phantoms, device=_device(device), overwrite=overwrite
    )
    judged = json.loads((folder / "judged.json").read_text())
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
    table: Table = EchoConfig.table,
    key: Key = "",
    scheme: Scheme = "cuts",
    normal_from: NormalFrom = FractionConfig.normal_from,
    abnormal_below: AbnormalBelow = FractionConfig.abnormal_below,
    database: Database = "",
    device: Place = "auto",
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure clips: volumes, ejection fraction of every beat, tables and a page."""
    fraction = _fraction(scheme, normal_from, abnormal_below)
    job = _job(
        (source, out, network, views),
        EchoConfig(table=table, key_file=key, fraction=fraction),
        device=device,
        workers=workers,
        overwrite=overwrite,
    )
    _do(job, "measured", database)
    figures = json.loads((out / "measured" / "figures.json").read_text())
    if as_json:
        typer.echo(json.dumps({"folder": str(out), **figures}))
        return
    typer.echo(_table_of(_study_rows(figures)))
    typer.echo(out / "measured" / "echo.html")


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
    table: Table = EchoConfig.table,
    key: Key = "",
    database: Database = "",
    device: Place = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Do one step, or ask the tables; what no option says is asked for."""
    chosen = _choice("Which step?", STEP_WORDS, step or ("ask" if question else ""))
    if chosen == "ask":
        _ask(out, database, question=question, study=study, as_json=as_json)
        return
    source = source or Path(typer.prompt("Folder of the clips"))
    if chosen in ("masks", "measured"):
        network = network or Path(typer.prompt("Folder of the network"))
    job = _job(
        (source, out, network, views),
        EchoConfig(table=table, key_file=key),
        device=device,
        workers=None,
        overwrite=overwrite,
    )
    changed = _do(job, chosen, database)
    folder = out / chosen
    if as_json:
        typer.echo(json.dumps({"step": chosen, "folder": str(folder), "rows_changed": changed}))
    else:
        typer.echo(f"{STEP_WORDS[chosen]}: {folder}; {changed} rows of the tables are new.")


def _ask(out: Path, database: str, *, question: str, study: str, as_json: bool) -> None:
    from rarescan.classifiers import echo_tables as tables
    from rarescan.flows.echo_store import DATABASE, database_of

    if not database and not (out / DATABASE).is_file():
        raise InputError(
            f"There are no tables in {out}.",
            remedy="Run `rarescan echo measure` first, or name them with --database.",
        )
    texts = {q.name: q.text for q in tables.QUESTIONS}
    chosen = _choice("Which question?", texts, question)
    with tables.open_tables(database_of(out, database)) as engine:
        if next(q for q in tables.QUESTIONS if q.name == chosen).needs_study and not study:
            known = {name: "" for name in tables.study_ids(engine)}
            study = _choice("Which study?", known, "")
        rows = tables.ask(engine, chosen, study)
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


def _fraction(scheme: str, normal_from: float, abnormal_below: float) -> FractionConfig:
    if scheme not in ("cuts", "ase2015"):
        raise SettingError(f"'{scheme}' is no scheme.", remedy=nearest(scheme, ["cuts", "ase2015"]))
    if not 0 < abnormal_below <= normal_from < 100:
        raise SettingError(
            "The limits of ejection fractions must lie between 0 and 100, abnormal below normal.",
            remedy="For example --normal-from 60 --abnormal-below 40.",
        )
    named: Any = scheme
    return FractionConfig(scheme=named, normal_from=normal_from, abnormal_below=abnormal_below)


def _device(device: str) -> Any:
    known = get_args(Literal["auto", "cpu", "cuda"])
    if device not in known:
        raise SettingError(f"'{device}' is no device.", remedy=nearest(device, list(known)))
    return device


def _job(
    folders: tuple[Path, Path, Path | None, Path | None],
    config: EchoConfig,
    *,
    device: str,
    workers: int | None,
    overwrite: bool,
) -> "Job":
    from rarescan.flows.echo import Job

    source, out, network, views = folders
    return Job(
        source=source,
        out=out,
        config=config,
        network=network,
        views=views,
        device=_device(device),
        workers=workers or None,
        overwrite=overwrite,
    )


def _do(job: "Job", step: Any, database: str) -> int:
    """Do the steps up to one of them and write the tables; return how many rows are new."""
    from rarescan.flows.echo import measure as do_steps
    from rarescan.flows.echo_store import write_tables

    do_steps(job, until=step)
    return write_tables(job.out, url=database, network=job.network)


def _study_rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    names = ("study_id", "ef", "edv_ml", "esv_ml", "class", "method")
    return [
        {**{name: study[name] for name in names}, "remarks": " ".join(study["flags"])}
        for study in figures["studies"]
    ]


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
