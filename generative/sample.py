"""Fill a synthetic cohort's volumes with a generator's samples.

`write_samples` is the way in. It can be killed and repeated: blocks of rows that are done are
recorded whole or not at all. Scan i has the same bytes for any number of workers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from rarescan.cohort.contracts import Condition, Scan
from rarescan.cohort.store import VOLUMES, create_volumes, tables
from rarescan.files import content_id, read_json, sha256_file, write_json
from rarescan.generative.contract import Generator
from rarescan.generative.families import load_generator
from rarescan.generative.model import MICRO_BATCH, WEIGHTS
from rarescan.processes import run_parallel

_BLOCK = 4 * MICRO_BATCH
"""Rows of one unit of work; whole micro-batches."""


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One worker's unit of work: rows first .. first + len(conditions)."""

    root: Path
    model: Path
    batch_id: str
    seed: int
    first: int
    conditions: tuple[Condition, ...]

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
    workers: int = 1,
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
    workers : int
        Processes; the bytes do not depend on it.

    Returns
    -------
    list of Scan
        In the order of the conditions and of the volumes: origin synthetic, persons SYN000001,
        SYN000002 ..., the condition as far as the generator obeys it, SHA-256 of the float32
        values.

    Raises
    ------
    InputError
        The model cannot be read, or a condition is none that it can serve; before any sample.
    """
    generator = load_generator(model)
    served = [generator.served(condition) for condition in conditions]
    create_volumes(root, len(served), generator.grid)
    what = [sha256_file(model / WEIGHTS), seed, [asdict(c) for c in served]]
    batch_id = content_id(what)
    blocks = [
        _Block(
            root=root,
            model=model,
            batch_id=batch_id,
            seed=seed,
            first=first,
            conditions=tuple(served[first : first + _BLOCK]),
        )
        for first in range(0, len(served), _BLOCK)
    ]
    if blocks:
        hashes = run_parallel(_fill, blocks, what="generate scans", workers=workers)
        digests = [digest for block in hashes for digest in block]
        return [
            _scan(i, c, digest) for i, (c, digest) in enumerate(zip(served, digests, strict=True))
        ]
    return []


def _fill(block: _Block) -> list[str]:
    """Sample a block's rows unless they are done; return the volumes' hashes."""
    if block.mark.exists():
        done = read_json(block.mark)
        if done["batch_id"] == block.batch_id:
            return list(done["sha256"])
    volumes = np.load(tables(block.root) / VOLUMES, mmap_mode="r+")
    generator = _loaded(block.model, sha256_file(block.model / WEIGHTS))
    digests = []
    samples = generator.sample(block.conditions, block.seed, first_index=block.first)
    for row, volume in enumerate(samples, start=block.first):
        volumes[row] = volume
        digests.append(hashlib.sha256(volume.tobytes()).hexdigest())
    volumes.flush()
    write_json(block.mark, {"batch_id": block.batch_id, "sha256": digests})
    return digests


@lru_cache(maxsize=1)
def _loaded(model: Path, sha256: str) -> Generator:
    """Load a generator once in each process; the hash tells another one under the same name."""
    del sha256
    return load_generator(model)


def _scan(index: int, condition: Condition, digest: str) -> Scan:
    person = f"SYN{index + 1:06d}"
    return Scan(
        scan_id=f"{person}_ses-01_T1w",
        person_id=person,
        origin="synthetic",
        sha256=digest,
        condition=condition,
        target=condition.diagnosis,
        site=condition.site,
    )
