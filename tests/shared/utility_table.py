"""What a benchmark of utility finds, made from planted differences."""

from pathlib import Path

import numpy as np

from rarescan.evaluation.utility import Result, summarise
from rarescan.files import write_json

LEVELS = {
    "real": ("free", 0.70),
    "strong": ("free", 0.76),
    "strong+knowledge": ("generative", 0.79),
    "classical+vae:all": ("generative", 0.75),
    "placebo": ("placebo", 0.70),
    "oracle": ("oracle", 0.82),
}
BESIDE = {"confounded": ("auc_within", "shortcut"), "age": ("age_correlation", "specificity_old")}


def results(*, gain: float = 0.0, seed: int = 0) -> list[Result]:
    """Return 16 draws of three questions; `gain` moves the generative arms of `few`."""
    random = np.random.default_rng(seed)
    asked = [("few", n, "network") for n in (6, 12, 25)] + [("few", 12, "linear")]
    asked += [("confounded", 12, "network"), ("age", 12, "network")]
    found = []
    for question, patients, model in asked:
        for draw in range(16):
            luck = random.normal(0, 0.05)
            for arm, (kind, level) in LEVELS.items():
                moved = gain if kind == "generative" and question == "few" else 0.0
                measures = {"auc": level + moved + luck + random.normal(0, 0.01)}
                measures |= {n: random.uniform(0.4, 0.6) for n in BESIDE.get(question, ())}
                found.append(
                    Result(
                        question=question, draw=draw, patients=patients, arm=arm, kind=kind,
                        model=model, measures=measures,
                    )
                )  # fmt: skip
    return found


def write_result(folder: Path, **how: float) -> Path:
    """Write `utility.json` and return its path."""
    path = folder / "utility.json"
    write_json(path, summarise(results(**how), tuning_draws=4))
    return path
