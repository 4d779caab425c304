"""The figures of a folder of echocardiograms: as JSON, as tables, as a page.

`write_results` is the way in. `size.csv` has the columns of EchoNet-Dynamic's file of that name.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rarescan.classifiers.echo_agreement import agreement
from rarescan.classifiers.echo_measure import (
    FilmFigures,
    StudyFigures,
    measure_study,
    name_fraction,
)
from rarescan.classifiers.echo_spec import EchoConfig
from rarescan.evaluation.echo_page import write_page
from rarescan.files import read_json, write_atomic, write_json
from rarescan.flows.echo_film import Film, read_film

FIGURES = "figures.json"
MEASUREMENTS = "measurements.csv"
SIZES = "size.csv"
_SIZE_COLUMNS = ("Filename", "Frame", "Size", "HumanLarge", "HumanSmall", "ComputerSmall")
Row = dict[str, Any]


def write_results(work: Path, out: Path, config: EchoConfig) -> None:
    """Write figures, tables and the page of what the steps before found.

    Parameters
    ----------
    work : Path
        Gets `figures.json`, `measurements.csv`, `size.csv` and `echo.html`.
    out : Path
        Holds the folders `clips`, `views` and `masks`.
    config : EchoConfig
        What a fraction is called.
    """
    clips = read_json(out / "clips" / "clips.json")
    views = read_json(out / "views" / "views.json")
    films = {row["clip_id"]: read_film(out / "masks" / row["clip_id"]) for row in clips}
    found = {name: film.figures() for name, film in films.items() if film is not None}
    rows = [_clip_row(row, views[row["clip_id"]], found, out) for row in clips]
    studies = _studies(clips, views, found, config)
    names = [study["class"] for study in studies]
    figures = {
        "studies": studies,
        "clips": rows,
        "classes": {name: names.count(name) for name in sorted(set(names))},
        "scheme": asdict(config.fraction),
        "agreement": _against_truth(clips, found, studies),
    }
    write_json(work / FIGURES, _plain(figures))
    _write_csv(work / MEASUREMENTS, _measurements(studies, rows))
    _write_csv(work / SIZES, _sizes(films, found), _SIZE_COLUMNS)
    pictures = {name: out / "masks" / f"{name}.png" for name in found}
    curves = {
        name: (film.area.tolist(), films[name].frame_time_ms if films[name] else None)  # type: ignore[union-attr]
        for name, film in found.items()
    }
    write_atomic(work / "echo.html", write_page(_plain(figures), curves, pictures))


def _clip_row(row: Row, view: Row, found: Mapping[str, FilmFigures], out: Path) -> Row:
    known = ("clip_id", "study_id", "person_id")
    film = found.get(row["clip_id"])
    base = {**{name: row[name] for name in known}, "view": view["view"]}
    if film is None:
        refused = read_json(out / "masks" / f"{row['clip_id']}.json")["refused"]
        return {**base, "refused": refused, "flags": row["flags"], "ef": None, "beats": []}
    return {
        **base,
        "refused": None,
        "ef": film.ef,
        "ef_area_length": film.ef_area_length,
        "edv_ml": film.edv_ml,
        "esv_ml": film.esv_ml,
        "la_volume_ml": film.la_volume_ml,
        "heart_rate_bpm": film.heart_rate_bpm,
        "diastole_ms": film.diastole_ms,
        "n_frames": len(film.area),
        "beats": [
            {**asdict(beat), "ef": float(ef)}
            for beat, ef in zip(film.beats.beats, film.ef_by_beat, strict=True)
        ],
        "flags": sorted({*row["flags"], *film.flags}),
    }


def _studies(
    clips: Sequence[Row],
    views: Mapping[str, Row],
    found: Mapping[str, FilmFigures],
    config: EchoConfig,
) -> list[Row]:
    rows = []
    for study in sorted({row["study_id"] for row in clips}):
        own = [row for row in clips if row["study_id"] == study]
        films: dict[str, list[FilmFigures]] = {}
        for row in own:
            if row["clip_id"] in found:
                view = views[row["clip_id"]]["view"]
                films.setdefault(view, []).append(found[row["clip_id"]])
        figures: StudyFigures = measure_study(films)
        rows.append(
            {
                "study_id": study,
                "person_id": own[0]["person_id"],
                "sex": own[0]["sex"],
                **asdict(figures),
                "class": name_fraction(
                    figures.ef, config.fraction, own[0]["sex"], flags=figures.flags
                ),
                "truth_ef": (own[0]["truth"] or {}).get("ef"),
                "split": own[0]["split"],
            }
        )
    return rows


def _against_truth(
    clips: Sequence[Row], found: Mapping[str, FilmFigures], studies: Sequence[Row]
) -> Row | None:
    """Compare with the fractions that `FileList.csv` gives, on films that nobody trained on."""
    told = [row for row in clips if row["truth"] and row["truth"]["ef"] is not None]
    unseen = [row for row in told if row["split"] not in (None, "TRAIN")]
    seen = [row["truth"]["ef"] for row in told if row["split"] == "TRAIN"]
    if not unseen:
        return None
    measured = [found[r["clip_id"]].ef if r["clip_id"] in found else math.nan for r in unseen]
    truth, people = ([r["truth"]["ef"] for r in unseen], [r["person_id"] for r in unseen])
    whole = [s for s in studies if s["truth_ef"] is not None and s["split"] != "TRAIN"]
    constant = float(np.mean(seen)) if seen else None
    return {
        "n_persons": len(set(people)),
        "n_clips": len(unseen),
        "n_without": sum(not math.isfinite(value) for value in measured),
        "clips": agreement(truth, measured, people),
        "studies": agreement(
            [s["truth_ef"] for s in whole],
            [s["ef"] for s in whole],
            [s["person_id"] for s in whole],
        ),
        "constant": agreement(truth, [constant] * len(truth), people) if constant else {},
    }


def _measurements(studies: Iterable[Row], clips: Iterable[Row]) -> list[Row]:
    """Return one row a value, studies first."""
    rows = []
    for study in studies:
        for name, unit in (("ef", "percent"), ("edv_ml", "mL"), ("esv_ml", "mL")):
            rows.append(_value(study, "", study["method"], (name, unit)))
    units = {
        "ef": "percent",
        "ef_area_length": "percent",
        "edv_ml": "mL",
        "esv_ml": "mL",
        "la_volume_ml": "mL",
        "heart_rate_bpm": "1/min",
        "diastole_ms": "ms",
    }
    for clip in clips:
        if clip["refused"] is None:
            rows += [
                _value(clip, clip["clip_id"], _method(name), (name, unit))
                for name, unit in units.items()
            ]
    return rows


def _method(name: str) -> str:
    if name in ("ef_area_length", "la_volume_ml"):
        return "area_length"
    return "area_curve" if name in ("heart_rate_bpm", "diastole_ms") else "single_plane"


def _value(row: Row, clip: str, method: str, what: tuple[str, str]) -> Row:
    value = row[what[0]]
    return {
        "study_id": row["study_id"],
        "clip_id": clip,
        "name": what[0],
        "value": "" if value is None or not math.isfinite(value) else f"{value:.6g}",
        "unit": what[1],
        "method": method,
        "flags": " ".join(row["flags"]),
    }


def _sizes(films: Mapping[str, Film | None], found: Mapping[str, FilmFigures]) -> list[Row]:
    """Return the ventricle's area in every frame and whether it is an end-systole (ComputerSmall).

    HumanLarge and HumanSmall stay empty: nobody traced these frames.
    """
    rows = []
    for name, film in films.items():
        if film is None:
            continue
        systoles = {beat.es for beat in found[name].beats.beats}
        for frame, area in enumerate(film.ventricle.area_mm2):
            size = f"{area:.6g}" if np.isfinite(area) else ""
            values = (name, frame, size, "", "", int(frame in systoles))
            rows.append(dict(zip(_SIZE_COLUMNS, values, strict=True)))
    return rows


def _write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
    names = list(columns or (rows[0] if rows else ()))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def _plain(value: Any) -> Any:
    """Return plain values in which what is no finite number is None."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
