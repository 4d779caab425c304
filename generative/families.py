"""The families, in one table, and the two verbs: train a generator, load one.

`train_generator` fits a codec, the Gaussian floor in its code space and a family's network, on
training persons only. Validation persons are looked at (curves, and whether the network beats
the floor); test persons are never read.
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rarescan.cohort.contracts import Cohort, Grid, Part, Scan
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.errors import InputError
from rarescan.files import Recipe, require_recipe, run_step, write_json
from rarescan.generative.anatomy import to_image
from rarescan.generative.codecs import fit_codec, in_parts, restore_codec
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Codec, Generator, Prior
from rarescan.generative.diffusion import Diffusion
from rarescan.generative.floor import Floor
from rarescan.generative.gan import Gan
from rarescan.generative.gaussian import Gaussian
from rarescan.generative.model import WEIGHTS, TrainedGenerator, read_model, save_model
from rarescan.generative.spec import Family, GeneratorSpec
from rarescan.generative.train import Plan, Record, TrainingData, choose_device, fit
from rarescan.generative.transfer import Transfer
from rarescan.generative.vae import Vae
from rarescan.threads import one_thread

FAMILIES: dict[Family, type[Prior]] = {
    "vae": Vae,
    "gan": Gan,
    "diffusion": Diffusion,
    "gaussian": Gaussian,
    "transfer": Transfer,
}
CURVES = "training.json"
_SCHEMA = 1
_FEWEST_PER_DIAGNOSIS = 2


@dataclass(frozen=True, kw_only=True)
class People:
    """Images and encoded conditions of the persons of one part, one scan a person."""

    images: Tensor
    encoded: Tensor


def train_generator(
    prepared: Path,
    folder: Path,
    spec: GeneratorSpec,
    *,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Train a generator on a prepared cohort, once; an interrupted training goes on.

    Parameters
    ----------
    prepared : Path
        A prepared cohort with a partition. Each training person's first scan is used.
    folder : Path
        Gets `spec.json`, `weights.safetensors` and `training.json` (curves, counts, verdict).
    spec : GeneratorSpec
        What to train.
    device : str
        auto, cpu or cuda. Only on the CPU are equal seeds equal bytes.
    overwrite : bool
        Replace a folder that holds another result.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    InputError
        The cohort is not prepared, has no partition, or too few persons of a diagnosis.
    SettingError
        The grid does not fit the codec or the network.
    SystemExit
        143 after SIGTERM, with a checkpoint; the same call goes on from it.
    """
    config = asdict(spec)
    seeds = {"train": config.pop("seed")}
    recipe = Recipe(
        step="train",
        schema=_SCHEMA,
        config=config,
        seeds=seeds,
        inputs={"prepared": require_recipe(prepared).id},
        found_at={"prepared": os.path.relpath(prepared, folder)},
    )
    chosen = choose_device(device)
    return run_step(
        folder, recipe, lambda work: _build(work, prepared, spec, chosen), overwrite=overwrite
    )


def load_generator(folder: Path) -> Generator:
    """Return the generator that `train_generator` wrote; nothing in the folder can run code.

    Raises
    ------
    InputError
        The folder holds no generator, or a damaged one.
    """
    stored = read_model(folder)
    try:
        codec = restore_codec(stored.spec, stored.grid, stored.under("codec."))
        floor = Floor(codec.code_shape, len(stored.encoder.diagnoses), stored.under("prior.floor."))
        prior = FAMILIES[stored.spec.family](stored.spec, floor, stored.encoder)
        prior.load_state_dict(stored.under("prior."))
    except (KeyError, RuntimeError):
        raise InputError(
            f"The weights in {folder} do not belong to its settings.",
            remedy="Train it again: `rarescan train PREPARED MODELS --overwrite`.",
        ) from None
    prior.network_kept = stored.network_kept
    return TrainedGenerator(stored.grid, codec, prior)


def _build(work: Path, prepared: Path, spec: GeneratorSpec, device: torch.device) -> None:
    if (work / CURVES).exists() and (work / WEIGHTS).exists():
        return
    cohort = open_cohort(prepared)
    encoder = ConditionEncoder.fit(
        [scan.condition for scan in _first_scans(cohort, "train").values()], spec.conditions
    )
    _require_trainable(cohort, encoder)
    train = people_of(cohort, "train", encoder)
    validation = people_of(cohort, "validation", encoder)
    with one_thread():
        codec = fit_codec(train.images, spec, folder=work / "checkpoints" / "codec", device=device)
        with torch.no_grad():
            codes = in_parts(codec.encode, train.images)
            floor = Floor.fit(codes, train.encoded, len(encoder.diagnoses))
            whitened = floor.whiten(codes)
            held_out = floor.whiten(in_parts(codec.encode, validation.images))
        prior = FAMILIES[spec.family](spec, floor, encoder)
        held = (held_out, validation.encoded)
        record = _train_prior(prior, (whitened, train.encoded), held, work, device)
        prior.cpu().eval()
        prior.close(whitened, train.encoded)
        verdict = prior.judge(*held)
    _save(work, cohort, codec, prior, {"record": record, "verdict": verdict, "device": device.type})


def _train_prior(
    prior: Prior,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    work: Path,
    device: torch.device,
) -> Record:
    spec = prior.spec
    if not prior.players():
        return Record(samples_by_class=list(prior.encoder.n_by_diagnosis))
    plan = Plan(
        steps=spec.steps,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        ema_decay=spec.ema_decay,
        checkpoint_every=spec.checkpoint_every,
        seed=spec.seed,
        label_dropout=spec.label_dropout,
    )
    data = TrainingData(
        values=train[0],
        encoded=train[1],
        classes=train[1][:, : len(prior.encoder.diagnoses)].argmax(1),
        encoder=prior.encoder if prior.learns_hidden else None,
        held_out=held_out if len(held_out[0]) > 1 else None,
    )
    folder = work / "checkpoints" / "prior"
    return fit(prior, data, plan, folder=folder, device=device, what=f"train {spec.family}")


def _save(work: Path, cohort: Cohort, codec: Codec, prior: Prior, results: dict[str, Any]) -> None:
    record: Record = results["record"]
    encoder = prior.encoder
    persons = dict(zip(encoder.diagnoses, encoder.n_by_diagnosis, strict=True))
    seen = dict(zip(encoder.diagnoses, record.samples_by_class, strict=True))
    counts = {
        "persons_by_diagnosis": persons,
        "samples_by_diagnosis": seen,
        "epochs_by_diagnosis": {d: round(seen[d] / persons[d], 2) for d in persons},
    }
    n_held_out = len(_first_scans(cohort, "validation"))
    save_model(work, _grid(cohort), codec, prior, counts)
    trained = sum(p.numel() for player in prior.players() for p in player.parameters)
    write_json(
        work / CURVES,
        {
            "family": prior.family,
            "codec": {"name": codec.name, "code_shape": codec.code_shape},
            "conditions": encoder.as_dict(),
            "parameters": trained,
            **counts,
            "validation_persons": n_held_out,
            "verdict": results["verdict"],
            "events": record.events,
            "seconds": round(record.seconds, 3),
            "device": results["device"],
            "torch": torch.__version__,
            "curve": record.curve,
        },
    )
    shutil.rmtree(work / "checkpoints", ignore_errors=True)


def _first_scans(cohort: Cohort, part: Part) -> dict[int, Scan]:
    """Return position -> scan, one scan a person: the person is the unit."""
    found: dict[str, int] = {}
    for position in cohort.indices(part):
        found.setdefault(cohort.scans[position].person_id, position)
    return {position: cohort.scans[position] for position in found.values()}


def people_of(cohort: Cohort, part: Part, encoder: ConditionEncoder) -> People:
    """Return the persons of one part; outside training, only those that can be asked for."""
    scans = _first_scans(cohort, part)
    if part != "train":
        scans = {i: scan for i, scan in scans.items() if _can_serve(encoder, scan)}
    volumes = open_volumes(cohort)
    images = [torch.from_numpy(_image(volumes[i], scan)) for i, scan in scans.items()]
    shape = (0, 2, *_grid(cohort).shape)
    encoded = encoder.encode([scan.condition for scan in scans.values()])
    return People(images=torch.stack(images) if images else torch.zeros(shape), encoded=encoded)


def _image(volume: Any, scan: Scan) -> Any:
    if not np.isfinite(volume).all() or not (volume > 0).any():
        raise InputError(
            f"Scan {scan.scan_id} is empty or has values that are no numbers.",
            remedy="Prepare the cohort again, or leave this scan out.",
        )
    return to_image(np.asarray(volume))


def _can_serve(encoder: ConditionEncoder, scan: Scan) -> bool:
    try:
        encoder.served(scan.condition)
    except InputError:
        return False
    return True


def _require_trainable(cohort: Cohort, encoder: ConditionEncoder) -> None:
    if not encoder.diagnoses:
        raise InputError(
            f"{cohort.root} has no training persons.",
            remedy="Name a cohort written by `rarescan prepare`; it has a partition.",
        )
    for diagnosis, count in zip(encoder.diagnoses, encoder.n_by_diagnosis, strict=True):
        if count < _FEWEST_PER_DIAGNOSIS:
            raise InputError(
                f"Only {count} training person has the diagnosis '{diagnosis}'.",
                remedy=f"Add persons: {_FEWEST_PER_DIAGNOSIS} a diagnosis at least to train on.",
            )


def _grid(cohort: Cohort) -> Grid:
    if cohort.grid is None:
        raise InputError(
            f"{cohort.root} is not prepared: its scans are not on one grid.",
            remedy=f"Run `rarescan prepare {cohort.root} PREPARED` and use PREPARED.",
        )
    return cohort.grid
