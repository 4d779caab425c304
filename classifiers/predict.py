"""What a trained network says of scans, and how far its own answers spread.

`predict` is the way in: probabilities, averaged over augmented views where they are asked for,
and an uncertainty. Draws belong to a scan's id, so what is predicted beside it changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rarescan.classifiers.network import TrainedNetwork, probabilities_of
from rarescan.classifiers.spec import ClassifyConfig
from rarescan.cohort.contracts import FloatArray
from rarescan.seeds import derive, generator
from rarescan.threads import one_thread


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Probabilities of scans, and their uncertainty where there is one."""

    probabilities: FloatArray
    """Shape (n, k); rows sum to 1."""
    uncertainty: FloatArray | None = None
    """Standard deviation of the chosen class's probability, 0 to 0.5, shape (n,)."""


def predict(
    trained: TrainedNetwork, images: FloatArray, scan_ids: Sequence[str], config: ClassifyConfig
) -> Prediction:
    """Return what a network says of scans.

    Parameters
    ----------
    trained : TrainedNetwork
    images : float32 array, shape (n, *shape)
        Stored values, 0 to 1.
    scan_ids : sequence of str
        Name the draws.
    config : ClassifyConfig
        `views`, `uncertainty`, `passes`.
    """
    own = trained.probabilities(images)
    draws = [own]
    if config.views:
        draws += [_view(trained, images, scan_ids, view) for view in range(config.views)]
    mean: FloatArray = np.stack(draws).mean(axis=0, dtype=np.float64).astype(np.float32)
    if config.uncertainty == "views":
        return Prediction(probabilities=mean, uncertainty=spread(np.stack(draws)))
    if config.uncertainty == "dropout":
        passes = _with_dropout(trained, images, scan_ids, config.passes)
        return Prediction(probabilities=mean, uncertainty=spread(passes))
    return Prediction(probabilities=mean)


def spread(draws: FloatArray) -> FloatArray:
    """Return the standard deviation of the chosen class's probability over draws.

    Parameters
    ----------
    draws : float array, shape (draws, n, k)
        The class with the largest mean is the chosen one.

    Returns
    -------
    float32 array, shape (n,)
        0 to 0.5.
    """
    chosen = draws.mean(axis=0).argmax(axis=1)
    values = draws[:, np.arange(draws.shape[1]), chosen]
    deviation: FloatArray = values.std(axis=0).astype(np.float32)
    return deviation


def _view(
    trained: TrainedNetwork, images: FloatArray, scan_ids: Sequence[str], view: int
) -> FloatArray:
    """Return the probabilities of one augmented view of each scan."""
    seen = np.empty(images.shape, np.float32)
    with one_thread():
        for place, (image, scan) in enumerate(zip(images, scan_ids, strict=True)):
            seed = derive(trained.config.seed, "view", view, scan)
            random = torch.Generator("cpu").manual_seed(seed)
            alone = torch.from_numpy(np.array(image))[None]
            seen[place] = trained.modality.augment(alone, trained.config.augmentation, random)[0]
    return trained.probabilities(seen)


def _with_dropout(
    trained: TrainedNetwork, images: FloatArray, scan_ids: Sequence[str], passes: int
) -> FloatArray:
    """Return probabilities with features left out at random, shape (passes, n, k).

    Dropout before the last layer as in training is an approximate posterior of its weights
    (Gal and Ghahramani 2016, arXiv:1506.02142).
    """
    rate = trained.config.dropout
    features = trained.features(images)
    found = []
    for number in range(passes):
        kept = np.stack(
            [
                generator(trained.config.seed, "pass", number, scan).random(features.shape[1])
                >= rate
                for scan in scan_ids
            ]
        )
        logits = trained.logits_of((features * kept / (1 - rate)).astype(np.float32))
        found.append(probabilities_of(logits, trained.temperature))
    return np.stack(found)
