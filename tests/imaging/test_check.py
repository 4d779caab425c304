import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from rarescan.cohort.contracts import Condition, Scan, brain_grid
from rarescan.cohort.store import create_volumes
from rarescan.errors import InputError
from rarescan.imaging.bids import scan_stem, write_derivative, write_image, write_raw
from rarescan.imaging.check import check_bids, require_sound

ONE, TWO = scan_stem("RSAA", "01"), scan_stem("RSBB", "01")
SIDECAR = {"Modality": "MR", "RepetitionTime": 2.3, "EchoTime": 0.00298, "InversionTime": 0.9}


def make_raw(root: Path, **condition: Any) -> Path:
    scans = []
    for person, stem in (("RSAA", ONE), ("RSBB", TWO)):
        voxels = np.random.default_rng(len(scans)).integers(0, 900, (12, 13, 14), dtype=np.int16)
        digest = write_image(root / f"{stem}.nii.gz", voxels, np.diag([1.0, 1, 2, 1]))
        (root / f"{stem}.json").write_text(json.dumps({**SIDECAR, "VoxelSHA256": digest}))
        known = Condition(**{"diagnosis": "bvFTD", "age_years": 90.0, "sex": "F", **condition})
        scans.append(Scan(scan_id=person, person_id=person, path=f"{stem}.nii.gz", condition=known))
    write_raw(root, scans=scans, acquired={"RSAA": "1899-05-04"}, name="Raw", licence="")
    return root


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw")


@pytest.fixture
def derivative(tmp_path: Path) -> Path:
    root, grid = tmp_path / "synthetic", brain_grid(8)
    condition = Condition(diagnosis="bvFTD", age_years=60)
    scans = [
        Scan(scan_id=p, person_id=p, origin="synthetic", condition=condition)
        for p in ("SYN000001", "SYN000002")
    ]
    create_volumes(root, 2, grid)[:] = np.random.default_rng(0).random((2, *grid.shape))
    write_derivative(root, scans=scans, grid=grid, name="B", model={"seed": 1}, workers=1)
    return root


def in_table(table: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        text = (root / table).read_text()
        assert old in text
        (root / table).write_text(text.replace(old, new, 1))

    return edit


def in_sidecar(**values: Any) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = next(root.glob("sub-*/**/anat/*.json"))
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def in_image(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / f"{ONE}.nii.gz"
        nib.save(change(nib.load(path)), path)

    return edit


def unplaced(image: Any) -> Any:
    bad = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    bad.header.set_sform(np.zeros((4, 4)), 1)
    bad.header["qform_code"] = 0
    return bad


def as_copy(image: Any, **changed: Any) -> Any:
    copy = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    for name, value in changed.items():
        copy.header[name] = value
    return copy


def also_in_time(image: Any) -> Any:
    return nib.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine, image.header)


def to_synthetic_person(root: Path) -> None:
    (root / "sub-RSAA").rename(root / "sub-SYN000001")
    for path in (root / "sub-SYN000001").rglob("*RSAA*"):
        path.rename(path.with_name(path.name.replace("RSAA", "SYN000001")))
    in_table("participants.tsv", "sub-RSAA", "sub-SYN000001")(root)


PROBLEMS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no description": (
        "NO_DESCRIPTION",
        lambda r: (r / "dataset_description.json").unlink(),
    ),
    "repetition time in ms": ("TIME_UNIT", in_sidecar(RepetitionTime=2300)),
    "echo time in ms": ("TIME_UNIT", in_sidecar(EchoTime=2.98)),
    "inversion time in ms": ("TIME_UNIT", in_sidecar(InversionTime=900)),
    "age above 90": ("AGE", in_table("participants.tsv", "\t90\t", "\t95\t")),
    "age in words": ("AGE", in_table("participants.tsv", "\t90\t", "\t89+\t")),
    "real date": (
        "DATE",
        in_table("sub-RSAA/sub-RSAA_sessions.tsv", "1899-05-04", "2019-05-04"),
    ),
    "date in a sidecar": ("DATE", in_sidecar(AcquisitionDateTime="2019-05-04T10:00:00")),
    "time of day": ("DATE", in_sidecar(AcquisitionTime="10:15:00")),
    "person without a row": (
        "PARTICIPANTS",
        in_table("participants.tsv", "sub-RSAA", "sub-RSCC"),
    ),
    "person twice": (
        "PARTICIPANTS",
        in_table("participants.tsv", "sub-RSAA\t", "sub-RSBB\tn/a\tF\tx\tx\nsub-RSAA\t"),
    ),
    "person without an image": ("PARTICIPANTS", lambda r: shutil.rmtree((r / ONE).parent)),
    "no table of persons": ("PARTICIPANTS", lambda r: (r / "participants.tsv").unlink()),
    "synthetic person": ("SYNTHETIC_IN_RAW", to_synthetic_person),
    "synthetic scan": ("SYNTHETIC_IN_RAW", in_sidecar(Synthetic=True)),
    "four dimensions": ("HEADER", in_image(also_in_time)),
    "no place": ("HEADER", in_image(unplaced)),
    "no unit": ("HEADER", in_image(lambda i: as_copy(i, xyzt_units=0))),
    "text in the header": ("HEADER", in_image(lambda i: as_copy(i, descrip=b"Mustermann"))),
    "no NIfTI": ("HEADER", lambda r: (r / f"{ONE}.nii.gz").write_bytes(gzip.compress(b"x" * 999))),
    "no gzip": ("HEADER", lambda r: (r / f"{ONE}.nii.gz").write_bytes(b"x" * 999)),
    "no sidecar": ("SIDECAR", lambda r: (r / f"{ONE}.json").unlink()),
    "broken sidecar": ("SIDECAR", lambda r: (r / f"{ONE}.json").write_text("{")),
}


@pytest.mark.parametrize("fault", PROBLEMS)
def test_each_fault_is_named_by_its_code(raw: Path, fault: str) -> None:
    code, make = PROBLEMS[fault]
    make(raw)
    assert {p.code for p in check_bids(raw)} == {code}
    with pytest.raises(InputError, match=code):
        require_sound(raw)


def test_what_we_write_is_sound_down_to_the_voxels(raw: Path, derivative: Path) -> None:
    for root in (raw, derivative):
        assert check_bids(root, voxels=True) == []


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def another(path: Path) -> None:
    shutil.copy(str(path).replace("RSAA", "RSBB"), path)


@pytest.mark.parametrize("damage", [cut_off, another])
def test_damaged_or_exchanged_voxels_are_found_only_by_reading_them(
    raw: Path, damage: Callable[[Path], None]
) -> None:
    damage(raw / f"{ONE}.nii.gz")
    assert check_bids(raw) == []
    (problem,) = check_bids(raw, voxels=True)
    assert (problem.code, problem.path) == ("VOXELS", f"{ONE}.nii.gz")


def test_a_scan_of_a_person_among_synthetic_ones_is_found(derivative: Path) -> None:
    in_sidecar(Synthetic=False)(derivative)
    assert [p.code for p in check_bids(derivative)] == ["REAL_IN_SYNTHETIC"]


def test_a_data_set_that_is_not_sound_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="AGE"):
        make_raw(tmp_path / "raw", age_years=95.0)
