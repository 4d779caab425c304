"""What the presets of 1 and 2 mm take on a GPU: seconds, memory, scores, as a block of Markdown.

    make bench-gpu        (python benchmarks/generative/gpu.py FOLDER)

Without a GPU it says so in one line and ends with 0. With one, 108 phantoms train every family of
the presets `hospital-1mm` and `hospital-2mm`, 36 others judge them, and FOLDER/gpu.md gets a block
for docs/benchmarks.md with machine, versions and commit. A row that failed, or that was left out
by `--spacings` or `--steps`, says so. FOLDER keeps what is done; a stopped command goes on.
"""

import argparse
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import monai
import torch

from rarescan.classifiers.domain import open_network, train_network
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.cohort.contracts import Question
from rarescan.cohort.partition import PartitionConfig
from rarescan.cohort.store import open_cohort, write_cohort
from rarescan.configs.schema import load_config
from rarescan.errors import RarescanError
from rarescan.evaluation.evaluate import SCORES, write_scores
from rarescan.evaluation.spec import EvaluateConfig
from rarescan.files import Recipe, read_json, require_recipe, run_step, write_atomic, write_json
from rarescan.generative.conditions import draw_conditions
from rarescan.generative.families import CURVES, train_generator
from rarescan.generative.sample import write_samples
from rarescan.generative.spec import GeneratorSpec
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import write_prepared

PRESETS = {1.0: "hospital-1mm", 2.0: "hospital-2mm"}
SEED = 11
_HEAD = (
    "| spacing | family | steps | training | a thousand steps | GPU memory | one scan drawn (CPU) "
    "| MMD x 1000 (95 %) | spread | detail |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is spent."""

    device: str
    steps: int | None
    persons: int
    samples: int


def main() -> None:
    """Measure every family of both presets, print and write the block."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--spacings", nargs="+", type=float, default=list(PRESETS))
    parser.add_argument("--steps", type=int, help="instead of the presets' own")
    parser.add_argument("--persons", type=int, default=180)
    parser.add_argument("--samples", type=int, default=100)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("bench-gpu: skipped, this machine has no GPU that torch can use")
        return
    effort = Effort(
        device=given.device, steps=given.steps, persons=given.persons, samples=given.samples
    )
    lines = [_machine(effort), "", _HEAD]
    for spacing_mm in PRESETS:
        lines += _rows(given.folder, spacing_mm, effort, wanted=spacing_mm in given.spacings)
    block = "\n".join(lines) + "\n"
    write_atomic(given.folder / "gpu.md", block)
    print(block)


def _machine(effort: Effort) -> str:
    name = torch.cuda.get_device_name() if effort.device == "cuda" else "no GPU (device cpu)"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    steps = "the presets' steps" if effort.steps is None else f"{effort.steps} steps a family"
    return (
        f"Measured on {name}, {platform.machine()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, MONAI {monai.__version__}, commit {commit or 'unknown'}: "
        f"{effort.persons} phantoms (60 % train, 20 % judge), {steps}."
    )


def _rows(folder: Path, spacing_mm: float, effort: Effort, *, wanted: bool) -> list[str]:
    specs = load_config(PRESETS[spacing_mm]).train
    if not wanted:
        return [f"| {spacing_mm:g} mm | {name} | not measured {'|' * 8}" for name in specs]
    root = folder / f"{spacing_mm:g}mm-{effort.persons}"
    patients = effort.persons // 3
    prepared = write_prepared(
        root / "prepared",
        PhantomConfig(patients=patients, controls=effort.persons - patients, seed=9),
        spacing_mm=spacing_mm,
        partition=PartitionConfig(),
    )
    judge = _judge(root, prepared, effort)
    lines = []
    for name, spec in specs.items():
        own = spec if effort.steps is None else replace(spec, steps=effort.steps)
        try:
            row = _measured(root / name, prepared, judge, own, effort)
            lines.append(f"| {spacing_mm:g} mm | {name} | {_words(row)} |")
        except RarescanError as error:
            lines.append(f"| {spacing_mm:g} mm | {name} | not measured: {error} {'|' * 8}")
        print(lines[-1], flush=True)
    return lines


def _judge(root: Path, prepared: Path, effort: Effort) -> Path:
    def build(work: Path) -> None:
        train_network(
            prepared, work, ClassifierConfig(), Question(),
            device="cuda" if effort.device == "cuda" else "cpu",
        )  # fmt: skip

    inputs = {"prepared": require_recipe(prepared).id}
    return run_step(root / "judge", Recipe(step="judge", schema=1, inputs=inputs), build)


def _measured(
    folder: Path, prepared: Path, judge: Path, spec: GeneratorSpec, effort: Effort
) -> dict[str, Any]:
    """Train, draw and score one family; its figures are kept in its folder."""
    recipe = Recipe(
        step="benchmark-gpu",
        schema=1,
        config={"spec": vars(spec), "device": effort.device, "samples": effort.samples},
        inputs={"prepared": require_recipe(prepared).id, "judge": require_recipe(judge).id},
    )

    def build(work: Path) -> None:
        if effort.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        model = train_generator(prepared, work / "model", spec, device=effort.device)
        # A training that was stopped and went on is seen from its own record, its memory is not.
        peak = torch.cuda.max_memory_allocated() if effort.device == "cuda" else 0
        cohort = open_cohort(prepared)
        conditions = draw_conditions(cohort, effort.samples, SEED)
        start = time.monotonic()
        scans = write_samples(work / "samples", model, conditions, seed=SEED)
        seconds_each = (time.monotonic() - start) / len(scans)
        write_cohort(work / "samples", scans=scans, grid=cohort.grid, partition={})
        write_json(work / "samples" / "recipe.json", Recipe(step="sample", schema=1).as_dict())
        network = open_network(judge, device="cuda" if effort.device == "cuda" else "cpu")
        write_scores(
            work / "scores", prepared, {spec.family: work / "samples"}, network.embed,
            EvaluateConfig(seed=SEED), Question(),
        )  # fmt: skip
        scored = read_json(work / "scores" / SCORES)["candidates"][spec.family]
        write_json(
            work / "figures.json",
            {
                "steps": spec.steps,
                "seconds": read_json(model / CURVES)["seconds"],
                "peak_gb": peak / 1e9,
                "seconds_each": seconds_each,
                "mmd": scored["scores"]["domain-train"]["mmd"],
                "gates": {gate["name"]: gate["outcome"] for gate in scored["gates"]},
            },
        )

    found: dict[str, Any] = read_json(run_step(folder, recipe, build) / "figures.json")
    return found


def _words(row: Mapping[str, Any]) -> str:
    mmd, gates = row["mmd"], row["gates"]
    low, high = ("-" if mmd[end] is None else f"{1000 * mmd[end]:.1f}" for end in ("low", "high"))
    cells = (
        str(row["steps"]) if row["seconds"] else "-",
        f"{row['seconds']:.0f} s",
        f"{1000 * row['seconds'] / row['steps']:.1f} s",
        f"{row['peak_gb']:.1f} GB" if row["peak_gb"] else "none",
        f"{row['seconds_each']:.2f} s",
        f"{1000 * mmd['value']:.1f} ({low} to {high})",
        gates["spread"],
        gates["high_frequency"],
    )
    return " | ".join(cells)


if __name__ == "__main__":
    main()
