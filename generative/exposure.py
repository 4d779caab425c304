"""What a generator's inside says about single persons: losses for membership inference.

`person_losses` is the way in. Whoever holds the weights can compute them; where training persons
have smaller ones than others, the weights tell who was in the training.
"""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from rarescan.cohort.contracts import Part
from rarescan.cohort.store import open_cohort
from rarescan.generative.code_store import people_of
from rarescan.generative.contract import Prior
from rarescan.generative.families import load_generator
from rarescan.generative.gan import Gan
from rarescan.generative.model import TrainedGenerator
from rarescan.threads import one_thread

_DRAWS = 25
"""Noise draws of a person; the flow's loss takes each at four times."""
_PERSONS_AT_A_TIME = 16


def person_losses(model: Path, prepared: Path) -> dict[str, dict[str, list[float]]]:
    """Return the losses of every training and validation person; smaller means better known.

    Parameters
    ----------
    model : Path
        A folder written by `train_generator`.
    prepared : Path
        The cohort that it was trained on.

    Returns
    -------
    dict
        Name of the loss -> `train`, `validation` -> one value a person. `reconstruction` (mean
        squared error of the codec) and `likelihood` (mean squared whitened code, the Gaussian's
        negative log-likelihood) for every family but `transfer`; `network` for those with one:
        negative evidence bound, denoising error, or minus the discriminator's score.
    """
    generator = cast(TrainedGenerator, load_generator(model))
    if generator.near_copies:
        return {}
    found: dict[str, dict[str, list[float]]] = {}
    parts: tuple[Part, ...] = ("train", "validation")
    for part in parts:
        people = people_of(open_cohort(prepared), part, generator.prior.encoder)
        with one_thread(), torch.no_grad():
            for rows in torch.split(torch.arange(len(people)), _PERSONS_AT_A_TIME):
                images = people.images_of(rows.tolist())
                for name, values in _losses(generator, images, people.encoded[rows]).items():
                    told = found.setdefault(name, {}).setdefault(part, [])
                    told += [round(float(v), 9) for v in values]
    return found


def _losses(generator: TrainedGenerator, images: Tensor, encoded: Tensor) -> dict[str, Tensor]:
    prior, codec = generator.prior, generator.codec
    codes = codec.encode(images)
    back = codec.decode(codes)
    whitened = prior.floor.whiten(codes)
    deviation = (whitened - prior.floor.mean(encoded)).flatten(1)
    losses = {
        "reconstruction": (back - images).flatten(1).square().mean(1),
        "likelihood": deviation.square().mean(1),
    }
    network = _network_losses(prior, whitened, encoded)
    return losses | ({} if network is None else {"network": network})


def _network_losses(prior: Prior, codes: Tensor, encoded: Tensor) -> Tensor | None:
    if isinstance(prior, Gan):
        return -prior.score(codes, encoded)
    if not prior.players():
        return None
    each = [
        prior.held_out_loss(code.expand(_DRAWS, *code.shape), asked.expand(_DRAWS, *asked.shape))
        for code, asked in zip(codes, encoded, strict=True)
    ]
    return torch.tensor(each)
