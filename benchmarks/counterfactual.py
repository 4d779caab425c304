"""Does a counterfactual change the disease regions and leave the rest? Against control twins.

    python benchmarks/counterfactual.py FOLDER [--models gaussian diffusion] [--persons 16]

FOLDER is that of `disease.py` (cohort and models). Held-out controls are given the disease,
held-out patients are freed of it; the phantom knows the truth: the same person drawn at the other
severity (0.7 is the mean patient, 0 the control twin). Two sets of voxels are named by that truth
alone, the mean change of other controls, smoothed over 8 mm: `inside`, where it is at least half of
its 99th percentile, and `outside`, where it is at most a tenth of it.

`ratio`: mean |change| outside over inside, the product's; `plain`: the same without `agreement`, so
with the whole difference of the means; `twin`: of the truth, person by person; `inside`: mean
|change| inside, over the truth's; `correlation`: of change and true change over the brain, mean
over persons; `error`: mean |change - true change| over mean |true change| (1: no better than the
scan as it is); `believed`: mean weight that `agreement` gives the difference in the brain.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from disease import POPULATION
from scipy import ndimage

from rarescan.cohort.contracts import Cohort, FloatArray
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.generative.counterfactual import agreement, changed
from rarescan.generative.families import load_generator
from rarescan.generative.model import TrainedGenerator
from rarescan.phantom.volumes import person_volumes

MM, MEAN_PATIENT, N_TRUTH = 4.0, 0.7, 40


def main() -> None:
    """Change persons in both directions with every model; print one row each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=["gaussian", "diffusion"])
    parser.add_argument("--persons", type=int, default=16)
    asked = parser.parse_args()
    cohort = open_cohort(asked.folder / "prepared")
    places = _places(cohort)
    print(json.dumps({name: int(mask.sum()) for name, mask in places.items()}), flush=True)
    for name in asked.models:
        generator = cast(TrainedGenerator, load_generator(asked.folder / "models" / name))
        for own, other, severity in (
            ("control", "bvFTD", MEAN_PATIENT),
            ("bvFTD", "control", 0.0),
        ):
            start = time.process_time()
            where = agreement(cohort, generator.prior.encoder, (own, other))
            rows = _held_out(cohort, own)[: asked.persons]
            true = person_volumes(POPULATION, _indices(cohort, rows), MM, severity=severity)
            told = {"model": name, "kept": generator.prior.network_kept, "asked": other}
            told |= _compare(cohort, generator, rows, true, where, places)
            seconds = round(time.process_time() - start, 1)
            print(json.dumps({**told, "cpu_seconds": seconds}), flush=True)


def _held_out(cohort: Cohort, diagnosis: str) -> list[int]:
    rows = cohort.indices("test")
    return [row for row in rows if cohort.scans[row].condition.diagnosis == diagnosis]


def _indices(cohort: Cohort, rows: list[int]) -> list[int]:
    return [int(cohort.scans[row].person_id.removeprefix("PH")) - 1 for row in rows]


def _places(cohort: Cohort) -> dict[str, FloatArray]:
    indices = _indices(cohort, _held_out(cohort, "control")[-N_TRUTH:])
    sick, well = (person_volumes(POPULATION, indices, MM, severity=s) for s in (MEAN_PATIENT, 0.0))
    change = ndimage.gaussian_filter(np.abs((sick - well).mean(0)), 8 / 2.3548 / MM)
    brain = (well > 0).mean(0) > 0.5
    top = np.percentile(change[brain], 99)
    return {
        "brain": brain,
        "inside": brain & (change >= 0.5 * top),
        "outside": brain & (change <= 0.1 * top),
    }


def _compare(
    cohort: Cohort,
    generator: TrainedGenerator,
    rows: list[int],
    true: FloatArray,
    where: FloatArray,
    places: dict[str, FloatArray],
) -> dict[str, Any]:
    volumes = open_volumes(cohort)[rows]
    changes = {}
    for name, weights in (("ratio", where), ("plain", np.ones_like(where))):
        made = []
        for row, volume in zip(rows, volumes, strict=True):
            own = cohort.scans[row].condition
            other = "bvFTD" if own.diagnosis == "control" else "control"
            asked = (own, replace(own, diagnosis=other))
            made.append(changed(generator, volume, asked, strength=1.0, where=weights))
        changes[name] = np.stack(made) - volumes
    changes["twin"] = true - volumes
    size = {
        n: {p: np.abs(c)[:, mask].mean() for p, mask in places.items()} for n, c in changes.items()
    }
    brain = places["brain"]
    pairs = list(zip(changes["ratio"], changes["twin"], strict=True))
    return {
        **{n: round(float(s["outside"] / s["inside"]), 3) for n, s in size.items()},
        "inside": round(float(size["ratio"]["inside"] / size["twin"]["inside"]), 3),
        "correlation": round(
            float(np.mean([np.corrcoef(a[brain], b[brain])[0, 1] for a, b in pairs])), 3
        ),
        "error": round(
            float(np.mean([np.abs(a - b)[brain].mean() for a, b in pairs]) / size["twin"]["brain"]),
            3,
        ),
        "believed": round(float(where[0][brain].mean()), 3),
    }


if __name__ == "__main__":
    main()
