import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from rarescan.cohort.contracts import Condition, Scan, brain_grid
from rarescan.cohort.store import create_volumes
from rarescan.imaging.adopt import adopt_table
from rarescan.imaging.bids import write_derivative, write_image
from rarescan.imaging.check import check_bids
from rarescan.imaging.spec import AdoptConfig

MODEL = {"uri": "models:/rarescan/3", "sha256": "ab" * 32, "seed": 7, "decision": "d1"}


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Scan], np.ndarray]:
    root, grid = tmp_path_factory.mktemp("batch") / "synthetic", brain_grid(8)
    scans = [
        Scan(
            scan_id=f"SYN{k:06d}",
            person_id=f"SYN{k:06d}",
            origin="synthetic",
            condition=Condition(diagnosis="bvFTD", age_years=60.0 + k, sex="F" if k % 2 else None),
            licence="none",
        )
        for k in range(1, 6)
    ]
    volumes = create_volumes(root, len(scans), grid)
    volumes[:] = np.random.default_rng(0).random(volumes.shape, dtype=np.float32)
    volumes[0, 0, 0, 0], volumes[0, 1, 0, 0] = 0, 1
    volumes.flush()
    written = write_derivative(root, scans=scans, grid=grid, name="Batch", model=MODEL, workers=1)
    return root, written, np.array(volumes)


def test_values_come_back_within_half_a_step_and_the_ends_exactly(
    batch: tuple[Path, list[Scan], np.ndarray],
) -> None:
    root, scans, volumes = batch
    assert scans[0].path == (
        "sub-SYN000001/anat/sub-SYN000001_space-MNI152NLin2009aSym_desc-synthetic_T1w.nii.gz"
    )
    for scan, volume in zip(scans, volumes, strict=True):
        image: Any = nib.load(root / scan.path)
        assert image.get_data_dtype() == np.int16
        assert image.affine == pytest.approx(brain_grid(8).matrix())
        back = image.get_fdata()
        assert abs(back - volume).max() <= 0.51 / 32767
    first = nib.load(root / scans[0].path).get_fdata()  # type: ignore[attr-defined]
    assert (first[0, 0, 0], first[1, 0, 0]) == (0, pytest.approx(1, abs=1e-7))


def test_every_sidecar_says_synthetic_and_names_model_seed_and_condition(
    batch: tuple[Path, list[Scan], np.ndarray],
) -> None:
    root, scans, _ = batch
    for index, scan in enumerate(scans):
        beside = json.loads((root / scan.path.replace(".nii.gz", ".json")).read_text())
        assert beside["Synthetic"] is True
        assert beside["SkullStripped"] is True
        assert beside["GeneratorModel"] == MODEL
        assert (beside["ScanIndex"], beside["VoxelSHA256"]) == (index, scan.sha256)
        assert beside["Condition"]["age_years"] == scan.condition.age_years


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cohort of two images that were there already, of persons known and unknown."""
    source = tmp_path_factory.mktemp("adopted") / "in"
    for k in range(2):
        voxels = np.random.default_rng(k).integers(0, 900, (12, 13, 14), dtype=np.int16)
        write_image(source / f"{k}.nii.gz", voxels, np.diag([1.0, 1, 2, 1]))
    (source / "t.csv").write_text("file,person,diagnosis,age_years,sex\n0.nii.gz,A1,bvFTD,95,F\n"
                                  "1.nii.gz,A2,control,,\n")  # fmt: skip
    config = AdoptConfig(table="t.csv", licence="CC0")
    return adopt_table(source, source.with_name("cohort"), config, workers=1)


@pytest.mark.parametrize("kind", ["synthetic", "adopted"])
def test_what_is_written_is_valid_bids_and_sound(
    batch: tuple[Path, list[Scan], np.ndarray], adopted: Path, kind: str
) -> None:
    root = batch[0] if kind == "synthetic" else adopted
    assert check_bids(root, voxels=True) == []
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    found = subprocess.run([validator, root, "--format", "json"], capture_output=True, check=False)
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []
    assert found.returncode == 0


def test_an_interrupted_batch_continues_to_the_same_bytes_with_any_number_of_workers(
    batch: tuple[Path, list[Scan], np.ndarray], tmp_path: Path
) -> None:
    root, scans, _ = batch
    other = tmp_path / "other"
    source, grid = root / "rarescan/volumes.npy", brain_grid(8)
    arguments: dict[str, Any] = {"grid": grid, "name": "Batch", "model": MODEL, "volumes": source}
    write_derivative(other, scans=scans[:2], workers=1, **arguments)
    kept = other / scans[0].path
    (other / scans[1].path.replace(".nii.gz", ".json")).unlink()
    time_of_first = kept.stat().st_mtime_ns
    assert write_derivative(other, scans=scans, workers=2, **arguments) == scans
    assert kept.stat().st_mtime_ns == time_of_first
    for path in (p for p in root.rglob("*") if p.is_file() and p.suffix != ".npy"):
        assert (other / path.relative_to(root)).read_bytes() == path.read_bytes(), path.name


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 3)] * 3),
    origin=st.tuples(*[st.floats(-200, 200)] * 3),
    dtype=st.sampled_from([np.uint8, np.int16, np.float32]),
    slope=st.sampled_from([1.0, 0.5, 2.7]),
)
def test_an_image_comes_back_with_its_voxels_and_affine(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, ...],
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    dtype: Any,
    slope: float,
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    voxels = np.arange(60).reshape(3, 4, 5).astype(dtype)
    path = tmp_path_factory.mktemp("i") / "x.nii.gz"
    write_image(path, voxels, affine, slope=slope, intercept=-3.0)
    image: Any = nib.load(path)
    assert image.affine == pytest.approx(affine, abs=1e-3)
    assert image.get_qform() == pytest.approx(affine, abs=1e-3)
    assert image.get_fdata() == pytest.approx(voxels * slope - 3.0)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert path.read_bytes()[4:8] == bytes(4), "no time in the gzip header"


def test_the_hash_names_voxels_and_not_their_packing(tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    first = write_image(tmp_path / "a.nii.gz", voxels, np.eye(4))
    moved = write_image(tmp_path / "b.nii.gz", np.asfortranarray(voxels), np.diag([2.0, 2, 2, 1]))
    other = write_image(tmp_path / "c.nii.gz", voxels + 1, np.eye(4))
    assert first == moved != other
