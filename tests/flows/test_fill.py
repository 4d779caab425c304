"""`generate.fill`: a batch without a champion, which says that it shows persons and stays."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rarescan.classifiers.arm_scans import require_fitting
from rarescan.cohort.contracts import Question
from rarescan.cohort.partition import PartitionConfig
from rarescan.cohort.store import open_cohort
from rarescan.configs.schema import RunConfig, parse_config
from rarescan.errors import SettingError
from rarescan.files import require_recipe
from rarescan.flows import batch, erase
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import write_prepared

pytestmark = pytest.mark.long
PARTITION = PartitionConfig(validation=0.1, test=0.1, fewest_validation=0)


def config(**fill: Any) -> RunConfig:
    return parse_config({"name": "test", "workers": 1, "device": "cpu", "generate": fill})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    population = PhantomConfig(patients=16, controls=24, seed=2)
    root = tmp_path_factory.mktemp("fill") / "prepared"
    return write_prepared(root, population, spacing_mm=8.0, partition=PARTITION)


@pytest.fixture(scope="module")
def filled(prepared: Path) -> Path:
    return batch.generate(config(fill={"what": "age"}), prepared, prepared.parent / "synthetic")


def test_a_filled_batch_never_leaves_and_says_why(filled: Path) -> None:
    told = json.loads((filled / "batch.json").read_text())
    assert told["permitted_use"] == "inside_controller"
    assert told["near_copy_of_a_person"] is True
    sheet = (filled / "DATASHEET.md").read_text()
    assert "never leaves the controller" in sheet
    assert "No image shows a person" not in sheet
    assert "at an age of the other half" in sheet
    assert len(list(filled.glob("sub-SYN*/anat/*.nii.gz"))) == told["n"]


def test_retrain_takes_it_with_its_own_cohort_only(prepared: Path, filled: Path) -> None:
    cohort = open_cohort(prepared)
    assert require_fitting(cohort, filled, Question()).scans == open_cohort(filled).scans
    with pytest.raises(Exception, match="another cohort"):
        require_fitting(replace(cohort, cohort_id="x"), filled, Question())


def test_erasing_a_person_removes_the_batch(
    prepared: Path, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = erase._Results(prepared.parent)
    assert results.near_copies("PH00001", [prepared]) == [filled.resolve()]


def test_other_batches_need_not_know_of_it(prepared: Path) -> None:
    assert "fill" not in batch._asked(config())
    both = config(fill={"what": "site"}, acquisition={"how": "free"})
    with pytest.raises(SettingError, match="cannot be combined"):
        batch.generate(both, prepared, prepared.parent / "no")
    assert require_recipe(prepared)
