import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from rarescan.cohort.contracts import Condition, Scan, brain_grid
from rarescan.cohort.store import create_volumes, write_cohort
from rarescan.errors import ChangedRecipeError, InputError
from rarescan.files import Recipe, run_step, write_json
from rarescan.flows.lineage import trace_back
from rarescan.imaging.bids import write_derivative
from rarescan.imaging.convert import read_stack
from rarescan.imaging.dicom_out import uid, write_dicom, write_series
from rarescan.imaging.header import Header
from rarescan.imaging.ingest import ingest_export
from rarescan.imaging.parse import read_header
from rarescan.imaging.spec import IngestConfig
from rarescan.imaging.stacks import File, find_stacks

ABOUT = {
    "batch_id": "0123456789abcdef",
    "model_uri": "models:/rarescan-generator/3",
    "model_sha256": "ab" * 32,
    "family": "diffusion",
    "seed": 7,
    "decision_id": "d1",
    "permitted_use": "inside_controller",
    "prepared_id": "p1",
}


def make_batch(root: Path, origin: Any = "synthetic") -> Path:
    grid = brain_grid(8)
    condition = Condition(diagnosis="bvFTD", age_years=63.4, sex="F", site="Köln")
    scans = [
        Scan(scan_id=f"{p}_T1w", person_id=p, origin=origin, condition=condition)
        for p in ("SYN000001", "SYN000002", "SYN000003")
    ]

    def build(work: Path) -> None:
        volumes = create_volumes(work, len(scans), grid)
        volumes[:] = 0
        inside = (slice(None), *[slice(8, 12)] * 3)
        volumes[inside] = np.random.default_rng(0).uniform(0.3, 1, volumes[inside].shape)
        volumes.flush()
        done = write_derivative(work, scans=scans, grid=grid, name="B", model=ABOUT, workers=1)
        write_cohort(work, scans=done, grid=grid, partition={}, about=ABOUT)
        write_json(work / "batch.json", {**ABOUT, "n": len(done)})

    return run_step(root, Recipe(step="generate", schema=1), build)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_batch(tmp_path_factory.mktemp("batch") / "synthetic")


@pytest.fixture(scope="module")
def series(batch: Path) -> Path:
    return write_dicom(batch, batch.with_name("dicom"), workers=1)


def read_back(paths: list[Path]) -> nib.Nifti1Image:
    """Read a series as ingest does."""
    headers = [read_header(path.read_bytes()) for path in paths]
    files = [File(number=k, header=h) for k, h in enumerate(headers) if isinstance(h, Header)]
    assert len(files) == len(paths)
    (stack,) = find_stacks(files)
    assert stack.fixes == ()
    volume = read_stack(stack, [paths[f.number] for f in stack.files])
    return nib.Nifti1Image(volume.voxels, stack.affine())


def by_dcm2niix(folder: Path, out: Path) -> nib.Nifti1Image:
    converter = Path(sys.executable).with_name("dcm2niix")
    if not converter.exists():
        pytest.skip("dcm2niix is not installed")
    command = [converter, "-z", "n", "-b", "n", "-o", out, "-f", "theirs", folder]
    subprocess.run(command, capture_output=True, check=True)
    (path,) = out.glob("*.nii")
    return nib.load(path)  # type: ignore[return-value]


def test_every_file_says_that_no_person_and_no_scanner_stand_behind_it(series: Path) -> None:
    files = sorted(series.glob("SYN*/*.dcm"))
    assert len(files) == 3 * brain_grid(8).shape[2]
    for path in files:
        ds = pydicom.dcmread(path)
        assert path.read_bytes()[:128] == bytes(128)
        assert ds.SyntheticData == "YES"
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
        assert ds.PatientID == f"SYN-01234567-{path.parent.name[3:]}"
        assert ds.IssuerOfPatientID == "RARESCAN-SYNTHETIC"
        assert str(ds.PatientName) == f"SYNTHETIC^{path.parent.name}"
        assert (ds.PatientBirthDate, ds.StudyDate, ds.AccessionNumber) == ("", "", "")
        assert (ds.PatientSex, ds.PatientAge) == ("F", "063Y")
        assert ds.SeriesDescription.startswith("SYNTHETIC")
        assert ds.Manufacturer == "rarescan (synthetic)"
        assert (ds.BurnedInAnnotation, ds.RecognizableVisualFeatures) == ("NO", "NO")
        assert (ds.ScanningSequence, ds.SequenceVariant) == ("RM", "NONE")
        assert ds["RepetitionTime"].is_empty
        assert ds["EchoTime"].is_empty
        assert "bvFTD, 63 years, F, Köln" in ds.DerivationDescription
        assert "inside_controller" in ds.DerivationDescription
        (equipment,) = ds.ContributingEquipmentSequence
        (purpose,) = equipment.PurposeOfReferenceCodeSequence
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
        assert ABOUT["model_sha256"] in equipment.ContributionDescription


def test_uids_are_valid_told_apart_and_follow_from_model_seed_and_scan(series: Path) -> None:
    found = [pydicom.dcmread(p, stop_before_pixels=True) for p in series.glob("SYN*/*.dcm")]
    for keyword, n in (
        ("SOPInstanceUID", len(found)),
        ("StudyInstanceUID", 3),
        ("SeriesInstanceUID", 3),
        ("FrameOfReferenceUID", 3),
    ):
        uids = {ds[keyword].value for ds in found}
        assert len(uids) == n
        assert all(u.is_valid and u.startswith("2.25.") for u in uids)
        assert all(int(u[5:]) >> 76 & 0xF == 8 and int(u[5:]) < 2**128 for u in uids)
    assert uid("a", 1) != uid("a", 2) != uid("b", 2)
    assert uid("a", 1) == uid("a", 1)


def test_an_interrupted_folder_is_continued_to_the_same_bytes_with_two_workers(
    batch: Path, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rarescan.imaging.dicom_out as module

    real, calls = write_series, []

    def dying(folder: Path, *rest: Any) -> list[Path]:
        calls.append(folder.name)
        done = real(folder, *rest)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(module, "write_series", dying)
    with pytest.raises(KeyboardInterrupt):
        write_dicom(batch, tmp_path / "dicom", workers=1)
    monkeypatch.undo()
    write_dicom(batch, tmp_path / "dicom", workers=2)
    written = {p.relative_to(series) for p in series.rglob("*") if p.is_file()}
    again = {p.relative_to(tmp_path / "dicom") for p in (tmp_path / "dicom").rglob("*.*")}
    assert written <= again
    for path in written - {Path("recipe.json")}:
        assert (tmp_path / "dicom" / path).read_bytes() == (series / path).read_bytes()
    assert calls == [".SYN000001", ".SYN000002"]
    assert [p.name for p in (tmp_path / "dicom").glob(".*")] == []


def test_the_way_back_leads_to_the_batch(series: Path) -> None:
    chain = trace_back(series / "SYN000002" / "0001.dcm")
    assert [link["step"] for link in chain] == ["dicom", "generate"]


@pytest.mark.parametrize("reader", ["ours", "dcm2niix"])
def test_a_batch_comes_back_as_the_same_picture_in_the_same_place(
    batch: Path, series: Path, tmp_path: Path, reader: str
) -> None:
    folder = series / "SYN000002"
    ours = reader == "ours"
    back = read_back(sorted(folder.glob("*"))) if ours else by_dcm2niix(folder, tmp_path)
    source = nib.load(next(batch.glob("sub-SYN000002/anat/*.nii.gz")))
    theirs = nib.as_closest_canonical(back)
    assert theirs.affine == pytest.approx(source.affine, abs=1e-3)  # type: ignore[attr-defined]
    stored = np.asanyarray(source.dataobj.get_unscaled())  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(theirs.dataobj), stored)


def test_pictures_stand_as_radiologists_read_them(series: Path) -> None:
    ds = pydicom.dcmread(series / "SYN000001" / "0001.dcm")
    assert [float(v) for v in ds.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]


@pytest.mark.long
@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 3)] * 3),
    origin=st.tuples(*[st.floats(-200, 200)] * 3),
    mirrored=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.int16]),
)
def test_any_volume_keeps_every_voxel_at_its_place_in_the_world(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, ...],
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    mirrored: bool,
    dtype: Any,
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 2] *= -1 if mirrored else 1
    affine[:3, 3] = origin
    voxels = np.zeros((24, 25, 26), dtype)
    voxels[8:16, 8:16, 8:16] = np.random.default_rng(0).permutation(512).reshape(8, 8, 8) % 251
    labels = {"SeriesInstanceUID": uid("s"), "FrameOfReferenceUID": uid("f")}
    paths = write_series(tmp_path_factory.mktemp("s") / "x", voxels, affine, labels)
    back = read_back(paths[::-1])
    index = np.stack(np.meshgrid(*map(np.arange, back.shape), indexing="ij"), -1)
    world = nib.affines.apply_affine(back.affine, index)
    source = nib.affines.apply_affine(np.linalg.inv(affine), world)
    nearest = np.rint(source).astype(int)
    assert abs((source - nearest) * spacing).max() < 1e-3
    assert np.array_equal(voxels[tuple(nearest.reshape(-1, 3).T)], np.asarray(back.dataobj).ravel())


def test_real_scans_and_changed_images_are_refused(tmp_path: Path) -> None:
    real = make_batch_of_real(tmp_path / "real")
    with pytest.raises(InputError, match="not synthetic"):
        write_dicom(real, tmp_path / "out", workers=1)
    changed = make_batch(tmp_path / "changed")
    image = next(changed.glob("sub-SYN000001/anat/*.nii.gz"))
    shutil.copy(next(changed.glob("sub-SYN000002/anat/*.nii.gz")), image)
    with pytest.raises(InputError, match="not the one that was generated"):
        write_dicom(changed, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def make_batch_of_real(root: Path) -> Path:
    """Return a finished batch into whose table a real scan was put."""
    batch = make_batch(root)
    scan = Scan(scan_id="x", person_id="RSX", condition=Condition(diagnosis="bvFTD"))
    write_cohort(batch, scans=[scan], grid=brain_grid(8), partition={})
    return batch


def test_another_batch_does_not_replace_a_folder(series: Path, tmp_path: Path) -> None:
    other = make_batch(tmp_path / "other")
    recipe = json.loads((other / "recipe.json").read_text())
    write_json(other / "recipe.json", {**recipe, "schema": 2})
    with pytest.raises(ChangedRecipeError, match=r"inputs\.synthetic"):
        write_dicom(other, series, workers=1)


def test_ingest_does_not_take_a_synthetic_series_for_a_person(
    series: Path, write_series: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RARESCAN_KEY", "5a" * 32)
    with pytest.raises(InputError, match=r"DERIVED|SYNTHETIC"):
        ingest_export(series, tmp_path / "cohort", IngestConfig(accept_review=True), workers=1)
