"""Every vendor and orientation of the phantom's scanners, with a bright blob on the left side."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rarescan.cohort.store import open_cohort
from rarescan.imaging.convert import read_stack
from rarescan.imaging.dicom_out import uid, write_series
from rarescan.imaging.header import Header
from rarescan.imaging.ingest import ingest_export
from rarescan.imaging.parse import read_header
from rarescan.imaging.spec import IngestConfig
from rarescan.imaging.stacks import File, find_stacks
from rarescan.phantom import dicom
from rarescan.phantom.identities import draw_identity
from rarescan.phantom.persons import draw_person
from rarescan.phantom.scanners import SCANNERS, Plane, Slices, lay_slices
from rarescan.phantom.spec import PhantomConfig

LEFT_MM = np.array([-45.0, 20.0, 30.0])
"""Where the blob lies, RAS."""
VOXEL_MM = 1.6


@dataclass(frozen=True)
class Case:
    """One series: a scanner's headers on slices that lie in some way."""

    site: str
    plane: Plane
    tilt_deg: tuple[float, float, float] = (0, 0, 0)
    turned: tuple[int, int, int] = (1, 1, 1)
    """Signs of row, column and slice direction against the usual ones."""
    position: str = "HFS"


CASES = {
    "siemens_sagittal": Case("A", "sagittal"),
    "ge_axial_oblique": Case("B", "axial", (9, -6, 12)),
    "philips_coronal_oblique": Case("C", "coronal", (-11, 7, 5)),
    "siemens_sagittal_oblique": Case("D", "sagittal", (14, 10, -8)),
    "axial": Case("B", "axial"),
    "coronal": Case("C", "coronal"),
    "feet_first": Case("A", "axial", (4, 0, 0), (1, 1, -1), "FFS"),
    "sagittal_from_the_left": Case("A", "sagittal", (0, 0, 3), (1, 1, -1)),
    "prone": Case("B", "axial", (0, 5, 0), (-1, -1, 1), "HFP"),
    "double_oblique": Case("D", "sagittal", (28, -24, 19)),
}


def lay(case: Case) -> Slices:
    """Return how the slices of a case lie."""
    size, spacing = SCANNERS[case.site].t1_size(VOXEL_MM)
    tilt = Rotation.from_euler("xyz", case.tilt_deg, degrees=True)
    slices = lay_slices(
        case.plane, size=size, spacing_mm=spacing, centre_mm=np.array([3.0, -5, 8]), tilt=tilt
    )
    last = slices.position_mm(size[0] - 1)
    steps = [0, size[2] - 1, size[1] - 1]
    corner = last if case.turned[2] < 0 else slices.first_mm
    for axis, (sign, n) in enumerate(zip(case.turned[:2], steps[1:], strict=True)):
        corner = corner + (sign < 0) * n * spacing[2 - axis] * slices.axes[axis]
    axes = slices.axes * np.array(case.turned)[:, None]
    return replace(slices, axes=axes, first_mm=corner.round(4))


def brightness(slices: Slices, seed: int) -> Any:
    """Return a head with the blob, shape (slices, rows, columns)."""
    size = slices.size
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).astype(np.float32)
    ras = nib.affines.apply_affine(slices.to_ras().astype(np.float32), index)
    inside = (((ras - [0, -10, 10]) / [70, 88, 75]) ** 2).sum(-1) < 1
    blob = ((ras - LEFT_MM) ** 2).sum(-1) < 8**2
    noise = np.random.default_rng(seed).normal(0, 0.01, size)
    return (0.5 * inside + 0.4 * blob + noise + 0.05).astype(np.float32)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("geometry") / "export"
    config = PhantomConfig(preset="hard", patients=0, controls=len(CASES))
    rows = ["patient_id,diagnosis"]
    for k, (name, case) in enumerate(CASES.items()):
        scanner, person = SCANNERS[case.site], replace(draw_person(config, k), site=case.site)
        identity = draw_identity(config, person)
        slices = lay(case)
        made = dicom.Series(
            number=3, slices=slices, header=scanner.t1 | {"PatientPosition": case.position}
        )
        header = dicom.header_of(made, scanner, person, identity, study=name)
        pixels = dicom.stored_values(brightness(slices, k), scanner)
        dicom.write_series(root / name, made, pixels, header, study=name)
        rows.append(f"{identity.patient_id},{name}")
    (root.parent / "labels.csv").write_text("\n".join(rows))
    return root


@pytest.fixture(scope="module")
def accepted(export: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the accepted scans as images, by the name of their case."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RARESCAN_KEY", "5a" * 32)
        config = IngestConfig(labels=str(export.parent / "labels.csv"))
        root = ingest_export(export, tmp_path_factory.mktemp("c") / "cohort", config, workers=1)
    return {s.condition.diagnosis: nib.load(root / s.path) for s in open_cohort(root).scans}


def test_every_vendor_and_orientation_is_accepted(accepted: dict[str, Any]) -> None:
    assert set(accepted) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_blob_on_the_left_ends_on_the_left(accepted: dict[str, Any], name: str) -> None:
    image = accepted[name]
    values = image.get_fdata()
    bright = np.argwhere(values > 0.8 * values.max())
    found = nib.affines.apply_affine(image.affine, bright).mean(axis=0)
    assert found == pytest.approx(LEFT_MM, abs=0.5)
    assert np.linalg.det(image.affine) > 0
    assert image.get_sform() == pytest.approx(image.get_qform(), abs=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_every_voxel_lies_where_its_header_says(accepted: dict[str, Any], name: str) -> None:
    slices, image = lay(CASES[name]), accepted[name]
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in slices.size], indexing="ij"), -1)
    corners = nib.affines.apply_affine(slices.to_ras(), ends.reshape(-1, 3))
    index = nib.affines.apply_affine(np.linalg.inv(image.affine), corners)
    assert index == pytest.approx(np.rint(index), abs=1e-3)
    assert (np.rint(index).min(axis=0) == 0).all()
    assert (np.rint(index).max(axis=0) == np.array(image.shape) - 1).all()


@pytest.mark.parametrize("name", CASES)
def test_voxels_and_affine_equal_those_of_dcm2niix(
    accepted: dict[str, Any], export: Path, tmp_path: Path, name: str
) -> None:
    converter = Path(sys.executable).with_name("dcm2niix")
    if not converter.exists():
        pytest.skip("dcm2niix is not installed")
    # -p n: the scale that the standard knows, not Philips' private one.
    options = ["-z", "n", "-b", "n", "-p", "n", "-o", tmp_path, "-f", "theirs"]
    subprocess.run([converter, *options, export / name], capture_output=True, check=True)
    theirs: Any = nib.as_closest_canonical(nib.load(tmp_path / "theirs.nii"))
    ours: Any = nib.as_closest_canonical(accepted[name])
    assert ours.affine[:3, :3] == pytest.approx(theirs.affine[:3, :3], abs=1e-4)
    # Its step is off by up to 2e-5 mm (taken from rounded places): 3e-3 mm after 150 slices.
    assert ours.affine[:3, 3] == pytest.approx(theirs.affine[:3, 3], abs=3e-3)
    assert np.allclose(ours.get_fdata(), theirs.get_fdata(), rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_dicom_to_nifti_to_dicom_to_nifti_changes_nothing(
    accepted: dict[str, Any], tmp_path: Path, name: str
) -> None:
    source = accepted[name]
    stored = np.asarray(source.dataobj.get_unscaled())
    labels = {"SeriesInstanceUID": uid(name), "FrameOfReferenceUID": uid(name, "frame")}
    paths = write_series(tmp_path / "series", stored, source.affine, labels)
    files = []
    for k, path in enumerate(paths):
        header = read_header(path.read_bytes())
        assert isinstance(header, Header)
        files.append(File(number=k, header=header))
    (stack,) = find_stacks(files)
    volume = read_stack(stack, [paths[f.number] for f in stack.files])
    back = nib.Nifti1Image(volume.voxels, stack.affine())
    if CASES[name].turned[:2] != (1, 1):
        # Written upright, as radiologists read; the same voxels in the same places.
        source, back = (nib.as_closest_canonical(i) for i in (source, back))
        stored = np.asarray(source.dataobj.get_unscaled())
    assert back.affine == pytest.approx(source.affine, abs=1e-3)
    assert np.array_equal(np.asarray(back.dataobj), stored)
