"""The network that judges generators: trained on the training persons of the cohort itself.

`train_network` and `open_network` are the way in. It is the feature extractor `domain-train` and
the judge of condition fidelity wherever no weights of a larger study are at hand; how far it can
be trusted is measured on validation persons, whom it never saw.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rarescan.classifiers.contract import Device, choose_device
from rarescan.classifiers.examples import balanced_pools, labelled
from rarescan.classifiers.modalities import modality_of
from rarescan.classifiers.network import WEIGHTS, TrainedNetwork, load_network
from rarescan.classifiers.spec import ClassifierConfig, require_used
from rarescan.classifiers.train import as_rows, fit
from rarescan.cohort.contracts import FloatArray, Question
from rarescan.cohort.store import open_cohort
from rarescan.files import sha256_file, write_json
from rarescan.seeds import generator

MOST_FEATURES = 64
_TRAINING = "training.json"


@dataclass(frozen=True, kw_only=True)
class DomainNetwork:
    """The judge, opened."""

    trained: TrainedNetwork
    weights_sha256: str

    def embed(self, volumes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return features and class probabilities of volumes.

        Features are what the last layer sees, brought to 64 numbers by a fixed random projection
        (Johnson and Lindenstrauss 1984), which keeps distances. Measured on phantoms, principal
        components of the training persons miss more of a generator's faults and set the training
        persons apart from new ones.

        Parameters
        ----------
        volumes : float32 array, shape (n, x, y, z)
            Values 0 to 1, on the grid of the training cohort; may be a memory map.

        Returns
        -------
        features : float32 array, shape (n, d), d at most 64
            A row depends on its own volume alone, bit for bit.
        probabilities : float32 array, shape (n, 2)
            Of the negative and the positive diagnosis.

        Raises
        ------
        GridMismatchError
            The volumes are on another grid.
        """
        features, scores = self.trained.features_and_scores(volumes)
        return _projected(features), np.stack([1 - scores, scores], axis=1)


def train_network(
    prepared: Path,
    folder: Path,
    config: ClassifierConfig,
    question: Question,
    *,
    device: Device = "auto",
) -> Path:
    """Train the judge on the training persons, classes balanced, classical augmentation.

    Parameters
    ----------
    prepared : Path
        Prepared cohort with a partition.
    folder : Path
        Gets `weights.safetensors`, `network.json` and `training.json` (question, curve of the
        loss and of the validation persons' AUC, who are only watched).
    config : ClassifierConfig
        On the CPU one seed gives the same bytes.
    question : Question
        The positive and the negative diagnosis.
    device : {"auto", "cpu", "cuda"}

    Raises
    ------
    InputError
        Training persons have only one of the two diagnoses.
    """
    require_used(config)
    cohort = open_cohort(prepared)
    examples = labelled(cohort, question, "train")
    trained, looks = fit(
        examples,
        balanced_pools(examples, config.batch_size),
        config,
        modality=modality_of(cohort),
        device=choose_device(device),
        watched=labelled(cohort, question, "validation"),
    )
    trained.save(folder)
    write_json(folder / _TRAINING, {"question": asdict(question), "curve": as_rows(looks)})
    return folder


def open_network(folder: Path, *, device: Device = "auto") -> DomainNetwork:
    """Open what `train_network` wrote.

    Raises
    ------
    InputError
        The folder holds no such network, or its files are damaged.
    """
    trained = load_network(folder, device)
    return DomainNetwork(trained=trained, weights_sha256=sha256_file(folder / WEIGHTS))


def _projected(features: FloatArray) -> FloatArray:
    """Return features in at most 64 dimensions; row by row, so that no row sees another."""
    n_features = features.shape[1]
    if n_features <= MOST_FEATURES:
        return features
    random = generator(0, "projection", n_features)
    projection = random.normal(size=(n_features, MOST_FEATURES)) / np.sqrt(MOST_FEATURES)
    return np.array([row @ projection for row in features], dtype=np.float32)
