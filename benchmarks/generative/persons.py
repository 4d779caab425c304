"""The number of persons from which on a diffusion network beats its Gaussian.

    python benchmarks/generative/persons.py FOLDER [--sizes 60 120 250 500 1000] [--seeds 0 1 2]
        [--spacing-mm 8] [--preset easy] [--settings default]

One population of phantoms, one third patients; the same 200 held-out persons judge every size, and
smaller training sets are part of larger ones. Each line: flow-matching error of the network and of
the closed-form Gaussian on the held-out persons (what `diffusion.judge` compares), the smallest
error of any look on the way (the network as it was then), and in how many of the seeds the network
was kept. `--settings`: the shipped ones, `small` (32 wide, a third of the rate) or `haar` (a U-Net
on wavelet bands). FOLDER keeps every training.
"""

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from studies import divided

from rarescan.cohort.contracts import Cohort, Part
from rarescan.cohort.partition import PartitionConfig
from rarescan.cohort.store import open_cohort
from rarescan.files import read_json, write_json
from rarescan.generative.families import CURVES, train_generator
from rarescan.generative.spec import GeneratorSpec
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import write_prepared

N_HELD_OUT = 200
_DEFAULT = GeneratorSpec(family="diffusion", guidance=1.0)
SETTINGS = {
    "default": _DEFAULT,
    "small": replace(_DEFAULT, width=32, learning_rate=3e-4),
    "haar": replace(_DEFAULT, codec="haar", width=32, batch_size=8),
}


def main() -> None:
    """Train every size and seed that is not there yet; print a line a size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", nargs="+", type=int, default=[60, 120, 250, 500, 1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--spacing-mm", type=float, default=8.0)
    parser.add_argument("--preset", choices=("easy", "hard"), default="easy")
    parser.add_argument("--settings", choices=list(SETTINGS), default="default")
    given = parser.parse_args()
    logging.getLogger("rarescan").setLevel(logging.WARNING)
    n_all = max(given.sizes) + N_HELD_OUT
    root = given.folder / f"{given.preset}-{n_all}-{given.spacing_mm:g}mm"
    population = PhantomConfig(
        preset=given.preset, patients=n_all // 3, controls=n_all - n_all // 3, seed=7
    )
    everybody = open_cohort(
        write_prepared(
            root / "prepared",
            population,
            spacing_mm=given.spacing_mm,
            partition=PartitionConfig(validation=0.2, test=0.2),
        )
    )
    spec = SETTINGS[given.settings]
    found = []
    for n_train in given.sizes:
        runs = list(_runs(root, everybody, n_train, spec, given.seeds, given.settings))
        found.append({"n_train": n_train, "runs": [vars(run) for run in runs]})
        print(_line(n_train, runs), flush=True)
    write_json(root / f"{given.settings}.json", found)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, and what held-out persons say of it."""

    network: float
    gaussian: float
    kept: bool
    best: float
    """Smallest error of the averaged weights at any look."""
    best_step: int
    stopped: dict[str, Any]


def _runs(
    root: Path, everybody: Cohort, n_train: int, spec: GeneratorSpec, seeds: list[int], name: str
) -> Iterator[Run]:
    prepared = _nested(everybody, root / f"persons-{n_train}", n_train)
    for seed in seeds:
        folder = root / f"{name}-{n_train}-{seed}"
        train_generator(prepared, folder, replace(spec, seed=seed), device="cpu")
        told = read_json(folder / CURVES)
        looks = [(p["validation"], p["step"]) for p in told["curve"] if p["validation"] is not None]
        looks += [(p["validation"], p["step"]) for p in told["snapshots"]]
        best, best_step = min(looks)
        yield Run(
            network=told["verdict"]["flow_loss"],
            gaussian=told["verdict"]["floor_flow_loss"],
            kept=told["verdict"]["network_kept"],
            best=best,
            best_step=best_step,
            stopped=told["stopped"],
        )


def _line(n_train: int, runs: list[Run]) -> str:
    network, gaussian, best = (
        float(np.mean([getattr(run, name) for run in runs]))
        for name in ("network", "gaussian", "best")
    )
    spread = float(np.std([run.network / run.gaussian for run in runs]))
    steps = "/".join(str(run.best_step) for run in runs)
    return (
        f"{n_train:5d} persons: network {network:.4f}, Gaussian {gaussian:.4f}, "
        f"ratio {network / gaussian:.4f} (sd over seeds {spread:.4f}), best look "
        f"{best / gaussian:.4f} at step {steps}, kept in {sum(r.kept for r in runs)} of {len(runs)}"
    )


def _nested(cohort: Cohort, folder: Path, n_train: int) -> Path:
    """Return the cohort with its first n training persons and the held-out ones."""
    parts: dict[str, Part] = {}
    for number, scan in enumerate(cohort.scans):
        if number < N_HELD_OUT:
            parts[scan.person_id] = "validation"
        elif number < N_HELD_OUT + n_train:
            parts[scan.person_id] = "train"
    return divided(cohort, folder, parts, {"n_train": n_train, "n_held_out": N_HELD_OUT})


if __name__ == "__main__":
    main()
