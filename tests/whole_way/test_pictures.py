"""Pictures go the whole way by settings alone: from a table and PNG files to the report."""

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_cohort import picture, write_pictures
from PIL import Image

from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.configs.schema import RunConfig, parse_config
from rarescan.files import read_json
from rarescan.flows import verbs
from rarescan.imaging.picture_batch import MARK

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

SETTINGS = {
    "device": "cpu",
    "workers": 1,
    "question": {"positive": "ill", "negative": "well"},
    "partition": {"validation": 0.34, "test": 0.2, "fewest_validation": 20},
    "train": {"gaussian": {}, "vae": {"steps": 60, "width": 32, "components": 20}},
    "evaluate": {"n_synthetic": 60, "canary_persons": 20},
    "generate": {"n": 40},
    "retrain": {
        "seeds": 1,
        "arms": ["real", "classical", "classical_synthetic"],
        "classifier": {"steps": 30},
    },
}


@pytest.fixture(scope="module")
def of_three_planes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of 60 persons with three planes each."""
    runs = tmp_path_factory.mktemp("runs")
    config: RunConfig = parse_config({**SETTINGS, "name": "run", "runs": str(runs)})
    run = config.root
    prepared = write_pictures(run / "prepared", edge=48, planes=3)
    for name in config.train:
        verbs.train(config, prepared, run / "models" / name)
    evaluation = verbs.evaluate(config, prepared, run / "models", run / "evaluation")
    decision = verbs.select(config, prepared, run / "models", evaluation, run / "decision")
    batch = verbs.generate(config, prepared, run / "synthetic", decision=decision)
    verbs.retrain(config, prepared, batch, run / "classifiers")
    verbs.report(config, run)
    return run


def test_the_batch_is_pictures_that_say_that_they_show_nobody(of_three_planes: Path) -> None:
    batch = open_cohort(of_three_planes / "synthetic")
    assert len(batch.scans) == 40
    assert {(s.modality, s.unit, s.origin) for s in batch.scans} == {("PIC", "frame", "synthetic")}
    volumes = open_volumes(batch)
    for row, scan in enumerate(batch.scans[:5]):
        for plane in range(3):
            name = scan.path.replace("plane-1", f"plane-{plane + 1}")
            with Image.open(batch.root / name) as opened:
                assert opened.info["Comment"] == MARK
                pixels = np.asarray(opened)
            np.testing.assert_allclose(pixels / 255, volumes[row, ..., plane], atol=0.51 / 255)
    sidecar = read_json(batch.root / "pictures" / f"{batch.scans[0].person_id}.json")
    assert sidecar["Synthetic"] is True
    assert sidecar["Condition"]["diagnosis"] == batch.scans[0].condition.diagnosis


def test_the_synthetic_ill_have_the_planted_spot(of_three_planes: Path) -> None:
    batch = open_cohort(of_three_planes / "synthetic")
    volumes = open_volumes(batch)
    ill = np.array([scan.condition.diagnosis == "ill" for scan in batch.scans])
    assert ill.sum() == 20
    spot = volumes[:, 26:32, 15:21].mean(axis=(1, 2))
    for plane in range(3):
        assert spot[ill, plane].mean() > spot[~ill, plane].mean() + 0.1


def test_every_gate_but_that_of_brain_regions_has_an_outcome(of_three_planes: Path) -> None:
    scores = read_json(of_three_planes / "evaluation" / "scores.json")
    for found in scores["candidates"].values():
        outcomes = {gate["name"]: gate["outcome"] for gate in found["gates"]}
        assert outcomes["copies"] == "pass"
        assert outcomes["data"] == "pass"
        assert set(outcomes) >= {"spread", "high_frequency", "plausibility", "batch", "membership"}
        assert found["regions"] == {}
        assert all(one["found"] for one in found["privacy"]["canary_power"].values())


def test_the_report_says_what_was_not_looked_at_and_speaks_of_no_brain(
    of_three_planes: Path,
) -> None:
    page = (of_three_planes / "report.html").read_text()
    assert "whether the diagnosis shows in the right place" in page
    for word in ("Radiological view", "axial", "sagittal", "cycles a millimetre", "same brain"):
        assert word not in page
    assert "data:image/webp" in page
    card = (of_three_planes / "decision" / "MODEL_CARD.md").read_text()
    sheet = (of_three_planes / "synthetic" / "DATASHEET.md").read_text()
    assert "3 planes of 48 x 48 pixels" in card
    assert "3 planes of 48 x 48 pixels" in sheet
    assert "T1" not in card + sheet


def test_run_goes_from_png_files_to_the_report(
    tmp_path: Path,
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "labels.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "person", "label"])
        for person in range(60):
            values = picture(person, person % 2 == 1, 64, 1)[..., 0]
            Image.fromarray((255 * values).round().astype(np.uint8)).save(source / f"{person}.png")
            table.writerow([f"{person}.png", f"P{person:03d}", "ill" if person % 2 else "well"])
    config = {
        **SETTINGS,
        "name": "made",
        "source": {"kind": "pictures", "path": "source"},
        "pictures": {"table": "labels.csv", "labels": ["well", "ill"], "origin": "phantom"},
        "planes": {"rows": 64, "columns": 64, "crop": "none"},
    }
    (tmp_path / "made.yaml").write_text(json.dumps(config))
    done = command("rarescan run made.yaml", tmp_path)
    assert done.returncode == 0, done.stderr
    report = read_json(tmp_path / "runs" / "made" / "report.json")
    assert report["cohort"]["n_persons"] == 60
    assert report["cohort"]["is_brain"] is False
    assert report["gain"] is not None or report["verdict"]["code"] == "refused"
