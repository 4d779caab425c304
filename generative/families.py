"""The families, in one table, and the two verbs: train a generator, load one.

`train_generator` fits a codec, the Gaussian floor in its code space and a family's network, on
training persons only. Validation persons are looked at (curves, and whether the network beats
the floor); test persons are never read.
"""

import logging
import os
import shutil
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rarescan.cohort.contracts import Cohort, Grid
from rarescan.cohort.planes import are_planes
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError, SettingError
from rarescan.files import Recipe, require_recipe, run_step, write_json
from rarescan.generative.code_store import (
    People,
    RowsOf,
    first_scans,
    people_of,
    rows_of_tensor,
    rows_through,
    stored,
    stored_images,
    workers_for,
)
from rarescan.generative.codecs import HaarCodec, fit_codec, require_variety, restore_codec
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Codec, Generator, Prior
from rarescan.generative.diffusion import Diffusion
from rarescan.generative.finetune import RATE, start_from
from rarescan.generative.floor import Floor
from rarescan.generative.gan import Gan
from rarescan.generative.gaussian import Gaussian
from rarescan.generative.memory import (
    code_shape,
    fitting_batch,
    footprint,
    in_gigabytes,
    require_memory,
    seconds_per_step,
)
from rarescan.generative.model import WEIGHTS, TrainedGenerator, read_model, save_model
from rarescan.generative.snapshots import Watch
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
ROWS = "rows"
"""Folder of images and codes, in the working folder, until the training is done."""
_SMALL = 2**22
"""Values in one training step that need no look at the memory: a few GB at most."""
_log = logging.getLogger("rarescan")
_SCHEMA = 1
_FEWEST_PER_DIAGNOSIS = 2


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
    plan = Plan.of(spec)
    # Where and how often checkpoints are written decides nothing, so no recipe and no model has it.
    spec = replace(spec, checkpoints="", checkpoint_minutes=GeneratorSpec.checkpoint_minutes)
    config = asdict(spec)
    seeds = {"train": config.pop("seed")}
    inputs = {"prepared": require_recipe(prepared).id}
    # The weights themselves count, and where they lie does not.
    if config.pop("codec_weights"):
        inputs["codec_weights"] = require_recipe(Path(spec.codec_weights), "import-weights").id
    if config.pop("init_from"):
        inputs["init_from"] = require_recipe(Path(spec.init_from), "train").id
    recipe = Recipe(
        step="train",
        schema=_SCHEMA,
        config=config,
        seeds=seeds,
        inputs=inputs,
        found_at={"prepared": os.path.relpath(prepared, folder)},
    )
    plan = replace(plan, training=recipe.id)
    chosen = choose_device(device)
    return run_step(
        folder, recipe, lambda work: _build(work, prepared, spec, plan, chosen), overwrite=overwrite
    )


def load_generator(folder: Path, *, device: str = "cpu") -> Generator:
    """Return the generator that `train_generator` wrote; nothing in the folder can run code.

    Parameters
    ----------
    folder : Path
        Written by `train_generator`.
    device : str
        auto, cpu or cuda: where networks draw and decode. Only on the CPU are equal seeds equal
        bytes. Principal components are decoded on the CPU whatever it is.

    Raises
    ------
    InputError
        The folder holds no generator, or a damaged one.
    MissingExtraError
        device is cuda and there is none.
    SettingError
        The GPU has not even room for one scan at a time.
    """
    chosen = choose_device(device)
    stored = read_model(folder)
    try:
        # A codec without weights is computed where its codes lie.
        with chosen:
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
    together = fitting_batch(stored, chosen)
    return TrainedGenerator(stored.grid, codec, prior.to(chosen), micro_batch=together)


def _build(
    work: Path, prepared: Path, spec: GeneratorSpec, plan: Plan, device: torch.device
) -> None:
    if (work / CURVES).exists() and (work / WEIGHTS).exists():
        return
    cohort = open_cohort(prepared)
    _require_codec(spec, _grid(cohort))
    encoder = ConditionEncoder.fit(
        [scan.condition for scan in first_scans(cohort, "train").values()], spec.conditions
    )
    _require_trainable(cohort, encoder)
    train = people_of(cohort, "train", encoder)
    validation = people_of(cohort, "validation", encoder)
    _require_room(spec, _grid(cohort), train, device)
    with one_thread():
        codec, codes, held_codes = _coded(work, (train, validation), spec, plan, device)
        kept = _kept_by(codec, validation, _grid(cohort), len(encoder.diagnoses))
        with torch.no_grad():
            floor = Floor.fit(codes, train.encoded, len(encoder.diagnoses))
            whitened = _whitened(work / ROWS / "whitened.npy", floor, codes)
            held_out = _whitened(work / ROWS / "whitened_validation.npy", floor, held_codes)
        stored_spec = replace(spec, codec_weights="", init_from="")
        prior = FAMILIES[spec.family](stored_spec, floor, encoder)
        if spec.init_from:
            start_from(prior, Path(spec.init_from))
            plan = replace(plan, learning_rate=RATE * plan.learning_rate)
        held = (held_out, validation.encoded)
        record = _train_prior(prior, (whitened, train.encoded), held, plan, work, device)
        prior.cpu().eval()
        prior.close(whitened, train.encoded)
        verdict = prior.judge(*held)
    results = {"record": record, "verdict": verdict, "device": device.type, "kept": kept}
    _save(work, cohort, codec, prior, results)


def _require_codec(spec: GeneratorSpec, grid: Grid) -> None:
    """Raise where a codec that halves three axes is to work on planes, which are no third one."""
    if not grid.is_brain and are_planes(grid.shape) and spec.codec != "pca":
        raise SettingError(
            f"The codec '{spec.codec}' needs volumes, and these scans are pictures.",
            remedy="Set the candidate's codec to pca.",
        )


def _require_room(spec: GeneratorSpec, grid: Grid, train: People, device: torch.device) -> None:
    """Say what a large training needs, and raise where the device has less."""
    n, n_features = train.encoded.shape
    if spec.batch_size * prod(code_shape(spec, grid.shape, n)) < _SMALL:
        return
    needs = footprint(spec, grid.shape, n_features, n)
    _log.info(
        "%s: %.1f million weights, about %s on %s, %s on the disk",
        spec.family,
        needs.parameters / 1e6,
        in_gigabytes(needs.training_bytes),
        device.type,
        in_gigabytes(needs.disk_bytes),
    )
    require_memory(needs, spec, device)


def _coded(
    work: Path,
    people: tuple[People, People],
    spec: GeneratorSpec,
    plan: Plan,
    device: torch.device,
) -> tuple[Codec, Tensor, Tensor]:
    """Return the fitted codec, and the codes of training and validation persons on the disk."""
    rows, (train, validation) = work / ROWS, people
    codec: Codec
    if spec.codec == "haar":
        codec = HaarCodec(train.grid_shape, spec.levels)
        sources: list[RowsOf] = [train.images_of, validation.images_of]
        workers = workers_for(train)
    else:
        images = stored_images(rows / "images.npy", train)
        folder = work / "checkpoints" / "codec"
        codec = fit_codec(images, spec, folder=folder, device=device, plan=plan)
        sources = [rows_of_tensor(images), validation.images_of]
        workers = 1
    codes = [
        stored(
            rows / f"{name}.npy",
            (len(people), *codec.code_shape),
            rows_through(codec.encode, source),
            workers=workers,
        )
        for name, people, source in zip(("codes", "codes_validation"), people, sources, strict=True)
    ]
    require_variety(codes[0])
    return codec, codes[0], codes[1]


def _kept_by(
    codec: Codec, validation: People, grid: Grid, n_diagnoses: int
) -> dict[str, Any] | None:
    """Return what a codec that loses something keeps; raise where it is too little."""
    if codec.name != "kl":
        return None
    from rarescan.generative.reconstruction import report, require_faithful

    told = report(codec, validation, grid, n_diagnoses)
    require_faithful(told)
    return told.as_dict()


def _whitened(path: Path, floor: Floor, codes: Tensor) -> Tensor:
    rows_of = rows_through(floor.whiten, rows_of_tensor(codes))
    return stored(path, tuple(codes.shape), rows_of, at_a_time=max(1, len(codes)))


def _train_prior(
    prior: Prior,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    plan: Plan,
    work: Path,
    device: torch.device,
) -> Record:
    if not prior.players():
        return Record(samples_by_class=list(prior.encoder.n_by_diagnosis))
    if prior.spec.gpus == 1:
        _say_how_long(prior, train, device)
    data = TrainingData(
        values=train[0],
        encoded=train[1],
        classes=train[1][:, : len(prior.encoder.diagnoses)].argmax(1),
        encoder=prior.encoder if prior.learns_hidden else None,
        held_out=held_out if len(held_out[0]) > 1 else None,
        watch=Watch(prior, train, held_out, seed=plan.seed),
    )
    folder = work / "checkpoints" / "prior"
    return fit(prior, data, plan, folder=folder, device=device, what=f"train {prior.family}")


def _say_how_long(prior: Prior, train: tuple[Tensor, Tensor], device: torch.device) -> None:
    seconds = seconds_per_step(prior, *train, device)
    _log.info(
        "%s: %.2g s a step in float32, about %.2g h for %d steps",
        prior.family,
        seconds,
        seconds * prior.spec.steps / 3600,
        prior.spec.steps,
    )


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
    n_held_out = len(first_scans(cohort, "validation"))
    save_model(work, _grid(cohort), codec, prior, counts)
    trained = sum(p.numel() for player in prior.players() for p in player.parameters)
    write_json(
        work / CURVES,
        {
            "family": prior.family,
            "codec": {
                "name": codec.name,
                "code_shape": codec.code_shape,
                **({"reconstruction": results["kept"]} if results["kept"] else {}),
            },
            "conditions": encoder.as_dict(),
            "parameters": trained,
            **counts,
            "validation_persons": n_held_out,
            "verdict": results["verdict"],
            "events": record.events,
            "snapshots": record.snapshots,
            "stopped": record.stopped,
            "precision": record.precision,
            "seconds": round(record.seconds, 3),
            "device": results["device"],
            "torch": torch.__version__,
            "curve": record.curve,
        },
    )
    for name in ("checkpoints", ROWS):
        shutil.rmtree(work / name, ignore_errors=True)


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
