"""Claims that concern gain, where no other file proves them (docs/utility.md names all)."""

from dataclasses import asdict

import numpy as np
import pytest

from rarescan.cohort.contracts import FeatureSet, Gate, Score
from rarescan.evaluation import decide as d
from rarescan.evaluation import features as f
from rarescan.evaluation import metrics
from rarescan.evaluation.spec import SelectConfig

GATES = ("spread", "high_frequency", "copies", "plausibility")


def drawn(n: int, seed: int, shift: float) -> FeatureSet:
    values = np.random.default_rng(seed).normal(shift, 1, size=(n, 8)).astype(np.float32)
    ids = tuple(f"{seed}-{i}" for i in range(n))
    return FeatureSet(values=values, person_ids=ids, extractor=f.PRIMARY)


@pytest.mark.parametrize("better_fid", [1.0, 300.0])
def test_selection_is_not_by_fid(better_fid: float) -> None:
    """The nearer candidate is chosen, however much better the other one's FID is."""
    sets = {"validation": drawn(60, 0, 0.0), "near": drawn(200, 1, 0.0), "far": drawn(200, 2, 0.8)}
    real = sets["validation"].values.astype(np.float64)
    sigma2 = metrics.frozen_bandwidth(real)
    fids = {"near": 300.0, "far": better_fid}
    candidates = {}
    for name, fid in fids.items():
        mmd = metrics.mmd(real, sets[name].values.astype(np.float64), sigma2=sigma2).value
        rows = {
            "mmd": asdict(Score(name="mmd", value=mmd)),
            "fid": asdict(Score(name="fid", value=fid)),
        }
        candidates[name] = {
            "scores": {f.PRIMARY: rows, f.SECOND: rows},
            "gates": [asdict(Gate(name=gate, outcome="pass")) for gate in GATES],
        }
    scores = {
        "extractors": {"sigma2": {f.PRIMARY: sigma2, f.SECOND: sigma2}},
        "candidates": candidates,
    }
    found = d.decide(scores, {}, {f.PRIMARY: sets}, None, SelectConfig())
    assert (found.verdict, found.chosen) == ("register", "near")
