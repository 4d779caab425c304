"""One small export and one small prepared cohort, made once."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import FileDataset

from rarescan.phantom.export import write_export
from rarescan.phantom.spec import PhantomConfig


@dataclass(frozen=True)
class Stack:
    """The files of one series, sorted along its normal by this test's own arithmetic."""

    files: list[FileDataset]
    paths: list[Path]

    def affine(self) -> npt.NDArray[np.float64]:
        """Return (column, row, slice) -> RAS mm, from the standard's formula (PS3.3 C.7.6.2.1)."""
        first, last = self.files[0], self.files[-1]
        orientation = np.array(first.ImageOrientationPatient, dtype=float)
        start, end = (np.array(f.ImagePositionPatient, dtype=float) for f in (first, last))
        matrix = np.eye(4)
        matrix[:3, 0] = orientation[:3] * float(first.PixelSpacing[1])
        matrix[:3, 1] = orientation[3:] * float(first.PixelSpacing[0])
        matrix[:3, 2] = (end - start) / (len(self.files) - 1)
        matrix[:3, 3] = start
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix

    def volume(self) -> npt.NDArray[np.float64]:
        """Return values, shape (columns, rows, slices), rescaled."""
        planes = [
            f.pixel_array.T * float(f.get("RescaleSlope", 1)) + float(f.get("RescaleIntercept", 0))
            for f in self.files
        ]
        return np.stack(planes, axis=-1)


@dataclass(frozen=True)
class Written:
    """An export as a reader finds it."""

    folder: Path
    config: PhantomConfig
    stacks: dict[tuple[str, int], Stack]
    """(patient_id, series number) -> files; the copied file is left out."""
    truth: pd.DataFrame


def _read(folder: Path) -> dict[tuple[str, int], Stack]:
    found: dict[tuple[str, int], list[tuple[float, FileDataset, Path]]] = defaultdict(list)
    for path in sorted((folder / "export" / "DICOM").glob("*/*/*")):
        if path.name == "COPY":
            continue
        file = pydicom.dcmread(path)
        orientation = np.array(file.ImageOrientationPatient, dtype=float)
        normal = np.cross(orientation[:3], orientation[3:])
        place = float(normal @ np.array(file.ImagePositionPatient, dtype=float))
        found[file.PatientID, int(file.SeriesNumber)].append((place, file, path))
    stacks = {}
    for key, rows in found.items():
        rows.sort(key=lambda row: row[0])
        stacks[key] = Stack([row[1] for row in rows], [row[2] for row in rows])
    return stacks


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Nine persons: three patients, three controls, three faults; sites A, B and C."""
    folder = tmp_path_factory.mktemp("phantom") / "out"
    config = PhantomConfig(patients=3, controls=3, voxel_mm=1.6)
    write_export(folder, config, workers=1)
    truth = pd.read_parquet(folder / "truth" / "persons.parquet").set_index("patient_id")
    return Written(folder, config, _read(folder), truth)
