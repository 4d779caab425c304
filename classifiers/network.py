"""A trained network: score images, take features, save and open without pickle.

`TrainedNetwork` and `load_network` are the way in. Images go through in chunks of one size,
filled up with empty ones, so that a score does not depend on what was scored beside it.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from rarescan.classifiers.contract import (
    Device,
    ImageNetwork,
    Modality,
    Shape,
    choose_device,
    require_shape,
)
from rarescan.classifiers.mri import MRI
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError
from rarescan.files import read_json, sha256_file, write_atomic, write_json
from rarescan.threads import one_thread

MODALITIES: dict[str, Modality] = {"mri": MRI}

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

    def score(self, images: FloatArray) -> FloatArray:
        """Return the probability of the positive diagnosis, float32, shape (n,).

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

    def features_and_scores(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return what the last layer sees, shape (n, features), and the scores, shape (n,)."""
        require_shape(images, self.shape)
        parts = list(self._chunks(images))
        if not parts:
            return np.empty((0, 0), np.float32), np.empty(0, np.float32)
        features, scores = zip(*parts, strict=True)
        return np.concatenate(features), np.concatenate(scores)

    def _chunks(self, images: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
        self.network.eval()
        with one_thread(), torch.inference_mode():
            for start in range(0, len(images), _CHUNK):
                chunk = images[start : start + _CHUNK]
                filled = np.zeros((_CHUNK, *self.shape), np.float32)
                filled[: len(chunk)] = chunk
                volumes = torch.from_numpy(filled).to(self.device)
                features = self.network.features(self.modality.prepare(volumes))
                scores = self.network.logits(features).sigmoid()
                yield features[: len(chunk)].cpu().numpy(), scores[: len(chunk)].cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` and `network.json` into a folder."""
        state = {k: v.cpu().contiguous() for k, v in self.network.state_dict().items()}
        write_atomic(folder / WEIGHTS, safetensors.torch.save(state))
        settings = {"modality": self.modality.name, "shape": self.shape}
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
    stored = settings["config"]
    config = ClassifierConfig(**{**stored, "channels": tuple(stored["channels"])})
    modality, shape = MODALITIES[settings["modality"]], tuple(settings["shape"])
    network, place = modality.build(shape, config), choose_device(device)
    network.load_state_dict(state)
    return TrainedNetwork(
        network=placed(network, place),
        modality=modality,
        config=config,
        shape=shape,
        device=place,
    )


def placed(network: ImageNetwork, device: torch.device) -> ImageNetwork:
    """Return the network on a device, in the one memory format of training and use.

    Channels last is quicker, and another format gives other last bits.
    """
    moved: ImageNetwork = network.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return moved


def _no_network(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder.name} holds no usable network: {why}.",
        remedy="Train it again: repeat the command with --overwrite.",
    )
