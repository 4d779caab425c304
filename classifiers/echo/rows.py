"""The results of echocardiography on their way into a database, and one person's way out.

`write_tables` reads the folders of the steps that are done and writes what they say, once;
`forget_person` takes a person out of folders and database.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from rarescan.classifiers.echo import tables
from rarescan.classifiers.echo.results import CLIPS, FIGURES, VIEWS, measurements
from rarescan.classifiers.echo.spec import JUDGED
from rarescan.errors import InputError
from rarescan.files import read_json, read_recipe, write_json

DATABASE = "echo.sqlite"
ADDRESS_VARIABLE = "RARESCAN_ECHO"
_ELSEWHERE = "database.json"
_RULE = "rarescan.echo"
"""The model of measurements: a formula, not a network."""
Row = dict[str, Any]


def database_of(out: Path, address: str = "") -> str | URL:
    """Return the address given, else that of the environment, else the file beside the results."""
    given = address or os.environ.get(ADDRESS_VARIABLE, "")
    return given or _file(out)


def _file(out: Path) -> URL:
    return URL.create("sqlite", database=str(out / DATABASE))


def write_tables(
    out: Path, *, address: str = "", clock: tables.Clock = tables.now, network: Path | None = None
) -> int:
    """Write what the finished steps say into a database; repeating it changes nothing.

    Parameters
    ----------
    out : Path
        Holds the folders `clips`, `views`, `masks`, `measured`, as far as they are done.
    address : str
        SQLAlchemy's address of a database; see `database_of`.
    clock : callable
        Gives the time that stands beside what is new.
    network : Path, optional
        The network that found the chambers, for its Dice on validation persons.

    Returns
    -------
    int
        Rows added or changed.

    Raises
    ------
    InputError
        No step is done.
    """
    if read_recipe(out / "clips") is None:
        raise InputError(
            f"{out} holds no measured echocardiograms.", remedy="Run `rarescan echo measure` first."
        )
    rows = [*_base(out), *_views(out), *_masks(out, network), *_measured(out)]
    place = database_of(out, address)
    with tables.open_tables(place) as engine:
        if not isinstance(place, URL):
            # Whoever erases a person must know that there is more than what lies here.
            write_json(out / _ELSEWHERE, {"kind": engine.dialect.name})
        return tables.put(engine, rows, clock=clock)


def holds(out: Path, person: str) -> bool:
    """Return whether the clips of a person are listed in a folder of results."""
    path = out / "clips" / CLIPS
    return path.is_file() and any(row["person_id"] == person for row in read_json(path))


def forget_person(out: Path, person: str) -> list[Path]:
    """Remove a person from a folder of results and from its database; return what was removed.

    Masks, views, films and rows of others stay; the figures and the page of them are made again by
    the next `rarescan echo measure`. The list of clips, by which the person is found, goes last.

    Raises
    ------
    UnreachableError
        The database does not answer.
    InputError
        The results stand in a database elsewhere, whose address the environment does not tell.
    """
    named = os.environ.get(ADDRESS_VARIABLE, "")
    if not named and (out / _ELSEWHERE).exists():
        raise InputError(
            f"The results also stand in a database ({read_json(out / _ELSEWHERE)['kind']}) whose "
            "address is not known here.",
            remedy=f"Set {ADDRESS_VARIABLE} to its address, and repeat the command.",
        )
    places = [*([named] if named else ()), *([_file(out)] if (out / DATABASE).exists() else ())]
    for place in places:
        with tables.open_tables(place) as engine:
            tables.forget(engine, person)
    rows = read_json(out / "clips" / CLIPS)
    own = {row["clip_id"]: row["study_id"] for row in rows if row["person_id"] == person}
    names = ["measured", *(f"films/{study}" for study in sorted({*own.values()}))]
    gone = [out / name for name in names if (out / name).is_dir()]
    for folder in gone:
        shutil.rmtree(folder)
    masks = [path for path in (out / "masks").glob("*") if path.name.split(".")[0] in own]
    for path in masks:
        path.unlink()
    if (out / "views" / VIEWS).is_file():
        views = read_json(out / "views" / VIEWS)
        write_json(out / "views" / VIEWS, {k: v for k, v in views.items() if k not in own})
    write_json(out / "clips" / CLIPS, [row for row in rows if row["clip_id"] not in own])
    return [*gone, *masks]


def _base(out: Path) -> Iterator[tables.Table]:
    clips = read_json(out / "clips" / CLIPS)
    for study in {row["study_id"]: row for row in clips}.values():
        yield tables.of_kind(tables.Study, study)
    for row in clips:
        read = out / "masks" / f"{row['clip_id']}.json"
        # How many frames were read is more than a header can promise.
        counted = read_json(read).get("n_frames") if read.exists() else None
        more = {"n_frames": counted or row["n_frames"], "flags": " ".join(row["flags"])}
        yield tables.of_kind(tables.Clip, row | more)


def _model(model: str, task: str, **more: Any) -> tables.ModelVersion:
    settings = json.dumps(more.pop("settings", {}), sort_keys=True)
    return tables.of_kind(
        tables.ModelVersion, {"model_id": model, "task": task, "settings": settings, **more}
    )


def _views(out: Path) -> Iterator[tables.Table]:
    if read_recipe(out / "views") is None:
        return
    views: dict[str, Row] = read_json(out / "views" / VIEWS)
    told = [(clip, answer) for clip, view in views.items() for answer in view["answers"]]
    for model in sorted({answer["model"] for _, answer in told}):
        sha256 = None if model == tables.TABLE else model
        yield _model(f"views:{model}", "views", weights_sha256=sha256)
    for clip, answer in told:
        named = {"clip_id": clip, "model_id": f"views:{answer['model']}"}
        yield tables.of_kind(tables.View, answer | named)


def _masks(out: Path, network: Path | None) -> Iterator[tables.Table]:
    recipe = read_recipe(out / "masks")
    if recipe is None:
        return
    sha256 = recipe.inputs["network"]
    model = f"chambers:{sha256}"
    about = read_json(network / "segmenter.json") if network else {}
    known = about if about.get("weights_sha256") == sha256 else {}
    yield _model(
        model,
        "segmentation",
        weights_sha256=sha256,
        settings=known.get("config", {}),
        trained_on=known.get("persons"),
    )
    judged = network / JUDGED if network and known else None
    scores = read_json(judged)["dice"] if judged and judged.exists() else {}
    if scores:
        figure: Row = {"name": "dice", "method": "left ventricle, mean over validation persons"}
        figure |= {"n_persons": len(scores), "value": sum(scores.values()) / len(scores)}
        yield tables.of_kind(tables.Evaluation, {"model_id": model, **figure})
    for path in sorted((out / "masks").glob("*.json")):
        film = read_json(path)
        for chamber in ("lv", *(["la"] * film["atrium"])) if "masks_sha256" in film else ():
            yield tables.of_kind(
                tables.Segmentation,
                {
                    "clip_id": path.stem,
                    "model_id": model,
                    "chamber": chamber,
                    "path": f"masks/{path.stem}.npy",
                    "n_frames": film["n_frames"],
                    "sha256": film["masks_sha256"],
                },
            )


def _measured(out: Path) -> Iterator[tables.Table]:
    recipe = read_recipe(out / "measured")
    if recipe is None:
        return
    figures = read_json(out / "measured" / FIGURES)
    model = f"{_RULE}:{recipe.schema}"
    yield _model(model, "measurement", settings=figures["scheme"])
    for row in measurements(figures):
        yield tables.of_kind(tables.Measurement, {"model_id": model, **row})
    for method, name, figure, n_persons in _evaluations(figures):
        value, low, high = figure
        named = {"model_id": model, "name": name, "method": method, "n_persons": n_persons}
        yield tables.of_kind(tables.Evaluation, {**named, "value": value, "low": low, "high": high})


def _evaluations(figures: Row) -> Iterator[tuple[str, str, list[float | None], int]]:
    """Yield method, name, value with its interval, and the number of persons."""
    found, views = figures["agreement"] or {}, figures["views"]
    for method in ("clips", "studies", "constant"):
        for name, figure in found.get(method, {}).items():
            yield method, f"ef_{name}", figure, found["n_persons"]
    if views:
        yield "network against table, clips", "wrong_view", views["wrong"], views["n_persons"]
