"""Image <-> code without a network: exact Haar wavelet packets, and principal components.

`fit_codec` and `restore_codec` are the ways in. Codes keep their natural scale; the Gaussian
floor standardises them. Both transforms are orthonormal, so distances between codes are
distances between images (`pca`: within the span of the training persons).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from rarescan.cohort.contracts import Grid
from rarescan.errors import InputError, SettingError
from rarescan.generative.anatomy import CHANNELS
from rarescan.generative.contract import Codec
from rarescan.generative.spec import CodecName, GeneratorSpec

_LEAST_DEVIATION = 1e-4
"""A value that never leaves its mean by more is the mean."""


class HaarCodec:
    """Wavelet packet of 1 or 2 levels: edges halved and channels times 8, at each level."""

    name: ClassVar[CodecName] = "haar"

    def __init__(self, grid_shape: tuple[int, int, int], levels: int) -> None:
        step = 2**levels
        if any(edge % step for edge in grid_shape):
            raise SettingError(
                f"A grid of {_words(grid_shape)} voxels cannot be halved {levels} times.",
                remedy="Set codec to pca, levels to 1, or prepare the cohort at another spacing.",
            )
        self.levels = levels
        self.code_shape: tuple[int, ...] = (
            CHANNELS * 8**levels,
            *(edge // step for edge in grid_shape),
        )
        self._kernel = haar_kernel()

    def encode(self, images: Tensor) -> Tensor:
        """Return the bands, shape (n, 2 * 8**levels, x, y, z)."""
        for _ in range(self.levels):
            n_channels = images.shape[1]
            kernel = self._kernel.repeat(n_channels, 1, 1, 1, 1).to(images)
            images = functional.conv3d(images, kernel, stride=2, groups=n_channels)
        return images

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images of bands; the inverse has the weights of the transform."""
        for _ in range(self.levels):
            n_channels = codes.shape[1] // 8
            kernel = self._kernel.repeat(n_channels, 1, 1, 1, 1).to(codes)
            codes = functional.conv_transpose3d(codes, kernel, stride=2, groups=n_channels)
        return codes

    def state(self) -> dict[str, Tensor]:
        """Return nothing: the transform is fixed."""
        return {}


def haar_kernel() -> Tensor:
    """Return the 8 products of (1, 1) / sqrt(2) and (1, -1) / sqrt(2), shape (8, 1, 2, 2, 2)."""
    low, high = torch.tensor([1.0, 1.0]) / 2**0.5, torch.tensor([1.0, -1.0]) / 2**0.5
    bands = [torch.einsum("i,j,k->ijk", a, b, c) for a in (low, high) for b in (low, high)
             for c in (low, high)]  # fmt: skip
    return torch.stack(bands)[:, None]


class PcaCodec:
    """All principal components of the training images: exact on them (to 1e-4 of the range).

    Components are kept in half precision, which halves the model's file and costs nothing else.
    No person's residual is ever added to a sample, since that would copy the person's texture;
    the trailing components, drawn like the leading ones, are the texture.
    """

    name: ClassVar[CodecName] = "pca"

    def __init__(self, image_shape: tuple[int, ...], state: Mapping[str, Tensor]) -> None:
        self._image_shape = image_shape
        self._mean, self._varying = state["mean"], state["varying"]
        self._components = state["components"].float()
        self._places = self._varying.flatten().nonzero().flatten()
        self.code_shape: tuple[int, ...] = (len(self._components),)

    @classmethod
    def fit(cls, images: Tensor) -> "PcaCodec":
        """Return the codec of n training images, with n - 1 components."""
        n, flat = len(images), images.flatten(1)
        mean = flat.mean(0)
        varying = (flat - mean).abs().amax(0) > _LEAST_DEVIATION
        centred = (flat - mean)[:, varying]
        # The n x n Gram matrix has the same spectrum as the covariance, and fits in memory.
        values, vectors = torch.linalg.eigh((centred @ centred.T).double())
        order = torch.arange(n - 1, 0, -1)
        order = order[values[order] > values[-1] * 1e-9]
        components = (vectors[:, order] / values[order].sqrt()).T.float() @ centred
        # The largest entry of each component is positive, so that the sign is no accident.
        signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
        shape = tuple(images.shape[1:])
        state = {"mean": mean.view(shape), "varying": varying.view(shape)}
        return cls(shape, {**state, "components": (components * signs).half()})

    def encode(self, images: Tensor) -> Tensor:
        """Return scores, shape (n, components)."""
        centred = (images - self._mean.to(images)).flatten(1)[:, self._places]
        return centred @ self._components.T

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images of scores."""
        images = self._mean.flatten().repeat(len(codes), 1)
        images[:, self._places] += codes.cpu() @ self._components
        return images.view(len(codes), *self._image_shape)

    def state(self) -> dict[str, Tensor]:
        """Return mean image, which values vary, and the components on those."""
        components = self._components.half()
        return {"mean": self._mean, "varying": self._varying, "components": components}


def fit_codec(images: Tensor, spec: GeneratorSpec, *, folder: Path, device: torch.device) -> Codec:
    """Return the codec of a spec, fitted to training images, shape (n, 2, x, y, z).

    `folder` is where a codec that is trained keeps its checkpoints.
    """
    if not (images.flatten(1).std(0) > 0).any():
        raise InputError(
            "All training scans are the same image: there is nothing to learn.",
            remedy="Check the prepared cohort; its scans must be different persons.",
        )
    if spec.codec == "pca":
        return PcaCodec.fit(images)
    if spec.codec == "haar":
        return HaarCodec(_edges(images), spec.levels)
    from rarescan.generative.autoencoder import KlCodec

    return KlCodec.fit(images, spec, folder=folder, device=device)


def restore_codec(spec: GeneratorSpec, grid: Grid, state: Mapping[str, Tensor]) -> Codec:
    """Return the codec that `Codec.state` was taken from."""
    if spec.codec == "pca":
        return PcaCodec((CHANNELS, *grid.shape), state)
    if spec.codec == "haar":
        return HaarCodec(grid.shape, spec.levels)
    from rarescan.generative.autoencoder import KlCodec

    return KlCodec.restore(spec, grid.shape, state)


def _edges(images: Tensor) -> tuple[int, int, int]:
    return (images.shape[2], images.shape[3], images.shape[4])


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def in_parts(function: Callable[[Tensor], Tensor], values: Tensor, size: int = 16) -> Tensor:
    """Return `function(values)`, computed on a few rows at a time."""
    return torch.cat([function(part) for part in torch.split(values, size)])
