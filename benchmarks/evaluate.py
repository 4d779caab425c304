"""How long the whole evaluation of three candidates takes at 4 mm, with report.

    python benchmarks/evaluate.py FOLDER [--persons 120] [--synthetic 200] [--profile]

Invented persons (a third patients) become a prepared cohort in FOLDER, three generators (gaussian,
transfer, a vae of 100 steps) and the judge are trained, once: repeating the command finds them.
What is timed: scoring with intervals and gates, the decision, and the report; samples are drawn
before, and timed apart. Asked: 3 minutes on two cores. Printed are seconds of the clock and of the
CPU of the command; those of its workers are not in it, so use `taskset -c 0`, on one core, for all
CPU seconds (one process then) and for `--profile`.
"""

import argparse
import cProfile
import pstats
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rarescan.classifiers.domain import open_network, train_network
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.cohort.contracts import Question
from rarescan.cohort.partition import PartitionConfig
from rarescan.configs.schema import RunConfig
from rarescan.evaluation.decide import decide, read_scores
from rarescan.evaluation.evaluate import write_scores
from rarescan.evaluation.features import read_features
from rarescan.evaluation.ranking import Entrant
from rarescan.evaluation.report import write_report
from rarescan.evaluation.spec import EvaluateConfig
from rarescan.files import Recipe, run_step, write_json
from rarescan.flows.batch import sample_candidate
from rarescan.generative.families import train_generator
from rarescan.generative.spec import GeneratorSpec
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import write_prepared

SPECS = {
    "gaussian": GeneratorSpec(family="gaussian"),
    "transfer": GeneratorSpec(family="transfer"),
    "vae": GeneratorSpec(family="vae", steps=100),
}
SPACING_MM = 4.0


def main() -> None:
    """Prepare what is missing, then time the evaluation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--persons", type=int, default=120)
    parser.add_argument("--synthetic", type=int, default=200)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    run = given.folder / f"{given.persons}"
    timed("cohort, generators, judge", lambda: prepare(run, given.persons))
    samples = timed("samples", lambda: draw(run, given.synthetic))
    profile = cProfile.Profile()
    if given.profile:
        profile.enable()
    timed("evaluation in all", lambda: evaluate(run, samples, given.synthetic))
    if given.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Print how long something took, and return its result."""
    before, start = time.process_time(), time.monotonic()
    result = work()
    seconds = time.monotonic() - start
    print(f"{what:28}{seconds:8.1f} s, {time.process_time() - before:8.1f} CPU s", flush=True)
    return result


def prepare(run: Path, n_persons: int) -> None:
    """Write the cohort and train on it."""
    patients = n_persons // 3
    population = PhantomConfig(patients=patients, controls=n_persons - patients, seed=3)
    prepared = run / "prepared"
    write_prepared(prepared, population, spacing_mm=SPACING_MM, partition=PartitionConfig())
    for name, spec in SPECS.items():
        train_generator(prepared, run / "models" / name, spec, device="cpu")
    classifier = ClassifierConfig()

    def build(work: Path) -> None:
        train_network(prepared, work, classifier, Question(), device="cpu")

    run_step(run / "network", Recipe(step="judge", schema=1, config=asdict(classifier)), build)


def draw(run: Path, n: int) -> dict[str, Path]:
    """Draw every candidate's samples as `rarescan evaluate` does."""
    config = RunConfig(evaluate=EvaluateConfig(n_synthetic=n))
    samples = {name: run / "evaluation" / "samples" / name for name in SPECS}
    for name, root in samples.items():
        shutil.rmtree(root, ignore_errors=True)
        sample_candidate(config, run / "prepared", run / "models" / name, root)
    return samples


def evaluate(run: Path, samples: dict[str, Path], n: int) -> None:
    """Score, decide, report, each timed."""
    folder, question = run / "evaluation", Question()
    config = EvaluateConfig(n_synthetic=n)
    embed = open_network(run / "network").embed
    timed(
        "- scores, intervals, gates",
        lambda: write_scores(folder, run / "prepared", samples, embed, config, question),
    )

    def choose() -> None:
        scores, features = read_scores(folder), read_features(folder)
        decision = decide(scores, {name: Entrant(family=name) for name in samples}, features)
        stored = {**asdict(decision), "champion": None, "standing": None}
        write_json(run / "decision" / "decision.json", stored)

    timed("- decision", choose)
    timed("- report", lambda: write_report(run))


if __name__ == "__main__":
    main()
