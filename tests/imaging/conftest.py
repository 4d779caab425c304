"""Small DICOM series made on the fly, as scanners write them and with every fault."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import N, dataset, head, save
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from rarescan.imaging.header import Header
from rarescan.imaging.stacks import File, Stack

Edit = Callable[[int, Dataset], None]


@pytest.fixture(scope="session")
def write_series() -> Callable[..., list[Path]]:
    """Return the writer of one series: `write_series(folder, edit=..., keep=..., **values)`."""

    def write(
        folder: Path,
        *,
        voxels: np.ndarray | None = None,
        edit: Edit | None = None,
        keep: Sequence[int] = range(N),
        series: str = "1",
        **values: Any,
    ) -> list[Path]:
        voxels = head() if voxels is None else voxels
        paths = []
        for k in keep:
            name = f"{values.get('PatientID')}{values.get('StudyDate')}{series}"
            ds = dataset(voxels, k, name, **values)
            if edit is not None:
                edit(k, ds)
            paths.append(folder / f"IM{k:04d}.dcm")
            save(ds, paths[-1])
        return paths

    return write


_PLAIN: dict[str, Any] = {
    "patient_id": "P1",
    "birth_date": "1955-03-20",
    "study_date": "2019-06-11",
    "sop_class": MRImageStorage,
    "image_type": ("ORIGINAL", "PRIMARY", "M", "NORM"),
    "scanning_sequence": ("GR", "IR"),
    "sequence_variant": ("SK", "SP", "MP"),
    "acquisition_type": "3D",
    "repetition_time_ms": 2300.0,
    "echo_time_ms": 2.98,
    "inversion_time_ms": 900.0,
    "flip_angle_deg": 9.0,
    "series_description": "t1_mprage",
    "orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "pixel_spacing_mm": (1.0, 1.0),
    "slice_thickness_mm": 1.0,
    "rows": 192,
    "columns": 192,
    "bits_allocated": 16,
    "bits_stored": 12,
}


@pytest.fixture(scope="session")
def make_files() -> Callable[..., list[File]]:
    """Return the maker of headers: `make_files(n, edit, **values)`, edit(k) -> other values."""

    def make(
        n: int = 160, edit: Callable[[int], dict[str, Any]] | None = None, **values: Any
    ) -> list[File]:
        files = []
        for k in range(n):
            own = {
                "position_mm": (-80.0 + k, -90.0, 90.0),
                "instance_number": k + 1,
                "sha256": f"{values.get('series_uid', '')}{k:08d}",
                "pixel_sha256": f"pixels {values.get('series_uid', '')}{k}",
                "sop_uid": f"1.2.{k}",
            }
            changed = edit(k) if edit else {}
            files.append(File(number=k, header=Header(**{**_PLAIN, **own, **values, **changed})))
        return files

    return make


@pytest.fixture(scope="session")
def make_stack(make_files: Callable[..., list[File]]) -> Callable[..., Stack]:
    from rarescan.imaging.stacks import find_stacks

    def make(*args: Any, **values: Any) -> Stack:
        (stack,) = find_stacks(make_files(*args, **values))
        return stack

    return make
