"""Two collections of mammograms that come with tables of their own: CBIS-DDSM and MIAS.

`cbis_rows` and `mias_rows` are the way in: rows like those of any other table of pictures, which
`picture_table.pictures_of` reads. What would be got wrong: a person of CBIS-DDSM stands in the
tables of calcifications and of masses, in training and in test, so its own division divides
persons and is not used; and one film has several rows. MIAS counts y from the bottom.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from rarescan.errors import InputError
from rarescan.imaging.picture_table import Row, read_rows

CBIS_LABELS = ("benign_without_callback", "benign", "malignant")
"""What CBIS-DDSM says of an abnormality, the worst last."""
MIAS_LABELS = ("normal", "benign", "malignant")
_CBIS_TABLE = re.compile(r"(calc|mass)_case_description_(train|test)_set\.csv")
_MIAS_LINE = re.compile(
    r"(mdb\d{3})\s+([FGD])\s+([A-Z]{4})(?:\s+([BM])(?:\s+(\d+)\s+(\d+)\s+(\d+))?)?"
)
_MIAS_ROWS = 1024
_MIAS_HALF_SIDE = 96
"""Half the side of a patch around a lesion, in pixels of 0.2 mm: 38.4 mm in all."""


def cbis_rows(source: Path) -> list[Row]:
    """Return the films and abnormalities of CBIS-DDSM as it was exported to JPEG.

    Parameters
    ----------
    source : Path
        Folder with `csv/{calc,mass}_case_description_{train,test}_set.csv` and
        `jpeg/<series>/*.jpg`, at any depth.

    Returns
    -------
    list of dict
        Columns: `file` (relative to `source`; empty where the series is not there), `person`,
        `item` (the film), `label` (the worst of the film's abnormalities, or of the patch), `kind`
        (`whole` or `patch`), `side`, `view`, `density`.

    Raises
    ------
    InputError
        There is no table.
    """
    tables = sorted(p for p in source.rglob("*.csv") if _CBIS_TABLE.fullmatch(p.name))
    if not tables:
        raise InputError(
            "There is no table of CBIS-DDSM (calc_case_description_train_set.csv ...).",
            remedy="Name the folder that holds `csv` and `jpeg`.",
        )
    folders = {path.name: path for path in sorted(source.rglob("jpeg/*")) if path.is_dir()}
    cases = [case for table in tables for case in map(_plain_names, read_rows(table))]
    films: dict[str, list[Row]] = {}
    for case in cases:
        films.setdefault(_series(case["image_file_path"]), []).append(case)
    whole = [
        _cbis_row(found, _file(source, folders.get(series), largest=True), "whole")
        for series, found in films.items()
    ]
    patches = [
        _cbis_row([case], _file(source, folders.get(series), largest=False), "patch")
        for case in cases
        if (series := _series(case["cropped_image_file_path"]))
    ]
    return whole + patches


def _plain_names(row: Row) -> Row:
    """Return a row under names of one spelling: the tables write `breast density` in two ways."""
    return {name.strip().lower().replace(" ", "_"): value.strip() for name, value in row.items()}


def _series(path: str) -> str:
    """Return the series of `<case>/<study>/<series>/<file>`; the tables end paths with a break."""
    parts = path.strip().strip('"').split("/")
    return parts[-2] if len(parts) > 1 else ""


def _file(source: Path, folder: Path | None, *, largest: bool) -> str:
    """Return the film of a series, or its cut-out (which lies beside a mask of the film's size)."""
    found = sorted(folder.glob("*.jpg")) if folder else []
    if not found:
        return "missing.jpg"
    sizes = {path: _pixels(path) for path in found} if len(found) > 1 else {found[0]: 0}
    chosen = (max if largest else min)(found, key=lambda path: sizes[path])
    return str(chosen.relative_to(source))


def _pixels(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except Exception:  # Pillow fails on hostile bytes with many errors; the reader will say so
        return 0


def _cbis_row(cases: Sequence[Row], file: str, kind: str) -> Row:
    case = cases[0]
    side, view = case["left_or_right_breast"], case["image_view"]
    return {
        "file": file,
        "person": case["patient_id"],
        "item": f"{case['patient_id']}_{side}_{view}",
        "label": _worst((c["pathology"].lower() for c in cases), CBIS_LABELS),
        "kind": kind,
        "abnormality": case["abnormality_type"],
        "side": side,
        "view": view,
        "density": case.get("breast_density", ""),
    }


def _worst(labels: Iterable[str], order: Sequence[str]) -> str:
    found = list(labels)
    unknown = [label for label in found if label not in order]
    if unknown:
        raise InputError(
            f"The table has a pathology that is none of {', '.join(order)}.",
            remedy="Check that its rows are not shifted.",
        )
    return max(found, key=order.index)


def mias_rows(source: Path, table: str) -> list[Row]:
    """Return the films and lesions of mini-MIAS.

    Parameters
    ----------
    source : Path
        Folder with the films (`mdb001.pgm` or `.jpg`), 1024 x 1024 pixels or a smaller copy.
    table : str
        The text table (`Info.txt`): film, tissue, abnormality, severity, x, y from the bottom,
        radius.

    Returns
    -------
    list of dict
        Columns: `file`, `person` (films are numbered in pairs of one woman), `item` (the film),
        `label` (the worst of the film's lesions, or of the patch), `kind` (`whole` or `patch`),
        `tissue`, `side`, `x`, `y_top`, `radius` (pixels of the film of 1024), `box` (row0 row1
        column0 column1 of a patch, shares of the film).

    Raises
    ------
    InputError
        The table or the films are not there.
    """
    text = (source / table).read_text(errors="replace") if (source / table).is_file() else ""
    lesions = [found.groups() for line in text.splitlines() if (found := _MIAS_LINE.match(line))]
    if not lesions:
        raise InputError(
            "The table of mini-MIAS is missing or has no line like `mdb001 G CIRC B 535 425 197`.",
            remedy="Set pictures.table to its Info.txt, relative to the source folder.",
        )
    scans = (p for p in sorted(source.rglob("mdb*")) if p.suffix in (".pgm", ".jpg"))
    files = {p.stem: str(p.relative_to(source)) for p in scans}
    films: dict[str, list[_Lesion]] = {}
    for lesion in lesions:
        films.setdefault(str(lesion[0]), []).append(lesion)
    rows = []
    for film, own in films.items():
        file = files.get(film, f"{film}.pgm")
        rows.append(_mias_row(file, own) | {"kind": "whole", **dict.fromkeys(_PLACE, "")})
        rows += [_mias_row(file, [one]) | _place(one) for one in own if one[4] is not None]
    return rows


_Lesion = tuple[str | None, ...]
_PLACE = ("x", "y_top", "radius", "box")


def _mias_row(file: str, lesions: Sequence[_Lesion]) -> Row:
    film, tissue = str(lesions[0][0]), str(lesions[0][1])
    number = int(film[3:])
    words = {"B": "benign", "M": "malignant", None: "normal"}
    return {
        "file": file,
        "person": f"M{(number + 1) // 2:03d}",
        "item": film,
        "label": _worst((words[lesion[3]] for lesion in lesions), MIAS_LABELS),
        "tissue": tissue,
        "side": "R" if number % 2 else "L",
    }


def _place(lesion: _Lesion) -> Row:
    """Return where a lesion lies, counted from the top, and the patch around it."""
    x, y, radius = (int(value or 0) for value in lesion[4:7])
    y_top = _MIAS_ROWS - 1 - y
    centre = [min(max(at, _MIAS_HALF_SIDE), _MIAS_ROWS - _MIAS_HALF_SIDE) for at in (y_top, x)]
    box = [at + step for at in centre for step in (-_MIAS_HALF_SIDE, _MIAS_HALF_SIDE)]
    shares = " ".join(f"{edge / _MIAS_ROWS:.6f}" for edge in box)
    place = {"x": str(x), "y_top": str(y_top), "radius": str(radius)}
    return {"kind": "patch", **place, "box": shares}
