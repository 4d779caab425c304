"""Does training stop before it memorises? 12 patients, 24 controls, a budget without end.

    python benchmarks/memorisation.py RESULTS.jsonl [--seeds 0 10] [--jitter 0] [--steps 2048]

Each seed draws other invented persons (4 mm, `pca` codes): 12 patients and 24 controls train, 8
and 16 are validation persons. The diffusion family is trained on and on; at 2^k steps the averaged
weights are looked at twice: by `generative.snapshots`, which would end the run, and by the search
for copies in images (`evaluation.copies` with the gate of `evaluation.privacy`, 100 samples), which
is what must not fire before. Seeds that stand in RESULTS already are not done again.

What had to be taken away to make a network copy: the stop itself; the floor gate, which replaces
a network that is worse than the Gaussian on validation persons (the printed "floor gate" says
whether it would have); the default budget of 600 steps; and, with `--jitter 0`, the noise that is
mixed into training codes (0.6 in the product).
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rarescan.cohort.contracts import Condition, FloatArray
from rarescan.evaluation import canaries
from rarescan.evaluation.copies import Assay
from rarescan.evaluation.privacy import Calibration, calibrate, judge_copies
from rarescan.generative import diffusion
from rarescan.generative.anatomy import to_image, to_volume
from rarescan.generative.codecs import PcaCodec
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.diffusion import Diffusion
from rarescan.generative.floor import Floor
from rarescan.generative.snapshots import Watch
from rarescan.generative.spec import GeneratorSpec
from rarescan.generative.train import Plan, TrainingData, fit
from rarescan.phantom.persons import draw_person
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import person_volumes
from rarescan.seeds import derive, generator
from rarescan.threads import one_thread

MM, SHIFT_MM = 4.0, 8.0
POPULATION = PhantomConfig(preset="easy", patients=40, controls=80, seed=3)
N_TRAIN, N_HELD_OUT = (12, 24), (8, 16)
N_SAMPLES = 100


def main() -> None:
    """Train, look, note, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 10))
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=2048)
    given = parser.parse_args()
    diffusion._JITTER = given.jitter
    for seed in range(*given.seeds):
        if (seed, given.jitter) not in {(r["seed"], r["jitter"]) for r in _read(given.results)}:
            start = time.process_time()
            row = {"seed": seed, "jitter": given.jitter, **_one(seed, given)}
            row["cpu_seconds"] = round(time.process_time() - start, 1)
            with given.results.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    _summary([r for r in _read(given.results) if r["jitter"] == given.jitter])


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _summary(rows: list[dict[str, Any]]) -> None:
    n = len(rows)
    before = sum(
        r["copies_at"] is not None
        and r["stopped_at"] is not None
        and r["stopped_at"] < r["copies_at"]
        for r in rows
    )
    print(
        f"search for copies fires without the stop: {sum(r['copies_at'] is not None for r in rows)}"
        f" of {n}; the stop fires before it does: {before} of {n}"
    )
    print(
        f"stopped at {[r['stopped_at'] for r in rows]}, kept {[r['kept'] for r in rows]}, "
        f"copies at {[r['copies_at'] for r in rows]}"
    )
    print(
        f"weights that were kept pass the search: {sum(r['kept_copies'] != 'fail' for r in rows)} "
        f"of {n}; the floor gate keeps the network at the end: "
        f"{sum(r['network_kept'] for r in rows)} of {n}"
    )


class _Both:
    """Looks as the product does, looks for copies in images, and never ends the run."""

    def __init__(self, watch: Watch, search: Any) -> None:
        self._watch, self._search = watch, search

    def look(self, device: torch.device) -> dict[str, Any]:
        """Tell both answers and let the run go on; checkpoints keep what was told."""
        own = self._watch.look(device)
        worst, flagged, outcome = self._search()
        found = {"judged": own["outcome"], "copies": outcome, "worst": worst, "flagged": flagged}
        return {**own, **found, "outcome": "pass"}


def _one(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    volumes, conditions = _people(seed)
    n = sum(N_TRAIN)
    train, held_out = slice(n), slice(n, None)
    spec = GeneratorSpec(steps=given.steps, seed=seed)
    encoder = ConditionEncoder.fit(conditions[train], ("age_years", "sex"))
    known = [i for i in range(n, len(volumes)) if _served(encoder, conditions[i])]
    images = torch.stack([torch.from_numpy(to_image(v)) for v in volumes])
    with one_thread():
        codec = PcaCodec.fit(images[train])
        codes, encoded = codec.encode(images[train]), encoder.encode(conditions[train])
        floor = Floor.fit(codes, encoded, 2)
        prior = Diffusion(spec, floor, encoder)
        whitened = floor.whiten(codes)
        others = floor.whiten(codec.encode(images[known]))
        held = (others, encoder.encode([conditions[i] for i in known]))
        search = _search(volumes[train], volumes[held_out], prior, codec, encoded)
        both = _Both(Watch(prior, (whitened, encoded), held, seed=seed), search)
        data = TrainingData(
            values=whitened, encoded=encoded, classes=encoded[:, :2].argmax(1), encoder=encoder,
            held_out=held, watch=both,
        )  # fmt: skip
        folder = given.results.parent / f".memorisation-{seed}-{given.jitter}"
        record = fit(prior, data, Plan.of(spec), folder=folder, device=torch.device("cpu"),
                     what=f"seed {seed}")  # fmt: skip
        verdict = prior.judge(*held)
    shutil.rmtree(folder)
    looks = record.snapshots
    return {**_outcome(looks), "network_kept": verdict["network_kept"], "looks": looks}


def _outcome(looks: list[dict[str, Any]]) -> dict[str, Any]:
    stopped = next((i for i, look in enumerate(looks) if look["judged"] == "fail"), None)
    kept = looks[-1] if stopped is None else looks[stopped - 1] if stopped else {"step": 0}
    copies = next((look["step"] for look in looks if look["copies"] == "fail"), None)
    return {
        "stopped_at": None if stopped is None else looks[stopped]["step"],
        "kept": kept["step"],
        "copies_at": copies,
        "kept_copies": kept.get("copies", "not searched"),
    }


def _people(seed: int) -> tuple[FloatArray, list[Condition]]:
    """Return training patients and controls, then those for validation."""
    persons = [draw_person(POPULATION, i) for i in range(120)]
    random = generator(seed, "people")
    rows: dict[bool, list[int]] = {
        sick: [i for i in random.permutation(120) if (persons[i].diagnosis == "bvFTD") == sick]
        for sick in (True, False)
    }
    (a, b), (c, d) = N_TRAIN, N_HELD_OUT
    picked = [*rows[True][:a], *rows[False][:b], *rows[True][a : a + c], *rows[False][b : b + d]]
    conditions = [
        Condition(
            diagnosis=persons[i].diagnosis, age_years=persons[i].age_years, sex=persons[i].sex
        )
        for i in picked
    ]
    return person_volumes(POPULATION, picked, MM), conditions


def _served(encoder: ConditionEncoder, condition: Condition) -> bool:
    low, high = encoder.age_limits or (-np.inf, np.inf)
    return low <= (condition.age_years or 0) <= high


def _search(
    train: FloatArray,
    strangers: FloatArray,
    prior: Diffusion,
    codec: PcaCodec,
    encoded: torch.Tensor,
) -> Any:
    """Return a function that says how the search for copies judges the prior as it is."""
    names = [f"P{i:03d}" for i in range(len(train))]
    assay = Assay.of(train, names, voxel_mm=MM, shift_mm=SHIFT_MM)
    planted = canaries.plant(train[:12], shift_voxels=assay.shift_voxels, seed=0)
    scale: Calibration = calibrate(
        assay.match(strangers), {kind: assay.match(copies) for kind, copies in planted.items()}
    )
    rows = np.arange(N_SAMPLES) % N_TRAIN[0] + np.where(np.arange(N_SAMPLES) % 2, N_TRAIN[0], 0)

    def search() -> tuple[float, int, str]:
        noise = torch.stack([
            torch.randn(prior.noise_size, generator=torch.Generator().manual_seed(derive(1, i)))
            for i in range(N_SAMPLES)
        ])  # fmt: skip
        with torch.no_grad():
            codes = prior.floor.unwhiten(prior.sample(encoded[rows], noise))
            volumes = np.stack([to_volume(image.numpy()) for image in codec.decode(codes)])
        gate, details = judge_copies(assay.match(volumes), scale, names, fewest_persons=20)
        return round(float(gate.statistic or 0), 3), int(details["flagged"]), gate.outcome

    return search


if __name__ == "__main__":
    main()
