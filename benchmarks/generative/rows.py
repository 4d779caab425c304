"""The rows of the table: what is trained, and how persons are drawn from it.

`ROWS` names them. `trained` and `drawn` are the cells of one row: folders that are built once, so
a command that was stopped goes on where it was. CPU seconds of one thread are noted beside.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import rivals
import safetensors.torch
import torch
import tutorial
from rivals import COST, SEED, WEIGHTS
from studies import Study

from rarescan.cohort.contracts import Condition, FloatArray, Scan
from rarescan.cohort.store import VOLUMES, create_volumes, open_volumes, tables, write_cohort
from rarescan.files import atomic_path, read_json, require_recipe, run_step, write_json
from rarescan.generative.conditions import draw_conditions
from rarescan.generative.families import CURVES, load_generator, train_generator
from rarescan.generative.model import TrainedGenerator
from rarescan.generative.spec import GeneratorSpec
from rarescan.seeds import derive
from rarescan.threads import one_thread

CHUNK = 8
"""Persons that are drawn before the next look at what is done."""

Draw = Callable[[Sequence[Condition], int], FloatArray]
"""Conditions and the index of the first -> volumes (n, x, y, z), 0 to 1, 0 outside the brain."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One generator of the table."""

    group: str
    spec: GeneratorSpec | None = None
    """Of ours and of the baselines."""
    objective: tutorial.Objective | None = None
    """What the tutorial's network learns."""
    solver: tutorial.Solver | None = None
    trained_as: str = ""
    """The row whose training this one draws from, with its network whether it was kept or not."""
    draws: Literal["samples", "tutorial", "slow"] = "samples"
    """Which of the three numbers of persons it draws: a thousand calls take half a minute each."""


_DIFFUSION = GeneratorSpec(family="diffusion", guidance=1.0)
ROWS: dict[str, Row] = {
    "real": Row(group="floor"),
    "diffusion": Row(group="ours", spec=_DIFFUSION),
    "diffusion-network": Row(group="ours", spec=_DIFFUSION, trained_as="diffusion"),
    "vae": Row(group="ours", spec=GeneratorSpec(family="vae")),
    "gan": Row(group="ours", spec=GeneratorSpec(family="gan")),
    "pca-gaussian": Row(group="baseline", spec=GeneratorSpec(family="gaussian")),
    "haar-gaussian": Row(group="baseline", spec=GeneratorSpec(family="gaussian", codec="haar")),
    "transfer": Row(group="baseline", spec=GeneratorSpec(family="transfer")),
    "tutorial-ddpm-1000": Row(
        group="tutorial", objective="noise", solver="ddpm-1000", draws="slow"
    ),
    "tutorial-ddim-50": Row(
        group="tutorial", objective="noise", solver="ddim-50", draws="tutorial"
    ),
    "tutorial-rflow-30": Row(
        group="tutorial", objective="flow", solver="rflow-30", draws="tutorial"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is spent on a row."""

    budget_s: float
    """CPU seconds of training of each of the tutorial's generators, half on its autoencoder."""
    persons: Mapping[str, int]
    """How many each row draws, by its `draws`."""
    steps: int | None = None
    """Steps of ours; their own settings where it is None."""


def trained(study: Study, name: str, effort: Effort) -> Path | None:
    """Return the folder with what a row trained and `cost.json`; None for real persons."""
    row = ROWS[name]
    if row.spec is not None:
        return _ours(study, row.trained_as or name, row.spec, effort)
    if row.objective is not None:
        return rivals.network(study, row.objective, effort.budget_s)
    return None


def _ours(study: Study, name: str, spec: GeneratorSpec, effort: Effort) -> Path:
    spec = spec if effort.steps is None else replace(spec, steps=effort.steps)

    def build(work: Path) -> None:
        start = time.process_time()
        train_generator(study.prepared, work / "model", spec, device="cpu")
        seconds = time.process_time() - start
        networks = spec.family in ("vae", "gan", "diffusion")
        write_json(
            work / COST, {"cpu_seconds": round(seconds, 1), "steps": spec.steps if networks else 0}
        )

    return run_step(study.root / name / "trained", study.recipe("train", asdict(spec)), build)


def cost(study: Study, name: str, model: Path | None) -> dict[str, Any]:
    """Return CPU seconds and steps of a row's training; the autoencoder's seconds are in it.

    Of ours also whether the network was kept: one that did not beat the Gaussian on validation
    persons is not used, and the row's samples are the Gaussian's.
    """
    if model is None:
        return {"cpu_seconds": 0.0, "steps": 0}
    spent: dict[str, Any] = read_json(model / COST)
    if ROWS[name].spec is not None:
        verdict = read_json(model / "model" / CURVES)["verdict"]
        spent["network_kept"] = bool(ROWS[name].trained_as) or verdict.get("network_kept")
    if ROWS[name].objective is not None:
        first = read_json(study.root / rivals.AUTOENCODER / COST)
        spent["autoencoder_steps"] = first["steps"]
        spent["cpu_seconds"] = round(spent["cpu_seconds"] + first["cpu_seconds"], 1)
    return spent


def drawn(study: Study, name: str, model: Path | None, effort: Effort) -> Path:
    """Return a synthetic cohort of the row, drawn in chunks; `cost.json` has seconds a person."""
    n = effort.persons[ROWS[name].draws]
    config: dict[str, Any] = {"row": name, "n": n, "seed": SEED}
    if model is not None:
        config["model"] = require_recipe(model).id

    def build(work: Path) -> None:
        if model is None:
            _copy_others(study, work)
            return
        conditions = draw_conditions(study.cohort(), n, SEED, parts=("train",))
        seconds = _fill(work, study, conditions, _draw(study, name, model, effort))
        scans = [_scan(i, condition) for i, condition in enumerate(conditions)]
        write_cohort(work, scans=scans, grid=study.cohort().grid, partition={})
        write_json(work / COST, {"seconds_each": seconds})

    return run_step(study.root / name / f"samples-{n}", study.recipe("sample", config), build)


def _copy_others(study: Study, work: Path) -> None:
    """Real persons that nobody learned from, as if they had been drawn."""
    cohort = study.cohort()
    rows = cohort.indices("test")
    scans = [cohort.scans[i] for i in rows]
    write_cohort(work, scans=scans, grid=cohort.grid, partition={})
    np.save(tables(work) / VOLUMES, np.asarray(open_volumes(cohort)[rows]))
    write_json(work / COST, {"seconds_each": 0.0})


def _fill(work: Path, study: Study, conditions: Sequence[Condition], draw: Draw) -> float:
    """Draw chunk by chunk; return the mean CPU seconds a person."""
    grid = study.cohort().grid
    if grid is None:
        raise SystemExit("the cohort is not prepared")
    volumes = create_volumes(work, len(conditions), grid)
    seconds = 0.0
    for first in range(0, len(conditions), CHUNK):
        done = work / f"chunk-{first:05d}.npy"
        told = done.with_suffix(".json")
        if not told.exists():
            start = time.process_time()
            made = draw(conditions[first : first + CHUNK], first)
            took = time.process_time() - start
            with atomic_path(done) as path:
                np.save(path, made)
            write_json(told, took)
        volumes[first : first + CHUNK] = np.load(done)
        seconds += float(read_json(told))
    for leftover in (*work.glob("chunk-*.npy"), *work.glob("chunk-*.json")):
        leftover.unlink()
    volumes.flush()  # type: ignore[attr-defined]
    return round(seconds / len(conditions), 4)


def _draw(study: Study, name: str, model: Path, effort: Effort) -> Draw:
    if ROWS[name].spec is not None:
        generator = cast(TrainedGenerator, load_generator(model / "model"))
        if ROWS[name].trained_as:
            generator.prior.network_kept = True

        def ours(conditions: Sequence[Condition], first: int) -> FloatArray:
            asked = [generator.served(condition) for condition in conditions]
            return np.stack(list(generator.sample(asked, SEED, first_index=first)))

        return ours
    return _tutorial_draw(study, name, model, effort)


def _tutorial_draw(study: Study, name: str, model: Path, effort: Effort) -> Draw:
    solver = ROWS[name].solver or "ddpm-1000"
    net = tutorial.network(2)
    net.load_state_dict(safetensors.torch.load_file(model / WEIGHTS))
    net.eval()
    cohort = study.cohort()
    real = open_volumes(cohort)[cohort.indices("train")]
    # Ours knows where a brain ends. The tutorial's images do not say it, so they are told as much
    # as all training persons together know: where nobody's brain is, and how dark one can be.
    inside = (real > 0).any(0)
    darkest = float(np.quantile(real[real > 0], 0.01))
    x, y, z = real.shape[1:]
    with one_thread():
        latents = rivals.latents(study, effort.budget_s)

    def theirs(conditions: Sequence[Condition], first: int) -> FloatArray:
        torch.manual_seed(derive(SEED, "draw", first))
        with one_thread(), torch.no_grad():
            made = tutorial.draw(net, latents, rivals.labels(conditions, study), (x, y, z), solver)
        volumes = made.clamp(0, 1).numpy()
        return np.asarray(np.where(inside & (volumes > darkest), volumes, 0), np.float32)

    return theirs


def _scan(index: int, condition: Condition) -> Scan:
    person = f"SYN{index + 1:06d}"
    return Scan(
        scan_id=f"{person}_ses-01_T1w",
        person_id=person,
        origin="synthetic",
        condition=condition,
        target=condition.diagnosis,
        site=condition.site,
    )
