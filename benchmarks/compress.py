"""Compress a lung ultrasound classifier: the table of forms, on persons of other folds.

    python benchmarks/compress.py [--network resnet18] [--pixels 112] [--steps 150]
                                  [--retrain-steps 40] [--data ../shared/data/ultrasound]

Trains on the stills of folds 1, 2 and 4, chooses on fold 3 and confirms on fold 0 (folds are by
person), then prints what `rarescan compress` prints. All forms take turns in one process with one
thread, so that ratios hold on a busy machine; seconds do not.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rarescan.classifiers import train
from rarescan.classifiers.compression import compress
from rarescan.classifiers.compression.forms import Persons
from rarescan.classifiers.contract import Labels
from rarescan.classifiers.examples import Examples, class_pools
from rarescan.classifiers.network import TrainedNetwork
from rarescan.classifiers.spec import ClassifierConfig, CompressConfig
from rarescan.classifiers.ultrasound import MODALITY

LABELS = Labels(names=("covid", "pneumonia", "regular"))
TEST_FOLD, VALIDATION_FOLD = 0, 3


def main() -> None:
    """Train, compress, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--pixels", type=int, default=112)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--retrain-steps", type=int, default=40)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ultrasound"))
    given = parser.parse_args()
    persons = read_persons(given.data, given.pixels)
    start = time.process_time()
    trained = _trained(persons, ClassifierConfig(network=given.network, steps=given.steps))
    n_weights = sum(p.numel() for p in trained.network.parameters())
    print(f"{given.network}, {n_weights / 1e6:.2f} M parameters, {given.pixels} pixels; "
          f"trained in {time.process_time() - start:.0f} CPU s")  # fmt: skip
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        config = CompressConfig(retrain_steps=given.retrain_steps)
        found = compress.compress(Path(folder), trained, persons, config)
    print(found["table"])
    print(f"{time.process_time() - start:.0f} CPU s")


def read_persons(folder: Path, pixels: int) -> Persons:
    """Return the convex stills of three classes, by fold."""
    with (folder / "labels.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["task3"] == "1"]
    images = np.stack([_read(folder / row["file"], pixels) for row in rows])
    parts = {TEST_FOLD: "test", VALIDATION_FOLD: "validation"}
    found = {}
    for part in ("train", "validation", "test"):
        own = [i for i, row in enumerate(rows) if parts.get(int(row["fold"]), "train") == part]
        found[part] = Examples(
            sources=(images,),
            rows=tuple((0, i) for i in own),
            labels=tuple(LABELS.names.index(rows[i]["label"]) for i in own),
            person_ids=tuple(rows[i]["patient_or_source"] for i in own),
            classes=LABELS,
        )
    return Persons(**found)


def _read(path: Path, pixels: int) -> np.ndarray:
    with Image.open(path) as image:
        grey = image.convert("L").resize((pixels, pixels), Image.Resampling.BOX)
    return (np.asarray(grey, np.float32) / 255)[:, :, None]


def _trained(persons: Persons, config: ClassifierConfig) -> TrainedNetwork:
    pools = class_pools(persons.train, config.batch_size, len(LABELS.names))
    trained, _ = train.fit(
        persons.train,
        pools,
        config,
        modality=MODALITY,
        device=torch.device("cpu"),
    )
    return trained


if __name__ == "__main__":
    main()
