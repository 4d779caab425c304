"""The disease made rare, with generators of their own in every fold."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_cohort import picture, write_pictures
from PIL import Image

from rarescan.classifiers.arms import run_arms
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.configs.schema import RunConfig, parse_config
from rarescan.errors import InputError
from rarescan.files import read_json
from rarescan.flows.thinned import Unit, thinned, write_batch, write_thinned


def settings(root: Path, **more: Any) -> RunConfig:
    return parse_config(
        {
            "name": "made",
            "runs": str(root),
            "workers": 1,
            "question": {"positive": "ill", "negative": "well"},
            "source": {"kind": "pictures", "path": str(root / "source")},
            "pictures": {"table": "labels.csv", "labels": ["well", "ill"]},
            "planes": {"rows": 16, "columns": 16, "crop": "none"},
            "thinned": {"patients": [4]},
            "classify": {"classes": ["well", "ill"], "folds": 2, "repeats": 1},
            "train": {"gaussian": {}},
            "generate": {"n": 8},
            "retrain": {
                "arms": ["real", "classical", "classical+gaussian", "placebo"],
                "seeds": 1,
                "classifier": {"steps": 10, "channels": [4], "batch_size": 8},
            },
            **more,
        }
    )


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Unit:
    root = tmp_path_factory.mktemp("thinned")
    prepared = write_pictures(root / "prepared", edge=16, persons=40)
    return Unit(
        work=root / "work", prepared=prepared, config=settings(root), patients=4, repeat=0, fold=0
    )


def test_a_batch_whose_generator_saw_a_test_person_is_refused(unit: Unit, tmp_path: Path) -> None:
    """The other fold's generator learned from persons who are tested here."""
    other = Unit(**{**vars(unit), "fold": 1})
    here, there = write_thinned(unit), write_thinned(other)
    seen = {p for p, part in open_cohort(there).partition.items() if part == "train"}
    tested = {p for p, part in open_cohort(here).partition.items() if part == "test"}
    assert seen & tested
    batch = write_batch(other, there, "gaussian")
    with pytest.raises(InputError, match="another cohort or partition"):
        run_arms(
            tmp_path,
            here,
            {"gaussian": batch},
            unit.config.retrain,
            unit.config.question,
            workers=1,
        )


def test_a_generator_sees_the_images_of_training_persons_only(unit: Unit) -> None:
    """Other images of everybody who is held out give the same batch, byte for byte."""
    cohort = write_thinned(unit)
    before = np.array(open_volumes(open_cohort(write_batch(unit, cohort, "gaussian"))))
    again = Unit(**{**vars(unit), "work": unit.work.with_name("again")})
    copy = write_thinned(again)
    opened = open_cohort(copy)
    volumes = np.load(copy / "rarescan" / "volumes.npy", mmap_mode="r+")
    for i in opened.indices("validation", "test"):
        volumes[i] = 0.5
    volumes.flush()
    after = np.array(open_volumes(open_cohort(write_batch(again, copy, "gaussian"))))
    np.testing.assert_array_equal(after, before)
    assert {
        s.condition.diagnosis for s in open_cohort(again.folder / "batches/gaussian").scans
    } == {"ill"}


def write_source(folder: Path) -> None:
    folder.mkdir()
    rows = []
    for person in range(40):
        ill = person % 2 == 1
        image = (255 * picture(person, ill, 16, 1)[..., 0]).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{person}.png")
        rows.append((f"{person}.png", f"P{person:03d}", "ill" if ill else "well"))
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "person", "label"), *rows])


@pytest.mark.long
def test_one_command_leads_from_the_source_to_the_page_and_repeating_it_does_nothing(
    tmp_path: Path,
) -> None:
    write_source(tmp_path / "source")
    config = settings(tmp_path)
    folder = thinned(config, tmp_path / "made" / "thinned")
    entries = read_json(folder / "thinned.json")
    network = next(e for e in entries if e["model"] == "network")
    assert network["draws"] == 2
    assert set(network["arms"]) >= {"real", "classical", "classical+gaussian", "placebo"}
    assert network["arms"]["thumbnails"]["kind"] == "baseline"
    assert network["persons"] == {"patients": 20, "controls": 20}
    page = folder / "utility.html"
    assert network["sentence"].split(":")[0] in page.read_text()
    before = page.stat().st_mtime_ns
    assert thinned(config, folder) == folder
    assert page.stat().st_mtime_ns == before
