"""`compare` on arrays, feature files and folders of images, as a function and as a verb."""

import json
import locale
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from PIL import Image
from typer.testing import CliRunner

from rarescan.cli import beside, verbs  # noqa: F401
from rarescan.cli.main import app
from rarescan.cohort.contracts import Condition, FeatureSet, Scan, brain_grid
from rarescan.cohort.store import create_volumes, write_cohort
from rarescan.errors import GridMismatchError, InputError, RarescanError, SettingError
from rarescan.evaluation import compare, metrics
from rarescan.evaluation.comparison import named_extractor
from rarescan.evaluation.features import save_features
from rarescan.evaluation.measures import describe
from rarescan.evaluation.pictures import pyramid, read_images
from rarescan.files import Recipe, write_json


def draw(n: int, seed: int, *, shift: float = 0.0, d: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def volumes(folder: Path, n: int, seed: int, *, shape=(9, 8, 7), mm=2.0, stem="sub-{:02}_T1w"):
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    for index in range(n):
        voxels = random.uniform(1, 100, shape).astype(np.float32)
        path = folder / f"{stem.format(index)}.nii.gz"
        nib.Nifti1Image(voxels, np.diag([mm, mm, mm, 1])).to_filename(path)
    return folder


def pictures(folder: Path, n: int, seed: int, *, shape=(20, 16)) -> Path:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    for index in range(n):
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(folder / f"{index}.png")
    return folder


def test_numbers_are_those_of_the_functions_and_the_floor_is_real_against_real():
    x, y = draw(60, 1), draw(40, 2, shift=0.8)
    found = compare(x, y)
    assert found.scores["mmd"].value == pytest.approx(metrics.mmd(x, y).value)
    assert found.scores["kid"].value == pytest.approx(metrics.kid(x, y).value)
    assert set(found.floor) == {"mmd", "kid", "fid_of_parts"}
    assert found.floor["mmd"].high < found.scores["mmd"].low
    assert found.floor["mmd"].low < 0 < found.floor["mmd"].high  # unbiased, and from other persons
    # The floor of a FID counts at its own n only, so B stands beside it at that n.
    floor, beside_it = found.floor["fid_of_parts"], found.scores["fid_of_parts"]
    assert (
        (floor.n_real, floor.n_synthetic) == (beside_it.n_real, beside_it.n_synthetic) == (30, 30)
    )
    assert 0.1 < floor.value < beside_it.value
    assert compare(x, y) == found


def test_half_the_variety_is_seen_in_the_vendi_ratio():
    x, y = draw(100, 3), draw(100, 4)
    equal = compare(x, y).scores["vendi_ratio"]
    assert equal.low < 1 < equal.high
    twins = np.repeat(y[:10], 10, axis=0)
    ratio = compare(x, twins).scores["vendi_ratio"]
    assert ratio.high < 0.5
    assert ratio.value <= 10 / metrics.vendi(metrics.rbf(x, x, metrics.frozen_bandwidth(x))) + 0.01


def test_the_table_says_n_interval_floor_extractor_and_what_not_to_read():
    few, many = compare(draw(12, 1), draw(12, 2)), compare(draw(250, 1), draw(250, 2))
    lines = {line.split("  ")[0]: line for line in many.table().splitlines()}
    assert " to " in lines["mmd"]
    assert "250 + 250" in lines["mmd"]
    assert "at n = 125" in lines["mmd"]
    assert "extractor: unknown" in many.table()
    assert "*" not in lines["fid"]
    assert "fid          *" in few.table()
    assert "too few persons" in few.table()
    tiny = compare(draw(2, 1), draw(2, 2))
    assert tiny.floor == {}
    assert {name: score["high"] for name, score in tiny.as_dict()["scores"].items()}["kid"] is None
    assert "fid" not in tiny.scores
    assert all(not score.sufficient for score in tiny.scores.values())


def test_feature_files_of_three_kinds_agree_and_scans_of_one_person_are_averaged(tmp_path):
    rows = draw(24, 1)
    persons = [f"P{i // 2}" for i in range(24)]
    table = pd.DataFrame(rows, columns=[f"f{i}" for i in range(5)]).assign(person_id=persons)
    table.to_csv(tmp_path / "a.csv", index=False)
    table.assign(extractor="ours").to_parquet(tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", values=rows, person_ids=np.array(persons))
    averaged = rows.reshape(12, 2, 5).mean(axis=1)
    other = draw(20, 2)
    expected = compare(averaged, other).scores["mmd"]
    for name in ("a.csv", "a.parquet", "a.npz"):
        found = compare(tmp_path / name, other)
        assert found.scores["mmd"].value == pytest.approx(expected.value)
        assert (found.scores["mmd"].n_real, found.n_scans[0]) == (12, 24)
    assert compare(tmp_path / "a.parquet", other).extractor == "ours"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("f0\n1\n2\nNaN\n", "NaN or infinity for 1 person"),
        ("f0\n1\n1\n1\n", "same features"),
        ("f0,name\n1,x\n2,y\n", "1 columns that hold no numbers, and 1 that do"),
        ("person_id\na\nb\n", "0 columns that hold no numbers, and 0 that do"),
        ("f0,extractor\n1,a\n2,b\n", "2 extractors"),
        ("", "cannot be read"),
    ],
)
def test_tables_that_are_no_features_are_refused(tmp_path, content, words):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        compare(path, draw(5, 1, d=1))
    assert caught.value.remedy.endswith(".")


def test_features_of_two_extractors_are_not_mixed(tmp_path):
    for name, rows in (("ours", draw(9, 1)), ("theirs", draw(9, 2))):
        ids = tuple(str(i) for i in range(9))
        found = FeatureSet(values=rows.astype(np.float32), person_ids=ids, extractor=name)
        save_features(tmp_path, "a", found)
    with pytest.raises(InputError, match="different extractors"):
        compare(tmp_path / "ours" / "a.npz", tmp_path / "theirs" / "a.npz")
    folder = pictures(tmp_path / "pictures", 9, 1)
    with pytest.raises(InputError, match="different extractors"):
        compare(tmp_path / "ours" / "a.npz", folder)
    assert compare(tmp_path / "ours" / "a.npz", draw(9, 3)).extractor == "ours"


def test_persons_come_from_bids_names_in_folders_or_files(tmp_path):
    a = volumes(tmp_path / "a", 6, 1)
    for index in range(3):  # a second session of three persons, and what is no scan
        nested = a / f"sub-{index:02}" / "ses-2"
        volumes(nested.parent, 0, 0)
        nested.mkdir()
        volumes(nested, 1, 20 + index, stem="scan")
    shutil.copy(a / "sub-00_T1w.nii.gz", a / "sub-00_mask.nii.gz")
    shutil.copy(a / "sub-00_T1w.nii.gz", a / ".hidden.nii.gz")
    b = volumes(tmp_path / "b", 7, 2, stem="x{}")
    found = compare(a, b)
    assert (found.scores["mmd"].n_real, found.n_scans) == (6, (9, 7))
    assert found.notes[0] == ("persons from names (sub-...)",)
    assert "one file = one person" in found.notes[1][0]
    assert found.extractor == "pyramid"


def test_nifti_in_any_orientation_and_dicom_give_the_same_image(tmp_path):
    voxels = np.random.default_rng(0).integers(1, 1000, (6, 5, 4)).astype(np.int16)
    ras = np.diag([2.0, 2.0, 3.0, 1])
    image = nib.Nifti1Image(voxels, ras)
    turned = image.as_reoriented(nib.io_orientation(np.diag([-1.0, 1, -1, 1])))
    dicom = tmp_path / "c"
    dicom.mkdir()
    for name, one in (("a", image), ("b", turned)):
        (tmp_path / name).mkdir()
        one.to_filename(tmp_path / name / "x.nii")
    write_series(dicom, voxels)
    a, b, c = (next(read_images(tmp_path / name)) for name in "abc")
    assert a.values == pytest.approx(b.values)
    assert a.values == pytest.approx(c.values)
    assert a.kind == b.kind == c.kind == "6 x 5 x 4 voxels of 2 x 2 x 3 mm"
    assert (c.person, c.person_rule) == ("P1", "persons from DICOM patients")


def write_series(folder: Path, voxels: np.ndarray) -> None:
    """Write a RAS volume as a DICOM series, slices in the wrong order of names."""
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0)[:, ::-1, ::-1].copy())
    image.SetSpacing((2.0, 2.0, 3.0))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    depth, height, width = voxels.shape[2], voxels.shape[1], voxels.shape[0]
    before = locale.setlocale(locale.LC_ALL)
    for k in range(depth):
        plane = image[:, :, k]
        # The first voxel of an LPS series lies right, anterior, inferior flipped twice above.
        corner = (-(width - 1) * 2.0, -(height - 1) * 2.0, k * 3.0)
        tags = {
            "0008|0060": "MR",
            "0010|0020": "P1",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0008|0018": f"1.2.3.4.{k + 1}",
            "0020|0032": "\\".join(str(v) for v in corner),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "3",
        }
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{depth - k}.dcm"))
        writer.Execute(plane)
    # GDCM's writer leaves the whole process in the locale "C".
    locale.setlocale(locale.LC_ALL, before)


def test_a_prepared_cohort_is_read_with_its_persons(tmp_path):
    root, grid = tmp_path / "p", brain_grid(8.0)
    scans = [
        Scan(scan_id=f"S{i}", person_id=f"P{i}", condition=Condition(diagnosis="control"))
        for i in range(8)
    ]
    write_cohort(root, scans=scans, grid=grid, partition={})
    write_json(root / "recipe.json", Recipe(step="prepare", schema=1).as_dict())
    create_volumes(root, 8, grid)[:] = np.random.default_rng(1).random((8, 20, 24, 20))
    images = list(read_images(tmp_path / "p"))
    assert len({image.person for image in images}) == 8
    assert images[0].kind == "20 x 24 x 20 voxels of 8 x 8 x 8 mm"
    found = compare(tmp_path / "p", tmp_path / "p")
    assert found.scores["fid"].value == pytest.approx(0, abs=1e-6)


def test_pictures_of_one_size_are_compared_whatever_their_depth(tmp_path):
    a = pictures(tmp_path / "a", 8, 1)
    deep = np.random.default_rng(5).integers(0, 65536, (20, 16)).astype(np.uint16)
    Image.fromarray(deep).save(a / "deep.png")
    Image.new("RGB", (16, 20), (255, 255, 255)).save(a / "white.png")
    found = {image.person: image.values for image in read_images(a)}
    assert found["deep.png"] == pytest.approx(deep.T / 65535, abs=1e-6)
    assert found["white.png"] == pytest.approx(1)
    assert found["0.png"].shape == (16, 20)
    assert compare(a, pictures(tmp_path / "b", 9, 2)).n_scans == (10, 9)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda p: pictures(p, 5, 1), InputError, "2D images .* and 3D volumes"),
        (lambda p: volumes(p, 5, 1, shape=(9, 8, 6)), GridMismatchError, "not of 9 x 8 x 7 voxels"),
        (lambda p: volumes(p, 5, 1, mm=1.0), GridMismatchError, "of 1 x 1 x 1 mm, not"),
        (lambda p: volumes(p, 1, 1), InputError, "1 person"),
        (lambda p: volumes(p, 0, 1), InputError, "no NIfTI, PNG, JPEG or DICOM"),
        (
            lambda p: (volumes(p, 2, 1) / "x.nii").write_bytes(b"x") and p,
            InputError,
            "cannot be read",
        ),
        (lambda p: p / "nothing", InputError, "neither a folder nor a feature file"),
    ],
)
def test_folders_that_cannot_be_compared_are_refused_with_a_remedy(tmp_path, make, kind, words):
    a = volumes(tmp_path / "a", 5, 3)
    with pytest.raises(kind, match=words) as caught:
        compare(a, make(tmp_path / "b"))
    assert caught.value.remedy.endswith(".")
    assert str(tmp_path) not in str(caught.value)


def test_nan_in_an_image_names_its_place_and_not_its_file(tmp_path):
    a = volumes(tmp_path / "a", 3, 1)
    bad = np.full((9, 8, 7), np.nan, np.float32)
    nib.Nifti1Image(bad, np.diag([2, 2, 2, 1])).to_filename(a / "sub-01_T1w.nii.gz")
    with pytest.raises(InputError, match="Image 2 of 'A'") as caught:
        compare(a, a)
    assert "sub-01" not in str(caught.value)


def test_the_regions_of_a_brain_are_those_of_the_region_vector(brains):
    image = brains(1, 1)[0]
    found = named_extractor("regions").embed(image)
    assert found == pytest.approx(describe(image[None], brain_grid(8.0))[0])


def test_extractors_say_what_they_need(tmp_path):
    a = volumes(tmp_path / "a", 3, 1)
    with pytest.raises(InputError, match="not on the brain grid"):
        compare(a, a, extractor="regions")
    with pytest.raises(SettingError, match="no extractor 'piramid'"):
        named_extractor("piramid")


def test_the_pyramid_sees_place_brightness_and_blur():
    image = np.random.default_rng(0).uniform(size=(32, 32, 32)).astype(np.float32)
    blurred = image.reshape(16, 2, 16, 2, 16, 2).mean(axis=(1, 3, 5)).repeat(2, 0)
    blurred = blurred.repeat(2, 1).repeat(2, 2)
    sharp, soft = pyramid(image), pyramid(blurred)
    assert sharp.shape == (4 * 64,)  # grey, and detail of 32, 16 and 8 voxels along each edge
    assert soft[:64] == pytest.approx(sharp[:64], abs=1e-6)
    assert soft[64:128] == pytest.approx(np.log(0.01), abs=1e-4)
    assert sharp[64:128].min() > -2
    brighter = image.copy()
    brighter[:8, :8, :8] += 1
    assert np.flatnonzero(np.abs(pyramid(brighter)[:64] - sharp[:64]) > 0.1).tolist() == [0]


def test_the_verb_prints_a_table_or_json_and_one_line_for_what_a_person_can_solve(tmp_path):
    for name, rows in (("a", draw(30, 1)), ("b", draw(30, 2)), ("c", draw(30, 3, d=4))):
        np.savez(tmp_path / f"{name}.npz", values=rows)
    a, b, c = (str(tmp_path / f"{name}.npz") for name in "abc")
    shown = CliRunner().invoke(app, ["compare", a, b])
    assert (shown.exit_code, shown.stdout.splitlines()[0][:14]) == (0, "A: 30 persons,")
    told = json.loads(CliRunner().invoke(app, ["compare", a, b, "--json"]).stdout)
    assert told["scores"]["mmd"]["n_real"] == 30
    assert told["floor"]["kid"]["value"] == compare(a, b).floor["kid"].value
    refused = CliRunner().invoke(app, ["compare", a, c])
    assert isinstance(refused.exception, RarescanError)
    entry = f"{{name: theirs, kind: inception, path: gone.pth, sha256: {'a' * 64}}}"
    chosen = ["--extractor", "theirs", "--set", f"evaluate.extractors=[{entry}]"]
    missing = CliRunner().invoke(app, ["compare", a, b, *chosen])
    assert "is missing" in str(missing.exception)
