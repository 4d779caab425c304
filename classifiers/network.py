"""A trained network: score images, take features, save and open without pickle.

`TrainedNetwork` and `load_network` are the way in. Images go through in chunks of one size,
filled up with empty ones, and in evaluation mode, so that a score does not depend on what was
scored beside it.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from rarescan.classifiers.contract import (
    BINARY,
    Device,
    ImageNetwork,
    Labels,
    Modality,
    Shape,
    choose_device,
    require_shape,
)
from rarescan.classifiers.modalities import find_modality
from rarescan.classifiers.recipes import with_recipe
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError
from rarescan.files import read_json, sha256_file, write_atomic, write_json
from rarescan.threads import one_thread

WEIGHTS = "weights.safetensors"
SETTINGS = "network.json"
_CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A network with everything that is needed to use it."""

    network: ImageNetwork
    modality: Modality
    config: ClassifierConfig
    shape: Shape
    device: torch.device
    labels: Labels = BINARY
    temperature: float = 1.0
    """What logits are divided by, so that probabilities mean what they say (`calibrate`)."""

    def score(self, images: FloatArray) -> FloatArray:
        """Return the probability of the second of two classes, float32, shape (n,).

        Parameters
        ----------
        images : float32 array, shape (n, *shape)
            Stored values, 0 to 1; may be a memory map.

        Raises
        ------
        GridMismatchError
            The images are on another grid than the training images.
        """
        return self.features_and_scores(images)[1]

    def probabilities(self, images: FloatArray) -> FloatArray:
        """Return the probability of every class, float32, shape (n, k); rows sum to 1.

        Parameters
        ----------
        images : float32 array, shape (n, *shape)
            Stored values, 0 to 1; may be a memory map.

        Raises
        ------
        GridMismatchError
            The images are on another grid than the training images.
        InputError
            Values are not between 0 and 1: the images were not prepared.
        """
        return probabilities_of(self.logits(images), self.temperature)

    def logits(self, images: FloatArray) -> FloatArray:
        """Return the network's own numbers, shape (n,) for two classes, else (n, k)."""
        self._require_prepared(images)
        parts = [logits for _, logits in self._chunks(images)]
        empty = np.empty((0,) if self.labels.binary else (0, self.labels.n_logits), np.float32)
        return np.concatenate(parts) if parts else empty

    def features(self, images: FloatArray) -> FloatArray:
        """Return what the last layer sees, float32, shape (n, features)."""
        self._require_prepared(images)
        parts = [features for features, _ in self._chunks(images)]
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    def logits_of(self, features: FloatArray) -> FloatArray:
        """Return the logits of features, shape (n,) for two classes, else (n, k)."""
        self.network.eval()
        parts = []
        with one_thread(), torch.inference_mode():
            for start in range(0, len(features), _CHUNK):
                chunk = features[start : start + _CHUNK]
                filled = np.zeros((_CHUNK, *features.shape[1:]), np.float32)
                filled[: len(chunk)] = chunk
                logits = self.network.logits(torch.from_numpy(filled).to(self.device))
                parts.append(logits[: len(chunk)].cpu().numpy())
        return np.concatenate(parts)

    def features_and_scores(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return what the last layer sees, shape (n, features), and the scores, shape (n,)."""
        require_shape(images, self.shape)
        parts = list(self._chunks(images))
        if not parts:
            return np.empty((0, 0), np.float32), np.empty(0, np.float32)
        features, logits = zip(*parts, strict=True)
        scores = probabilities_of(np.concatenate(logits), self.temperature)[:, 1]
        return np.concatenate(features), scores

    def _require_prepared(self, images: FloatArray) -> None:
        require_shape(images, self.shape)
        if len(images) and not (np.min(images) >= 0 and np.max(images) <= 1):
            raise InputError(
                "The images' values are not between 0 and 1.",
                remedy="Prepare them as the training images were: `rarescan prepare`.",
            )

    def _chunks(self, images: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
        self.network.eval()
        with one_thread(), torch.inference_mode():
            for start in range(0, len(images), _CHUNK):
                chunk = images[start : start + _CHUNK]
                filled = np.zeros((_CHUNK, *self.shape), np.float32)
                filled[: len(chunk)] = chunk
                volumes = torch.from_numpy(filled).to(self.device)
                features = self.network.features(self.modality.prepare(volumes))
                logits = self.network.logits(features)
                yield features[: len(chunk)].cpu().numpy(), logits[: len(chunk)].cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` and `network.json` into a folder."""
        state = {k: v.cpu().contiguous() for k, v in self.network.state_dict().items()}
        write_atomic(folder / WEIGHTS, safetensors.torch.save(state))
        settings = {
            "modality": self.modality.name,
            "shape": self.shape,
            "labels": asdict(self.labels),
            "temperature": self.temperature,
        }
        write_json(
            folder / SETTINGS,
            settings
            | {"config": asdict(self.config), "weights_sha256": sha256_file(folder / WEIGHTS)},
        )


def load_network(folder: Path, device: Device = "auto") -> TrainedNetwork:
    """Open what `TrainedNetwork.save` wrote.

    Raises
    ------
    InputError
        The folder holds no network, or its weights are not the ones that were saved.
    """
    try:
        settings = read_json(folder / SETTINGS)
        if sha256_file(folder / WEIGHTS) != settings["weights_sha256"]:
            raise _no_network(folder, "its weights are damaged")
        state = safetensors.torch.load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise _no_network(folder, "a file is missing") from None
    except (ValueError, KeyError, SafetensorError):
        raise _no_network(folder, "its files are damaged") from None
    stored, names = settings["config"], settings.get("labels", asdict(BINARY))
    config = ClassifierConfig(**{**stored, "channels": tuple(stored["channels"])})
    labels = Labels(names=tuple(names["names"]), scheme=names["scheme"])
    modality = with_recipe(find_modality(settings["modality"]), config.recipe)
    shape = tuple(settings["shape"])
    # What it started from is no longer needed.
    network = modality.build(shape, replace(config, weights=""), labels)
    network.load_state_dict(state)
    place = choose_device(device)
    return TrainedNetwork(
        network=placed(network, place),
        modality=modality,
        config=config,
        shape=shape,
        device=place,
        labels=labels,
        temperature=settings.get("temperature", 1.0),
    )


def probabilities_of(logits: FloatArray, temperature: float = 1.0) -> FloatArray:
    """Return the probabilities of every class, float32, shape (n, k), of a network's logits.

    Parameters
    ----------
    logits : float32 array, shape (n,) for two classes, else (n, k)
    temperature : float
        Larger ones make probabilities less sure.
    """
    # In chunks of one size: vector instructions give other last bits at the end of an array.
    parts = []
    for start in range(0, len(logits), _CHUNK):
        chunk = logits[start : start + _CHUNK]
        filled = torch.zeros((_CHUNK, *logits.shape[1:]))
        filled[: len(chunk)] = torch.from_numpy(chunk) / temperature
        if filled.ndim == 1:
            positive = filled.sigmoid()
            shares = torch.stack((1 - positive, positive), 1)
        else:
            shares = filled.softmax(1)
        parts.append(shares[: len(chunk)].numpy())
    empty = np.empty((0, 2 if logits.ndim == 1 else logits.shape[1]), np.float32)
    return np.concatenate(parts) if parts else empty


def placed(network: ImageNetwork, device: torch.device) -> ImageNetwork:
    """Return the network on a device, in the one memory format of training and use.

    Channels last is quicker, and another format gives other last bits.
    """
    in_3d = any(value.ndim == 5 for value in network.parameters())
    layout = torch.channels_last_3d if in_3d else torch.channels_last
    moved: ImageNetwork = network.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    return moved


def _no_network(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder.name} holds no usable network: {why}.",
        remedy="Train it again: repeat the command with --overwrite.",
    )
