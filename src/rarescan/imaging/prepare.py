"""Bring a native cohort to one template grid.

`prepare_cohort` is the way in: a native cohort in, a cohort on the brain grid out, with quality
figures and a page of pictures (`scan` does each scan, `pages` the page). What a cohort declares
done (`stripped`, `template_space`, `bias_corrected`) is not done again.

A scan that fails a gate becomes a row of the events table and is not in the prepared cohort. The
partition is drawn here, over the persons that remain.
"""

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rarescan._version import VERSION
from rarescan.cohort.contracts import Cohort, Part, Scan, brain_grid
from rarescan.cohort.partition import PartitionConfig, draw_partition
from rarescan.cohort.store import (
    VOLUMES,
    create_volumes,
    new_array,
    open_cohort,
    tables,
    write_cohort,
    write_events,
)
from rarescan.cohort.template import load_template
from rarescan.errors import InputError
from rarescan.files import Recipe, atomic_path, read_json, run_step, write_atomic, write_json
from rarescan.imaging import qc
from rarescan.imaging.pages import picture, write_pages
from rarescan.imaging.reasons import WORDS
from rarescan.imaging.scan import RefusedScanError, prepare_scan, read_native
from rarescan.imaging.spec import PrepareConfig
from rarescan.imaging.strip import command_version, resolve, without_folders
from rarescan.processes import run_parallel

_SCHEMA = 2
_SCRATCH = "unfinished"


def prepare_cohort(
    cohort_root: Path,
    folder: Path,
    config: PrepareConfig,
    partition: PartitionConfig,
    *,
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Prepare every scan of a native cohort and draw the partition.

    Parameters
    ----------
    cohort_root : Path
        A cohort written by ingest: `Scan.path` names NIfTI files, `Scan.flags` what was done.
    folder : Path
        Where the prepared cohort goes: `rarescan/` with `volumes.npy` (float32, scans x grid),
        `scans.parquet`, `qc.parquet`, `events.parquet`; `status.tsv` and `qc/index.html`.
    config : PrepareConfig
        Grid and effort.
    partition : PartitionConfig
        Shares and seed; persons of a prepared cohort that is replaced keep their part.
    workers : int, optional
        Processes; all cores by default. The result does not depend on it.
    overwrite : bool
        Replace a result made with other settings.

    Raises
    ------
    InputError
        The folder holds no native cohort, or no scan of it can be used.
    MissingExtraError
        deepbet is asked for and not installed.
    SettingError
        The strip command cannot be started.
    ChangedRecipeError
        Another result lies in `folder`.
    """
    cohort = open_cohort(cohort_root)
    _require_native(cohort)
    config = resolve(config)
    recipe = Recipe(
        step="prepare",
        schema=_SCHEMA,
        config={"prepare": _as_recipe(config), "partition": asdict(partition)},
        inputs={"cohort": cohort.cohort_id},
        found_at={"cohort": os.path.relpath(cohort_root.resolve(), folder.resolve())},
    )

    def build(work: Path) -> None:
        results = _prepare_all(cohort, work, config, workers)
        rows = [row for row, result in enumerate(results) if result["code"] is None]
        _require_some(cohort, rows, results)
        parts = draw_partition([cohort.scans[row] for row in rows], partition, _earlier(folder))
        _collect_volumes(work, rows, len(results), config)
        _write_tables(cohort, work, config, results, parts)
        shutil.rmtree(work / _SCRATCH, ignore_errors=True)

    return run_step(folder, recipe, build, overwrite=overwrite)


def _as_recipe(config: PrepareConfig) -> dict[str, Any]:
    return asdict(config) | {"strip_command": without_folders(config.strip_command)}


def _require_native(cohort: Cohort) -> None:
    if cohort.grid is not None:
        raise InputError(
            f"{cohort.root} is prepared already.",
            remedy="Name the folder that `rarescan ingest` wrote.",
        )
    if not cohort.scans:
        raise InputError(
            f"{cohort.root} holds no scans.",
            remedy="Look at its events table for the reasons, and ingest again.",
        )


def _require_some(
    cohort: Cohort, rows: Sequence[int], results: Sequence[Mapping[str, Any]]
) -> None:
    if not rows:
        counts = Counter(str(result["code"]) for result in results)
        reasons = ", ".join(f"{count} {code}" for code, count in counts.most_common())
        raise InputError(
            f"No scan of {cohort.root} can be used ({reasons}).",
            remedy="Check that these are T1 images of whole heads, or declare what was done to "
            "them already when they are ingested.",
        )


def _earlier(folder: Path) -> dict[str, Part]:
    """Return the partition of the cohort that is replaced."""
    try:
        earlier: dict[str, Part] = read_json(tables(folder) / "cohort.json")["partition"]
    except FileNotFoundError:
        return {}
    return earlier


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a worker is told of one scan."""

    source: Path
    scan_id: str
    flags: tuple[str, ...]
    row: int
    work: Path
    config: PrepareConfig

    @property
    def result(self) -> Path:
        """Where the scan's figures go; present = the scan is done."""
        return self.work / "qc" / "scans" / f"{self.scan_id}.json"


def _prepare_all(
    cohort: Cohort, work: Path, config: PrepareConfig, workers: int | None
) -> list[dict[str, Any]]:
    """Return the result of every scan, in order, computing those that are not there yet."""
    jobs = [
        _Job(
            source=cohort.root / scan.path,
            scan_id=scan.scan_id,
            flags=scan.flags,
            row=row,
            work=work,
            config=config,
        )
        for row, scan in enumerate(cohort.scans)
    ]
    create_volumes(work / _SCRATCH, len(jobs), brain_grid(config.spacing_mm))
    open_jobs = [job for job in jobs if not job.result.exists()]
    run_parallel(
        _run_job,
        open_jobs,
        what="prepare scans",
        workers=workers,
        on_death=partial(_note_refusal, code="WORKER_DIED"),
    )
    return [read_json(job.result) for job in jobs]


def _run_job(job: _Job) -> None:
    """Prepare one scan in a worker: its volume into the memory map, its figures beside it."""
    start = time.process_time()
    try:
        scratch = job.work / _SCRATCH
        prepared = prepare_scan(read_native(job.source), job.flags, job.config, scratch=scratch)
    except RefusedScanError as refused:
        _note_refusal(job, code=refused.code, measures=refused.measures)
        return
    volumes = np.load(tables(scratch) / VOLUMES, mmap_mode="r+")
    volumes[job.row] = prepared.volume
    volumes.flush()
    thumbnail = picture(prepared.head, prepared.mask, brain_grid(job.config.spacing_mm))
    write_atomic(job.result.with_suffix(".webp"), thumbnail)
    result = {
        "scan_id": job.scan_id,
        "code": None,
        "sha256": hashlib.sha256(prepared.volume.tobytes()).hexdigest(),
        "matrix": prepared.matrix[:3].ravel().tolist(),
        "seconds": round(time.process_time() - start, 3),
        "measures": qc.as_row(prepared.measures),
    }
    write_json(job.result, result)


def _note_refusal(job: _Job, *, code: str, measures: Mapping[str, Any] | None = None) -> None:
    write_json(job.result, {"scan_id": job.scan_id, "code": code, "measures": dict(measures or {})})


def _collect_volumes(
    work: Path, rows: Sequence[int], n_results: int, config: PrepareConfig
) -> None:
    """Put the accepted scans' volumes in their final place, whole or not at all."""
    final, scratch = tables(work) / VOLUMES, tables(work / _SCRATCH) / VOLUMES
    if final.exists():
        return
    if len(rows) == n_results:
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch.replace(final)
        return
    volumes = np.load(scratch, mmap_mode="r")
    shape = (len(rows), *brain_grid(config.spacing_mm).shape)
    with atomic_path(final) as path:
        kept = new_array(path, np.float32, shape)
        for place, row in enumerate(rows):
            kept[place] = volumes[row]
        kept.flush()


def _write_tables(
    cohort: Cohort,
    work: Path,
    config: PrepareConfig,
    results: Sequence[Mapping[str, Any]],
    parts: Mapping[str, Part],
) -> None:
    """Write the index, the events, the quality table and the page of a prepared cohort."""
    grid = brain_grid(config.spacing_mm)
    pairs = list(zip(cohort.scans, results, strict=True))
    kept = [(scan, result) for scan, result in pairs if result["code"] is None]
    scans = [
        replace(scan, path="", sha256=result["sha256"], flags=(*scan.flags, "prepared"))
        for scan, result in kept
    ]
    write_cohort(work, scans=scans, grid=grid, partition=parts, about=_about(config, results))
    write_events(work, [_event(*pair) for pair in pairs if pair[1]["code"] is not None])
    measures = [qc.from_row(result["measures"]) for _, result in kept]
    _write_quality(work, [result for _, result in kept], qc.outliers(measures))
    write_pages(work, cohort, results, parts)


def _write_quality(
    work: Path, results: Sequence[Mapping[str, Any]], flags: Sequence[tuple[str, ...]]
) -> None:
    rows = [
        {
            "scan_id": result["scan_id"],
            **result["measures"],
            "native_from_template": result["matrix"],
            "seconds": result["seconds"],
            "flags": list(names),
        }
        for result, names in zip(results, flags, strict=True)
    ]
    with atomic_path(tables(work) / "qc.parquet") as path:
        pd.DataFrame(rows).to_parquet(path, index=False)


def _event(scan: Scan, result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stack_id": scan.scan_id,
        "person_id": scan.person_id,
        "code": result["code"],
        "action": "quarantine",
        "n_files": 1,
        "detail": result["measures"],
    }


def _about(config: PrepareConfig, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return counts and versions, as they stand in `cohort.json`."""
    packages = ["SimpleITK", "nibabel", "scipy"] + ["deepbet"] * (config.strip == "deepbet")
    counts = Counter(str(result["code"]) for result in results if result["code"] is not None)
    versions = {"rarescan": VERSION} | {name: version(name) for name in packages}
    if config.strip == "command":
        name = Path(config.strip_command[0]).name
        versions[name] = command_version(config.strip_command)
    t1 = load_template(config.spacing_mm).t1
    return {
        "scans": len(results),
        "prepared": len(results) - counts.total(),
        "refused": dict(sorted(counts.items())),
        "strip": config.strip,
        "space": "MNI152NLin2009aSym",
        "template_sha256": hashlib.sha256(t1.tobytes()).hexdigest(),
        "reasons": {code: WORDS[code] for code in sorted(counts)},
        "versions": versions,
    }
