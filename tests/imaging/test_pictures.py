import csv
import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest
from PIL import Image

from rarescan.cohort.partition import PERHAPS
from rarescan.cohort.store import open_cohort, read_about, read_events, read_metadata
from rarescan.errors import InputError, SettingError
from rarescan.imaging import picture_cohort, picture_sources, pictures
from rarescan.imaging.frames import open_clip
from rarescan.imaging.pictures import adopt_pictures
from rarescan.imaging.reasons import ACTIONS, WORDS
from rarescan.imaging.spec import PicturesConfig
from rarescan.imaging.tissue import tissue_mask
from rarescan.processes import run_parallel

CONFIG = PicturesConfig(
    table="labels.csv",
    labels=("healthy", "ill"),
    words={"0": "healthy"},
    modality="US",
    frames_per_clip=3,
    licence="CC0",
)
COLUMNS = ("file", "person", "label", "item", "source", "probe", "width_px")
KEY = "5f" * 32


def write_table(folder: Path, rows: list[tuple[Any, ...]]) -> None:
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])


def in_this_process(function: Any, items: Any, **_: Any) -> list[Any]:
    return [function(item) for item in items]


@pytest.fixture(autouse=True)
def no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the start of child processes where a test is not about them."""
    for module in (pictures, picture_cohort, picture_sources):
        monkeypatch.setattr(module, "run_parallel", in_this_process)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three persons with a clip and two stills each; the first has both labels."""
    folder = tmp_path / "source"
    rows: list[tuple[Any, ...]] = []
    for person in range(3):
        clip = clips.save_video(
            folder / f"clips/Cov_{person}.mp4", clips.fan(64, person, n_frames=9)
        )
        label = "ill" if person == 1 else "0"
        place = (f"S{person}", "Convex", 640)
        rows.append((clip.relative_to(folder), f"P-{person}", label, "", *place))
        for still in range(2):
            path = folder / f"stills/Muster_{person}_{still}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(clips.fan(80, 10 + 2 * person + still, n_frames=1)[0]).save(path)
            own = "ill" if person == 0 else label
            name = path.relative_to(folder)
            rows.append((name, f"P-{person}", own, f"item {person}", *place))
    write_table(folder, rows)
    return folder


def adopt(source: Path, **values: Any) -> Path:
    folder = source.parent / "cohort"
    return adopt_pictures(source, folder, replace(CONFIG, **values), workers=1, overwrite=True)


def frames_of(root: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(root / scan.path)) for scan in open_cohort(root).scans]


def test_a_scan_is_a_frame_with_its_clip_person_and_label(source: Path) -> None:
    cohort = open_cohort(adopt(source, metadata=("width_px",)))
    assert Counter(s.person_id for s in cohort.scans) == {"P0": 5, "P1": 5, "P2": 5}
    first = cohort.scans[0]
    assert (first.session, first.target, first.unit, first.modality) == (
        "C0001", "healthy", "frame", "US",
    )  # fmt: skip
    assert (first.site, first.licence, first.flags) == ("S0", "CC0", ("probe_convex",))
    assert Counter(s.session for s in cohort.scans if s.person_id == "P0") == {
        "C0001": 3, "C0002": 2,
    }  # fmt: skip
    rows = read_metadata(cohort.root)
    assert [row["scan_id"] for row in rows] == [scan.scan_id for scan in cohort.scans]
    assert (rows[0]["n_frames"], rows[0]["frames_per_second"], rows[0]["width_px"]) == (9, 25, 640)
    assert (rows[3]["width"], rows[3]["height"], rows[3]["frames_per_second"]) == (80, 80, None)
    for scan, frame in zip(cohort.scans, frames_of(cohort.root), strict=True):
        assert frame.dtype == np.uint8
        assert frame.ndim == 2
        assert f"sub-{scan.person_id}/ses-{scan.session}" in scan.path


def test_a_person_has_the_worst_of_the_own_labels_as_diagnosis(source: Path) -> None:
    cohort = open_cohort(adopt(source))
    diagnoses = {scan.person_id: scan.condition.diagnosis for scan in cohort.scans}
    assert diagnoses == {"P0": "ill", "P1": "ill", "P2": "healthy"}
    assert {s.target for s in cohort.scans if s.person_id == "P0"} == {"healthy", "ill"}


def test_a_diagnosis_may_stand_beside_the_label(source: Path) -> None:
    config = {"columns": {"label": "source", "diagnosis": "label"}, "labels": ("S0", "S1", "S2")}
    cohort = open_cohort(adopt(source, **config, diagnoses=("healthy", "ill")))
    assert {s.target for s in cohort.scans} == {"S0", "S1", "S2"}
    assert {s.condition.diagnosis for s in cohort.scans} == {"healthy", "ill"}


def test_t51_names_of_files_say_nothing(source: Path) -> None:
    before = adopt(source)
    recipe = open_cohort(before).cohort_id
    kept = {p.relative_to(before): p.read_bytes() for p in before.rglob("*") if p.is_file()}
    rows = list(csv.reader((source / "labels.csv").read_text().splitlines()))[1:]
    names = [f"Reg_{k:03d}" for k in range(len(rows))]
    random.Random(1).shuffle(names)
    for row, name in zip(rows, names, strict=True):
        (source / row[0]).rename(source / name)
        row[0] = name
    write_table(source, [tuple(row) for row in rows])
    shutil.rmtree(before)
    after = adopt(source)
    assert {p.relative_to(after): p.read_bytes() for p in after.rglob("*") if p.is_file()} == kept
    assert open_cohort(after).cohort_id == recipe


def test_t47_how_many_frames_are_taken_does_not_depend_on_the_label(source: Path) -> None:
    cohort = open_cohort(adopt(source))
    taken = Counter(s.session for s in cohort.scans if s.scan_id.endswith(("001", "002", "003")))
    clip_sessions = [s.session for s in cohort.scans if s.scan_id.endswith("003")]
    assert {taken[session] for session in clip_sessions} == {3}
    assert {s.target for s in cohort.scans if s.session in clip_sessions} == {"healthy", "ill"}
    swapped = {"labels": ("0", "ill"), "words": {"ill": "0", "0": "ill"}}
    paths = [scan.path for scan in cohort.scans]
    pixels = frames_of(cohort.root)
    again = open_cohort(adopt(source, **swapped))
    assert [scan.path for scan in again.scans] == paths
    assert all(np.array_equal(a, b) for a, b in zip(frames_of(again.root), pixels, strict=True))


def test_the_result_does_not_depend_on_the_number_of_workers(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pictures, picture_cohort, picture_sources):
        monkeypatch.setattr(module, "run_parallel", run_parallel)
    one, two = source.parent / "one", source.parent / "two"
    for folder, workers in ((one, 1), (two, 2)):
        adopt_pictures(source, folder, CONFIG, workers=workers)
    files = [sorted(p for p in root.rglob("*") if p.is_file()) for root in (one, two)]
    assert [p.relative_to(one) for p in files[0]] == [p.relative_to(two) for p in files[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("stills/Muster_0_0.png,P-0,ill,a,Lyon, France,convex,640", "8 cells"),
        ("stills/Muster_0_0.png,P-0,ill,a,convex,640", "6 cells"),
        ("P-0,ill,a,Lyon,convex,640,stills/Muster_0_0.png", "columns of numbers"),
        ("stills/Muster_0_0.png,,ill,a,Lyon,convex,640", "nothing in the column 'person'"),
        ("stills/Muster_0_0.png,P-0,Lyon,a,ill,convex,640", "label that is none"),
        ("stills/Muster_0_0.png,P-0,ill,a,Lyon,640,convex", "columns of numbers"),
    ],
)
def test_t6_a_shifted_row_is_an_error_that_names_the_row(
    source: Path, line: str, told: str
) -> None:
    table = source / "labels.csv"
    table.write_text(table.read_text() + line + "\n")
    with pytest.raises(InputError, match=told) as caught:
        adopt(source, metadata=("width_px",))
    assert "Row 11" in caught.value.problem
    assert "Muster" not in str(caught.value)
    assert not (source.parent / "cohort").exists()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../x.png"])
def test_t43_a_table_cannot_name_a_file_outside_the_folder(source: Path, name: str) -> None:
    with (source / "labels.csv").open("a") as stream:
        stream.write(f"{name},P-0,ill,a,Lyon,convex,640\n")
    with pytest.raises(InputError, match=r"Row 11 .*outside"):
        adopt(source)


def test_t6_two_texts_in_columns_of_numbers_that_nobody_uses_are_a_shift(source: Path) -> None:
    rows = [(f"f{k}.png", f"P{k}", "ill", "", 1 + k, 2 + k, 3 + k) for k in range(30)]
    rows[17] = ("f17.png", "P17", "ill", "", 18, "a", "b")
    write_table(source, rows)
    with pytest.raises(InputError, match=r"Row 19 .*2 columns of numbers"):
        adopt(source)


def test_t22_text_at_the_top_and_the_bottom_of_a_region_is_gone(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RARESCAN_KEY", KEY)
    shutil.copytree(real_data / "echo/dicom", tmp_path / "source")
    (tmp_path / "source/philips_palette_2regions.dcm").unlink()
    config = PicturesConfig(layout="dicom", modality="ECHO", show="sector", frames_per_clip=2)
    root = adopt_pictures(tmp_path / "source", tmp_path / "out", config, workers=1)
    shapes = Counter(frame.shape for frame in frames_of(root))
    assert shapes == {(112, 112): 8, (240, 320): 2}
    assert not any("DOE" in p.read_text("latin-1").upper() for p in root.rglob("*.json"))
    sonosite = [frame for frame in frames_of(root) if frame.shape == (240, 320)]
    with open_clip(tmp_path / "source/sonosite_30frames_ybr422.dcm") as clip:
        whole = next(clip.frames())
    assert min(whole[:, 290:].max(), whole[:20, :100].max(), whole[228:].max()) > 60
    # The screen's text stands at the left above row 30, at the right of column 290, at the bottom.
    assert all(f[:, 290:].max() == f[:20, :100].max() == f[228:].max() == 0 for f in sonosite)
    assert all(f.max() > 100 for f in sonosite)
    assert read_about(root)["codes"] == {"REGION_OUTSIDE": 1}


@pytest.mark.parametrize("n_frames", [1, 6])
def test_t22_text_around_a_sector_is_gone_without_any_region(n_frames: int) -> None:
    frames = clips.fan(128, n_frames=n_frames)
    written = clips.with_text(frames)
    mask = tissue_mask(list(written), convex=True)
    assert mask is not None
    shown = np.where(mask, written, 0)
    assert (written != frames).sum() > 200
    assert shown[:, :8].max() == shown[:, -8:].max() == 0
    assert (shown > 0).sum() > 0.97 * (frames > 0).sum()


def test_a_shadow_inside_the_sector_is_part_of_it() -> None:
    frames = clips.fan(128)
    frames[:, 40:90, 50:70] = 0
    mask = tissue_mask(list(frames), convex=True)
    assert mask is not None
    assert mask[40:90, 50:70].all()


def test_nothing_is_seen_in_a_black_picture() -> None:
    assert tissue_mask([np.zeros((64, 64), np.uint8)], convex=True) is None
    assert tissue_mask([np.zeros((64, 64), np.uint8)], convex=False) is None


def test_of_a_film_the_breast_stays_and_its_label_goes(real_data: Path) -> None:
    film = np.asarray(Image.open(real_data / "mammography/whole/mdb005.jpg").convert("L"))
    labelled = film.copy()
    corner = np.s_[4:24, 4:40] if film[:, :40].sum() < film[:, -40:].sum() else np.s_[4:24, -40:-4]
    labelled[corner] = 250
    mask = tissue_mask([labelled], convex=False)
    assert mask is not None
    plain = tissue_mask([film], convex=False)
    assert plain is not None
    assert not mask[corner].any()
    assert (mask & plain).sum() > 0.99 * (mask | plain).sum()
    assert 0.15 < mask.mean() < 0.7


def test_t24_the_same_picture_of_two_persons_is_set_apart_and_binds_them(source: Path) -> None:
    shutil.copy(source / "stills/Muster_0_0.png", source / "stills/Muster_1_1.png")
    root = adopt(source)
    assert read_about(root)["codes"] == {"SAME_PIXELS_TWO_PEOPLE": 2}
    assert {e["person_id"] for e in read_events(root)} == {"P0", "P1"}
    scans = open_cohort(root).scans
    assert len(scans) == 13
    marked = {s.person_id for s in scans if f"{PERHAPS}P0" in s.flags}
    assert marked == {"P0", "P1"}


def test_t24_persons_with_two_diagnoses_are_not_bound_by_a_shared_picture(source: Path) -> None:
    shutil.copy(source / "stills/Muster_1_0.png", source / "stills/Muster_2_1.png")
    root = adopt(source)
    assert read_about(root)["codes"] == {"SAME_PIXELS_TWO_PEOPLE": 2}
    assert not any(flag.startswith(PERHAPS) for s in open_cohort(root).scans for flag in s.flags)


def test_what_cannot_be_used_is_an_event_with_its_reason(source: Path) -> None:
    flow = np.stack([clips.fan(64)] * 3, axis=-1)
    flow[:, 30:42, 28:36] = (220, 30, 30)
    clips.save_video(source / "flow.mp4", flow)
    clips.save_clip(source / "ct.dcm", clips.fan(64), Modality="CT")
    Image.fromarray(np.full((50, 50), 90, np.uint8)).save(source / "flat.png")
    (source / "text.png").write_text("no picture")
    names = {
        "flow.mp4": "COLOUR_FLOW", "ct.dcm": "OTHER_MODALITY", "flat.png": "PIXELS_DEAD",
        "text.png": "CLIP_UNREADABLE", "absent.png": "FILE_MISSING",
    }  # fmt: skip
    rows = list(csv.reader((source / "labels.csv").read_text().splitlines()))[1:]
    more = [(name, "P-9", "ill", name, "S", "", "") for name in names]
    write_table(source, [*map(tuple, rows), *more])
    root = adopt(source)
    assert Counter(e["code"] for e in read_events(root)) == Counter(names.values())
    about = read_about(root)
    assert about["files"] == {"found": 14, "used": 9, "dropped": 2, "quarantined": 3}
    assert about["reasons"].keys() == about["codes"].keys()
    assert all(code in WORDS and code in ACTIONS for code in names.values())


def test_a_file_that_kills_its_reader_costs_one_item(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(function: Any, items: Any, *, on_death: Any, **_: Any) -> None:
        on_death(items[0])
        for item in items[1:]:
            function(item)

    monkeypatch.setattr(pictures, "run_parallel", dies)
    root = adopt(source)
    assert read_about(root)["codes"] == {"PARSER_CRASH": 1}
    assert len(open_cohort(root).scans) == 12


def test_a_killed_ingest_goes_on_where_it_was(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(function: Any, items: Any, **_: Any) -> None:
        for item in items[:4]:
            function(item)
        raise KeyboardInterrupt

    whole = adopt_pictures(source, source.parent / "whole", CONFIG, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "run_parallel", stops)
        with pytest.raises(KeyboardInterrupt):
            adopt(source)
    counted: list[int] = []

    def counts(function: Any, items: Any, **_: Any) -> None:
        counted.append(len(items))
        for item in items:
            function(item)

    monkeypatch.setattr(pictures, "run_parallel", counts)
    root = adopt(source)
    assert counted == [2]
    assert {p.relative_to(root) for p in root.rglob("*")} == {
        p.relative_to(whole) for p in whole.rglob("*")
    }


def test_no_text_of_the_source_stands_in_what_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "pseudonym.key"
    key.write_text(KEY)
    key.chmod(0o600)
    clips.save_clip(source / "clips/Mustermann_Erika.dcm", clips.fan(64, 7))
    with (source / "labels.csv").open("a") as stream:
        stream.write("clips/Mustermann_Erika.dcm,Erika-4711,ill,visit of Erika,S3,,\n")
    root = adopt(source, key_file=str(key))
    written = [str(p.relative_to(root)) for p in root.rglob("*")]
    written += [json.dumps(row) for row in read_metadata(root) + read_events(root)]
    written += [repr(scan) for scan in open_cohort(root).scans]
    written += [p.read_text() for p in root.rglob("*") if p.suffix in (".json", ".tsv", ".md")]
    everything = "\n".join(written)
    for secret in ("Muster", "Erika", "Cov_", "P-1", "item 1", "PAT-77341", "4711"):
        assert secret not in everything
    assert all(s.person_id.startswith("RS") for s in open_cohort(root).scans)
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            assert not image.info


def test_a_leak_is_noticed_and_nothing_is_kept(source: Path) -> None:
    with (source / "labels.csv").open("a") as stream:
        stream.write("stills/Muster_0_0.png,P-0,ill,a,clinic Muster_0_0,convex,640\n")
    adopt(source)  # a site that the table gives for writing is no leak
    shutil.rmtree(source.parent / "cohort")

    def careless(work: Path, *_: Any) -> None:
        (work / "notes.json").write_text('{"from": "stills/Muster_1_0.png"}')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture_cohort, "_write_texts", careless)
        with pytest.raises(InputError, match="text of the source"):
            adopt(source)
    assert not (source.parent / "cohort").exists()
    assert not list(source.parent.glob(".cohort*"))


def test_dicom_clips_are_told_apart_by_their_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RARESCAN_KEY", KEY)
    folder = tmp_path / "source"
    for k, patient in enumerate(["A-100", "a-100 ", "B-200", ""]):
        clips.save_clip(folder / f"x/{k}", clips.fan(64, k), PatientID=patient)
    (folder / "readme.txt").write_text("no picture")
    (tmp_path / "source/who.csv").write_text("patient_id,diagnosis,age_years\nA-100,ill,91\n")
    config = replace(CONFIG, layout="dicom", table="who.csv")
    cohort = open_cohort(adopt_pictures(folder, tmp_path / "out", config, workers=1))
    by_person = Counter(s.person_id for s in cohort.scans)
    assert sorted(by_person.values()) == [3, 6]
    labelled = {(s.target, s.condition.diagnosis, s.condition.age_years) for s in cohort.scans}
    assert labelled == {("ill", "ill", 90.0), (None, "unknown", None)}
    assert read_about(cohort.root)["codes"] == {"NO_IDENTITY": 1}


@pytest.mark.parametrize(
    ("values", "error", "told"),
    [
        ({"table": ""}, SettingError, "No table"),
        ({"table": "absent.csv"}, SettingError, "missing"),
        ({"columns": {"label": "classs"}}, SettingError, "no column 'classs'"),
        ({"columns": {"klass": "label"}}, SettingError, "none of our columns"),
        ({"keep": {"label": "none such"}}, InputError, "None of 9 rows"),
        ({"labels": ("healthy",)}, InputError, "label that is none of healthy"),
    ],
)
def test_wrong_settings_say_what_is_wrong(
    source: Path, values: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        adopt(source, **values)


def test_unlabelled_pictures_are_kept_without_a_target(source: Path) -> None:
    table = source / "labels.csv"
    table.write_text(table.read_text().replace(",0,", ",n/a,"))
    cohort = open_cohort(adopt(source))
    assert {(s.person_id, s.target, s.condition.diagnosis) for s in cohort.scans} == {
        ("P0", None, "ill"), ("P0", "ill", "ill"), ("P1", "ill", "ill"), ("P2", None, "unknown"),
    }  # fmt: skip
