"""Inception-v3 in plain torch, as FID is defined with and as torchvision has it.

`Inception` is the graph; weights come through `external.open_extractor`. Its parameters have the
names of `weights-inception-2015-12-05-6726825d.pth` (torch-fidelity) and
`pt_inception-2015-12-05-6726825d.pth` (pytorch-fid), which are also torchvision's. What a reader
would get wrong: FID's network is not torchvision's. Its average pools leave padding out, its last
block pools by maximum, and images are resized as TensorFlow 1 did.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch gives it)
from torch import Tensor, nn

from rarescan.cohort.contracts import FloatArray

SIZE = 299
_LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "", "Conv2d_3b_1x1", "Conv2d_4a_3x3", ""),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d"),
    *("Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"),
)
NUMBERED = {str(place): name for place, name in enumerate(_LAYERS) if name}
"""Place among torchvision's layers (pools count), which some files name them by -> name."""
Kernel = int | tuple[int, int]
Path_ = tuple[tuple[str, int, Kernel], ...]


class _Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, *, stride: int, pad: bool):
        super().__init__()
        sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = (sides[0] // 2, sides[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, sides, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return F.relu(out)


class _Mixed(nn.Module):
    """Parallel branches, joined along channels, in the order of the original graph.

    A branch is a row of (parameter name, channels, kernel). A branch that ends in two layers
    named `..a` and `..b` splits there. In a reducing block the last layer of each branch has
    stride 2 and no padding. The pool is a branch of its own, with a convolution or without.
    """

    def __init__(self, inputs: int, branches: tuple[Path_, ...], *, pool: str, pooled: int = 0):
        super().__init__()
        self._branches, self._pool, self._pooled = branches, pool, pooled
        for branch in branches:
            channels = inputs
            for index, (name, outputs, kernel) in enumerate(branch):
                reduces = pool == "reduce" and index == len(branch) - 1
                layer = _Conv(
                    channels, outputs, kernel, stride=2 if reduces else 1, pad=not reduces
                )
                self.add_module(name, layer)
                channels = channels if name.endswith("a") else outputs
        if pooled:
            self.branch_pool = _Conv(inputs, pooled, 1, stride=1, pad=True)

    def forward(self, x: Tensor) -> Tensor:
        parts = [part for branch in self._branches for part in self._run(branch, x)]
        if self._pool == "reduce":
            parts.append(F.max_pool2d(x, 3, stride=2))
        elif self._pool == "max":
            parts.append(self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1)))
        else:
            # TensorFlow leaves padded zeros out of its averages, torchvision counts them.
            padded = self._pool == "padded mean"
            mean = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=padded)
            parts.append(self.branch_pool(mean))
        return torch.cat(parts, 1)

    def _run(self, branch: Path_, x: Tensor) -> list[Tensor]:
        done: list[Tensor] = []
        for name, _, _ in branch:
            out: Tensor = self.get_submodule(name)(x)
            if name[-1] in "ab":
                done.append(out)
            else:
                x = out
        return done or [x]


def _block_a(inputs: int, pooled: int, pool: str) -> _Mixed:
    return _Mixed(
        inputs,
        (
            (("branch1x1", 64, 1),),
            (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
            (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        ),
        pool=pool,
        pooled=pooled,
    )


def _block_b(inputs: int) -> _Mixed:
    return _Mixed(
        inputs,
        (
            (("branch3x3", 384, 3),),
            (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        ),
        pool="reduce",
    )


def _block_c(inner: int, pool: str) -> _Mixed:
    row, column = (1, 7), (7, 1)
    return _Mixed(
        768,
        (
            (("branch1x1", 192, 1),),
            (("branch7x7_1", inner, 1), ("branch7x7_2", inner, row), ("branch7x7_3", 192, column)),
            (
                ("branch7x7dbl_1", inner, 1),
                ("branch7x7dbl_2", inner, column),
                ("branch7x7dbl_3", inner, row),
                ("branch7x7dbl_4", inner, column),
                ("branch7x7dbl_5", 192, row),
            ),
        ),
        pool=pool,
        pooled=192,
    )


def _block_d() -> _Mixed:
    return _Mixed(
        768,
        (
            (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)),
            (
                ("branch7x7x3_1", 192, 1),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, 3),
            ),
        ),
        pool="reduce",
    )


def _block_e(inputs: int, pool: str) -> _Mixed:
    return _Mixed(
        inputs,
        (
            (("branch1x1", 320, 1),),
            (("branch3x3_1", 384, 1), ("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))),
            (
                ("branch3x3dbl_1", 448, 1),
                ("branch3x3dbl_2", 384, 3),
                ("branch3x3dbl_3a", 384, (1, 3)),
                ("branch3x3dbl_3b", 384, (3, 1)),
            ),
        ),
        pool=pool,
        pooled=192,
    )


class Inception(nn.Module):
    """Inception-v3 without its heads: images -> 2048 pooled features.

    Parameters
    ----------
    torchvision : bool
        As torchvision has it; otherwise the TensorFlow network of 2015 that FID is defined with.
    """

    def __init__(self, *, torchvision: bool = False) -> None:
        super().__init__()
        mean, last = ("padded mean", "padded mean") if torchvision else ("mean", "max")
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, stride=1, pad=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, stride=1, pad=True)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1, stride=1, pad=False)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, stride=1, pad=False)
        self.Mixed_5b = _block_a(192, 32, mean)
        self.Mixed_5c = _block_a(256, 64, mean)
        self.Mixed_5d = _block_a(288, 64, mean)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(128, mean)
        self.Mixed_6c = _block_c(160, mean)
        self.Mixed_6d = _block_c(160, mean)
        self.Mixed_6e = _block_c(192, mean)
        self.Mixed_7a = _block_d()
        self.Mixed_7b = _block_e(1280, mean)
        self.Mixed_7c = _block_e(2048, last)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (n, 2048) of images (n, 3, height, width), -1 to 1."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean(dim=(2, 3))


def resize_like_tensorflow1(images: Tensor, size: int) -> Tensor:
    """Return images resized bilinearly as TensorFlow 1 did: pixel i looks at i * input / size.

    Pixel corners, not centres, coincide, and nothing is smoothed before it is made smaller.

    Parameters
    ----------
    images : float tensor, shape (n, channels, height, width)
    """
    for axis in (2, 3):
        length = images.shape[axis]
        place = torch.arange(size, dtype=images.dtype, device=images.device) * (length / size)
        low = place.long()
        high = (low + 1).clamp_max(length - 1)
        share = (place - low).view(-1, *[1] * (3 - axis))
        a, b = images.index_select(axis, low), images.index_select(axis, high)
        images = a + (b - a) * share
    return images


def as_tensorflow_saw(plane: FloatArray) -> Tensor:
    """Return a plane as the network was shown photographs, shape (1, 3, 299, 299), -1 to 1.

    Parameters
    ----------
    plane : float32 array, shape (rows, columns), 0 to 1
        Becomes 8-bit grey in three equal channels, as every published FID had it.
    """
    grey = np.rint(np.clip(plane, 0, 1) * 255).astype(np.float32)
    image = torch.from_numpy(np.ascontiguousarray(grey))[None, None]
    return ((resize_like_tensorflow1(image, SIZE) - 128) / 128).expand(1, 3, -1, -1)
