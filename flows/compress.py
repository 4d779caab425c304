"""A classifier made small enough for the machine at the bedside, and proof that it is the same.

`compress` is the way in. What the reader would get wrong: the network must have been trained on
the partition of this very cohort; a network of one fold has seen persons who would judge it here.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rarescan.configs.schema import RunConfig
from rarescan.errors import InputError
from rarescan.files import Recipe, read_json, read_recipe, require_recipe, run_step
from rarescan.flows.plan import relative

if TYPE_CHECKING:
    from rarescan.classifiers.compression.forms import Persons
    from rarescan.classifiers.network import TrainedNetwork

_FOLDS = "folds"


def compress(
    config: RunConfig, model: Path, prepared: Path, folder: Path, *, overwrite: bool = False
) -> Path:
    """Write the table of smaller forms of a network, and the one that loses nothing that counts.

    Parameters
    ----------
    config : RunConfig
        `compress` (forms, limits), `classify.flags` and `question` (which scans), `device`.
    model : Path
        A network that was trained on the cohort's partition: `model` of what `rarescan classify`
        wrote, or a network of `rarescan retrain`.
    prepared : Path
        The prepared cohort that it was trained on.
    folder : Path
        Gets `compress.json`, `model/` (ONNX) and `forms/`.

    Raises
    ------
    InputError
        The network was trained on another cohort or on folds, or parts lack persons.
    """
    recipe = Recipe(
        step="compress",
        schema=2,
        config={
            "compress": asdict(config.compress),
            "flags": config.classify.flags,
            "question": asdict(config.question),
        },
        inputs={
            "model": _trained_here(model, prepared).id,
            "weights": _weights_sha256(model),
            "prepared": require_recipe(prepared).id,
        },
        found_at={"model": relative(model, folder), "prepared": relative(prepared, folder)},
    )

    def build(work: Path) -> None:
        from rarescan.classifiers.compression import compress as room
        from rarescan.classifiers.network import load_network
        from rarescan.classifiers.package import PACKAGE, open_package

        packaged = (model / PACKAGE).exists()
        trained = (open_package if packaged else load_network)(model, config.device)
        room.compress(work, trained, _persons(config, prepared, trained), config.compress)

    return run_step(folder, recipe, build, overwrite=overwrite)


def _trained_here(model: Path, prepared: Path) -> Recipe:
    """Return the recipe of the step that trained a network on this cohort's partition."""
    places = [model.resolve(), *model.resolve().parents]
    step = next((place for place in places if read_recipe(place) is not None), None)
    if step is None:
        raise InputError(
            f"{model} lies in no folder that rarescan finished.",
            remedy="Name `model` of a folder written by `rarescan classify`.",
        )
    recipe = require_recipe(step)
    if _FOLDS in model.resolve().relative_to(step).parts:
        raise InputError(
            "This is the network of one fold: persons who would judge it here have trained it.",
            remedy=f"Name {step / 'model'}, which was trained on the partition's persons.",
        )
    if recipe.inputs.get("prepared") != require_recipe(prepared).id:
        raise InputError(
            f"The network in {model.name} was not trained on {prepared}.",
            remedy="Name the prepared cohort that it was trained on.",
        )
    return recipe


def _weights_sha256(model: Path) -> str:
    try:
        return str(read_json(model / "network.json")["weights_sha256"])
    except (FileNotFoundError, NotADirectoryError, KeyError, ValueError):
        raise InputError(
            f"{model} holds no network.",
            remedy="Name `model` of a folder written by `rarescan classify`.",
        ) from None


def _persons(config: RunConfig, prepared: Path, trained: "TrainedNetwork") -> "Persons":
    """Return the scans of the classes that a network tells apart, by part of the partition."""
    import numpy as np

    from rarescan.classifiers.compression.forms import Persons
    from rarescan.classifiers.contract import BINARY
    from rarescan.classifiers.examples import Examples, labelled
    from rarescan.classifiers.folds import examples_of
    from rarescan.classifiers.splits import label_table
    from rarescan.cohort.contracts import Part
    from rarescan.cohort.store import open_cohort

    cohort = open_cohort(prepared)
    settings = replace(
        config.classify, classes=trained.labels.names, scheme=trained.labels.scheme, leaky=False
    )

    def part_of(part: Part) -> Examples:
        if trained.labels == BINARY:
            return labelled(cohort, config.question, part)
        own = [i for i, p in enumerate(table.person_ids) if cohort.partition.get(p) == part]
        return examples_of(cohort, table, np.array(own, dtype=np.int64))

    if trained.labels != BINARY:
        table = label_table(cohort, settings, trained.modality)
    return Persons(train=part_of("train"), validation=part_of("validation"), test=part_of("test"))
