"""Image <-> code without a network: exact Haar wavelet packets, and principal components.

`fit_codec` and `restore_codec` are the ways in. Codes keep their natural scale; the Gaussian
floor standardises them. Both transforms are orthonormal, so distances between codes are
distances between images (`pca`: within the span of the training persons).
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from rarescan.cohort.contracts import Grid
from rarescan.errors import InputError, SettingError
from rarescan.generative.anatomy import CHANNELS
from rarescan.generative.code_store import columns_at_a_time
from rarescan.generative.contract import Codec
from rarescan.generative.spec import CodecName, GeneratorSpec

if TYPE_CHECKING:
    from rarescan.generative.run import Plan

_LEAST_DEVIATION = 1e-4
"""A value that never leaves its mean by more is the mean."""
_FINE_GRID = 2**20
"""Voxels from which on the distance to the edge is stored at half the resolution."""


class HaarCodec:
    """Wavelet packet of 1 or 2 levels: edges halved and channels times 8, at each level.

    On fine grids the distance channel, which is smooth, is kept at half the resolution (8 bands
    instead of 64 at 2 levels): the code is 44 % smaller, and 0.24 % of the brain's voxels, all at
    its edge, change sides. Elsewhere the code is exact.
    """

    name: ClassVar[CodecName] = "haar"

    def __init__(self, grid_shape: tuple[int, int, int], levels: int) -> None:
        step = 2**levels
        if any(edge % step for edge in grid_shape):
            raise SettingError(
                f"A grid of {_words(grid_shape)} voxels cannot be halved {levels} times.",
                remedy="Set codec to pca, levels to 1, or prepare the cohort at another spacing.",
            )
        self.levels = levels
        self._coarse_shape = prod(grid_shape) >= _FINE_GRID
        n_shape_bands = 8 ** (levels - 1) if self._coarse_shape else 8**levels
        self.code_shape: tuple[int, ...] = (
            8**levels + n_shape_bands,
            *(edge // step for edge in grid_shape),
        )
        self._kernel = haar_kernel()

    def encode(self, images: Tensor) -> Tensor:
        """Return the bands: those of the intensity, then those of the distance."""
        if not self._coarse_shape:
            return self._bands(images, self.levels)
        # The lowest band of one level is the mean of 8 voxels times the square root of 8.
        means = functional.avg_pool3d(images[:, 1:], 2) * 8**0.5
        intensity = self._bands(images[:, :1], self.levels)
        return torch.cat([intensity, self._bands(means, self.levels - 1)], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images of bands; the inverse has the weights of the transform."""
        if not self._coarse_shape:
            return self._image(codes, self.levels)
        n_bands = 8**self.levels
        means = self._image(codes[:, n_bands:], self.levels - 1) / 8**0.5
        shape = _enlarged(means)
        # Once more with what the means of the enlarged image lack.
        shape = shape + _enlarged(means - functional.avg_pool3d(shape, 2))
        return torch.cat([self._image(codes[:, :n_bands], self.levels), shape], dim=1)

    def _bands(self, images: Tensor, levels: int) -> Tensor:
        for _ in range(levels):
            n_channels = images.shape[1]
            kernel = self._kernel.repeat(n_channels, 1, 1, 1, 1).to(images)
            images = functional.conv3d(images, kernel, stride=2, groups=n_channels)
        return images

    def _image(self, codes: Tensor, levels: int) -> Tensor:
        for _ in range(levels):
            n_channels = codes.shape[1] // 8
            kernel = self._kernel.repeat(n_channels, 1, 1, 1, 1).to(codes)
            codes = functional.conv_transpose3d(codes, kernel, stride=2, groups=n_channels)
        return codes

    def state(self) -> dict[str, Tensor]:
        """Return nothing: the transform is fixed."""
        return {}


def _enlarged(images: Tensor) -> Tensor:
    return functional.interpolate(images, scale_factor=2, mode="trilinear")


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
        flat, shape = images.flatten(1), tuple(images.shape[1:])
        mean, varying, gram = _moments(flat)
        # The n x n Gram matrix has the same spectrum as the covariance, and fits in memory.
        values, vectors = torch.linalg.eigh(gram)
        order = torch.arange(len(images) - 1, 0, -1)
        order = order[values[order] > values[-1] * 1e-9]
        weights = (vectors[:, order] / values[order].sqrt()).T.float()
        components = _combined(flat, mean, varying, weights)
        state = {"mean": mean.view(shape), "varying": varying.view(shape)}
        return cls(shape, {**state, "components": components})

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


def _moments(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean row, which columns vary, and the Gram matrix of the centred rows."""
    means, varies, gram = [], [], torch.zeros((), dtype=torch.float64)
    for columns in columns_at_a_time(flat):
        block = flat[:, columns]
        mean = block.mean(0)
        varying = (block - mean).abs().amax(0) > _LEAST_DEVIATION
        centred = (block - mean)[:, varying]
        gram = gram + (centred @ centred.T).double()
        means.append(mean)
        varies.append(varying)
    return torch.cat(means), torch.cat(varies), gram


def _combined(flat: Tensor, mean: Tensor, varying: Tensor, weights: Tensor) -> Tensor:
    """Return `weights` times the centred rows, in half precision, at the columns that vary.

    The largest entry of each row is positive, so that its sign is no accident.
    """
    parts = []
    largest = torch.zeros(len(weights), 1)
    for columns in columns_at_a_time(flat):
        kept = varying[columns]
        part = weights @ (flat[:, columns] - mean[columns])[:, kept]
        parts.append(part.half())
        if part.shape[1]:
            found = part.gather(1, part.abs().argmax(1, keepdim=True))
            largest = torch.where(found.abs() > largest.abs(), found, largest)
    return torch.cat(parts, 1) * largest.sign().half()


def fit_codec(
    images: Tensor,
    spec: GeneratorSpec,
    *,
    folder: Path,
    device: torch.device,
    plan: "Plan | None" = None,
) -> Codec:
    """Return the codec of a spec, fitted to training images, shape (n, 2, x, y, z).

    `folder` is where a codec that is trained keeps its checkpoints, and `plan` names the training
    and the second place for them; the spec says the rest.
    """
    require_variety(images)
    if spec.codec == "pca":
        return PcaCodec.fit(images)
    if spec.codec == "haar":
        return HaarCodec(_edges(images), spec.levels)
    from rarescan.generative.autoencoder import KlCodec

    return KlCodec.fit(images, spec, folder=folder, device=device, plan=plan)


def require_variety(values: Tensor) -> None:
    """Raise where all rows, images or codes, are the same."""
    flat = values.flatten(1)
    if not any((flat[:, part] != flat[:1, part]).any() for part in columns_at_a_time(flat)):
        raise InputError(
            "All training scans are the same image: there is nothing to learn.",
            remedy="Check the prepared cohort; its scans must be different persons.",
        )


def restore_codec(spec: GeneratorSpec, grid: Grid, state: Mapping[str, Tensor]) -> Codec:
    """Return the codec that `Codec.state` was taken from."""
    if spec.codec == "pca":
        return PcaCodec((CHANNELS, *grid.shape), state)
    if spec.codec == "haar":
        return HaarCodec(grid.shape, spec.levels)
    from rarescan.generative.autoencoder import KlCodec

    return KlCodec.restore(grid.shape, state)


def _edges(images: Tensor) -> tuple[int, int, int]:
    return (images.shape[2], images.shape[3], images.shape[4])


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
