"""Does the disease survive? Effects, diagnosis and age in synthetic persons of every family.

    python benchmarks/disease.py FOLDER [--candidates gaussian vae ...] [--samples 300]

40 patients and 80 controls of the `easy` phantom (4 mm) train; 69 and 137 others, whom no
generator has seen, say what is true: their regional effects, and readers that are fitted to them
(the product's small network for the diagnosis; for age a ridge regression on 60 principal
components of images after a Gaussian of 12 mm, and one on the region vector) and judged on the
other persons. FOLDER keeps everything, so a repeated command does only what is missing.

`slope`: synthetic regional effects (Hedges' g, patients - controls) over real ones, with its
standard error; `differences`: the same of raw differences; `diagnosis`: share of synthetic persons
in whom the network sees what was asked for; `age`, `age_regions`: correlation of asked and read
age within the diagnoses, over the one on real persons; `spread`: within-diagnosis variance of the
region vector, synthetic over real.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV

from rarescan.classifiers.baseline import smooth
from rarescan.classifiers.domain import DomainNetwork, open_network
from rarescan.classifiers.examples import balanced_pools, labelled
from rarescan.classifiers.mri import MRI
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.classifiers.train import fit
from rarescan.cohort.contracts import Cohort, Condition, FloatArray, Grid, Question, brain_grid
from rarescan.cohort.partition import PartitionConfig
from rarescan.cohort.store import VOLUMES, open_cohort, open_volumes, require_grid, tables
from rarescan.evaluation.effects import EFFECTS, Effects
from rarescan.evaluation.measures import MEASURES, describe
from rarescan.generative.conditions import balanced_conditions
from rarescan.generative.families import train_generator
from rarescan.generative.sample import write_samples
from rarescan.generative.spec import GeneratorSpec
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import write_prepared

Array = npt.NDArray[np.float64]

POPULATION = PhantomConfig(preset="easy", patients=140, controls=280, seed=5)
PARTITION = PartitionConfig(validation=0.22, test=0.49)
CANDIDATES = {
    "gaussian": GeneratorSpec(family="gaussian"),
    "transfer": GeneratorSpec(family="transfer"),
    "transfer, haar": GeneratorSpec(family="transfer", codec="haar"),
    "transfer, deformation": GeneratorSpec(family="transfer", codec="haar", space="deformation"),
    "vae": GeneratorSpec(family="vae"),
    "gan": GeneratorSpec(family="gan"),
    "diffusion": GeneratorSpec(family="diffusion"),
    "diffusion, guidance 1": GeneratorSpec(family="diffusion", guidance=1.0),
}
POSITIVE = Question().positive


def main() -> None:
    """Train, sample, compare, print one row a candidate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=CANDIDATES)
    parser.add_argument("--samples", type=int, default=600)
    asked = parser.parse_args()
    prepared = write_prepared(
        asked.folder / "prepared", POPULATION, spacing_mm=4.0, partition=PARTITION
    )
    truth = Truth.of(open_cohort(prepared), asked.folder / "judge")
    print(json.dumps(truth.about), flush=True)
    for name in asked.candidates:
        start = time.process_time()
        model = asked.folder / "models" / name.replace(", ", "-").replace(" ", "-")
        train_generator(prepared, model, CANDIDATES[name], device="cpu")
        conditions = balanced_conditions(open_cohort(prepared), asked.samples, seed=11)
        root = asked.folder / "samples" / f"{model.name}-{asked.samples}"
        scans = write_samples(root, model, conditions, seed=11)
        volumes = np.load(tables(root) / VOLUMES, mmap_mode="r")
        row = truth.judge(volumes, [scan.condition for scan in scans])
        seconds = round(time.process_time() - start, 1)
        print(json.dumps({"candidate": name, **row, "cpu_seconds": seconds}), flush=True)


@dataclass(frozen=True)
class AgeReader:
    """Reads a person's age, the diagnosis being known."""

    features: Callable[[FloatArray], Array]
    model: Any

    @classmethod
    def fit(
        cls,
        features: Callable[[FloatArray], Array],
        volumes: FloatArray,
        conditions: list[Condition],
    ) -> "AgeReader":
        """Fit a ridge regression."""
        model = RidgeCV(np.logspace(-3, 5, 17))
        model.fit(_with_diagnosis(features(volumes), conditions), _ages(conditions))
        return cls(features, model)

    def correlation(self, volumes: FloatArray, conditions: list[Condition]) -> float:
        """Return the correlation of asked and read age, within the diagnoses."""
        rows = _with_diagnosis(self.features(volumes), conditions)
        pairs = np.stack([np.asarray(self.model.predict(rows)), _ages(conditions)])
        for positive in (True, False):
            mine = np.array([(c.diagnosis == POSITIVE) == positive for c in conditions])
            pairs[:, mine] -= pairs[:, mine].mean(1, keepdims=True)
        return float(np.corrcoef(pairs)[0, 1])


@dataclass(frozen=True)
class Truth:
    """What persons whom no generator has seen say."""

    grid: Grid
    rows: Array
    """Their region vectors."""
    conditions: list[Condition]
    network: DomainNetwork
    readers: dict[str, AgeReader]
    about: dict[str, Any]

    @classmethod
    def of(cls, cohort: Cohort, folder: Path) -> "Truth":
        """Fit readers to the test persons; measure them on all other persons."""
        volumes, grid = open_volumes(cohort), require_grid(cohort.root)
        seen, others = cohort.indices("test"), cohort.indices("train", "validation")
        conditions = [cohort.scans[i].condition for i in seen]
        held = [cohort.scans[i].condition for i in others]
        spread = describe(volumes[seen], grid).std(0)
        components = PCA(60, svd_solver="full").fit(_smooth(volumes[seen]))
        size = components.explained_variance_[0] ** 0.5
        features = {
            "age": lambda v: components.transform(_smooth(v)) / size,
            "age_regions": lambda v: describe(v, grid) / spread,
        }
        readers = {n: AgeReader.fit(f, volumes[seen], conditions) for n, f in features.items()}
        network = _network(cohort, folder)
        train = [cohort.scans[i].condition.diagnosis for i in cohort.indices("train")]
        about = {
            "patients": train.count(POSITIVE),
            "controls": len(train) - train.count(POSITIVE),
            "held_out": len(conditions),
            "diagnosis": _agreement(network, volumes[others], held),
            **{n: round(r.correlation(volumes[others], held), 3) for n, r in readers.items()},
        }
        return cls(grid, describe(volumes[seen], grid), conditions, network, readers, about)

    def judge(self, volumes: FloatArray, conditions: list[Condition]) -> dict[str, Any]:
        """Return the figures of one candidate's samples."""
        rows = describe(volumes, self.grid)
        effects = Effects.of(_groups(self.rows, self.conditions), _groups(rows, conditions))
        if effects is None or effects.slope is None:
            raise SystemExit("too few samples for effects")
        wrong = np.abs(effects.synthetic - effects.real)
        return {
            "slope": [round(value, 3) for value in effects.slope],
            "worst_region": [EFFECTS[int(wrong.argmax())], round(float(wrong.max()), 2)],
            "differences": round(_difference_slope(self, rows, conditions), 3),
            "diagnosis": _agreement(self.network, volumes, conditions),
            **{
                name: round(reader.correlation(volumes, conditions) / self.about[name], 3)
                for name, reader in self.readers.items()
            },
            "spread": round(_within(rows, conditions, self), 3),
        }


def _network(cohort: Cohort, folder: Path) -> DomainNetwork:
    """Train the product's judge, but on the test persons."""
    if not (folder / "network.json").exists():
        examples, config = labelled(cohort, Question(), "test"), ClassifierConfig()
        pools = balanced_pools(examples, config.batch_size)
        trained, _ = fit(examples, pools, config, modality=MRI, device=torch.device("cpu"))
        trained.save(folder)
    return open_network(folder, device="cpu")


def _smooth(volumes: FloatArray) -> FloatArray:
    spacing_mm = brain_grid(4.0).spacing_mm
    return np.stack([smooth(volume, spacing_mm) for volume in volumes]).reshape(len(volumes), -1)


def _ages(conditions: list[Condition]) -> Array:
    return np.array([c.age_years for c in conditions], dtype=float)


def _with_diagnosis(rows: Array, conditions: list[Condition]) -> Array:
    return np.column_stack([rows, [c.diagnosis == POSITIVE for c in conditions]])


def _agreement(network: DomainNetwork, volumes: FloatArray, conditions: list[Condition]) -> float:
    seen = network.embed(volumes)[1][:, 1] > 0.5
    hits = [s == (c.diagnosis == POSITIVE) for s, c in zip(seen, conditions, strict=True)]
    return round(float(np.mean(hits)), 3)


def _groups(rows: Array, conditions: list[Condition]) -> tuple[Array, Array]:
    mine = np.array([c.diagnosis == POSITIVE for c in conditions])
    return rows[mine], rows[~mine]


def _difference_slope(truth: Truth, rows: Array, conditions: list[Condition]) -> float:
    """Return the slope of raw regional differences: it does not depend on the spread."""
    columns = [MEASURES.index(name) for name in EFFECTS]
    real, synthetic = (
        positive[:, columns].mean(0) - negative[:, columns].mean(0)
        for positive, negative in (_groups(truth.rows, truth.conditions), _groups(rows, conditions))
    )
    return float(real @ synthetic / (real @ real))


def _within(rows: Array, conditions: list[Condition], truth: Truth) -> float:
    """Return the median over measures of the within-diagnosis variance, synthetic over real."""

    def pooled(values: Array, asked: list[Condition]) -> Array:
        groups = _groups(values, asked)
        squares = sum(((g - g.mean(0)) ** 2).sum(0) for g in groups)
        return np.asarray(squares / (len(values) - 2))

    return float(np.median(pooled(rows, conditions) / pooled(truth.rows, truth.conditions)))


if __name__ == "__main__":
    main()
