"""What every classifier has in common, whatever it looks at.

A `Modality` is how images become a network's input and which network that is; `mri.MRI` is one.
A `Classifier` is anything trained that gives each scan a probability. What the reader would get
wrong: a score belongs to a person, the mean over that person's scans (`person_means`).
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from rarescan.classifiers.spec import ClassifierConfig
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import GridMismatchError, MissingExtraError

Device = Literal["auto", "cpu", "cuda"]
Shape = tuple[int, ...]


class ImageNetwork(torch.nn.Module, ABC):
    """A network with one logit an image, and the features that the logit is made of."""

    @abstractmethod
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the last layer sees, shape (n, features)."""

    @abstractmethod
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of the positive diagnosis, shape (n,)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of the positive diagnosis, shape (n,)."""
        return self.logits(self.features(images))


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One kind of image: what is done to it, and the network that reads it."""

    name: str
    build: Callable[[Shape, ClassifierConfig], ImageNetwork]
    """Untrained network for images of one shape."""
    prepare: Callable[[torch.Tensor], torch.Tensor]
    """Stored values (n, ...) -> network input (n, channels, ...); the same for all origins."""
    augment: Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]
    """Stored values, strength, generator -> stored values of the same shape and range."""


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


def person_means(person_ids: Sequence[str], scores: FloatArray) -> dict[str, float]:
    """Return each person's mean score over that person's scans, in order of first appearance."""
    by_person: dict[str, list[float]] = defaultdict(list)
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
