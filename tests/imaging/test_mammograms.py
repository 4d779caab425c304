import csv
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rarescan.cohort.partition import PartitionConfig
from rarescan.cohort.store import open_cohort, read_about
from rarescan.errors import InputError
from rarescan.imaging.mammograms import cbis_rows, mias_rows
from rarescan.imaging.picture_table import pictures_of
from rarescan.imaging.pictures import adopt_pictures
from rarescan.imaging.planes import prepare_planes
from rarescan.imaging.spec import PicturesConfig, PlanesConfig

_CALC = (
    "patient_id,breast density,left or right breast,image view,abnormality id,abnormality type,"
    "calc type,calc distribution,assessment,pathology,subtlety,image file path,"
    "cropped image file path,ROI mask file path"
)
_MASS = _CALC.replace("breast density", "breast_density").replace(
    "calc type,calc distribution", "mass shape,mass margins"
)


def breast(seed: int, size: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    inside = np.hypot(rows - size / 2, columns) < 0.45 * size
    texture = np.random.default_rng(seed).integers(90, 200, (size, size))
    return np.where(inside, texture, 0).astype(np.uint8)


def case(person: int, kind: str, side: str, view: str, pathology: str, number: int = 1) -> str:
    """Return one row as the collection writes it: quoted paths that end with a line break."""
    film = f"1.3.6.{person}.{len(side)}.{len(view) + ord(view[0])}"
    lesion = f"{film}.{number}.{'1' if kind == 'mass' else '2'}"
    name = f"{kind.title()}-Training_P_{person:05d}_{side}_{view}"
    paths = [f"{name}/9.9/{film}/000000.dcm"]
    paths += [f"{name}_{number}/9.9/{lesion}/00000{k}.dcm" for k in range(2)]
    quoted = ",".join(f'"{path}\n"' for path in paths)
    more = "PLEOMORPHIC,CLUSTERED" if kind == "calc" else "IRREGULAR,SPICULATED"
    kind_name = "calcification" if kind == "calc" else "mass"
    head = f"P_{person:05d},3,{side},{view},{number},{kind_name},{more},4,{pathology},2"
    return f"{head},{quoted}"


@pytest.fixture(scope="session")
def cbis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a made copy of the layout: 13 persons, the first in three of the four tables."""
    root = tmp_path_factory.mktemp("cbis") / "data"
    tables: dict[str, list[str]] = {
        f"{k}_{p}": [] for k in ("calc", "mass") for p in ("train", "test")
    }
    tables["calc_train"] += [
        case(1, "calc", "LEFT", "CC", "BENIGN_WITHOUT_CALLBACK"),
        case(1, "calc", "LEFT", "CC", "MALIGNANT", 2),
        case(1, "calc", "LEFT", "MLO", "BENIGN"),
    ]
    tables["mass_test"].append(case(1, "mass", "LEFT", "MLO", "MALIGNANT"))
    tables["mass_train"].append(case(1, "mass", "RIGHT", "CC", "BENIGN"))
    for person in range(2, 14):
        kind = "calc_test" if person % 2 else "mass_train"
        label = "BENIGN" if person < 8 else "MALIGNANT"
        tables[kind].append(case(person, kind[:4], "RIGHT", "MLO", label))
    (root / "csv").mkdir(parents=True)
    for name, rows in tables.items():
        kind, _, part = name.partition("_")
        head = _CALC if kind == "calc" else _MASS
        path = root / f"csv/{kind}_case_description_{part}_set.csv"
        path.write_text("\n".join([head, *rows]) + "\n")
        for row in csv.DictReader(path.read_text().splitlines(keepends=True)):
            film, crop = (
                row[c].split("/")[2] for c in ("image file path", "cropped image file path")
            )
            seed = zlib.crc32(film.encode())
            for folder, names in ((film, {"1-1": 60}), (crop, {"1-1": 60, "1-2": 20})):
                (root / "jpeg" / folder).mkdir(parents=True, exist_ok=True)
                for stem, size in names.items():
                    Image.fromarray(breast(seed, size)).save(root / "jpeg" / folder / f"{stem}.jpg")
    return root


def test_paths_that_end_with_a_line_break_are_found(cbis: Path) -> None:
    rows = cbis_rows(cbis)
    assert len(rows) == 15 + 17
    assert all((cbis / row["file"]).is_file() for row in rows)


def test_a_film_is_one_row_with_its_worst_label_over_both_tables(cbis: Path) -> None:
    films = {row["item"]: row for row in cbis_rows(cbis) if row["kind"] == "whole"}
    assert len(films) == 15
    assert films["P_00001_LEFT_CC"]["label"] == "malignant"
    assert films["P_00001_LEFT_MLO"]["label"] == "malignant"
    assert films["P_00001_RIGHT_CC"]["label"] == "benign"


def test_a_patch_is_the_cut_out_and_not_its_mask(cbis: Path) -> None:
    patches = [row for row in cbis_rows(cbis) if row["kind"] == "patch"]
    assert Counter(row["abnormality"] for row in patches) == {"calcification": 9, "mass": 8}
    for row in patches:
        with Image.open(cbis / row["file"]) as image:
            assert image.size == (20, 20)


def test_t25_a_person_stands_in_one_part_whatever_tables_name_her(
    cbis: Path, tmp_path: Path
) -> None:
    config = PicturesConfig(
        layout="cbis", keep={"kind": "whole"}, words={"benign_without_callback": "benign"},
        labels=("benign", "malignant"), modality="MG", unit="film", show="object",
    )  # fmt: skip
    adopt_pictures(cbis, tmp_path / "c", config, workers=1)
    root = prepare_planes(
        tmp_path / "c",
        tmp_path / "p",
        PlanesConfig(rows=16, columns=16, mirror="left"),
        PartitionConfig(fewest_validation=0),
    )
    cohort = open_cohort(root)
    assert len(cohort.scans) == 15
    hers = [scan for scan in cohort.scans if scan.person_id == "P00001"]
    assert len(hers) == 3
    assert {scan.condition.diagnosis for scan in hers} == {"malignant"}
    assert {scan.target for scan in hers} == {"malignant", "benign"}
    assert cohort.partition.keys() == {scan.person_id for scan in cohort.scans}
    # The collection's own training and test tables both have persons of every part of ours.
    own_test = {row["person"] for row in cbis_rows(cbis)} & {f"P_{k:05d}" for k in (3, 5, 7, 9)}
    assert len({cohort.partition[person.replace("_", "")] for person in own_test}) > 1


def test_films_that_are_not_there_are_events(cbis: Path, tmp_path: Path) -> None:
    missing = tmp_path / "data"
    (missing / "csv").mkdir(parents=True)
    for table in (cbis / "csv").iterdir():
        (missing / "csv" / table.name).write_text(table.read_text())
    (missing / "jpeg").mkdir()
    first = next(row for row in cbis_rows(cbis) if row["kind"] == "whole")
    folder = missing / Path(first["file"]).parent
    folder.mkdir()
    (folder / "1-1.jpg").write_bytes((cbis / first["file"]).read_bytes())
    config = PicturesConfig(layout="cbis", keep={"kind": "whole"}, modality="MG", unit="film")
    root = adopt_pictures(missing, tmp_path / "c", config, workers=1)
    assert read_about(root)["codes"] == {"FILE_MISSING": 14}


def test_an_unknown_pathology_is_an_error(cbis: Path, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    table = cbis / "csv/calc_case_description_train_set.csv"
    (tmp_path / "csv" / table.name).write_text(table.read_text().replace("MALIGNANT", "2"))
    with pytest.raises(InputError, match="pathology"):
        cbis_rows(tmp_path)
    with pytest.raises(InputError, match="no table"):
        cbis_rows(tmp_path / "jpeg")


def write_mias(real_data: Path, folder: Path) -> list[dict[str, str]]:
    """Write the original text table again, y from the bottom, beside the shipped films."""
    folder.mkdir(exist_ok=True)
    table = (real_data / "mammography/labels.csv").read_text().splitlines()
    rows = list(csv.DictReader(table))
    patches = [r for r in rows if r["kind"] == "patch" and r["label"] != "normal"]
    placed = {row["film"] for row in patches}
    lines = ["REFNUM BG CLASS SEVERITY X Y RADIUS"]
    for row in rows:
        if row["kind"] == "whole" and row["film"] not in placed:
            letter = {"normal": "", "benign": " B", "malignant": " M"}[row["label"]]
            lines.append(f"{row['film']} {row['tissue']} {row['abnormality'][:4]}{letter}")
    for r in patches:
        letter = {"benign": "B", "malignant": "M"}[r["label"]]
        place = f"{float(r['x']):.0f} {1023 - float(r['y_top']):.0f} {float(r['radius']):.0f}"
        lines.append(f"{r['film']} {r['tissue']} {r['abnormality'][:4]} {letter} {place}")
    (folder / "Info.txt").write_text("\n".join(lines) + "\n")
    (folder / "films").mkdir(exist_ok=True)
    for film in (real_data / "mammography/whole").resolve().iterdir():
        (folder / "films" / film.name).symlink_to(film)
    return patches


def contrast(film: np.ndarray, x: float, y: float, radius: float) -> float:
    """Return the mean of a lesion less that of the ring around it, in grey levels."""
    scale = film.shape[0] / 1024
    rows, columns = np.mgrid[: film.shape[0], : film.shape[1]]
    distance = np.hypot(rows - y * scale, columns - x * scale)
    inner = max(radius * scale, 2)
    ring = (distance > 1.5 * inner) & (distance < 2.5 * inner)
    return float(film[distance < inner].mean() - film[ring].mean())


def test_t50_mias_counts_y_from_the_bottom(real_data: Path, tmp_path: Path) -> None:
    write_mias(real_data, tmp_path)
    lesions = [row for row in mias_rows(tmp_path, "Info.txt") if row["kind"] == "patch"]
    assert len(lesions) == 119
    found = []
    for row in lesions:
        film = np.asarray(Image.open(tmp_path / row["file"]).convert("L"), dtype=float)
        x, y, radius = (float(row[name]) for name in ("x", "y_top", "radius"))
        found.append((contrast(film, x, y, radius), contrast(film, x, 1023 - y, radius)))
    ours, flipped = np.mean(found, axis=0)
    assert ours > 18
    assert ours > flipped + 8


def test_films_and_women_of_mias_are_those_of_the_shipped_table(
    real_data: Path, tmp_path: Path
) -> None:
    write_mias(real_data, tmp_path)
    table = csv.DictReader((real_data / "mammography/labels.csv").read_text().splitlines())
    shipped = {row["film"]: row for row in table if row["kind"] == "whole"}
    films = [row for row in mias_rows(tmp_path, "Info.txt") if row["kind"] == "whole"]
    assert len(films) == 322
    for row in films:
        theirs = shipped[row["item"]]
        assert row["label"] == theirs["label"]
        assert row["person"] == theirs["patient_or_source"]
        assert row["side"] == theirs["side_by_number"]


def test_a_patch_of_mias_is_cut_around_its_lesion(real_data: Path, tmp_path: Path) -> None:
    write_mias(real_data, tmp_path)
    config = PicturesConfig(
        layout="mias", table="Info.txt", keep={"kind": "patch", "item": "mdb005"}, unit="film",
        modality="MG",
    )  # fmt: skip
    rows = mias_rows(tmp_path, "Info.txt")
    pictures = pictures_of(rows, tmp_path, config, None)
    assert len(pictures) == 2  # two lesions of one film
    root = adopt_pictures(tmp_path, tmp_path / "c", config, workers=1)
    for scan, row in zip(
        open_cohort(root).scans,
        [r for r in rows if r["item"] == "mdb005" and r["kind"] == "patch"],
        strict=True,
    ):
        patch = np.asarray(Image.open(root / scan.path), dtype=float)
        assert patch.shape == (48, 48)  # 192 of 1024 pixels, on a film of 256
        film = np.asarray(Image.open(tmp_path / row["file"]).convert("L"), dtype=float)
        y, x = float(row["y_top"]) / 4, float(row["x"]) / 4
        assert patch[24, 24] == pytest.approx(film[round(y), round(x)], abs=25)


def test_without_the_table_mias_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Info\.txt"):
        mias_rows(tmp_path, "Info.txt")
