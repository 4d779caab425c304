import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rarescan.cohort.contracts import brain_grid
from rarescan.cohort.partition import PartitionConfig
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.configs.schema import RunConfig
from rarescan.errors import ChangedRecipeError, InputError
from rarescan.files import read_recipe
from rarescan.flows.counterfactual import Wish, counterfactual
from rarescan.flows.erase import erase_person
from rarescan.flows.lineage import trace_back
from rarescan.generative.families import train_generator
from rarescan.generative.spec import GeneratorSpec
from rarescan.imaging.dicom_out import write_dicom
from rarescan.imaging.persons import read_erased
from rarescan.pacs.push import push_batch
from rarescan.pacs.spec import PushConfig, PushTarget
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import write_prepared
from rarescan.registry.spec import RegistryConfig

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
    assert "Every image shows a real person" in (out / "README.md").read_text()
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


@pytest.fixture
def run(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A person; a run with a cohort and counterfactuals of that person, another, and a file."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "runs" / "demo"
    shutil.copytree(prepared, root / "prepared")
    spec = GeneratorSpec(family="gaussian")
    model = str(train_generator(root / "prepared", root / "models" / "g", spec, device="cpu"))
    cohort = open_cohort(root / "prepared")
    controls = [row for row, s in enumerate(cohort.scans) if s.condition.diagnosis == "control"]
    file = tmp_path / "scan.nii.gz"
    volume = np.array(open_volumes(cohort)[controls[0]])
    nibabel.save(nibabel.Nifti1Image(volume, brain_grid(8).matrix()), file)
    wishes = {
        "own": Wish(source=cohort.scans[controls[0]].scan_id, diagnosis="bvFTD"),
        "other": Wish(source=cohort.scans[controls[1]].scan_id, diagnosis="bvFTD"),
        "file": Wish(source=str(file), diagnosis="bvFTD", own="control"),
    }
    for name, wish in wishes.items():
        counterfactual(CONFIG, root / "prepared", root / name, wish, model=model)
    return cohort.scans[controls[0]].person_id, root


def test_erasing_a_person_removes_the_counterfactuals_that_may_show_it_and_no_other(
    run: tuple[str, Path],
) -> None:
    person, root = run
    done = erase_person(person, root, RegistryConfig())
    assert {path.name for path in done.removed} == {"own", "file"}
    assert {path.name for path in root.iterdir()} == {"prepared", "models", "other"}
    assert open_cohort(root / "other").scans[0].flags == ("near_copy",)
    assert read_erased(root / "other") == read_erased(root / "models" / "g") != set()


def test_a_counterfactual_that_lies_elsewhere_is_found_after_its_cohort_forgot_the_person(
    run: tuple[str, Path], tmp_path: Path
) -> None:
    person, root = run
    elsewhere = tmp_path / "elsewhere" / "look"
    elsewhere.parent.mkdir()
    (root / "own").rename(elsewhere)
    erase_person(person, root, RegistryConfig())
    assert elsewhere.exists()
    assert erase_person(person, elsewhere, RegistryConfig()).removed == [elsewhere]
    assert not elsewhere.exists()


def test_an_erasure_that_is_killed_among_counterfactuals_ends_when_it_is_repeated(
    run: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    person, root = run
    unlink, calls = Path.unlink, 0

    def dying(self: Path, missing_ok: bool = False) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", dying)
        with pytest.raises(KeyboardInterrupt):
            erase_person(person, root, RegistryConfig())
    assert {read_recipe(root / name) is None for name in ("own", "file")} == {False}
    erase_person(person, root, RegistryConfig())
    assert {path.name for path in root.iterdir()} == {"prepared", "models", "other"}


def test_a_counterfactual_is_traced_to_its_scan_model_and_cohort(
    prepared: Path, model: str, tmp_path: Path
) -> None:
    source = open_cohort(prepared).scans[a_control(prepared)].scan_id
    wish = Wish(source=source, diagnosis="bvFTD")
    out = counterfactual(CONFIG, prepared, tmp_path / "out", wish, model=model)
    (scan,) = open_cohort(out).scans
    chain = trace_back(out / scan.path)
    assert chain[0]["detail"]["made_of"] == [source]
    assert chain[0]["detail"]["scan_id"] == scan.scan_id
    steps = [(link["depth"], link["step"]) for link in chain]
    assert steps == [
        (0, "counterfactual"), (1, "phantom-prepared"), (1, "train"), (2, "phantom-prepared")
    ]  # fmt: skip


def test_a_counterfactual_is_never_written_as_dicom_or_sent(
    prepared: Path, model: str, tmp_path: Path
) -> None:
    wish = Wish(source=open_cohort(prepared).scans[0].scan_id, diagnosis="control")
    out = counterfactual(CONFIG, prepared, tmp_path / "out", wish, model=model)
    with pytest.raises(InputError, match="not by `rarescan generate`"):
        write_dicom(out, tmp_path / "dicom")
    inside = PushTarget(address="http://127.0.0.1:1/dicom-web", inside=True)
    with pytest.raises(InputError, match="not by `rarescan dicom`"):
        push_batch(out, PushConfig(to="archive", targets={"archive": inside}))
    assert not (tmp_path / "dicom").exists()
