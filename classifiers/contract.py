"""What every classifier has in common, whatever it looks at.

A `Modality` is how images become a network's input and which network that is; `mri.MRI` is one.
`Labels` are what is told apart. A `Classifier` is anything trained that gives each scan a
probability. What the reader would get wrong: a score belongs to a person, the mean over that
person's scans (`group_means`).
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch

from rarescan.classifiers.spec import ClassifierConfig
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import GridMismatchError, MissingExtraError

Device = Literal["auto", "cpu", "cuda"]
Shape = tuple[int, ...]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is told apart, in order."""

    names: tuple[str, ...]
    scheme: Literal["classes", "ordinal"] = "classes"
    """`ordinal`: grades from the mildest to the worst."""

    @property
    def binary(self) -> bool:
        """Two classes: one logit, of the second."""
        return len(self.names) == 2

    @property
    def n_logits(self) -> int:
        """How many numbers a network gives for an image."""
        return 1 if self.binary else len(self.names)


BINARY = Labels(names=("negative", "positive"))
"""The labels of a question: is it the rare diagnosis or not."""


class ImageNetwork(torch.nn.Module, ABC):
    """A network with its logits for an image, and the features that they are made of.

    Two classes have one logit, the log-odds of the second, shape (n,). More have one each, shape
    (n, k), whose softmax are the probabilities, grades included (`networks.OrdinalHead`).
    """

    @abstractmethod
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the last layer sees, shape (n, features)."""

    @abstractmethod
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of features, shape (n,) for two classes, else (n, k)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of prepared images, shape (n,) for two classes, else (n, k)."""
        return self.logits(self.features(images))


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One kind of image: what is done to it, and the network that reads it."""

    name: str
    build: Callable[[Shape, ClassifierConfig, Labels], ImageNetwork]
    """Untrained network for images of one shape and the labels to tell apart."""
    prepare: Callable[[torch.Tensor], torch.Tensor]
    """Stored values (n, ...) -> network input (n, channels, ...); the same for all origins."""
    augment: Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]
    """Stored values, strength, generator -> stored values of the same shape and range. It is the
    list of what may happen to this modality's images, in training and for augmented views."""
    classes: tuple[str, ...] = ()
    """The labels that the modality usually tells apart, in order; empty: all that occur."""
    unit: str = ""
    """What one scan is called on pages; empty: what the scans say (frame, film, volume)."""
    top: int = 0
    """Scans of an item that a second report averages (the most suspicious ones); 0: all."""


class Classifier(Protocol):
    """A trained classifier."""

    @property
    def shape(self) -> Shape:
        """Shape of one image."""
        ...

    def score(self, images: FloatArray) -> FloatArray:
        """Return the probability of the positive diagnosis, shape (n,), one image a row."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and settings (JSON) into a folder."""
        ...


def require_shape(images: FloatArray, shape: Shape) -> None:
    """Raise `GridMismatchError` unless images have the shape that a classifier was trained on."""
    if images.shape[1:] != shape:
        found, expected = (" x ".join(map(str, s)) for s in (images.shape[1:], shape))
        raise GridMismatchError(
            f"The images have {found} voxels, the classifier was trained on {expected}.",
            remedy="Prepare both at the same spacing, or train on this cohort.",
        )


def group_means(
    ids: Sequence[Key], probabilities: FloatArray, *, top: int = 0
) -> tuple[list[Key], FloatArray]:
    """Return each group's mean probabilities, groups in order of first appearance.

    Parameters
    ----------
    ids : sequence
        The item or person of each scan.
    probabilities : float32 array, shape (n, k)
        Rows sum to 1.
    top : int
        Average only the largest so many values of each class, and divide by their sum: a clip
        shows a finding in few of its frames. 0 averages all.

    Returns
    -------
    groups : list
    means : float32 array, shape (groups, k)
        Rows sum to 1.
    """
    rows: dict[Key, list[int]] = {}
    for row, group in enumerate(ids):
        rows.setdefault(group, []).append(row)
    if not rows:
        return [], np.empty((0, *probabilities.shape[1:]), np.float32)
    means = np.stack([_mean_of(probabilities[chosen], top) for chosen in rows.values()])
    return list(rows), means.astype(np.float32)


def _mean_of(probabilities: FloatArray, top: int) -> FloatArray:
    if not 0 < top < len(probabilities):
        plain: FloatArray = probabilities.mean(axis=0, dtype=np.float64)
        return plain
    largest: FloatArray = np.sort(probabilities, axis=0)[-top:].mean(axis=0, dtype=np.float64)
    shares: FloatArray = largest / largest.sum()
    return shares


def person_means(person_ids: Sequence[Key], scores: FloatArray) -> dict[Key, float]:
    """Return each person's mean score over that person's scans, in order of first appearance."""
    by_person: dict[Key, list[float]] = defaultdict(list)
    for person, score in zip(person_ids, scores, strict=True):
        by_person[person].append(float(score))
    return {person: sum(values) / len(values) for person, values in by_person.items()}


def choose_device(device: Device) -> torch.device:
    """Return the device to compute on; `auto` takes a GPU where there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingExtraError(
            "No CUDA device was found.",
            remedy="Use device `auto` or `cpu`, or install a driver and a CUDA build of torch.",
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
