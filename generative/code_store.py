"""Persons' images and codes on the disk, one row a person, written once and read in batches.

`people_of` and `stored` are the ways in. At 1 mm an image is 39 MB and a code 22 MB: hundreds of
them are never in memory together. Rows are written in blocks, each marked when it is whole, so a
fit that was killed goes on; a block's bytes do not depend on the number of workers. What `stored`
returns is a tensor on a memory map: taking rows or columns of it reads only those.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rarescan.cohort.contracts import Cohort, FloatArray, Part, Scan
from rarescan.cohort.store import VOLUMES, new_array, require_grid, tables
from rarescan.errors import InputError
from rarescan.files import write_atomic
from rarescan.generative.anatomy import CHANNELS, to_image
from rarescan.generative.conditions import ConditionEncoder
from rarescan.processes import available_cores, run_parallel

BLOCK_BYTES = 2**28
"""Most that is read or written at a time; every array of a grid of 4 mm is one block."""
_ALONE_UP_TO_BYTES = 2**31
"""Images for which starting other processes does not pay."""

RowsOf = Callable[[Sequence[int]], Tensor]
"""Some of a table's rows, float32, shape (rows, ...), by number; each on its own."""


@dataclass(frozen=True, kw_only=True)
class People:
    """The persons of one part, one scan a person: the person is the unit."""

    root: Path
    """The prepared cohort."""
    positions: tuple[int, ...]
    """Of their scans, in the cohort's volumes."""
    scan_ids: tuple[str, ...]
    encoded: Tensor
    """Encoded conditions, shape (n, features)."""
    grid_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, x, y, z."""
        return (CHANNELS, *self.grid_shape)

    def images_of(self, rows: Sequence[int]) -> Tensor:
        """Return the images of some persons, float32, shape (rows, 2, x, y, z).

        Raises
        ------
        InputError
            A scan is empty or has values that are no numbers.
        """
        volumes = np.load(tables(self.root) / VOLUMES, mmap_mode="r")
        images = [_image(volumes[self.positions[row]], self.scan_ids[row]) for row in rows]
        return torch.from_numpy(np.stack(images)) if images else torch.zeros(0, *self.image_shape)

    @property
    def images(self) -> Tensor:
        """All of their images, in memory."""
        return self.images_of(range(len(self)))


def _image(volume: FloatArray, scan_id: str) -> FloatArray:
    if not np.isfinite(volume).all() or not (volume > 0).any():
        raise InputError(
            f"Scan {scan_id} is empty or has values that are no numbers.",
            remedy="Prepare the cohort again, or leave this scan out.",
        )
    return to_image(np.asarray(volume))


def first_scans(cohort: Cohort, part: Part) -> dict[int, Scan]:
    """Return position -> scan, one scan a person."""
    found: dict[str, int] = {}
    for position in cohort.indices(part):
        found.setdefault(cohort.scans[position].person_id, position)
    return {position: cohort.scans[position] for position in found.values()}


def people_of(cohort: Cohort, part: Part, encoder: ConditionEncoder) -> People:
    """Return the persons of one part; outside training, only those that can be asked for."""
    scans = first_scans(cohort, part)
    if part != "train":
        scans = {i: scan for i, scan in scans.items() if _can_serve(encoder, scan)}
    return People(
        root=cohort.root,
        positions=tuple(scans),
        scan_ids=tuple(scan.scan_id for scan in scans.values()),
        encoded=encoder.encode([scan.condition for scan in scans.values()]),
        grid_shape=require_grid(cohort.root).shape,
    )


def _can_serve(encoder: ConditionEncoder, scan: Scan) -> bool:
    try:
        encoder.served(scan.condition)
    except InputError:
        return False
    return True


def stored_images(path: Path, people: People) -> Tensor:
    """Return the images of all persons on the disk; see `stored`."""
    shape = (len(people), *people.image_shape)
    return stored(path, shape, people.images_of, workers=workers_for(people))


def workers_for(people: People) -> int:
    """Return how many processes make the images of so many persons."""
    n_bytes = 4 * len(people) * prod(people.image_shape)
    return 1 if n_bytes <= _ALONE_UP_TO_BYTES else available_cores()


def stored(
    path: Path,
    shape: tuple[int, ...],
    rows_of: RowsOf,
    *,
    at_a_time: int = 16,
    workers: int = 1,
) -> Tensor:
    """Return a table's rows on the disk, computing those that are not there yet.

    Parameters
    ----------
    path : Path
        A `.npy` file in a step's working folder; blocks that are done are marked beside it.
    shape : tuple of int
        Rows, then the shape of one.
    rows_of : callable
        Gives rows by number. Importable by name, or a method of something that can be pickled,
        where there are workers.
    at_a_time : int
        Rows of a block, as far as they fit in memory.
    workers : int
        Processes; the bytes do not depend on it.

    Returns
    -------
    float32 tensor, of that shape
        On a memory map. Changes to it stay in memory.
    """
    if not prod(shape):
        return torch.zeros(shape)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        new_array(path, np.float32, shape)
    size = min(at_a_time, rows_at_a_time(shape))
    blocks = [
        _Block(path=path, rows=range(first, min(first + size, shape[0])), rows_of=rows_of)
        for first in range(0, shape[0], size)
    ]
    run_parallel(_fill, blocks, what=f"write {path.stem}", workers=workers)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def rows_at_a_time(shape: tuple[int, ...]) -> int:
    """Return how many rows of a float32 table, shape (rows, ...), are read at a time."""
    return max(1, BLOCK_BYTES // max(1, 4 * prod(shape[1:])))


def columns_at_a_time(values: Tensor) -> Iterator[slice]:
    """Yield slices of the columns of a table, shape (rows, columns), that fit in memory."""
    width = max(1, BLOCK_BYTES // max(1, 4 * len(values)))
    for first in range(0, values.shape[1], width):
        yield slice(first, min(first + width, values.shape[1]))


@dataclass(frozen=True, kw_only=True)
class _Block:
    """A few rows of a table: one worker's unit of work."""

    path: Path
    rows: range
    rows_of: RowsOf

    @property
    def mark(self) -> Path:
        """The file that says that these rows are done."""
        return self.path.with_suffix(".done") / f"{self.rows.start:07d}"


def _fill(block: _Block) -> None:
    """Compute a block's rows unless they are done."""
    if block.mark.exists():
        return
    values = np.load(block.path, mmap_mode="r+")
    values[block.rows.start : block.rows.stop] = block.rows_of(block.rows).numpy()
    values.flush()
    write_atomic(block.mark, "")


def rows_through(function: Callable[[Tensor], Tensor], rows_of: RowsOf) -> RowsOf:
    """Return `rows_of` followed by `function`."""
    return partial(_through, function, rows_of)


def _through(function: Callable[[Tensor], Tensor], rows_of: RowsOf, rows: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return function(rows_of(rows))


def rows_of_tensor(values: Tensor) -> RowsOf:
    """Return the rows of a tensor by number."""
    return partial(_taken, values)


def _taken(values: Tensor, rows: Sequence[int]) -> Tensor:
    return values[rows.start : rows.stop] if isinstance(rows, range) else values[list(rows)]
