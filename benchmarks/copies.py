"""Hide copies of training persons in every way we can think of, and count what the search finds.

    python benchmarks/copies.py easy|hard|T1_FOLDER [--split 0.25] [--persons 500]
        [--draws 1] [--seed 1]

Persons are invented ones at 4 mm (presets `easy`, `hard`) or the real ones of a folder of NIfTI
files on one grid. Each draw divides them anew: some train, as many strangers calibrate, the rest
is held out. Held-out persons, the same persons with 40 % less deviation from their mean (an honest
but narrow generator) and a Gaussian fitted to the training persons must not be accused; every
training person comes back in every disguise of `tests/shared/disguises.py`, and in some that are
too strong to be found. Then batches with 0 to 10 % copies go through the gate. The printed shares
have 95 % intervals (Clopper-Pearson).
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np

from rarescan.cohort.contracts import FloatArray
from rarescan.evaluation import canaries
from rarescan.evaluation.copies import Assay, coarse_voxel_mm, coarsen
from rarescan.evaluation.intervals import clopper_pearson
from rarescan.evaluation.privacy import Calibration, calibrate, judge_copies
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import person_volumes
from rarescan.seeds import generator

sys.path.append(str(Path(__file__).parents[1] / "tests" / "shared"))
from disguises import DISGUISES, Disguise, affine, deformed

SHIFT_MM = 8.0
CANARIES = 60
FEWEST = 20
BATCH = 200


def _half(volume: FloatArray, mm: float, draw: np.random.Generator) -> FloatArray:
    """Return the lower half only; the rest is another person's in a real attack."""
    del mm, draw
    cut = volume.copy()
    cut[:, :, volume.shape[2] // 2 :] = 0
    return cut


def _inverted(volume: FloatArray, mm: float, draw: np.random.Generator) -> FloatArray:
    """Return the volume with dark for bright, as in another contrast."""
    del mm, draw
    inverted: FloatArray = np.where(volume > 0, 1.05 - np.clip(volume, 0, 1), 0)
    return inverted.astype(np.float32)


STRONG: dict[str, Disguise] = {
    "deformed twice": lambda v, mm, draw: deformed(deformed(v, mm, draw), mm, draw),
    "turned 6 degrees": lambda v, _mm, draw: affine(v, degrees=6, scale=0.02, draw=draw),
    "scaled 5 %": lambda v, _mm, draw: affine(v, degrees=0, scale=0.05, draw=draw),
    "lower half": _half,
    "inverted contrast": _inverted,
}


def main() -> None:
    """Draw, count, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--persons", type=int, default=500)
    parser.add_argument("--split", type=float, default=0.25, help="share that trains")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1, help="of the invented persons")
    given = parser.parse_args()
    volumes, mm = _people(given.source, given.persons, given.seed)
    flags: dict[str, list[bool]] = {}
    gates: Counter[tuple[str, str]] = Counter()
    start = time.process_time()
    for draw in range(given.draws):
        _one_draw(volumes, mm, int(len(volumes) * given.split), draw, flags, gates)
    print(f"{len(volumes)} persons, {given.draws} draws, {time.process_time() - start:.0f} CPU s")
    for name, found in flags.items():
        low, high = clopper_pearson(sum(found), len(found))
        share = sum(found) / len(found)
        print(f"{name:34s} {sum(found):5d} of {len(found):5d}  {share:6.1%} ({low:.1%}-{high:.1%})")
    for (batch, outcome), count in sorted(gates.items()):
        print(f"gate, {batch}: {outcome} {count}")


def _people(source: str, persons: int, seed: int) -> tuple[FloatArray, float]:
    if source in ("easy", "hard"):
        config = PhantomConfig(preset=source, patients=persons // 3, controls=persons, seed=seed)
        return person_volumes(config, range(persons), 4.0), 4.0
    paths = sorted(Path(source).rglob("*.nii.gz"))
    images = [nib.load(path) for path in paths]
    mm = float(images[0].header.get_zooms()[0])
    read = (np.asarray(image.dataobj, dtype=np.float32)[None] for image in images)
    return np.concatenate([coarsen(one / one.max(), mm) for one in read]), coarse_voxel_mm(mm)


def _one_draw(
    volumes: FloatArray,
    mm: float,
    n: int,
    draw: int,
    flags: dict[str, list[bool]],
    gates: Counter[tuple[str, str]],
) -> None:
    order = generator(draw, "split").permutation(len(volumes))
    training, strangers, honest = np.split(volumes[order], [n, 2 * n])
    assay = Assay.of(training, [f"P{i:04d}" for i in range(n)], voxel_mm=mm, shift_mm=SHIFT_MM)
    planted = canaries.plant(training[:CANARIES], shift_voxels=assay.shift_voxels, seed=draw)
    scale = calibrate(
        assay.match(strangers), {kind: assay.match(found) for kind, found in planted.items()}
    )
    for name, batch in _innocent(training, honest, draw).items():
        flags.setdefault(name, []).extend(_flags(assay, scale, batch))
    for name, disguise in (DISGUISES | STRONG).items():
        copies = [disguise(v, mm, generator(draw, name, i)) for i, v in enumerate(training)]
        flags.setdefault(name, []).extend(_flags(assay, scale, np.stack(copies)))
    for percent in (0, 1, 2, 5, 10):
        outcome = _gate(assay, scale, honest, training, percent, draw)
        gates[f"{percent} % copies", outcome] += 1


def _flags(assay: Assay, scale: Calibration, batch: FloatArray) -> list[bool]:
    return list(scale.flagged(assay.match(batch.astype(np.float32))))


def _innocent(training: FloatArray, honest: FloatArray, draw: int) -> dict[str, FloatArray]:
    """Return batches that copy nobody."""
    mean, brain = training.mean(axis=0), (training > 0).mean(axis=0) > 0.5
    weights = generator(draw, "weights").standard_normal((BATCH, len(training)))
    rest = (training - mean).reshape(len(training), -1)
    drawn = mean + (weights @ rest / len(training) ** 0.5).reshape(BATCH, *mean.shape)
    centre = honest.mean(axis=0)
    narrow = (centre + 0.6 * (honest - centre)) * (honest > 0)
    return {
        "honest: held-out persons": honest,
        "honest but narrow": np.clip(narrow, 0, 1),
        "Gaussian of the training persons": np.clip(drawn, 0, 1) * brain,
    }


def _gate(
    assay: Assay,
    scale: Calibration,
    honest: FloatArray,
    training: FloatArray,
    percent: int,
    draw: int,
) -> str:
    """Return the outcome of a batch of held-out persons of which some are disguised copies."""
    batch = honest[:BATCH].copy()
    count = -(-len(batch) * percent // 100)
    names = list(DISGUISES)
    for i in range(count):
        chance = generator(draw, "planted", percent, i)
        donor = training[chance.integers(len(training))]
        batch[i] = DISGUISES[names[i % len(names)]](donor, assay.voxel_mm, chance)
    gate, _numbers = judge_copies(
        assay.match(batch), scale, assay.person_ids, fewest_persons=FEWEST
    )
    return gate.outcome


if __name__ == "__main__":
    main()
