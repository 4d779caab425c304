import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sqlalchemy import create_engine
from typer.testing import CliRunner

import rarescan.cli.beside
import rarescan.cli.echo  # noqa: F401  (their commands register themselves)
from rarescan.classifiers import echo_views
from rarescan.classifiers.contract import Labels
from rarescan.classifiers.echo.film import read_film, read_masks
from rarescan.classifiers.echo.masks import Segmenter
from rarescan.classifiers.echo.rows import write_tables
from rarescan.classifiers.echo.spec import EchoConfig, SegmentConfig
from rarescan.classifiers.network import TrainedNetwork
from rarescan.classifiers.package import write_package
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.cli.main import app
from rarescan.configs.schema import RunConfig
from rarescan.errors import ChangedRecipeError, InputError, SettingError
from rarescan.flows import echo as verbs
from rarescan.flows.erase import erase_person
from rarescan.imaging.echonet import film_name
from rarescan.registry.spec import RegistryConfig

CONFIG = RunConfig(device="cpu", workers=1)


def tiny(phantoms: int = 0) -> RunConfig:
    segment = SegmentConfig(size_px=32, channels=(8, 12), steps=2, batch_size=2, phantoms=phantoms)
    return replace(CONFIG, echo=EchoConfig(segment=segment))


RUN = CliRunner()


def run(*words: object, answers: str | None = None) -> str:
    done = RUN.invoke(app, ["echo", *map(str, words)], input=answers, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def brightness(_network: Segmenter, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Stand in for the network where its training does not matter: smooth, then threshold."""
    for frame in frames:
        grey = frame.astype(np.float64)
        sector = ndimage.binary_fill_holes(ndimage.gaussian_filter(grey, 2.5) > 60)
        dark = ndimage.gaussian_filter(grey, 1.2) < 125
        dark &= ndimage.binary_erosion(sector, iterations=3)
        pieces, _ = ndimage.label(ndimage.binary_opening(dark, iterations=2))
        middle = pieces[frame.shape[0] // 5 : frame.shape[0] * 3 // 5]
        sizes = np.bincount(middle[middle > 0], minlength=2)
        ventricle = ndimage.binary_dilation(pieces == sizes.argmax()) & (pieces.max() > 0)
        yield np.stack([ventricle, np.zeros_like(ventricle)]).astype(np.float32)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a network's folder; what it finds is told by brightness."""
    monkeypatch.setattr(Segmenter, "follow", brightness)
    return verbs.train(tiny(phantoms=1), tmp_path / "network")


@pytest.fixture
def two_hearts(tmp_path: Path, real_data: Path) -> Path:
    """Return four clips of two persons in EchoNet's format."""
    source, echo = tmp_path / "source", real_data / "echo"
    (source / "clips").mkdir(parents=True)
    for table in ("FileList.csv", "labels.csv"):
        rows = (echo / table).read_text().splitlines()
        kept = [row for row in rows if re.search("FileName|^file|E001|E003", row)]
        (source / table).write_text("\n".join(kept) + "\n")
    for name in ("E001_a4c", "E001_a2c", "E003_a4c", "E003_a2c"):
        shutil.copy(echo / "clips" / f"{name}.mp4", source / "clips")
    return source


def test_clips_become_fractions_tables_and_a_page(
    tmp_path: Path, network: Path, two_hearts: Path
) -> None:
    out = tmp_path / "out"
    words = ("measure", two_hearts, out, "--network", network, "--workers", 1, "--json")
    figures = json.loads(run(*words))
    assert [s["study_id"] for s in figures["studies"]] == ["E001", "E003"]
    assert all(s["method"] == "biplane" for s in figures["studies"])
    truth = {"E001": 41.2, "E003": 44.3}
    for study in figures["studies"]:
        # The reference's naive threshold misses by 6 points on average.
        assert study["ef"] == pytest.approx(truth[study["study_id"]], abs=18)
        assert study["edv_ml"] > study["esv_ml"] > 10
    # Only the TEST person is compared, and the constant comes from the TRAIN person.
    assert figures["agreement"]["n_persons"] == 1
    assert figures["agreement"]["constant"]["mae"][0] == pytest.approx(44.326 - 41.201)
    clip = next(c for c in figures["clips"] if c["clip_id"] == "E001_a4c")
    assert clip["heart_rate_bpm"] == pytest.approx(77.3, rel=0.1)
    page = (out / "measured" / "echo.html").read_text()
    assert page.count("data:image/png") == 4
    assert "Against the fractions that the source gives" in page
    sizes = (out / "measured" / "size.csv").read_text().splitlines()
    assert sizes[0] == "Filename,Frame,Size,HumanLarge,HumanSmall,ComputerSmall"
    assert len(sizes) == 1 + 4 * 32
    film = read_film(out / "masks" / "E001_a4c")
    assert film is not None
    masks = read_masks(out / "masks" / "E001_a4c", film, 0)
    assert 1000 < masks[0].sum() < 2500
    assert not any("frames.npy" in path.name for path in out.rglob("*"))

    # Films of one study, with the frames of its clips.
    films = [Path(line) for line in run("film", two_hearts, out, "E001").splitlines()]
    assert [path.name for path in films] == ["E001_a2c.mp4", "E001_a4c.mp4"]
    with av.open(str(films[0])) as opened:
        assert sum(1 for _ in opened.decode(video=0)) == 32
    with pytest.raises(InputError, match="No clip of such a study"):
        run("film", two_hearts, out, "E002")

    # A second run finds everything done and the tables as they are.
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.json")}
    run(*words)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.json")}
    assert write_tables(out, network=network) == 0
    answer = run("inquire", out, "--question", "ef", "--study", "E001", "--json")
    rows = {row["name"]: row for row in json.loads(answer)["rows"]}
    assert rows["ef"]["value"] == pytest.approx(figures["studies"][0]["ef"])
    assert rows["ef_class"]["text"] == figures["studies"][0]["class"]


def test_the_questionnaire_does_one_step_and_asks_for_what_is_missing(
    tmp_path: Path, two_hearts: Path
) -> None:
    out = tmp_path / "out"
    said = run("inquire", out, answers=f"1\n{two_hearts}\n")
    assert "ingest metadata" in said
    assert (out / "clips" / "recipe.json").exists()
    assert not (out / "views").exists()
    run("inquire", out, "--step", "views", "--source", two_hearts)
    assert not (out / "masks").exists()
    asked = run("inquire", out, answers="ask\n4\n")
    assert "a2c" in asked
    assert "a4c" in asked
    one = run("inquire", out, "--question", "ef", answers="2\n")
    assert "None." in one


def test_answers_that_are_no_choice_are_told(tmp_path: Path, two_hearts: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no tables"):
        run("inquire", out, "--question", "ef")
    with pytest.raises(SettingError, match="none of the choices"):
        run("inquire", out, "--step", "mask", "--source", two_hearts)
    with pytest.raises(InputError, match="No network"):
        verbs.measure(CONFIG, two_hearts, out / "measured")
    with pytest.raises(SettingError, match="no step"):
        verbs.measure(CONFIG, two_hearts, out / "mask")
    for words in (
        ("--set", "echo.fraction.scheme=usal"),
        ("--set", "echo.fraction.normal_from=30"),
        ("--set", "echo.sgment.seed=1"),
        ("--device", "gpu"),
        ("--set", "echo.segment.size_px=50"),
    ):
        with pytest.raises(SettingError):
            run("measure", two_hearts, out, *words)


@pytest.mark.long
def test_views_that_no_table_tells_are_told_by_a_classifier(
    tmp_path: Path, two_hearts: Path
) -> None:
    torch.manual_seed(0)
    config, shape = ClassifierConfig(channels=(4,)), (32, 32, 1)
    classifier = TrainedNetwork(
        network=echo_views.MODALITY.build(shape, config, Labels(names=("a2c", "a4c"))),
        modality=echo_views.MODALITY,
        config=config,
        shape=shape,
        device=torch.device("cpu"),
        labels=Labels(names=("a2c", "a4c")),
    )
    write_package(tmp_path / "views", classifier, unit="frame", persons=["P1"])
    table = two_hearts / "labels.csv"
    table.write_text(table.read_text().replace(",a4c,", ",,"))
    package = tmp_path / "views"
    folder = verbs.measure(CONFIG, two_hearts, tmp_path / "out" / "views", views=package)
    said = json.loads((folder / "views.json").read_text())
    for name, told in (("E001_a2c", True), ("E001_a4c", False), ("E003_a4c", False)):
        answers = said[name]["answers"]
        assert [answer["model"] == "table" for answer in answers] == [True, False][1 - told :]
        assert said[name]["view"] == answers[0]["view"]
        assert answers[-1]["view"] in ("a2c", "a4c")
        assert 0.5 <= answers[-1]["probability"] <= 1
        assert len(answers[-1]["model"]) == 64
    engine = create_engine(f"sqlite:///{tmp_path / 'out' / 'echo.sqlite'}")
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT model_id, probability FROM echo_views").all()
    engine.dispose()
    assert sorted(probability is None for _, probability in rows) == [False] * 4 + [True] * 2
    with pytest.raises(InputError, match="no classifier"):
        verbs.measure(CONFIG, two_hearts, tmp_path / "b" / "views", views=tmp_path)


@pytest.mark.long
def test_another_network_is_another_result(tmp_path: Path, network: Path, two_hearts: Path) -> None:
    out = tmp_path / "out"
    verbs.measure(CONFIG, two_hearts, out / "masks", network=network)
    other = verbs.train(tiny(phantoms=2), tmp_path / "other")
    with pytest.raises(ChangedRecipeError, match="network"):
        verbs.measure(CONFIG, two_hearts, out / "masks", network=other)


def test_t13_t22_dicom_is_measured_under_pseudonyms_without_text_or_heart_rate(
    tmp_path: Path, network: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RARESCAN_KEY", "ab" * 32)
    source, out = tmp_path / "dicom", tmp_path / "out"
    source.mkdir()
    for name in ("e002_a4c_nohr", "e002_a2c_burnedin", "sonosite_30frames_ybr422"):
        shutil.copy(real_data / "echo" / "dicom" / f"{name}.dcm", source)
    (source / "labels.csv").write_text(
        "file,view\ne002_a4c_nohr.dcm,a4c\ne002_a2c_burnedin.dcm,a2c\n"
    )
    figures = json.loads(run("measure", source, out, "--network", network, "--json"))
    by_method = {study["method"]: study for study in figures["studies"]}
    # Both files of E002 are one study; the burnt-in one is cut to its tissue region of 112 x 112.
    assert by_method["biplane"]["ef"] == pytest.approx(33.9, abs=15)
    assert all(study["study_id"].startswith("ST") for study in figures["studies"])
    clips = json.loads((out / "clips" / "clips.json").read_text())
    assert [row["heart_rate_bpm"] for row in clips] == [70, None, None]
    about = json.loads((out / "masks" / "C0001.json").read_text())
    assert (about["rows"], about["columns"]) == (112, 112)
    # The other file's region does not fit its frames: what is no tissue is black all the same.
    picture = np.load(out / "masks" / "C0003.npy").shape
    assert picture[2:] == (240, 40)
    shown = np.asarray(Image.open(out / "masks" / "C0003.png").convert("L"))
    assert (shown[:10] < 20).mean() > 0.9
    written = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    for word in (b"DOE", b"JANE", b"E002", b"e002", b"burnedin", b"1.2.826", b"sonosite"):
        assert word not in written


def stop(_path: Path) -> None:
    raise KeyboardInterrupt


def traces(root: Path, person: str) -> set[str]:
    """Return what below a folder has a person's name in it, or in its bytes."""
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if person in path.name or (path.is_file() and person.encode() in path.read_bytes())
    }


@pytest.mark.long
def test_an_erased_person_is_in_no_file_table_or_film_and_stays_away(
    tmp_path: Path, network: Path, two_hearts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, other = tmp_path / "runs", f"sqlite:///{tmp_path / 'central.sqlite'}"
    out = runs / "echo"
    words = ("measure", two_hearts, out, "--network", network, "--workers", 1)
    run(*words, "--database", other)
    run(*words)
    for study in ("E001", "E003"):
        run("film", two_hearts, out, study)
    found = traces(tmp_path, "E001")
    assert {"central.sqlite", "runs/echo/echo.sqlite", "runs/echo/films/E001"} <= found
    assert {"runs/echo/masks/E001_a4c.npy", "runs/echo/measured/figures.json"} <= found
    kept = {p: p.read_bytes() for p in out.rglob("E003*") if p.is_file()}

    def erase(person: str) -> str:
        done = RUN.invoke(app, ["erase", person, "--runs", str(runs)], catch_exceptions=False)
        return done.stdout

    with pytest.raises(InputError, match="RARESCAN_ECHO"):
        erase("E001")
    monkeypatch.setenv("RARESCAN_ECHO", other)
    with monkeypatch.context() as patched:
        # Killed before the first mask is removed; the repeated command ends the same.
        patched.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            erase_person("E001", runs, RegistryConfig())
    assert "Removed from 1 cohorts" in erase("E001")
    source = traces(two_hearts, "E001")
    left = {p for p in traces(tmp_path, "E001") if p.removeprefix("source/") not in source}
    assert left <= {"source"}
    assert {p: p.read_bytes() for p in kept} == kept
    once = {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()}
    erase("E001")
    assert {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()} == once
    with pytest.raises(InputError, match="No result"):
        erase("E002")

    # Measuring again, even anew, does not bring the person back, although the source still holds
    # the films.
    for more in ((), ("--overwrite",)):
        figures = json.loads(run(*words, *more, "--json"))
        assert {clip["person_id"] for clip in figures["clips"]} == {"E003"}
    assert traces(runs, "E001") == set()
    assert b"E001" not in (tmp_path / "central.sqlite").read_bytes()


@pytest.mark.long
def test_a_network_that_learned_from_an_erased_person_is_marked(
    tmp_path: Path, real_data: Path
) -> None:
    source = some_films(tmp_path, real_data / "echo", "E002_a4c|E003")
    folder = verbs.train(tiny(), tmp_path / "runs" / "network", source=source)
    for person, how in (("E002", False), ("E003", True)):
        done = erase_person(person, tmp_path / "runs", RegistryConfig())
        assert done.marked == [folder]
        assert traces(folder, person) == set()
        assert json.loads((folder / "erased.json").read_text())["needs_retraining"] is how


@pytest.mark.long
def test_files_that_cannot_be_read_are_listed_and_nothing_else_is_lost(
    tmp_path: Path, network: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RARESCAN_KEY", "ab" * 32)
    source, out = tmp_path / "mixed", tmp_path / "out"
    source.mkdir()
    dicom = real_data / "echo" / "dicom"
    shutil.copy(dicom / "e001_a4c.dcm", source)
    shutil.copy(dicom / "philips_palette_2regions.dcm", source)
    whole = (dicom / "e001_a2c.dcm").read_bytes()
    (source / "broken.dcm").write_bytes(whole[: len(whole) // 2])
    (source / "note").write_text("no picture")
    figures = json.loads(run("measure", source, out, "--network", network, "--json"))
    refused = [clip["refused"] for clip in figures["clips"]]
    assert refused.count(None) == 1
    assert len(refused) == 3
    # The clip that was cut off is of the same study as the whole one.
    assert len(figures["studies"]) == 2
    unmeasured = json.loads(run("inquire", out, "--question", "unmeasured", "--json"))["rows"]
    assert len(unmeasured) == 1


@pytest.mark.long
def test_t9_a_person_in_two_parts_stops_the_training(tmp_path: Path, real_data: Path) -> None:
    source, echo = tmp_path / "source", real_data / "echo"
    source.mkdir()
    for table in ("labels.csv", "VolumeTracings.csv"):
        shutil.copy(echo / table, source)
    rows = (echo / "FileList.csv").read_text().splitlines()[:3]
    films = [rows[0], rows[1].replace("TEST", "TRAIN"), rows[2].replace("TEST", "VAL")]
    (source / "FileList.csv").write_text("\n".join(films) + "\n")
    for name in ("E001_a4c", "E001_a2c"):
        shutil.copy(echo / "clips" / f"{name}.mp4", source)
    with pytest.raises(InputError, match="two parts"):
        verbs.train(tiny(), tmp_path / "network", source=source)


def some_films(tmp_path: Path, echo: Path, names: str) -> Path:
    """Return a folder with some of the traced films."""
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(echo / "VolumeTracings.csv", source)
    shutil.copy(echo / "labels.csv", source)
    rows = (echo / "FileList.csv").read_text().splitlines()
    kept = [row for row in rows if re.search(f"FileName|{names}", row)]
    (source / "FileList.csv").write_text("\n".join(kept) + "\n")
    for row in kept[1:]:
        shutil.copy(echo / "clips" / f"{film_name(row.split(',')[0])}.mp4", source)
    return source


@pytest.mark.long
def test_traced_films_train_a_network_that_is_judged_on_other_persons(
    tmp_path: Path, real_data: Path
) -> None:
    source = some_films(tmp_path, real_data / "echo", "E002_a4c|E003")
    kept = (source / "FileList.csv").read_text().splitlines()
    folder = verbs.train(tiny(), tmp_path / "network", source=source)
    judged = json.loads((folder / "judged.json").read_text())
    assert list(judged["dice"]) == ["E002"]
    assert json.loads((folder / "segmenter.json").read_text())["chambers"] == ["lv"]
    (source / "FileList.csv").write_text("\n".join(r for r in kept if "E003" not in r) + "\n")
    with pytest.raises(InputError, match="no traced film"):
        verbs.train(tiny(), tmp_path / "other", source=source)


@pytest.mark.long
def test_the_given_hearts_are_measured_within_four_points_by_a_network_of_other_persons(
    tmp_path: Path, real_data: Path
) -> None:
    # 12 persons teach; 8 others are measured. A constant misses by 10.6 points on those.
    source = real_data / "echo"
    config = replace(CONFIG, echo=EchoConfig(segment=SegmentConfig(size_px=64)))
    network = verbs.train(config, tmp_path / "network", source=source)
    judged = json.loads((network / "judged.json").read_text())
    assert min(judged["dice"].values()) >= 0.90
    assert sum(judged["dice"].values()) / judged["n_persons"] >= 0.95
    folder = verbs.measure(config, source, tmp_path / "out" / "measured", network=network)
    figures = json.loads((folder / "figures.json").read_text())
    agreed = figures["agreement"]
    assert agreed["n_persons"] == 8
    assert agreed["n_without"] == 0
    assert agreed["clips"]["mae"][0] <= 4
    assert agreed["studies"]["mae"][0] <= 4
    assert agreed["constant"]["mae"][0] > 10
