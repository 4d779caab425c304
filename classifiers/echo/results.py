"""The figures of a folder of echocardiograms: as JSON, as tables, as what a page needs.

`join_views` says which view each clip counts as, `write_results` makes figures of the curves and
`measurements` lists them one by one. `size.csv` has the columns of EchoNet-Dynamic's file of that
name.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rarescan.classifiers.echo.agreement import agreement
from rarescan.classifiers.echo.film import Film, read_film
from rarescan.classifiers.echo.measure import FilmFigures, measure_study, name_fraction
from rarescan.classifiers.echo.spec import FractionConfig
from rarescan.classifiers.echo.tables import EF, EF_CLASS, STUDY, TABLE
from rarescan.files import read_json, write_atomic, write_json

CLIPS, VIEWS, FIGURES = "clips.json", "views.json", "figures.json"
UNKNOWN = "unknown"
_VALUES = {
    EF: ("percent", "single_plane"),
    "ef_area_length": ("percent", "area_length"),
    "edv_ml": ("mL", "single_plane"),
    "esv_ml": ("mL", "single_plane"),
    "la_volume_ml": ("mL", "area_length"),
    "heart_rate_bpm": ("1/min", "area_curve"),
    "diastole_ms": ("ms", "area_curve"),
}
"""What is measured in a clip: its unit and how."""
_OF_STUDIES = (EF, "edv_ml", "esv_ml")
_LISTED = ("study_id", "clip_id", "name", "beat", "value", "text", "unit", "method", "flags")
_SIZES = ("Filename", "Frame", "Size", "HumanLarge", "HumanSmall", "ComputerSmall")
Row = dict[str, Any]
Curve = tuple[Sequence[float | None], float | None]
"""The ventricle's area in each frame, and the time between frames in ms."""


def join_views(clips: Sequence[Row], said: Mapping[str, tuple[str, float]], model: str) -> Row:
    """Return for each clip the view that counts, and who says what.

    Parameters
    ----------
    clips : sequence of dict
        Those of `clips.json`; what a table says of a view counts more than a network.
    said : mapping
        Clip -> view and probability by a network; not every clip need be there.
    model : str
        The network's name.
    """
    joined = {}
    for clip in clips:
        answers = [{"model": TABLE, "view": clip["view"], "probability": None}]
        answers = answers if clip["view"] else []
        if clip["clip_id"] in said:
            view, probability = said[clip["clip_id"]]
            answers.append({"model": model, "view": view, "probability": round(probability, 6)})
        view = answers[0]["view"] if answers else UNKNOWN
        joined[clip["clip_id"]] = {"view": view, "answers": answers}
    return joined


def write_results(
    work: Path, out: Path, fraction: FractionConfig
) -> tuple[Row, dict[str, Curve], dict[str, Path]]:
    """Write the figures of what the steps before found.

    Parameters
    ----------
    work : Path
        Gets `figures.json`, `measurements.csv` and `size.csv`.
    out : Path
        Holds the folders `clips`, `views` and `masks`.
    fraction : FractionConfig
        What a fraction is called.

    Returns
    -------
    figures, curves, pictures
        Plain figures, and by clip the curve of its area and the place of its picture.
    """
    clips = read_json(out / "clips" / CLIPS)
    views = read_json(out / "views" / VIEWS)
    films = {row["clip_id"]: read_film(out / "masks" / row["clip_id"]) for row in clips}
    seen = {name: film for name, film in films.items() if film is not None}
    found = {name: film.figures() for name, film in seen.items()}
    studies = _studies(clips, views, found, fraction)
    names = [study["class"] for study in studies]
    figures: Row = _plain(
        {
            "studies": studies,
            "clips": [_clip_row(row, views[row["clip_id"]], found, out) for row in clips],
            "classes": {name: names.count(name) for name in sorted(set(names))},
            "scheme": asdict(fraction),
            "agreement": _against_truth(clips, found, studies),
            "views": _views_against_table(clips, views),
        }
    )
    write_json(work / FIGURES, figures)
    _write_csv(work / "measurements.csv", measurements(figures), _LISTED)
    _write_csv(work / "size.csv", _sizes(seen, found), _SIZES)
    curves = {
        name: (_plain(f.area.tolist()), seen[name].frame_time_ms) for name, f in found.items()
    }
    return figures, curves, {name: out / "masks" / f"{name}.png" for name in found}


def measurements(figures: Row) -> Iterator[Row]:
    """Yield every measured value, those of studies first; a study's have no clip."""
    for study in figures["studies"]:
        known = {"study_id": study["study_id"], "clip_id": STUDY, "method": study["method"]}
        known["flags"] = " ".join(study["flags"])
        for name in _OF_STUDIES:
            yield {**known, "name": name, "value": study[name], "unit": _VALUES[name][0]}
        yield {**known, "name": EF_CLASS, "text": study["class"], "unit": ""}
    for clip in figures["clips"]:
        known = {"study_id": clip["study_id"], "clip_id": clip["clip_id"]}
        known["flags"] = " ".join(clip["flags"])
        for name, (unit, method) in _VALUES.items() if clip["refused"] is None else ():
            yield {**known, "name": name, "value": clip[name], "unit": unit, "method": method}
        for number, beat in enumerate(clip["beats"]):
            more = {"beat": number, "unit": "percent", "method": "single_plane"}
            yield {**known, "name": EF, "value": beat["ef"], **more}


def _clip_row(row: Row, view: Row, found: Mapping[str, FilmFigures], out: Path) -> Row:
    film = found.get(row["clip_id"])
    base = {name: row[name] for name in ("clip_id", "study_id", "person_id")}
    base["view"] = view["view"]
    flags = {*row["flags"]}
    if len({answer["view"] for answer in view["answers"]}) > 1:
        flags.add("view_disputed")
    if film is None:
        refused = read_json(out / "masks" / f"{row['clip_id']}.json")["refused"]
        return {**base, "refused": refused, "flags": sorted(flags), EF: None, "beats": []}
    beats = zip(film.beats.beats, film.ef_by_beat, strict=True)
    return {
        **base,
        "refused": None,
        **{name: getattr(film, name) for name in _VALUES},
        "n_frames": len(film.area),
        "beats": [{**asdict(beat), EF: float(ef)} for beat, ef in beats],
        "flags": sorted({*flags, *film.flags}),
    }


def _studies(
    clips: Sequence[Row],
    views: Mapping[str, Row],
    found: Mapping[str, FilmFigures],
    fraction: FractionConfig,
) -> list[Row]:
    rows = []
    for study in sorted({row["study_id"] for row in clips}):
        own = [row for row in clips if row["study_id"] == study]
        films: dict[str, list[FilmFigures]] = {}
        for name in [row["clip_id"] for row in own if row["clip_id"] in found]:
            films.setdefault(views[name]["view"], []).append(found[name])
        figures, first = measure_study(films), own[0]
        name = name_fraction(figures.ef, fraction, first["sex"], flags=figures.flags)
        rows.append(
            {
                **{key: first[key] for key in ("study_id", "person_id", "sex", "split")},
                **asdict(figures),
                "class": name,
                "truth_ef": (first["truth"] or {}).get("ef"),
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
    columns = [[s[key] for s in whole] for key in ("truth_ef", "ef", "person_id")]
    constant = [float(np.mean(seen))] * len(truth) if seen else []
    return {
        "n_persons": len(set(people)),
        "n_clips": len(unseen),
        "n_without": sum(not math.isfinite(value) for value in measured),
        "clips": agreement(truth, measured, people),
        "studies": agreement(*columns),
        "constant": agreement(truth, constant, people) if constant else {},
    }


def _views_against_table(clips: Sequence[Row], views: Mapping[str, Row]) -> Row | None:
    """Return the share of clips whose view the network tells otherwise than the table."""
    both = [row for row in clips if len(views[row["clip_id"]]["answers"]) == 2]
    if not both:
        return None
    answers = [[a["view"] for a in views[row["clip_id"]]["answers"]] for row in both]
    wrong = [float(ours != theirs) for theirs, ours in answers]
    people = [row["person_id"] for row in both]
    share = agreement([0.0] * len(wrong), wrong, people)["mae"]
    return {"n_persons": len(set(people)), "n_clips": len(both), "wrong": share}


def _sizes(films: Mapping[str, Film], found: Mapping[str, FilmFigures]) -> Iterator[Row]:
    """Yield the ventricle's area in every frame and whether it is an end-systole (ComputerSmall).

    HumanLarge and HumanSmall stay empty: nobody traced these frames.
    """
    for name, film in films.items():
        systoles = {beat.es for beat in found[name].beats.beats}
        for frame, area in enumerate(film.ventricle.area_mm2):
            yield {
                "Filename": name,
                "Frame": frame,
                "Size": float(area) if np.isfinite(area) else None,
                "ComputerSmall": int(frame in systoles),
            }


def _write_csv(path: Path, rows: Iterator[Row], columns: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row.get(column) for column in columns)
        writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in values)
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
