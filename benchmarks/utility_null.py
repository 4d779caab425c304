"""The promise of the utility verdict: without a gain no `use`, and a gain that is there is found.

    python benchmarks/utility_null.py [--sets 100] [--folder runs/utility_null]

Null: controls are called patients at random, so that nothing can be learned, in `--sets` whole
benchmarks of 4 + 12 draws (12 + 120 training persons, 400 test persons); `use` may come in 5 % of
them. Gain: real patients, and a batch that is worth so many further real patients. Every arm is
fitted: logistic regression as in the field's linear model, on 60 components of one pool of 1,200
invented persons at 8 mm. Persons of a set are drawn anew from the pool (about 60 seconds of one
core, kept in `--folder`), labels of the null in every draw.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from rarescan.classifiers.baseline import INVERSE_PENALTY, MOST_COMPONENTS, smooth
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.evaluation.intervals import placements
from rarescan.evaluation.utility import Result, summarise
from rarescan.phantom.questions import DrawConfig, write_draw
from rarescan.seeds import generator
from rarescan.threads import one_thread

Array = npt.NDArray[np.float64]
TUNING, JUDGED = 4, 12
PATIENTS, CONTROLS, TEST, SYNTHETIC = 12, 120, 200, 108
POOL = DrawConfig(question="few", number=7, patients=300, controls=500, test=400, spacing_mm=8)


def main() -> None:
    """Print how often each verdict comes, without a gain and for known ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("runs/utility_null"))
    options = parser.parse_args()
    with one_thread():
        codes, sick = pool(options.folder)
        tell(options.sets, codes[~sick], codes[~sick], 0, "nothing to learn")
        for extra in (0, 4, 8, 16):
            what = f"a batch worth {extra} patients" if extra else "real patients, idle batches"
            tell(options.sets, codes[sick], codes[~sick], extra, what)


def pool(folder: Path) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return invented persons' components (the first one has spread 1), and who is ill."""
    cohort = open_cohort(write_draw(folder, POOL)[0])
    images = np.stack([smooth(v, POOL.spacing_mm).ravel() for v in open_volumes(cohort)])
    codes = PCA(MOST_COMPONENTS, svd_solver="full").fit_transform(images)
    sick = np.array([scan.condition.diagnosis == "bvFTD" for scan in cohort.scans])
    return codes / codes[:, 0].std(), sick


def tell(sets: int, ill: Array, well: Array, extra: int, what: str) -> None:
    """Print one line: verdicts, and the true difference that they are about."""
    entries: list[dict[str, Any]] = []
    for seed in range(sets):
        results = [
            r for draw in range(TUNING + JUDGED) for r in one_draw(ill, well, extra, seed, draw)
        ]
        entries += summarise(results, tuning_draws=TUNING)
    verdicts = [entry["verdict"] for entry in entries]
    found = [entry["arms"][entry["best_generative"]]["difference"] for entry in entries]
    half = np.mean([d["high"] - d["low"] for d in found]) / 2
    counts = ", ".join(f"{v} {verdicts.count(v)}" for v in ("use", "undecided", "do_not_use"))
    gain = np.mean([d["value"] for d in found])
    print(f"{what}: mean difference {gain:+.3f}, half interval {half:.3f}; of {sets}: {counts}")


def one_draw(ill: Array, well: Array, extra: int, seed: int, draw: int) -> Iterator[Result]:
    """Fit all arms on persons of one draw and yield what each reached."""
    random = generator(seed, "utility-null", extra, draw)
    n_ill, n_well = PATIENTS + extra + TEST, CONTROLS + TEST
    if ill is well:
        both = well[random.permutation(len(well))[: n_ill + n_well]]
        patients, controls = both[:n_ill], both[n_ill:]
    else:
        patients, controls = (
            people[random.permutation(len(people))[:n]]
            for people, n in ((ill, n_ill), (well, n_well))
        )
    few, more, sick = np.split(patients, [PATIENTS, PATIENTS + extra])
    real, healthy = np.split(controls, [CONTROLS])
    for arm, (added, penalty) in arms(few, more, real, random).items():
        kind = "generative" if arm in ("gaussian", "transfer", "mixed", "worth") else "free"
        score = fitted(np.concatenate([few, added]), real, penalty)
        auc = float(placements(score(sick)[None], score(healthy)[None])[0].mean())
        yield Result(
            question="null", draw=draw, patients=PATIENTS, arm=arm, kind=kind, measures={"auc": auc}
        )  # fmt: skip


def arms(
    few: Array, more: Array, real: Array, random: np.random.Generator
) -> dict[str, tuple[Array, float]]:
    """Return what each arm adds to the patients, and its penalty."""
    rest = real - real.mean(0)
    none = few[:0]
    shares = random.dirichlet(np.ones(3), SYNTHETIC)
    trios = few[random.integers(len(few), size=(SYNTHETIC, 3))]
    noise = random.standard_normal((SYNTHETIC, len(real))) / np.sqrt(len(real))
    donors = rest[random.integers(len(real), size=SYNTHETIC)]
    found = {
        "real": (none, INVERSE_PENALTY),
        "shrunk": (none, INVERSE_PENALTY / 10),
        "gaussian": (few.mean(0) + noise @ rest, INVERSE_PENALTY),
        "transfer": (few.mean(0) + donors, INVERSE_PENALTY),
        "mixed": ((shares[..., None] * trios).sum(1), INVERSE_PENALTY),
    }
    return found | ({"worth": (more, INVERSE_PENALTY)} if len(more) else {})


def fitted(patients: Array, controls: Array, penalty: float) -> Any:
    """Return the fitted model's log-odds as a function."""
    labels = np.repeat([1, 0], [len(patients), len(controls)])
    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000)
    return model.fit(np.concatenate([patients, controls]), labels).decision_function


if __name__ == "__main__":
    main()
