"""A classifier as it is handed on: weights, what they are for, and a pair that proves them.

`write_package` and `open_package` are the way in. Who opens a package runs one stored input
through it first: another preparation, other weights or a network left in training mode is found
before the first person is scored.
"""

from collections.abc import Sequence
from pathlib import Path

from rarescan.classifiers.contract import Device
from rarescan.classifiers.golden import check_golden, invent_golden
from rarescan.classifiers.network import TrainedNetwork, load_network
from rarescan.files import content_id, write_json

PACKAGE = "package.json"


def write_package(
    folder: Path, trained: TrainedNetwork, *, unit: str, persons: Sequence[str]
) -> None:
    """Write a network with what a user of it must know.

    Parameters
    ----------
    folder : Path
        Gets `weights.safetensors`, `network.json`, `package.json` and the golden pair.
    trained : TrainedNetwork
    unit : str
        What one image is: frame, film, volume.
    persons : sequence of str
        Pseudonyms of everybody who was fitted or calibrated on; only their hash is kept.
    """
    trained.save(folder)
    invent_golden(folder, trained.probabilities, trained.shape)
    write_json(
        folder / PACKAGE,
        {
            "classes": list(trained.labels.names),
            "scheme": trained.labels.scheme,
            "shape": list(trained.shape),
            "modality": trained.modality.name,
            "values": "0 to 1, as `rarescan prepare` stores them",
            "unit": unit,
            "aggregation": "mean of probabilities, scan to item to person",
            "temperature": trained.temperature,
            "n_persons": len(persons),
            "persons_id": content_id(sorted(persons)),
        },
    )


def open_package(folder: Path, device: Device = "auto") -> TrainedNetwork:
    """Open what `write_package` wrote, and check it against its golden pair.

    Raises
    ------
    InputError
        The folder holds no network, or it does not answer as it did when it was written.
    """
    trained = load_network(folder, device)
    check_golden(folder, trained.probabilities)
    return trained
