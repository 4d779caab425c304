import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rarescan.cohort.contracts import brain_grid
from rarescan.cohort.partition import PartitionConfig
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.configs.schema import RunConfig
from rarescan.errors import ChangedRecipeError, InputError
from rarescan.flows.counterfactual import Wish, counterfactual
from rarescan.generative.families import train_generator
from rarescan.generative.spec import GeneratorSpec
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import write_prepared

CONFIG = RunConfig(name="test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "prepared"
    persons = PhantomConfig(patients=12, controls=14, seed=4)
    return write_prepared(folder, persons, spacing_mm=8, partition=PartitionConfig())


@pytest.fixture(scope="module")
def model(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    spec = GeneratorSpec(family="gaussian")
    return str(train_generator(prepared, tmp_path_factory.mktemp("m") / "g", spec, device="cpu"))


def a_control(prepared: Path) -> int:
    scans = open_cohort(prepared).scans
    return next(row for row, scan in enumerate(scans) if scan.condition.diagnosis == "control")


def test_a_counterfactual_is_marked_as_a_near_copy_for_inside_use_and_does_not_name_the_person(
    prepared: Path, model: str, tmp_path: Path
) -> None:
    source = open_cohort(prepared).scans[a_control(prepared)]
    wish = Wish(source=source.scan_id, diagnosis="bvFTD")
    out = counterfactual(CONFIG, prepared, tmp_path / "out", wish, model=model)
    batch = json.loads((out / "batch.json").read_text())
    assert batch["permitted_use"] == "inside_controller"
    assert batch["near_copy_of_a_person"] is True
    (scan,) = open_cohort(out).scans
    assert scan.flags == ("near_copy",)
    assert (scan.origin, scan.condition.diagnosis) == ("synthetic", "bvFTD")
    assert scan.condition.age_years == source.condition.age_years
    told = [p.read_text() for p in out.rglob("*") if p.suffix in (".json", ".tsv", ".md")]
    assert not any(source.person_id in text for text in told)


def test_a_file_and_its_scan_id_give_the_same_counterfactual(
    prepared: Path, model: str, tmp_path: Path
) -> None:
    row = a_control(prepared)
    file = tmp_path / "scan.nii.gz"
    volume = np.array(open_volumes(open_cohort(prepared))[row])
    nibabel.save(nibabel.Nifti1Image(volume, brain_grid(8).matrix()), file)
    by_id = Wish(source=open_cohort(prepared).scans[row].scan_id, diagnosis="bvFTD")
    by_file = Wish(source=str(file), diagnosis="bvFTD", own="control")
    made = [
        open_volumes(
            open_cohort(counterfactual(CONFIG, prepared, tmp_path / name, wish, model=model))
        )[0]
        for name, wish in (("id", by_id), ("file", by_file))
    ]
    # Of a file neither age nor site is known; the linear difference does not depend on them.
    np.testing.assert_allclose(made[0], made[1], atol=1e-4)
    assert np.abs(made[0] - volume).max() > 0.02


def test_another_severity_does_not_replace_a_result(
    prepared: Path, model: str, tmp_path: Path
) -> None:
    name = open_cohort(prepared).scans[a_control(prepared)].scan_id
    wish = Wish(source=name, diagnosis="bvFTD", severity=0.5)
    counterfactual(CONFIG, prepared, tmp_path / "out", wish, model=model)
    other = Wish(source=name, diagnosis="bvFTD", severity=0.7)
    with pytest.raises(ChangedRecipeError, match="severity"):
        counterfactual(CONFIG, prepared, tmp_path / "out", other, model=model)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(source="nobody", diagnosis="bvFTD"), "no such scan"),
        (Wish(source="x.nii.gz", diagnosis="bvFTD"), "not known"),
        (Wish(source="x.nii.gz", diagnosis="bvFTD", own="control"), "cannot be read"),
        (Wish(source="nobody", diagnosis="bvFTD", severity=2.5), "cannot be made"),
    ],
)
def test_what_cannot_be_changed_is_refused_before_anything_is_written(
    prepared: Path, model: str, tmp_path: Path, wish: Wish, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        counterfactual(CONFIG, prepared, tmp_path / "out", wish, model=model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["grid", "values"])
def test_a_file_that_is_not_prepared_is_refused(
    prepared: Path, model: str, tmp_path: Path, fault: str
) -> None:
    shape = (20, 24, 20) if fault == "values" else (21, 24, 20)
    volume = np.full(shape, 900, np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, brain_grid(8).matrix()), tmp_path / "raw.nii")
    wish = Wish(source=str(tmp_path / "raw.nii"), diagnosis="bvFTD", own="control")
    with pytest.raises(InputError, match="Prepare the scan"):
        counterfactual(CONFIG, prepared, tmp_path / "out", wish, model=model)
