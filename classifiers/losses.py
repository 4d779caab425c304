"""What training minimises: one loss for two classes, one for more, and targets in between.

Grades need no loss of their own: `networks.OrdinalHead` gives their log-probabilities. Mixed
scans (MixUp, CutMix) have shares of two classes as their target.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from rarescan.classifiers.contract import Labels
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.seeds import generator


def targets_of(classes: Sequence[int], labels: Labels, device: torch.device) -> torch.Tensor:
    """Return what the loss compares with: shape (n,), 0 or 1, for two classes, else (n, k)."""
    if labels.binary:
        return torch.tensor([float(c) for c in classes], device=device)
    rows = torch.zeros(len(classes), len(labels.names))
    rows[torch.arange(len(classes)), torch.tensor(classes)] = 1
    return rows.to(device)


def loss_of(
    logits: torch.Tensor, targets: torch.Tensor, positive_weight: float = 1.0
) -> torch.Tensor:
    """Return the mean cross-entropy over a batch; of two classes the second may count more."""
    if logits.ndim == 1:
        weight = None if positive_weight == 1 else logits.new_tensor(positive_weight)
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight)
    return functional.cross_entropy(logits, targets)


def mixed(
    images: torch.Tensor, targets: torch.Tensor, config: ClassifierConfig, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch in which every scan is mixed with another one, and its targets.

    MixUp (Zhang 2018, arXiv:1710.09412): share * scan + (1 - share) * other, with one share from
    Beta(alpha, alpha) a batch. CutMix (Yun 2019, arXiv:1905.04899): a box with 1 - share of the
    image comes from the other scan.

    Parameters
    ----------
    images : float32 tensor, shape (n, channels, ...)
    targets : float32 tensor, shape (n,) or (n, k)
    config : ClassifierConfig
        `mix`, `mix_alpha`, `seed`.
    step : int
        Draws depend on the seed and the step alone.
    """
    if config.mix == "none":
        return images, targets
    random = generator(config.seed, step, "mix")
    share = float(random.beta(config.mix_alpha, config.mix_alpha))
    others = torch.from_numpy(random.permutation(len(images)))
    if config.mix == "mixup":
        images = share * images + (1 - share) * images[others]
    else:
        edge = (1 - share) ** (1 / (images.ndim - 2))
        box = _box(images.shape[2:], edge, random.random(images.ndim - 2).tolist())
        cut = images.clone()
        place: Any = (..., *box)
        cut[place] = images[others][place]
        volume = torch.tensor(images.shape[2:]).prod().item()
        inside = torch.tensor([part.stop - part.start for part in box]).prod().item()
        images, share = cut, 1 - inside / volume
    return images, share * targets + (1 - share) * targets[others]


def _box(shape: Sequence[int], edge: float, places: Sequence[float]) -> tuple[slice, ...]:
    """Return a box whose edges are a share of the image's, centred at places 0 to 1."""
    box = []
    for size, place in zip(shape, places, strict=True):
        half = edge * size / 2
        low, high = round(place * size - half), round(place * size + half)
        box.append(slice(max(low, 0), min(high, size)))
    return tuple(box)
