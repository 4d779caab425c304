"""Write the phantom as a hospital's PACS would hand it over.

`write_export` is the way in. Truth, labels and key lie beside `export/`, never inside it. Every
person is one job: rendered, written into a folder of their own and renamed into place, so that an
interrupted export goes on where it stopped.
"""

import io
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rarescan.errors import SettingError
from rarescan.files import Recipe, atomic_path, run_step, write_atomic
from rarescan.phantom.dicom import file_name, uid
from rarescan.phantom.identities import draw_identity
from rarescan.phantom.persons import draw_person, is_patient
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.studies import T1_NUMBER, Kind, Visit, write_study
from rarescan.phantom.volumes import NOTICE, person_volumes
from rarescan.processes import run_parallel
from rarescan.seeds import derive
from rarescan.threads import one_thread

TWIN_MM = 4.0

_SCHEMA = 1
_EXPECTED: dict[Kind, str] = {
    "person": "used",
    "lost_slice": "MISSING_SLICE",
    "no_t1": "NO_T1",
    "qa": "PHANTOM",
}
_EXTRA: tuple[Kind, ...] = ("lost_slice", "no_t1", "qa")


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One person for one worker."""

    work: Path
    visit: Visit

    @property
    def place(self) -> Path:
        """The folder of the person's study."""
        return self.work / "export" / "DICOM" / file_name(self.visit.study)


def write_export(
    folder: Path, config: PhantomConfig, *, workers: int | None = None, overwrite: bool = False
) -> Path:
    """Write `export/` (DICOM), `labels.csv`, `truth/`, `pseudonym.key` and `NOTICE`.

    Parameters
    ----------
    folder : Path
        Where all of it goes.
    config : PhantomConfig
        The population and what its export holds.
    workers : int, optional
        Processes; all cores by default. The bytes do not depend on it.
    overwrite : bool
        Replace a folder that holds something else.

    Returns
    -------
    Path
        The folder. `labels.csv` has patient_id, diagnosis, age_years, sex and site.
        `truth/persons.parquet` has one row a person: what `Person` says, the identity's
        patient_id, `expected` (what ingest should do with them), the T1's SeriesInstanceUID and
        `pose` (16 numbers: template -> scanner, RAS mm, before the person's deformation).
        `truth/twins/<person_id>.npy` is each patient without the disease, on the 4 mm brain grid.
        `pseudonym.key` is for demonstrations: everybody can derive it from the seed.

    Raises
    ------
    ChangedRecipeError
        Another result lies there and `overwrite` is false.
    """
    recipe = Recipe(
        step="phantom", schema=_SCHEMA, config=asdict(config), seeds={"phantom": config.seed}
    )

    def build(work: Path) -> None:
        jobs = _jobs(work, config)
        run_parallel(_write_person, jobs, what="write phantom persons", workers=workers)
        if config.faults:
            _add_strays(work / "export", jobs[0])
        _write_tables(work, jobs)

    return run_step(folder, recipe, build, overwrite=overwrite)


def _jobs(work: Path, config: PhantomConfig) -> list[_Job]:
    n = config.patients + config.controls
    if n == 0:
        raise SettingError(
            "A phantom of 0 patients and 0 controls holds nobody.",
            remedy="Set `patients` or `controls` above 0.",
        )
    kinds: list[Kind] = ["person" for _ in range(n)]
    kinds += _EXTRA if config.faults else ()
    return [_Job(work=work, visit=_visit(config, i, kind)) for i, kind in enumerate(kinds)]


def _visit(config: PhantomConfig, index: int, kind: Kind) -> Visit:
    person = draw_person(config, index)
    identity = draw_identity(config, person)
    if kind == "qa":
        identity = replace(identity, name="QA^PHANTOM", patient_id="QAPHANTOM")
    return Visit(kind=kind, config=config, person=person, identity=identity)


def _write_person(job: _Job) -> None:
    """Write one person's study, and their control twin, unless both are there."""
    config, person = job.visit.config, job.visit.person
    twin = job.work / "truth" / "twins" / f"{person.person_id}.npy"
    if is_patient(config, person.index) and not twin.exists():
        buffer = io.BytesIO()
        np.save(buffer, person_volumes(config, [person.index], TWIN_MM, severity=0.0)[0])
        write_atomic(twin, buffer.getbuffer())
    if job.place.exists():
        return
    unfinished = job.work / "unfinished" / job.place.name
    shutil.rmtree(unfinished, ignore_errors=True)
    with one_thread():
        # A copy, so that the brain that it caches goes when the study is written.
        write_study(replace(job.visit), unfinished)
    job.place.parent.mkdir(parents=True, exist_ok=True)
    unfinished.rename(job.place)


def _add_strays(export: Path, job: _Job) -> None:
    """Add what nobody meant to export: a note, and a file that was copied."""
    write_atomic(export / "VIEWER.TXT", "Open VIEWER.EXE to see the images.\n")
    series = job.place / file_name(job.visit.study, T1_NUMBER)
    write_atomic(series / "COPY", (series / file_name(job.visit.study, T1_NUMBER, 0)).read_bytes())


def _write_tables(work: Path, jobs: list[_Job]) -> None:
    """Write labels, truth, notice and key."""
    rows = [_truth(job.visit) for job in jobs]
    truth, known = pd.DataFrame(rows), ["patient_id", "diagnosis", "age_years", "sex", "site"]
    with atomic_path(work / "truth" / "persons.parquet") as path:
        truth.to_parquet(path, index=False)
    labels = truth.loc[truth["expected"] != _EXPECTED["qa"], known].sort_values("patient_id")
    write_atomic(work / "labels.csv", labels.to_csv(index=False))
    write_atomic(work / "NOTICE", NOTICE)
    seed = jobs[0].visit.config.seed
    key = b"".join(derive(seed, "phantom", "key", i).to_bytes(8, "big") for i in range(4))
    write_atomic(work / "pseudonym.key", key.hex() + "\n")
    (work / "pseudonym.key").chmod(0o600)
    shutil.rmtree(work / "unfinished", ignore_errors=True)


def _truth(visit: Visit) -> dict[str, Any]:
    return visit.person.as_row() | {
        "patient_id": visit.identity.patient_id,
        "expected": _EXPECTED[visit.kind],
        "t1_series_uid": None if visit.kind == "no_t1" else uid(visit.study, T1_NUMBER),
        "pose": visit.pose.ravel().tolist(),
    }
