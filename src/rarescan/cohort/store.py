"""Read and write cohorts.

`open_cohort` and `open_volumes` are the way in. Every cohort (native, prepared, synthetic) keeps
its tables in the subfolder `rarescan/`: `cohort.json` (grid, partition, counts), `scans.parquet`
(one row a scan) and, once it is on a grid, `volumes.npy` (float32, shape (scans, x, y, z), values
0 to 1, 0 outside the brain), read as a memory map in the order of the table.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from rarescan.cohort.contracts import Cohort, Condition, FloatArray, Grid, Part, Scan
from rarescan.errors import GridMismatchError, InputError
from rarescan.files import atomic_path, read_json, require_recipe, write_json

TABLES = "rarescan"
VOLUMES = "volumes.npy"

_CONDITION = [f.name for f in fields(Condition)]
_SCHEMA = pa.schema(
    [
        ("scan_id", pa.string()),
        ("person_id", pa.string()),
        ("session", pa.string()),
        ("modality", pa.string()),
        ("unit", pa.string()),
        ("origin", pa.string()),
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("target", pa.string()),
        ("site", pa.string()),
        ("licence", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("condition_diagnosis", pa.string()),
        ("condition_age_years", pa.float64()),
        ("condition_sex", pa.string()),
        ("condition_site", pa.string()),
        ("condition_severity", pa.float64()),
    ]
)


def tables(root: Path) -> Path:
    """Return the folder of a cohort's tables."""
    return root / TABLES


def write_cohort(
    root: Path,
    *,
    scans: Sequence[Scan],
    grid: Grid | None,
    partition: Mapping[str, Part],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a cohort's tables under `root`; `about` is kept as it is (counts, versions)."""
    rows = [_row(scan) for scan in scans]
    _write_rows(tables(root) / "scans.parquet", rows, _SCHEMA)
    grid_values = None if grid is None else asdict(grid)
    write_json(
        tables(root) / "cohort.json",
        {"grid": grid_values, "partition": dict(sorted(partition.items())), "about": about or {}},
    )


def open_cohort(root: Path) -> Cohort:
    """Open a finished cohort folder.

    Raises
    ------
    InputError
        The folder is missing, unfinished or no cohort.
    """
    recipe = require_recipe(root)
    try:
        stored = read_json(tables(root) / "cohort.json")
        scans = read_scans(root)
    except FileNotFoundError:
        raise InputError(
            f"{root} holds no cohort (it was written by `rarescan {recipe.step}`).",
            remedy="Name a folder written by ingest, prepare or generate.",
        ) from None
    return Cohort(
        cohort_id=recipe.id,
        root=root,
        grid=_grid(stored["grid"]),
        scans=scans,
        partition=stored["partition"],
        recipe=recipe.as_dict(),
    )


def read_scans(root: Path) -> tuple[Scan, ...]:
    """Return a cohort's scans, also of a folder that is still being written."""
    rows = pq.ParquetFile(tables(root) / "scans.parquet").read().to_pylist()
    return tuple(_scan(row) for row in rows)


def read_about(root: Path) -> dict[str, Any]:
    """Return what the step that wrote the cohort noted beside it."""
    about: dict[str, Any] = read_json(tables(root) / "cohort.json")["about"]
    return about


def write_metadata(root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what is known of each scan's acquisition, a row a scan in the order of the table.

    Nothing of the image itself and nothing of the person: width, height, frames a second, source.
    A classifier that needs no more than these has learned where a scan comes from.
    """
    table = pa.Table.from_pylist([dict(row) for row in rows])
    with atomic_path(tables(root) / "metadata.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_metadata(root: Path) -> list[dict[str, Any]]:
    """Read what `write_metadata` wrote; an empty list where nothing was written."""
    path = tables(root) / "metadata.parquet"
    return pq.ParquetFile(path).read().to_pylist() if path.exists() else []


def new_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    """Return a writable memory map of zeros whose room on the disk is taken already.

    A map without it ends the process (SIGBUS) where the disk fills up, with no error to catch.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    _take_room(path)
    return array


def _take_room(path: Path) -> None:
    with path.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


def create_volumes(root: Path, n_scans: int, grid: Grid) -> FloatArray:
    """Return a writable memory map, shape (n_scans, x, y, z), keeping rows already there."""
    path = tables(root) / VOLUMES
    shape = (n_scans, *grid.shape)
    if path.exists():
        kept: FloatArray = np.load(path, mmap_mode="r+")
        if kept.shape == shape:
            _take_room(path)
            return kept
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh: FloatArray = new_array(path, np.float32, shape)
    return fresh


def require_grid(root: Path) -> Grid:
    """Return the grid of a prepared cohort."""
    grid = open_cohort(root).grid
    if grid is None:
        raise _not_prepared(root)
    return grid


def open_volumes(cohort: Cohort) -> FloatArray:
    """Return a cohort's volumes as a read-only memory map, shape (scans, x, y, z)."""
    path = tables(cohort.root) / VOLUMES
    if not path.exists():
        raise _not_prepared(cohort.root)
    volumes: FloatArray = np.load(path, mmap_mode="r")
    return volumes


def _not_prepared(root: Path) -> InputError:
    return InputError(
        f"{root} is not prepared: its scans are not on one grid.",
        remedy=f"Run `rarescan prepare {root} PREPARED` and use PREPARED.",
    )


def require_same_grid(a: Grid | None, b: Grid | None, names: tuple[str, str]) -> None:
    """Raise when two grids differ, naming both."""
    if a != b:
        raise GridMismatchError(
            f"{names[0]} lies on {_grid_words(a)}, {names[1]} on {_grid_words(b)}.",
            remedy="Train on this cohort, or name the one that the model was trained on.",
        )


def _grid_words(grid: Grid | None) -> str:
    if grid is None:
        return "no common grid"
    return f"{' x '.join(map(str, grid.shape))} voxels of {grid.spacing_mm:g} mm"


def _row(scan: Scan) -> dict[str, Any]:
    row = asdict(scan)
    condition = row.pop("condition")
    return row | {f"condition_{name}": condition[name] for name in _CONDITION}


def _scan(row: dict[str, Any]) -> Scan:
    condition = Condition(**{name: row.pop(f"condition_{name}") for name in _CONDITION})
    return Scan(**{**row, "flags": tuple(row["flags"] or ())}, condition=condition)


def _grid(values: dict[str, Any] | None) -> Grid | None:
    if values is None:
        return None
    return Grid(
        shape=(values["shape"][0], values["shape"][1], values["shape"][2]),
        spacing_mm=values["spacing_mm"],
        affine=tuple(tuple(row) for row in values["affine"]),
    )


def write_events(root: Path, events: Sequence[Mapping[str, Any]]) -> None:
    """Write what happened to each stack: `stack_id`, `person_id`, `code`, `action`, `detail`."""
    rows = [{**event, "detail": json.dumps(event.get("detail", {}))} for event in events]
    schema = pa.schema(
        [(n, pa.string()) for n in ("stack_id", "person_id", "code", "action", "detail")]
        + [("n_files", pa.int64())]
    )
    _write_rows(tables(root) / "events.parquet", rows, schema)


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    # By way of JSON: where pyarrow is given Python lists, it imports pandas, for half a second.
    lines = io.BytesIO("\n".join(map(json.dumps, rows)).encode())
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    table = (
        pyarrow.json.read_json(lines, parse_options=options)
        if rows
        else pa.Table.from_batches([], schema)
    )
    with atomic_path(path) as temporary:
        pq.write_table(table.select(schema.names), temporary, compression="zstd")


def read_events(root: Path) -> list[dict[str, Any]]:
    """Read what `write_events` wrote; an empty list where nothing was written."""
    path = tables(root) / "events.parquet"
    if not path.exists():
        return []
    rows = pq.ParquetFile(path).read().to_pylist()
    return [{**row, "detail": json.loads(row["detail"])} for row in rows]
