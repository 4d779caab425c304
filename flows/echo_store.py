"""The results of `rarescan echo` as rows of a database.

`write_tables` is the way in: it reads the folders of the steps that are done and writes what they
say, once; repeating it changes nothing.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from rarescan.classifiers import echo_tables as tables
from rarescan.errors import InputError
from rarescan.files import read_json, read_recipe

DATABASE = "echo.sqlite"
_RULE = "rarescan.echo"
"""The model of measurements: a formula, not a network."""
_VALUES = {
    "ef": "percent",
    "ef_area_length": "percent",
    "edv_ml": "mL",
    "esv_ml": "mL",
    "la_volume_ml": "mL",
    "heart_rate_bpm": "1/min",
    "diastole_ms": "ms",
}
Row = dict[str, Any]


def database_of(out: Path, url: str = "") -> str | URL:
    """Return the database's address: the one given, or the file beside the results."""
    return url or URL.create("sqlite", database=str(out / DATABASE))


def write_tables(
    out: Path, *, url: str = "", clock: tables.Clock = tables.now, network: Path | None = None
) -> int:
    """Write what the finished steps say into a database.

    Parameters
    ----------
    out : Path
        Holds the folders `clips`, `views`, `masks`, `measured`, as far as they are done.
    url : str
        SQLAlchemy's address of a database; a file beside the results without.
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
    rows = [*_base(out), *_seen(out), *_masks(out, network), *_measured(out)]
    with tables.open_tables(database_of(out, url)) as engine:
        return tables.put(engine, rows, clock=clock)


def _base(out: Path) -> Iterator[tables.Table]:
    clips = read_json(out / "clips" / "clips.json")
    studies = {row["study_id"]: row for row in clips}
    for study in studies.values():
        yield tables.Study(
            study_id=study["study_id"], person_id=study["person_id"], sex=study["sex"]
        )
    for row in clips:
        down, right = row["spacing_mm"] or (None, None)
        yield tables.Clip(
            clip_id=row["clip_id"],
            study_id=row["study_id"],
            kind=row["kind"] or "unreadable",
            rows=row["rows"],
            columns=row["columns"],
            n_frames=_frames(out, row),
            frame_time_ms=row["frame_time_ms"],
            spacing_down_mm=down,
            spacing_right_mm=right,
            heart_rate_bpm=row["heart_rate_bpm"],
            flags=" ".join(row["flags"]),
        )


def _frames(out: Path, row: Row) -> int | None:
    """Return how many frames were read, which is more than a header can promise."""
    read = out / "masks" / f"{row['clip_id']}.json"
    counted = read_json(read).get("n_frames") if read.exists() else None
    found: int | None = counted or row["n_frames"]
    return found


def _model(model: str, task: str, **more: Any) -> tables.ModelVersion:
    return tables.ModelVersion(
        model_id=model,
        task=task,
        weights_sha256=more.get("weights_sha256"),
        settings=json.dumps(more.get("settings", {}), sort_keys=True),
        trained_on=more.get("trained_on"),
    )


def _seen(out: Path) -> Iterator[tables.Table]:
    if read_recipe(out / "views") is None:
        return
    views: dict[str, Row] = read_json(out / "views" / "views.json")
    told = {clip: view for clip, view in views.items() if view["model"]}
    for model in sorted({view["model"] for view in told.values()}):
        sha256 = None if model == tables.TABLE else model
        yield _model(f"views:{model}", "views", weights_sha256=sha256)
    for clip, view in told.items():
        yield tables.View(
            clip_id=clip,
            model_id=f"views:{view['model']}",
            view=view["view"],
            probability=view["probability"],
        )


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
    if network and known and (network / "judged.json").exists():
        judged = read_json(network / "judged.json")["dice"]
        if judged:
            yield tables.evaluation(
                model=model,
                name="dice",
                method="left ventricle, mean over validation persons",
                n_persons=len(judged),
                value=sum(judged.values()) / len(judged),
            )
    for path in sorted((out / "masks").glob("*.json")):
        film = read_json(path) if path.name != "recipe.json" else {}
        if "masks_sha256" in film:
            for chamber in ("lv", *(("la",) if film["atrium"] else ())):
                yield tables.Segmentation(
                    clip_id=path.stem,
                    model_id=model,
                    chamber=chamber,
                    path=f"masks/{path.stem}.npy",
                    n_frames=film["n_frames"],
                    sha256=film["masks_sha256"],
                )


def _measured(out: Path) -> Iterator[tables.Table]:
    recipe = read_recipe(out / "measured")
    if recipe is None:
        return
    figures = read_json(out / "measured" / "figures.json")
    model = f"{_RULE}:{recipe.schema}"
    yield _model(model, "measurement", settings=figures["scheme"])
    for study in figures["studies"]:
        yield from _of_study(study, model)
    for clip in figures["clips"]:
        if clip["refused"] is None:
            yield from _of_clip(clip, model)
    for unit, found in (figures["agreement"] or {}).items():
        if isinstance(found, dict):
            for name, (value, low, high) in found.items():
                yield tables.evaluation(
                    model=model,
                    name=f"ef_{name}",
                    method=unit,
                    n_persons=figures["agreement"]["n_persons"],
                    value=value,
                    low=low,
                    high=high,
                )


def _of_study(study: Row, model: str) -> Iterator[tables.Table]:
    known: Row = {"study": study["study_id"], "model": model, "flags": " ".join(study["flags"])}
    for name in ("ef", "edv_ml", "esv_ml"):
        yield tables.measurement(
            **known, name=name, method=study["method"], unit=_VALUES[name], value=study[name]
        )
    yield tables.measurement(
        **known, name=tables.EF_CLASS, method=study["method"], unit="", text=study["class"]
    )


def _of_clip(clip: Row, model: str) -> Iterator[tables.Table]:
    known: Row = {
        "study": clip["study_id"],
        "clip": clip["clip_id"],
        "model": model,
        "flags": " ".join(clip["flags"]),
    }
    for name, unit in _VALUES.items():
        yield tables.measurement(**known, name=name, method="clip", unit=unit, value=clip[name])
    for number, beat in enumerate(clip["beats"]):
        yield tables.measurement(
            **known, name="ef", method="clip", unit="percent", beat=number, value=beat["ef"]
        )
