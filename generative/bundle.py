"""A generator as a MONAI bundle, which `python -m monai.bundle run` samples from without our code.

`export_bundle` is the way in. A bundle leaves the building, so it is made as `push` sends: of a
model for which every gate passed, or, where that is asked for, of another one, and then it says
that it stays inside. There is no person, no pseudonym, no name of a site and no path in it; of
`transfer`, which keeps real persons' anatomy, there is none at all.
"""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import jinja2
import numpy as np
import torch

from rarescan._version import VERSION
from rarescan.cohort.contracts import Condition, PermittedUse
from rarescan.errors import GateRefusedError, InputError
from rarescan.files import (
    Recipe,
    read_json,
    require_recipe,
    run_step,
    sha256_file,
    write_atomic,
    write_json,
)
from rarescan.generative.families import load_generator
from rarescan.generative.model import WEIGHTS, TrainedGenerator
from rarescan.generative.program import load_program, sampling_program, unknown_condition
from rarescan.seeds import derive
from rarescan.threads import one_thread

STEP = "export-bundle"
SAME_LIMIT = 1e-4
"""Largest difference of a voxel (0 to 1) between the bundle's volume and the generator's."""
_SCHEMA = 1
_BUNDLE_VERSION = "1.0.0"
_ERASED = "erased.json"
"""What `rarescan erase` leaves in a folder that learned from the person."""
_NO_LICENCE = "not stated: ask the controller of the cohort"
_FIRE = "0.7.0"
"""What MONAI's command line is made of; we do not need it ourselves."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the gates said of a model."""

    permitted_use: PermittedUse
    gates: tuple[tuple[str, str], ...] = ()
    """(name, outcome)."""
    decision_id: str = ""

    @property
    def open_gates(self) -> list[str]:
        """The gates that did not pass."""
        return [f"{name}: {outcome}" for name, outcome in self.gates if outcome != "pass"]


def export_bundle(
    model: Path,
    folder: Path,
    *,
    decision: Path | None = None,
    licence: str = "",
    despite_gates: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a bundle, once, and check that it gives the generator's volumes.

    Parameters
    ----------
    model : Path
        A folder written by `rarescan train`.
    folder : Path
        Gets `configs/inference.json`, `configs/metadata.json`, `models/model.ts` (TorchScript)
        and `docs/README.md`.
    decision : Path, optional
        The decision that judged the model; without it the one of the model's run.
    licence : str
        Under which the weights are given away; stands in the bundle as it is.
    despite_gates : bool
        Export although not every gate passed: for use inside the controller only.
    overwrite : bool
        Replace a folder that holds another result.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    GateRefusedError
        Not every gate passed, or there is no decision, and `despite_gates` is false; the model
        keeps real persons' anatomy; or it learned from a person who was erased.
    InputError
        The folder holds no generator, or the decision is about other models.
    """
    recipe_id = require_recipe(model, "train").id
    generator = cast(TrainedGenerator, load_generator(model))
    _require_nobody_in_it(model, generator.near_copies)
    standing = _standing(model, recipe_id, decision)
    if standing.permitted_use != "release" and not despite_gates:
        why = "; ".join(standing.open_gates) or "no gate was checked"
        raise GateRefusedError(
            f"This model may be used inside the hospital only ({why}), and a bundle leaves it.",
            remedy="Export a model that passed every gate (name its decision with --decision), or "
            "add --despite-gates for use inside: the bundle then says so.",
        )
    recipe = Recipe(
        step=STEP,
        schema=_SCHEMA,
        config={"licence": licence, "permitted_use": standing.permitted_use},
        inputs={
            "model": recipe_id,
            "weights": sha256_file(model / WEIGHTS),
            "decision": standing.decision_id,
        },
        # No `found_at`: a path may name a person, and this folder travels.
    )

    def build(work: Path) -> None:
        data = sampling_program(generator)
        difference = require_same_volumes(generator, data)
        write_atomic(work / "models" / "model.ts", data)
        facts = {
            "recipe_id": recipe_id,
            "weights_sha256": recipe.inputs["weights"],
            "model_ts_sha256": hashlib.sha256(data).hexdigest(),
            "largest_difference": difference,
            "permitted_use": standing.permitted_use,
            "gates": dict(standing.gates),
            "decision_id": standing.decision_id,
            "licence": licence or _NO_LICENCE,
        }
        trained = read_json(model / "training.json")
        write_json(work / "configs" / "inference.json", inference_config(generator))
        write_json(work / "configs" / "metadata.json", _metadata(generator, facts, trained))
        write_atomic(work / "docs" / "README.md", _readme(generator, facts, trained))

    return run_step(folder, recipe, build, overwrite=overwrite)


def _require_nobody_in_it(model: Path, near_copies: bool) -> None:
    if near_copies:
        raise GateRefusedError(
            "This generator keeps real persons' anatomy; it is never given away.",
            remedy="Export another family (vae, gan, diffusion or gaussian).",
        )
    if (model / _ERASED).exists():
        raise GateRefusedError(
            "This generator learned from a person who was erased since.",
            remedy="Train it again without that person, and export that one.",
        )


def _standing(model: Path, recipe_id: str, decision: Path | None) -> Standing:
    """Return what the decision says of this very model (found by its recipe)."""
    if decision is None:
        decision = model.resolve().parent.parent / "decision"
        if not (decision / "decision.json").exists():
            return Standing(permitted_use="inside_controller")
    judged = require_recipe(decision, "select")
    stored = read_json(decision / "decision.json")
    evaluation = require_recipe(decision / judged.found_at["evaluation"], "evaluate")
    names = [n for n, i in evaluation.inputs.items() if i == recipe_id and n in stored["gates"]]
    if not names:
        raise InputError(
            f"The decision in {decision} is not about this model.",
            remedy="Name the decision of the run that the model belongs to with --decision.",
        )
    gates = tuple((g["name"], g["outcome"]) for g in stored["gates"][names[0]])
    passed = bool(gates) and all(outcome == "pass" for _, outcome in gates)
    return Standing(
        permitted_use="release" if passed else "inside_controller",
        gates=gates,
        decision_id=judged.id,
    )


def require_same_volumes(generator: TrainedGenerator, data: bytes) -> float:
    """Return the largest difference between the program's volumes and the generator's.

    One volume a diagnosis is compared. Raises `RuntimeError` above `SAME_LIMIT`.
    """
    program, worst = load_program(data), 0.0
    for number, diagnosis in enumerate(generator.diagnoses):
        seed = derive(0, number, "noise")
        noise = torch.randn(
            generator.prior.noise_size, generator=torch.Generator("cpu").manual_seed(seed)
        )
        condition = unknown_condition()
        condition[0, 0] = number
        # Torch would spend more on optimising the program than two runs of it take.
        with one_thread(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            volume = program(noise[None], condition)[0].numpy()
        wanted = next(generator.sample([Condition(diagnosis=diagnosis)], 0, first_index=number))
        worst = max(worst, float(np.abs(volume - wanted).max()))
    if worst > SAME_LIMIT:
        raise RuntimeError(f"the exported program differs from the generator by {worst:.2g}")
    return worst


def inference_config(generator: TrainedGenerator) -> dict[str, Any]:
    """Return `configs/inference.json`: one volume a run, the one that our sampler would give."""
    unknown = "$float('nan') if @{0} is None else float(@{0})"
    noise_seed = (  # `seeds.derive(seed, index, "noise")`
        "$int.from_bytes(hashlib.sha256(':'.join([str(@seed), str(@index), 'noise']).encode())"
        ".digest()[:8], 'big') >> 1"
    )
    return {
        "imports": ["$import hashlib", "$import numpy as np", "$import torch"],
        "bundle_root": ".",
        "seed": 0,
        "index": 0,
        "diagnosis": generator.diagnoses[0],
        "age_years": None,
        "sex": None,
        "site": None,
        "severity": None,
        "output": "$@bundle_root + '/synthetic_seed-%d_index-%d.nii.gz' % (@seed, @index)",
        "diagnoses": list(generator.diagnoses),
        "noise_size": generator.prior.noise_size,
        "affine": [list(row) for row in generator.grid.affine],
        "network": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location='cpu')",
        "noise_seed": noise_seed,
        "random": "$torch.Generator('cpu').manual_seed(@noise_seed)",
        "noise": "$torch.randn(@noise_size, generator=@random)[None]",
        "condition_values": [
            "$float(@diagnoses.index(@diagnosis))",
            unknown.format("age_years"),
            "${'F': 1.0, 'M': -1.0, None: float('nan')}[@sex]",
            "$float('nan') if @site is None else float(@site) - 1",
            unknown.format("severity"),
        ],
        "condition": "$torch.tensor([@condition_values], dtype=torch.float64)",
        "volume": "$@network(@noise, @condition)[0].numpy()",
        "writer": {"_target_": "NibabelWriter"},
        "initialize": ["$torch.set_num_threads(1)"],
        "run": [
            "$@writer.set_data_array(@volume, channel_dim=None)",
            "$@writer.set_metadata({'affine': np.array(@affine)}, resample=False)",
            "$@writer.write(@output)",
        ],
    }


def _metadata(
    generator: TrainedGenerator, facts: dict[str, Any], trained: dict[str, Any]
) -> dict[str, Any]:
    """Return `configs/metadata.json`, as MONAI's bundle specification wants it."""
    persons = sum(trained["persons_by_diagnosis"].values())
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": _BUNDLE_VERSION,
        "changelog": {_BUNDLE_VERSION: f"exported by rarescan {VERSION}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel"), "fire": _FIRE},
        "name": f"Synthetic brain MRI ({generator.family})",
        "task": "Generation of synthetic, skull-stripped T1-weighted brains given a diagnosis",
        "description": "Noise and a condition in, one volume out; made for training classifiers "
        "on real and synthetic persons together.",
        "authors": "the controller of the cohort, with rarescan",
        "copyright": f"Licence of the weights: {facts['licence']}",
        "data_source": f"one hospital cohort, n = {persons} training persons; no data included",
        "data_type": "synthetic volumes",
        "intended_use": "research; not for clinical decisions; "
        f"permitted use: {facts['permitted_use']}",
        "rarescan": {
            "version": VERSION,
            "family": generator.family,
            "codec": generator.spec.codec,
            **facts,
        },
        "network_data_format": _data_format(generator),
    }


def _data_format(generator: TrainedGenerator) -> dict[str, Any]:
    def tensor(kind: str, shape: list[int], dtype: str, **more: Any) -> dict[str, Any]:
        common = {"num_channels": 1, "spatial_shape": shape, "dtype": dtype}
        return {"type": kind, **common, "is_patch_data": False, **more}

    return {
        "inputs": {
            "noise": tensor(
                "noise",
                [generator.prior.noise_size],
                "float32",
                format="gaussian",
                value_range=[],
                channel_def={"0": "standard normal numbers"},
            ),
            "condition": tensor(
                "condition",
                [5],
                "float64",
                format="vector",
                value_range=[],
                channel_def={"0": "diagnosis from 0, age in years, sex, site from 0, severity"},
            ),
        },
        "outputs": {
            "pred": tensor(
                "image",
                list(generator.grid.shape),
                "float32",
                format="magnitude",
                modality="MR",
                value_range=[0, 1],
                channel_def={"0": "T1w"},
            )
        },
    }


def _readme(generator: TrainedGenerator, facts: dict[str, Any], trained: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    encoder = generator.prior.encoder
    return environment.get_template("bundle.md").render(
        facts=facts,
        trained=trained,
        family=generator.family,
        codec=generator.spec.codec,
        grid=generator.grid,
        encoder=encoder,
        rarescan_version=VERSION,
    )
