"""Take one person out of the files below a folder.

`strip` serves every kind of result: files that have the person's name, rows of tables, vectors.
`drop_volumes` takes rows out of an array of volumes, which is ordered as its table.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rarescan.cohort.partition import PERHAPS
from rarescan.cohort.store import new_array
from rarescan.files import RECIPE, atomic_path, write_atomic


def drop_volumes(path: Path, keep: Sequence[bool]) -> None:
    """Write an array of volumes again without some rows; nothing where that was done before."""
    if not path.exists() or all(keep):
        return
    volumes = np.load(path, mmap_mode="r")
    if len(volumes) != len(keep):
        return
    shape = (sum(keep), *volumes.shape[1:])
    with atomic_path(path) as temporary:
        kept = new_array(temporary, volumes.dtype, shape)
        for place, row in enumerate(np.flatnonzero(keep)):
            kept[place] = volumes[row]
        kept.flush()


def strip(folder: Path, person: str) -> None:
    """Remove a person's files, rows in tables and name in texts below a folder.

    `scans.parquet` and `events.parquet`, by which a cohort is known to hold a person, go last.
    What the person's name stands in beside tables says `erased` instead, and that a batch may be
    released is taken back.
    """
    name = re.compile(rf"(?<![A-Za-z0-9]){person}(?![A-Za-z0-9])")
    for path in [p for p in folder.rglob("*") if name.search(p.name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in sorted(_tables_below(folder), key=lambda p: p.stem in ("scans", "events")):
        if path.suffix == ".parquet":
            _strip_parquet(path, person, name)
        elif path.suffix == ".npz":
            _strip_features(path, person)
        else:
            _strip_text(path, name)


def _tables_below(folder: Path) -> Iterator[Path]:
    kinds = (".parquet", ".npz", ".json", ".tsv")
    yield from (p for p in folder.rglob("*") if p.suffix in kinds and p.name != RECIPE)


def _strip_text(path: Path, name: re.Pattern[str]) -> None:
    text = path.read_text()
    if path.suffix == ".tsv":
        lines = text.splitlines(keepends=True)
        renewed = "".join(line for line in lines if not name.search(line))
    else:
        renewed = name.sub("erased", text)
        if path.name != "cohort.json":
            renewed = renewed.replace('"permitted_use": "release"', _INSIDE)
    if renewed != text:
        write_atomic(path, renewed)


_INSIDE = '"permitted_use": "inside_controller"'


def _strip_parquet(path: Path, person: str, name: re.Pattern[str]) -> None:
    table = pq.read_table(path)
    columns = [c for c in ("person_id", "scan_id") if c in table.column_names]
    rows = table.select(columns).to_pylist()
    keep = [not any(name.match(str(value)) for value in row.values()) for row in rows]
    renewed = table.filter(pa.array(keep, pa.bool_())) if columns else table
    if "flags" in table.column_names:
        renewed = _without_head(renewed, person)
    if not renewed.equals(table):
        with atomic_path(path) as temporary:
            pq.write_table(renewed, temporary, compression="zstd")


def _without_head(table: pa.Table, person: str) -> pa.Table:
    """Rename the mark of persons who may be one after another of them."""
    flags, mark = table["flags"].to_pylist(), f"{PERHAPS}{person}"
    if "person_id" not in table.column_names or not any(mark in (own or ()) for own in flags):
        return table
    persons = table["person_id"].to_pylist()
    head = min(p for p, own in zip(persons, flags, strict=True) if mark in (own or ()))
    renewed = [[f"{PERHAPS}{head}" if f == mark else f for f in own or ()] for own in flags]
    place = table.column_names.index("flags")
    return table.set_column(
        place, table.schema.field(place), pa.array(renewed, pa.list_(pa.string()))
    )


def _strip_features(path: Path, person: str) -> None:
    with np.load(path, allow_pickle=False) as stored:
        values: dict[str, Any] = dict(stored)
    persons = values.get("person_ids")
    if persons is None or person not in persons:
        return
    keep = persons != person
    renewed = {
        name: value[keep] if value.shape[:1] == keep.shape else value
        for name, value in values.items()
    }
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **renewed)
