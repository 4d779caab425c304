"""A run folder as the steps leave it, written by hand: the report's input."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter

from rarescan.cohort.contracts import Condition, FeatureSet, Gate, Scan, Score, brain_grid
from rarescan.cohort.store import (
    create_volumes,
    open_cohort,
    read_scans,
    write_cohort,
    write_events,
)
from rarescan.cohort.template import load_template, regions
from rarescan.evaluation.features import save_features
from rarescan.evaluation.membership import BLACK_BOX
from rarescan.files import Recipe, write_json

PARTS = ("train", "train", "train", "validation", "test")
FAMILIES = ("vae", "gan", "diffusion")
BLURS = [{"sd_voxels": 0.3, "power": 0.41}, {"sd_voxels": 0.5, "power": 1.0}]
REGIONS = tuple(
    f"{n}_{side}" for n in ("frontal", "insula", "parietal") for side in ("left", "right")
)


def _score(name: str, value: float, half: float | None = None, **more: Any) -> dict[str, Any]:
    low, high = (None, None) if half is None else (value - half, value + half)
    return asdict(Score(name=name, value=value, low=low, high=high, **more))


def _recipe(folder: Path, step: str, **inputs: str) -> str:
    recipe = Recipe(step=step, schema=1, inputs=inputs)
    write_json(folder / "recipe.json", {"id": recipe.id, **recipe.as_dict()})
    return recipe.id


def _person(index: int, patient: bool, spacing_mm: float, noise: float) -> np.ndarray:
    """Return the template, a little larger or smaller, uneven, and thinner in front in patients."""
    random = np.random.default_rng([index, patient])
    template = load_template(spacing_mm)
    volume = template.t1 / 1.05
    if patient:
        frontal = sum(v for k, v in regions(template.grid).items() if k.startswith("frontal"))
        volume = volume * (1 - 0.45 * np.clip(frontal, 0, 1))
    turn = np.diag(1 + random.normal(0, 0.02, 3))
    middle = (np.array(volume.shape) - 1) / 2
    out = affine_transform(volume, turn, offset=middle - turn @ middle, order=1)
    rough = gaussian_filter(random.normal(0, 1, out.shape), 1.0)
    out = np.where(out > 0.05, out + noise * rough / rough.std(), 0)
    return np.clip(out, 0, 1).astype(np.float32)


def _fill(root: Path, prefix: str, diagnoses: list[str], spacing_mm: float, noise: float) -> None:
    """Write a cohort of persons; every fifth tests, every fifth validates."""
    grid = brain_grid(spacing_mm)
    persons = [f"{prefix}{i:04d}" for i in range(len(diagnoses))]
    scans = [
        Scan(
            scan_id=f"{person}-1",
            person_id=person,
            origin="synthetic" if prefix == "SYN" else "real",
            condition=Condition(diagnosis=diagnosis),
            site=f"site{index % 2}",
            licence="" if prefix == "SYN" else "CC0",
        )
        for index, (person, diagnosis) in enumerate(zip(persons, diagnoses, strict=True))
    ]
    partition = {} if prefix == "SYN" else {p: PARTS[i % 5] for i, p in enumerate(persons)}
    about: dict[str, Any] = {"n_files": 3210, "x": "s", "reasons": {"NOT_HEAD": "shows no head"}}
    about["smallest_group"] = {"persons": 2, "groups": 9, "alone": 0}
    write_cohort(root, scans=scans, grid=grid, partition=partition, about=about)
    volumes = create_volumes(root, len(scans), grid)
    base = sum(map(ord, prefix + root.name)) * 1000
    for index, diagnosis in enumerate(diagnoses):
        volumes[index] = _person(base + index, diagnosis != "control", spacing_mm, noise)
    volumes.flush()


def _candidate(rank: int, patient: str) -> dict[str, Any]:
    n = {"n_real": 8, "n_synthetic": 10, "extractor": "domain-train"}
    outcome = ("pass", "fail", "pass")[rank]
    attack = {"auc": 0.51, "low": 0.36, "high": 0.65, "n_training": 24, "n_validation": 8}
    scores = {
        "mmd": _score("mmd", 0.031 + 0.02 * rank, 0.02, **n),
        "kid": _score("kid", 0.12 + 0.01 * rank, 0.03, **n),
        "fid": _score("fid", 3.4 + rank, 0.5, sufficient=False, **n),
        "is": _score("is", 1.6, better="neither", sufficient=False, **n),
        **{
            name: _score(name, 0.8 - 0.1 * rank, better="higher", **n)
            for name in ("precision", "recall", "density", "coverage")
        },
    }
    return {
        "scores": {"domain-train": scores, "regions": {"mmd": _score("mmd", 0.02, 0.01, **n)}},
        "gates": [
            asdict(
                Gate(name="spread", outcome=outcome, statistic=-0.12, limit=-0.288, reason="ok")
            ),
            asdict(Gate(name="copies", outcome="insufficient", reason="8 validation persons")),
        ],
        "condition_fidelity": {
            "agreement": _score("agreement", 0.9, 0.05, n_synthetic=10),
            "by_diagnosis": {patient: _score("agreement", 0.88, 0.08, n_synthetic=5)},
            "auc": _score("auc", 0.97, 0.02),
            "age": {k: _score("age", 0.6, 0.1) for k in ("real", "synthetic")},
        },
        "by_diagnosis": {
            patient: {"scores": {"mmd": scores["mmd"]}, "floor": {"mmd": _score("mmd", 0.0, 0.01)}},
            "control": {"scores": {}, "floor": {}},
        },
        "diversity": {
            "vendi_ratio": _score("vendi_ratio", 0.93, 0.05),
            "ms_ssim": _score("ms_ssim", 0.61, 0.02),
            "ms_ssim_real": None,
        },
        "spread": {"outcome": outcome, "statistic": -0.12, "power_at_37pct_loss": 0.62},
        "high_frequency": {"hf_excess": rank == 0, "power_at_blur": BLURS if rank else None},
        "plausibility": {
            "implausible": 2,
            "n": 10,
            "share_low": 0.025,
            "share_high": 0.556,
            "measures": {"ventricles": 2, "fluid": 1},
            "outliers": [{"scan": "SYN0007", "measures": ["ventricles", "fluid"]}],
        },
        "privacy": {
            "flagged": 0,
            "n": 10,
            "outcome": "insufficient",
            "threshold": 0.71,
            "upper_bound": 0.259,
            "canary_power": {"exact": {"found": 20, "planted": 20, "low": 0.861}},
            "above_strangers": 1,
            "n_validation": 8,
            "membership": [
                {**attack, "permutation_p": 0.146, "attack": BLACK_BOX},
                {**attack, "auc": 0.91, "attack": "likelihood"},
            ],
            "feature_nearness": {"batch_p": 0.31, "n_validation": 8, "suspicious": [4]},
            "nearest": [
                {"index": i, "person_id": f"P{i:04d}", "score": 0.7 - 0.02 * i, "flagged": False}
                for i in (3, 1)
            ],
        },
        "regions": {
            r: {"real": -1.2 + 0.3 * i, "synthetic": -1.0 + 0.25 * i, "real_se": 0.3}
            for i, r in enumerate(REGIONS)
        },
    }


def _evaluate(run: Path, patient: str) -> None:
    write_json(
        run / "evaluation" / "scores.json",
        {
            "extractors": {"primary": "domain-train", "weights_sha256": "0" * 64},
            "network": {
                "auc": _score("auc", 0.981, 0.01, n_real=8),
                "accuracy": _score("accuracy", 0.93, 0.04, n_real=8),
            },
            "floor": {
                name: _score(name, value, value, n_real=24, n_synthetic=8)
                for name, value in (("mmd", 0.004), ("kid", 0.01), ("fid", 1.9))
            },
            "candidates": {name: _candidate(rank, patient) for rank, name in enumerate(FAMILIES)},
        },
    )
    _recipe(run / "evaluation", "evaluate", prepared="p" * 16)


def _train(run: Path) -> None:
    for rank, family in enumerate(FAMILIES):
        curves = [
            {
                "step": 10 * i,
                "loss": 1 / (i + 1) + 0.1 * rank,
                "validation_loss": 1 / (i + 1) + 0.15 if i % 5 == 0 and family != "gan" else None,
            }
            for i in range(60)
        ]
        write_json(
            run / "models" / family / "training.json",
            {
                "curve": curves,
                "seconds": 80.0 + rank,
                "parameters": 123456 * (rank + 1),
                "verdict": {"network_kept": False} if family == "diffusion" else {},
                "events": [{"event": "not finite"}] * rank,
            },
        )
        _recipe(run / "models" / family, "train", prepared="p" * 16)


def _look(run: Path, family: str) -> None:
    """Write features of real and of a candidate's persons: blocks of their own brightness."""
    cohort = open_cohort(run / "prepared")
    parts = {part: cohort.indices(part) for part in ("train", "validation")}
    sets = {name: (run / "prepared", rows) for name, rows in parts.items() if rows}
    samples = run / "evaluation" / "samples" / family
    sets[family] = (samples, list(range(len(read_scans(samples)))))
    for name, (root, rows) in sets.items():
        volumes = np.load(root / "rarescan" / "volumes.npy", mmap_mode="r")[rows]
        persons = tuple(read_scans(root)[row].person_id for row in rows)
        blocks = volumes[:, ::5, ::6, ::5].reshape(len(rows), -1)
        found = FeatureSet(values=blocks, person_ids=persons, extractor="domain-train")
        save_features(run / "evaluation" / "features", name, found)


def _selection() -> dict[str, Any]:
    row = {"n_real": 8, "n_synthetic": 10, "in_set": True, "p_holm": None, "farther_by_se": None}
    row |= {"family": "vae", "value": 0.031, "low": 0.011, "high": 0.051, "farther_by": 0.0}
    other = row | {"id": "diffusion", "p_holm": 0.623, "farther_by": 0.02, "farther_by_se": 0.03}
    return {
        "rule": "Gates first.",
        "champion": "champion-2",
        "n_persons": 8,
        "reference_id": "r1",
        "heldout_uses": 2,
        "level": 0.025,
        "candidates": [
            row | {"id": "vae", "seconds_per_scan": 0.5},
            other | {"seconds_per_scan": None},
        ],
        "could_not_separate": ["vae", "diffusion"],
        "persons_needed": 147.4,
        "disagreeing": {"regions": ["gan"]},
        "against_champion": {"vae": {"difference": -0.02, "se": 0.01, "p": 0.02}},
    }


def _decide(run: Path, verdict: str) -> None:
    chosen = None if verdict == "refuse" else "vae"
    champion = {
        "candidate": "vae",
        "family": "vae",
        "model_uri": "models:/rarescan/3",
        "version": "3",
        "permitted_use": "inside_controller",
    }
    write_json(
        run / "decision" / "decision.json",
        {
            "decision_id": "d1",
            "verdict": verdict,
            "chosen": chosen,
            "permitted_use": "inside_controller",
            "gates": {},
            "reasons": [["smallest_distance", "vae lies nearest to the held-out persons."]],
            "scores": {},
            "selection": _selection(),
            "champion": champion if chosen else None,
        },
    )
    _recipe(run / "decision", "select", evaluation="e" * 16)


def _retrain(run: Path, verdict: str) -> None:
    arms = ("placebo", "classical", "classical_synthetic", "oversampled", "real")
    scores = {
        arm: {
            name: _score(name, value + 0.01 * rank, 0.1, n_real=8, better="higher")
            for name, value in (
                ("auc", 0.80),
                ("balanced_accuracy", 0.71),
                ("sensitivity", 0.6),
                ("specificity", 0.82),
            )
        }
        for rank, arm in enumerate(arms)
    }
    value, low, high = {
        "use": (0.06, 0.01, 0.11),
        "undecided": (0.013, -0.04, 0.066),
        "do_not_use": (-0.01, -0.05, 0.015),
        "worse": (-0.06, -0.1, -0.02),
    }[verdict]
    gain = {"value": value, "low": low, "high": high, "against": "classical", "n": 8}
    write_json(
        run / "classifiers" / "gain.json",
        {
            "arms": scores,
            "roc": {
                arm: {"fpr": [0, 0, 0.2 + 0.05 * i, 1], "tpr": [0, 0.6, 0.9, 1]}
                for i, arm in enumerate(arms)
            },
            "gain": gain | {"arm": "classical_synthetic", "method": "paired DeLong"},
            "gain_to_real": {**gain, "value": value + 0.02, "against": "real"},
            "placebo": {**gain, "value": -0.09, "low": -0.15, "high": -0.03},
            "linear": {"arms": {"real": scores["real"]}, "gain": gain},
            "verdict": "do_not_use" if verdict == "worse" else verdict,
            "sentence": f"With 8 persons the difference was {value}.",
        },
    )
    _recipe(run / "classifiers", "retrain", synthetic="s" * 16)


def _generate(run: Path, diagnoses: list[str], spacing_mm: float) -> None:
    _fill(run / "synthetic", "SYN", diagnoses, spacing_mm, 0.02)
    write_json(
        run / "synthetic" / "batch.json",
        {
            "batch_id": "b1",
            "model_uri": "models:/rarescan/3",
            "model_sha256": "1" * 64,
            "seed": 7,
            "n": len(diagnoses),
            "decision_id": "d1",
            "permitted_use": "inside_controller",
        },
    )
    _recipe(run / "synthetic", "generate", decision="d" * 16)


def build_run(
    run: Path,
    *,
    until: str = "retrain",
    verdict: str = "undecided",
    patient: str = "bvFTD",
    spacing_mm: float = 8,
    n_persons: int = 40,
) -> Path:
    """Write a run folder up to one of: prepare, evaluate, refuse, select, generate, retrain."""
    diagnoses = [patient if i % 3 == 0 else "control" for i in range(n_persons)]
    _fill(run / "prepared", "P", diagnoses, spacing_mm, 0.03)
    _recipe(run / "prepared", "prepare", cohort="c" * 16)
    stack = {"stack_id": "s1", "detail": {}}
    events = [
        {**stack, "person_id": "P0001", "code": "LOCALIZER", "action": "drop", "n_files": 3},
        {**stack, "person_id": "P0002", "code": "LOCALIZER", "action": "drop", "n_files": 3},
        {**stack, "person_id": "Q0001", "code": "TRUNC_PIXELS", "action": "quar", "n_files": 110},
        {**stack, "person_id": "P0001", "code": "PREAMBLE_DATA", "action": "fix", "n_files": 9},
    ]
    write_events(run / "cohort", events)
    not_head = {
        **stack,
        "person_id": "Q0002",
        "code": "NOT_HEAD",
        "action": "quarantine",
        "n_files": None,
    }
    write_events(run / "prepared", [not_head])
    for step, seconds in (("prepare", 61.0), ("ingest", 30.5), ("train-vae", 80.0)):
        record = {"step": step, "id": "i", "seconds": seconds, "peak_memory_mb": 100 + seconds}
        write_json(run / "recipes" / f"{step}.json", record | {"versions": {"numpy": "2.2"}})
    steps = ("prepare", "evaluate", "select", "generate", "retrain")
    last = steps.index("select" if until == "refuse" else until)
    if last >= 1:
        _train(run)
        _evaluate(run, patient)
        for family, noise in zip(FAMILIES, (0.02, 0.1, 0.01), strict=True):
            folder = run / "evaluation" / "samples" / family
            _fill(folder, "SYN", [patient, "control"] * 5, spacing_mm, noise)
            _look(run, family)
    if last >= 2:
        _decide(run, "refuse" if until == "refuse" else "register")
    if last >= 3:
        _generate(run, [patient] * 10, spacing_mm)
    if last >= 4:
        _retrain(run, verdict)
    return run
