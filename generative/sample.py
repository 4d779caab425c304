"""Fill a synthetic cohort's volumes with a generator's samples.

`write_samples` is the way in. It can be killed and repeated: blocks of rows that are done are
recorded whole or not at all. Scan i has the same bytes for any number of workers.

Scans that a check refuses (copies of training persons) are drawn again: attempt k of scan i is
scan i of the batch whose seed is `derive(seed, "again", k)`. So it depends on nothing but the
model, the seed, the index and the condition, as every scan does, and can be drawn alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rarescan.cohort.contracts import Condition, FloatArray, Scan
from rarescan.cohort.store import VOLUMES, create_volumes, tables
from rarescan.errors import GateRefusedError
from rarescan.files import content_id, read_json, sha256_file, write_json
from rarescan.generative.contract import Generator
from rarescan.generative.families import load_generator
from rarescan.generative.model import MICRO_BATCH, WEIGHTS, read_model
from rarescan.generative.train import choose_device
from rarescan.processes import run_parallel
from rarescan.seeds import derive

_BLOCK = 4 * MICRO_BATCH
"""Rows of one unit of work; whole micro-batches."""
REDRAWN = "redrawn"
"""Flag of a scan, once for each draw before it that was refused."""
_MOST_DRAWS = 10


class ScanCheck(Protocol):
    """Says which scans may not be delivered; picklable and small, because workers get it."""

    @property
    def id(self) -> str:
        """What the answers depend on, beside the volumes."""
        ...

    def __call__(self, volumes: FloatArray) -> npt.NDArray[np.bool_]:
        """Return which volumes, shape (n, x, y, z), are refused: shape (n,). Each on its own."""
        ...


@dataclass(frozen=True, kw_only=True)
class Means:
    """With what scans are drawn."""

    workers: int = 1
    """Processes on the CPU; the bytes do not depend on it."""
    device: str = "cpu"
    """auto, cpu or cuda. A GPU has one process, and `auto` leaves it alone where it does not pay:
    principal components are decoded on the CPU, by many processes."""


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One worker's unit of work: rows first .. first + len(conditions)."""

    root: Path
    model: Path
    batch_id: str
    seed: int
    first: int
    conditions: tuple[Condition, ...]
    check: ScanCheck | None
    device: str

    @property
    def mark(self) -> Path:
        """The file that says that these rows are done."""
        return tables(self.root) / ".samples" / f"{self.first:07d}.json"


def write_samples(
    root: Path,
    model: Path,
    conditions: Sequence[Condition],
    *,
    seed: int,
    check: ScanCheck | None = None,
    means: Means = Means(),  # frozen
) -> list[Scan]:
    """Sample every condition into `root`'s volumes and return the scans' records.

    Parameters
    ----------
    root : Path
        Folder of the synthetic cohort; `rarescan/volumes.npy` in it is created or completed. The
        caller writes the tables with `store.write_cohort`, and the grid is the generator's.
    model : Path
        A folder written by `train_generator`.
    conditions : sequence of Condition
        One a scan.
    seed : int
        Of the batch.
    check : callable, optional
        Every scan passes it or is drawn again, up to ten times.
    means : Means
        Processes and device; one process on the CPU by default.

    Returns
    -------
    list of Scan
        In the order of the conditions and of the volumes: origin synthetic, persons SYN000001,
        SYN000002 ..., the condition as far as the generator obeys it, SHA-256 of the float32
        values, the flag `REDRAWN` for each earlier draw that was refused.

    Raises
    ------
    InputError
        The model cannot be read, or a condition is none that it can serve; before any sample.
    MissingExtraError, SettingError
        There is no such device, or it has no room for one scan.
    GateRefusedError
        Ten draws of one scan were refused.
    """
    device = _chosen(model, means.device)
    generator = _loaded(model, sha256_file(model / WEIGHTS), device)
    served = [generator.served(condition) for condition in conditions]
    create_volumes(root, len(served), generator.grid)
    what = [sha256_file(model / WEIGHTS), seed, [asdict(c) for c in served]]
    what += [device] if device != "cpu" else []
    batch_id = content_id([*what, check.id] if check else what)
    blocks = [
        _Block(
            root=root,
            model=model,
            batch_id=batch_id,
            seed=seed,
            first=first,
            conditions=tuple(served[first : first + _BLOCK]),
            check=check,
            device=device,
        )
        for first in range(0, len(served), _BLOCK)
    ]
    if not blocks:
        return []
    workers = means.workers if device == "cpu" else 1
    done = run_parallel(_fill, blocks, what="generate scans", workers=workers)
    rows = [row for block in done for row in block]
    return [_scan(i, *each) for i, each in enumerate(zip(served, rows, strict=True))]


def _fill(block: _Block) -> list[tuple[str, int]]:
    """Sample a block's rows unless they are done; return each volume's hash and refused draws."""
    if block.mark.exists():
        done = read_json(block.mark)
        if done["batch_id"] == block.batch_id:
            return list(zip(done["sha256"], done["refused"], strict=True))
    volumes = np.load(tables(block.root) / VOLUMES, mmap_mode="r+")
    generator = _loaded(block.model, sha256_file(block.model / WEIGHTS), block.device)
    rows = []
    samples = generator.sample(block.conditions, block.seed, first_index=block.first)
    for row, volume in enumerate(samples):
        refused = 0
        while block.check is not None and block.check(volume[None])[0]:
            refused += 1
            volume = _another(generator, block, row, refused)
        volumes[block.first + row] = volume
        rows.append((hashlib.sha256(volume.tobytes()).hexdigest(), refused))
    volumes.flush()
    hashes, refusals = zip(*rows, strict=True)
    write_json(block.mark, {"batch_id": block.batch_id, "sha256": hashes, "refused": refusals})
    return rows


def _another(generator: Generator, block: _Block, row: int, refused: int) -> FloatArray:
    """Return the next draw of a row after so many that were refused."""
    if refused >= _MOST_DRAWS:
        raise GateRefusedError(
            f"{_MOST_DRAWS} draws of synthetic scan {block.first + row + 1} were copies of "
            "training persons.",
            remedy="Do not use this generator: train another with more persons, or another family.",
        )
    seed = derive(block.seed, "again", refused)
    condition = block.conditions[row]
    return next(iter(generator.sample([condition], seed, first_index=block.first + row)))


@lru_cache(maxsize=1)
def _loaded(model: Path, sha256: str, device: str) -> Generator:
    """Load a generator once in each process; the hash tells another one under the same name."""
    del sha256
    return load_generator(model, device=device)


def _chosen(model: Path, device: str) -> str:
    """Return cpu or cuda."""
    if device == "auto" and read_model(model).spec.codec == "pca":
        return "cpu"
    return choose_device(device).type


def _scan(index: int, condition: Condition, drawn: tuple[str, int]) -> Scan:
    digest, refused = drawn
    person = f"SYN{index + 1:06d}"
    return Scan(
        scan_id=f"{person}_ses-01_T1w",
        person_id=person,
        origin="synthetic",
        sha256=digest,
        condition=condition,
        target=condition.diagnosis,
        site=condition.site,
        flags=(REDRAWN,) * refused,
    )
