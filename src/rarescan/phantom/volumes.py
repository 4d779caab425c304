"""The phantom's persons as a prepared cohort, without the way through DICOM.

`write_prepared` is the way in; `person_volumes` draws any of the same persons again, at any
severity. No skull, no scanner pose: only the small affine that a registration leaves.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rarescan.cohort.contracts import Condition, FloatArray, Scan, brain_grid
from rarescan.cohort.partition import PartitionConfig, draw_partition
from rarescan.cohort.store import VOLUMES, create_volumes, tables, write_cohort
from rarescan.files import Recipe, read_json, run_step, write_atomic, write_json
from rarescan.phantom.anatomy import prepared_volume
from rarescan.phantom.persons import Person, draw_person
from rarescan.phantom.spec import PhantomConfig
from rarescan.processes import run_parallel
from rarescan.threads import one_thread

LICENCE = "invented persons, drawn from the ICBM152 template (see NOTICE)"
NOTICE = """\
These images show no real person. They are drawn from the ICBM 2009a symmetric template:

Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological
Institute, McGill University. Permission to use, copy, modify, and distribute this software and
its documentation for any purpose and without fee is hereby granted, provided that the above
copyright notice appear in all copies. The authors and McGill University make no representations
about the suitability of this software for any purpose. It is provided "as is" without express or
implied warranty.

Fonov VS et al., NeuroImage 54 (2011) 313-327; Collins DL et al., MICCAI 1999.
"""

_SCHEMA = 1
_CHUNK = 16
_PARTS = "parts"
_ALONE_UP_TO = 500
"""Persons at 4 mm (20 s) for which starting other processes does not pay."""


def person_volumes(
    config: PhantomConfig,
    indices: Sequence[int],
    spacing_mm: float,
    *,
    severity: float | None = None,
) -> FloatArray:
    """Return persons as preparation would deliver them.

    Parameters
    ----------
    config : PhantomConfig
        The population.
    indices : sequence of int
        0 to patients + controls - 1 for the cohort's persons; larger ones are further controls.
    spacing_mm : float
        1, 2, 4 or 8.
    severity : float, optional
        Everybody gets this severity, 0 (control twin) to 1, instead of their own.

    Returns
    -------
    float32 array, shape (persons, x, y, z)
        0 to 1, 0 outside the brain.
    """
    volumes = np.empty((len(indices), *brain_grid(spacing_mm).shape), dtype=np.float32)
    with one_thread():
        for row, index in enumerate(indices):
            person = draw_person(config, index, severity=severity)
            volumes[row] = prepared_volume(config, person, spacing_mm)
    return volumes


def write_prepared(
    folder: Path,
    config: PhantomConfig,
    *,
    spacing_mm: float,
    partition: PartitionConfig,
    overwrite: bool = False,
) -> Path:
    """Write the phantom's persons as a prepared cohort and return its folder.

    Parameters
    ----------
    folder : Path
        Where the cohort goes.
    config : PhantomConfig
        The population; `voxel_mm` and `faults` concern the export only.
    spacing_mm : float
        1, 2, 4 or 8.
    partition : PartitionConfig
        How persons are divided.
    overwrite : bool
        Replace a folder that holds something else.

    Raises
    ------
    InputError
        A diagnosis has too few persons to be divided.
    ChangedRecipeError
        Another result lies there and `overwrite` is false.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in ("voxel_mm", "faults")}
    recipe = Recipe(
        step="phantom-prepared",
        schema=_SCHEMA,
        config={**settings, "spacing_mm": spacing_mm, "partition": asdict(partition)},
        seeds={"phantom": config.seed, "partition": partition.seed},
    )
    persons = [draw_person(config, i) for i in range(config.patients + config.controls)]
    parts = draw_partition([scan_of(person, "") for person in persons], partition)

    def build(work: Path) -> None:
        hashes = _fill(work, config, spacing_mm)
        scans = [scan_of(person, value) for person, value in zip(persons, hashes, strict=True)]
        about = {"preset": config.preset, "persons": len(persons)}
        grid = brain_grid(spacing_mm)
        write_cohort(work, scans=scans, grid=grid, partition=parts, about=about)
        write_atomic(work / "NOTICE", NOTICE)

    return run_step(folder, recipe, build, overwrite=overwrite)


def scan_of(person: Person, sha256: str) -> Scan:
    """Return the record of a person's one scan."""
    return Scan(
        scan_id=f"{person.person_id}_01",
        person_id=person.person_id,
        origin="phantom",
        path=f"rarescan/{VOLUMES}",
        sha256=sha256,
        condition=Condition(
            diagnosis=person.diagnosis,
            age_years=person.age_years,
            sex=person.sex,
            site=person.site,
            severity=person.severity,
        ),
        target=person.diagnosis,
        site=person.site,
        licence=LICENCE,
    )


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """A few neighbouring rows of the cohort's array, for one worker."""

    work: Path
    config: PhantomConfig
    spacing_mm: float
    indices: range


def _fill(work: Path, config: PhantomConfig, spacing_mm: float) -> list[str]:
    """Draw every person into the array; return the hashes of their voxels."""
    n = config.patients + config.controls
    create_volumes(work, n, brain_grid(spacing_mm))
    chunks = [
        _Chunk(
            work=work,
            config=config,
            spacing_mm=spacing_mm,
            indices=range(start, min(start + _CHUNK, n)),
        )
        for start in range(0, n, _CHUNK)
    ]
    workers = 1 if n * max(1, 4 / spacing_mm) ** 1.7 <= _ALONE_UP_TO else None
    hashes = run_parallel(_fill_chunk, chunks, what="draw phantom brains", workers=workers)
    for path in sorted((work / _PARTS).iterdir()):
        path.unlink()
    (work / _PARTS).rmdir()
    return [value for part in hashes for value in part]


def _fill_chunk(chunk: _Chunk) -> list[str]:
    """Draw one chunk, unless an interrupted run has; return the hashes of its voxels."""
    done = chunk.work / _PARTS / f"{chunk.indices.start:05d}.json"
    if done.exists():
        kept: list[str] = read_json(done)
        return kept
    array = np.load(tables(chunk.work) / VOLUMES, mmap_mode="r+")
    volumes = person_volumes(chunk.config, chunk.indices, chunk.spacing_mm)
    array[chunk.indices.start : chunk.indices.stop] = volumes
    array.flush()
    hashes = [hashlib.sha256(volume.tobytes()).hexdigest() for volume in volumes]
    write_json(done, hashes)
    return hashes
