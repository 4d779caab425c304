"""Networks that a modality may be built with: our small one, and MONAI's by name.

`build_network` is the way in. Every network is a body that gives features and a head that gives
logits. What the reader would get wrong: grades are not classes; `OrdinalHead` puts them on one
line, so that a mistake by two grades costs more than one by one.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from monai.networks.blocks import Convolution
from monai.networks.nets import densenet, efficientnet, resnet
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional

from rarescan.classifiers.contract import BINARY, ImageNetwork, Labels, Shape
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.errors import SettingError
from rarescan.files import sha256_file

_SMALLEST_EDGE = 4
_LARGEST_SHARE_MISSING = 0.1
"""Of a network's values, that a file of weights may lack: its own last layer."""


class OrdinalHead(nn.Module):
    """Grades on one line, cut at ordered places: the proportional odds model.

    P(grade <= j) = sigmoid(c_j - g) with c_1 < c_2 < ... (McCullagh 1980, J R Stat Soc B 42:109);
    a network with such a head is CORAL (Cao 2020) with cuts that cannot cross. The logits are
    log P(grade = j), so that their softmax are the probabilities.
    """

    def __init__(self, n_features: int, n_grades: int) -> None:
        super().__init__()
        self.line = nn.Linear(n_features, 1)
        self.first = nn.Parameter(torch.tensor([-(n_grades - 2) / 2.0]))
        self.gaps = nn.Parameter(torch.full((n_grades - 2,), math.log(math.e - 1)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of every grade, shape (n, k)."""
        cuts = torch.cat((self.first, functional.softplus(self.gaps))).cumsum(0)
        below = cuts - self.line(features)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), without cancellation.
        upper = functional.logsigmoid(below)
        lower = functional.logsigmoid(-below)
        between = torch.log(-torch.expm1(-functional.softplus(self.gaps)))
        middle = upper[:, 1:] + lower[:, :-1] + between
        return torch.cat((upper[:, :1], middle, lower[:, -1:]), 1)


def head(n_features: int, labels: Labels) -> nn.Module:
    """Return an untrained last layer for labels."""
    if labels.scheme == "ordinal" and not labels.binary:
        return OrdinalHead(n_features, len(labels.names))
    return nn.Linear(n_features, labels.n_logits)


class FlatNetwork(ImageNetwork):
    """Strided convolutions, flatten, dropout, one logit a class (one for two classes).

    Blocks of a convolution, batch norm and ReLU halve the image until 4 pixels an edge are left.
    """

    def __init__(
        self,
        shape: Shape,
        config: ClassifierConfig,
        labels: Labels = BINARY,
        *,
        n_channels: int = 1,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        before, edges = n_channels, shape
        while not blocks or max(edges) > _SMALLEST_EDGE:
            after = config.channels[min(len(blocks), len(config.channels) - 1)]
            blocks.append(_block(len(shape), before, after))
            before, edges = after, tuple((edge + 1) // 2 for edge in edges)
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(config.dropout)
        self.last = head(before * math.prod(edges), labels)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, flattened: shape (n, channels * x * y * z)."""
        features: torch.Tensor = self.blocks(images).flatten(1)
        return features

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of features, shape (n,) for two classes, else (n, k)."""
        return _squeezed(self.last(self.dropout(features)))


def _block(spatial_dims: int, before: int, after: int) -> nn.Module:
    return Convolution(
        spatial_dims=spatial_dims,
        in_channels=before,
        out_channels=after,
        kernel_size=3,
        strides=2,
        adn_ordering="NA",
        norm="batch",
        act="relu",
        bias=False,
    )


class BackboneNetwork(ImageNetwork):
    """A network of MONAI without its last layer, and ours instead."""

    def __init__(self, body: nn.Module, n_features: int, dropout: float, labels: Labels) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.last = head(n_features, labels)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features before the last layer, shape (n, features)."""
        features: torch.Tensor = self.body(images).flatten(1)
        return features

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of features, shape (n,) for two classes, else (n, k)."""
        return _squeezed(self.last(self.dropout(features)))


def _squeezed(logits: torch.Tensor) -> torch.Tensor:
    return logits.squeeze(1) if logits.shape[1] == 1 else logits


def build_network(
    shape: Shape, config: ClassifierConfig, labels: Labels, *, n_channels: int
) -> ImageNetwork:
    """Return an untrained network, or one that starts from the weights that are named.

    Parameters
    ----------
    shape : tuple of int
        The image's edges without planes: two or three numbers.
    config : ClassifierConfig
        `network`, `channels`, `dropout`, `weights`, `weights_sha256`.
    labels : Labels
    n_channels : int
        Planes of an image.

    Raises
    ------
    SettingError
        The file of weights is missing, another one, or does not fit the network.
    """
    if config.network == "small":
        return FlatNetwork(shape, config, labels, n_channels=n_channels)
    body, n_features = _BODIES[config.network](len(shape), n_channels)
    if config.weights:
        _start_from(body, config)
    return BackboneNetwork(body, n_features, config.dropout, labels)


def _resnet(make: Callable[..., nn.Module], n_features: int) -> Any:
    # Torchvision's layout (stride 2 at the entrance, no bias beside a norm), so its weights fit.
    def build(spatial_dims: int, n_channels: int) -> tuple[nn.Module, int]:
        body = make(
            spatial_dims=spatial_dims,
            n_input_channels=n_channels,
            conv1_t_stride=2,
            bias_downsample=False,
            feed_forward=False,
        )
        return body, n_features

    return build


def _densenet(spatial_dims: int, n_channels: int) -> tuple[nn.Module, int]:
    body: Any = densenet.DenseNet121(
        spatial_dims=spatial_dims, in_channels=n_channels, out_channels=2
    )
    n_features = body.class_layers.out.in_features
    body.class_layers.out = nn.Identity()
    return body, n_features


def _efficientnet(name: str) -> Any:
    def build(spatial_dims: int, n_channels: int) -> tuple[nn.Module, int]:
        body: Any = efficientnet.EfficientNetBN(
            name, pretrained=False, spatial_dims=spatial_dims, in_channels=n_channels
        )
        n_features = body._fc.in_features
        body._fc = nn.Identity()
        return body, n_features

    return build


_BODIES: Mapping[str, Callable[[int, int], tuple[nn.Module, int]]] = {
    "resnet10": _resnet(resnet.resnet10, 512),
    "resnet18": _resnet(resnet.resnet18, 512),
    "resnet34": _resnet(resnet.resnet34, 512),
    "resnet50": _resnet(resnet.resnet50, 2048),
    "densenet121": _densenet,
    "efficientnet-b0": _efficientnet("efficientnet-b0"),
    "efficientnet-b4": _efficientnet("efficientnet-b4"),
}


def _start_from(body: nn.Module, config: ClassifierConfig) -> None:
    """Fill a body with weights of a file; a first layer for other planes gets their mean."""
    stored = _stored(config)
    own = body.state_dict()
    found: dict[str, torch.Tensor] = {}
    for name, value in own.items():
        given = stored.get(name)
        if given is not None and given.shape != value.shape:
            given = _for_planes(given, value)
        if given is not None:
            found[name] = given
    missing = sum(v.numel() for k, v in own.items() if k not in found)
    total = sum(v.numel() for v in own.values())
    if missing > _LARGEST_SHARE_MISSING * total:
        raise SettingError(
            f"The weights fit {1 - missing / total:.0%} of {config.network}.",
            remedy="Name weights of this network (for a ResNet, torchvision's names).",
        )
    body.load_state_dict(found, strict=False)


def _for_planes(given: torch.Tensor, own: torch.Tensor) -> torch.Tensor | None:
    """Return a first convolution for another number of planes, its answer of the same size."""
    same_rest = given.shape[0] == own.shape[0] and given.shape[2:] == own.shape[2:]
    if given.ndim < 4 or not same_rest:
        return None
    share = given.shape[1] / own.shape[1]
    return given.mean(dim=1, keepdim=True).expand_as(own) * share


def _stored(config: ClassifierConfig) -> dict[str, torch.Tensor]:
    path = Path(config.weights)
    if not path.is_file():
        raise SettingError(
            "There is no file at classifier.weights.", remedy="Correct the path, or leave it out."
        )
    if sha256_file(path) != config.weights_sha256:
        raise SettingError(
            "The file at classifier.weights has another SHA-256 than weights_sha256.",
            remedy="Fetch the file again, or correct weights_sha256.",
        )
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError):
        state = None
    except Exception as error:
        # torch's unpickler has no public class for "refused".
        if type(error).__name__ != "UnpicklingError":
            raise
        state = None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state:
        raise SettingError(
            "The file at classifier.weights holds no state dict that can be read without pickle.",
            remedy="Save the network's state_dict() as safetensors.",
        )
    values = {_plain(name): v for name, v in state.items() if isinstance(v, torch.Tensor)}
    return values


def _plain(name: str) -> str:
    for prefix in ("module.", "body."):
        name = name.removeprefix(prefix)
    return name
