"""What `rarescan dicom` writes, in small, and the settings to send it."""

from pathlib import Path

import numpy as np

from rarescan.files import Recipe, run_step, write_json
from rarescan.imaging.dicom_out import uid, write_series
from rarescan.pacs.spec import PushConfig, PushTarget

N = 4
"""Slices of a series."""


def make_folder(folder: Path, permitted_use: str) -> Path:
    """Return what `rarescan dicom` writes, of two persons."""

    def build(work: Path) -> None:
        for person in ("SYN000001", "SYN000002"):
            labels = {
                "StudyInstanceUID": uid(f"{person} study"),
                "SeriesInstanceUID": uid(person),
                "PatientID": f"SYN-0-{person[3:]}",
            }
            write_series(work / person, np.ones((3, 5, N), np.int16), np.eye(4), labels)
        write_json(work / "batch.json", {"permitted_use": permitted_use})

    return run_step(folder, Recipe(step="dicom", schema=1), build)


def config(address: str, *, inside: bool = False) -> PushConfig:
    targets = {"research": PushTarget(address=address, inside=inside)}
    return PushConfig(to="research", targets=targets)
