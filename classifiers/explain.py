"""Where a classifier looks: Grad-CAM of one or several networks, and whether that means anything.

`explain` is the way in; `overlay` draws what it returns. A heat map persuades even where it only
traces the edges of the picture, so it is computed again with shuffled weights: a map that does not
change is not shown (Adebayo et al. 2018, arXiv 1810.03292). What the reader would get wrong: all
networks of an ensemble explain the same class and count alike; picking the surest network for
each frame would show the best excuse.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.visualize import GradCAM
from scipy.stats import spearmanr
from torch import nn

from rarescan.classifiers.contract import ImageNetwork, require_shape
from rarescan.classifiers.network import TrainedNetwork
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError
from rarescan.seeds import derive
from rarescan.threads import one_thread

MOST_ALIKE = 0.5
"""Largest rank correlation with the map of shuffled weights at which a map is shown."""
_FEWEST_CELLS = 6
"""Along the shorter edge of the layer that is looked at: coarser maps point nowhere."""
_SHUFFLES = 3
_CHECKED_IMAGES = 8
_CHUNK = 8


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What an ensemble says of images, and where it looks."""

    maps: FloatArray
    """Shape (n, rows, columns) or (n, x, y, z): evidence for `label`, 0 to 1; 1 is the strongest
    of all these images."""
    label: int
    """Place of the explained class: the most probable over all the images together."""
    classes: tuple[str, ...]
    probabilities: FloatArray
    """Mean over the networks, shape (n, classes)."""
    spread: FloatArray | None
    """Standard deviation of the label's probability over the networks, shape (n,); None with one
    network."""
    likeness: float
    """Rank correlation with the map of shuffled weights, -1 to 1; 1: the map ignores them."""

    @property
    def shown(self) -> bool:
        """Whether the map depends on what was learned, so that it may be shown."""
        return self.likeness <= MOST_ALIKE and bool(self.maps.any())

    @property
    def confidence(self) -> FloatArray | None:
        """1 - clip(spread, 0, 0.5) / 0.5 of each image (Born 2021); None with one network."""
        if self.spread is None:
            return None
        confidence: FloatArray = 1 - np.clip(self.spread, 0, 0.5) / 0.5
        return confidence


def explain(
    networks: Sequence[TrainedNetwork], images: FloatArray, *, label: int | None = None
) -> Explanation:
    """Return Grad-CAM maps of an ensemble (Selvaraju et al. 2017, arXiv 1610.02391).

    The map of a network is the positive part of its last feature maps that still have 6 cells
    along the shorter edge, weighted by the mean gradient of the label's logit, interpolated to the
    image. Each network's maps are divided by their maximum over all images, so that none outvotes
    the others, and averaged.

    Parameters
    ----------
    networks : sequence of TrainedNetwork
        One or more, of the same shape and labels.
    images : float32 array, shape (n, *shape)
        Stored values, 0 to 1: frames of one clip, or one film or volume.
    label : int, optional
        The class to explain; the most probable over all images without.

    Raises
    ------
    GridMismatchError
        The images have another shape than those of the training.
    InputError
        The network has no layer with a map.
    ValueError
        No network or no image, or networks with different labels.
    """
    if not networks or not len(images) or len({n.labels.names for n in networks}) != 1:
        raise ValueError("explaining needs images, and networks with the same labels")
    require_shape(images, networks[0].shape)
    each = np.stack([network.probabilities(images) for network in networks])
    probabilities = each.mean(axis=0)
    chosen = int(probabilities.mean(axis=0).argmax()) if label is None else label
    maps = _ensemble(networks, images, chosen, lambda network: network)
    return Explanation(
        maps=maps,
        label=chosen,
        classes=networks[0].labels.names,
        probabilities=probabilities,
        spread=each[:, :, chosen].std(axis=0) if len(networks) > 1 else None,
        likeness=_likeness(networks, images, maps, chosen),
    )


def _ensemble(
    networks: Sequence[TrainedNetwork],
    images: FloatArray,
    label: int,
    change: Callable[[ImageNetwork], ImageNetwork],
) -> FloatArray:
    """Return the mean map of networks, each changed first and counting alike."""
    found = np.zeros((len(images), *_edges(images)), np.float32)
    for trained in networks:
        own = _maps(trained, change(deepcopy(trained.network)), images, label)
        largest = own.max()
        found += own / largest if largest > 0 else own
    found /= len(networks)
    return found


def _edges(images: FloatArray) -> tuple[int, ...]:
    """Return the edges of a map: those of a volume, or of a picture without its planes."""
    edges = images.shape[1:]
    return edges[:2] if _is_picture(edges) else edges


def _is_picture(shape: Sequence[int]) -> bool:
    """Tell pictures (rows, columns, planes) from volumes: planes are few."""
    return shape[2] <= 4


class _TwoOrMore(nn.Module):
    """Gives two classes a logit each, as Grad-CAM expects it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return torch.stack((-logits, logits), 1) if logits.ndim == 1 else logits


def _maps(
    trained: TrainedNetwork, network: ImageNetwork, images: FloatArray, label: int
) -> FloatArray:
    """Return one network's maps, not scaled; `network` is changed on the way."""
    device = trained.device
    wrapped = _TwoOrMore(network.to(device).to(memory_format=torch.contiguous_format)).eval()  # type: ignore[call-overload]
    for module in wrapped.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    wrapped.requires_grad_(True)
    found = []
    with one_thread():
        prepared = trained.modality.prepare(_tensor(images[:1], device))
        cam = GradCAM(wrapped, _layer(wrapped, prepared), postprocessing=lambda found: found)
        for start in range(0, len(images), _CHUNK):
            inputs = trained.modality.prepare(_tensor(images[start : start + _CHUNK], device))
            # Torch warns of a hook on the first layer where the input needs no gradient.
            inputs = inputs.contiguous().requires_grad_(True)
            found.append(cam(inputs, class_idx=label).detach().cpu().numpy()[:, 0])
    maps: FloatArray = np.nan_to_num(np.concatenate(found)).clip(min=0)
    return maps


def _tensor(images: FloatArray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(images, dtype=np.float32)).to(device)


def _layer(network: nn.Module, inputs: torch.Tensor) -> str:
    """Return the name of the last module whose output is a map with enough cells."""
    found: list[str] = []
    deepest: list[str] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor) or output.ndim != inputs.ndim:
                return
            edges = output.shape[2:]
            deepest[:] = [name] if min(edges) > 1 else deepest
            found[:] = [name] if min(edges) >= _FEWEST_CELLS else found

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in network.named_modules() if n]
    try:
        with torch.inference_mode():
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not found and not deepest:
        raise InputError(
            "No layer of the network has a map to look at.",
            remedy="Grad-CAM needs a network of convolutions.",
        )
    return (found or deepest)[0]


def _likeness(
    networks: Sequence[TrainedNetwork], images: FloatArray, maps: FloatArray, label: int
) -> float:
    """Return how alike the map and that of shuffled weights are, over a few of the images."""
    places = np.unique(np.linspace(0, len(images) - 1, _CHECKED_IMAGES).round().astype(int))
    some, own = images[places], maps[places]
    found = []
    for shuffle in range(_SHUFFLES):

        def change(network: ImageNetwork, seed: int = shuffle) -> ImageNetwork:
            return _shuffled(network, seed)

        other = _ensemble(networks, some, label, change)
        found += [_correlation(*parts) for parts in zip(some, own, other, strict=True)]
    return float(np.mean(found))


def _shuffled(network: ImageNetwork, seed: int) -> ImageNetwork:
    """Return a network whose layers' weights changed places: as large as before, and untaught."""
    random = torch.Generator("cpu").manual_seed(derive(seed, "shuffle"))
    with torch.no_grad():
        for module in network.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.ndim > 1:
                order = torch.randperm(weight.numel(), generator=random)
                flat = weight.contiguous().flatten()[order.to(weight.device)]
                weight.copy_(flat.reshape(weight.shape))
    return network


def _correlation(image: FloatArray, one: FloatArray, other: FloatArray) -> float:
    """Return Spearman's rank correlation of two maps within what the image shows."""
    inside = (image.max(axis=-1) if image.ndim > one.ndim else image) > 0
    if inside.mean() < 0.1:
        inside = np.ones_like(inside)
    a, b = one[inside], other[inside]
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)
