"""Inception-v3 as FID is defined with, in plain torch; weights by path and SHA-256 only.

`load_inception` reads `weights-inception-2015-12-05-6726825d.pth` (torch-fidelity) or
`pt_inception-2015-12-05-6726825d.pth` (pytorch-fid), whose parameters have the same names;
`slice_features` gives one vector a volume. It is not torchvision's network: average pools leave
padding out, the last block pools by maximum, and images are resized as TensorFlow 1 did.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch gives it)
from torch import Tensor, nn

from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError, SettingError
from rarescan.files import sha256_file

_SIZE = 299
_FEATURES, _CLASSES = 2048, 1008
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
            # TensorFlow leaves padded zeros out of its averages.
            mean = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
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


def _block_a(inputs: int, pooled: int) -> _Mixed:
    return _Mixed(
        inputs,
        (
            (("branch1x1", 64, 1),),
            (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
            (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        ),
        pool="mean",
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


def _block_c(inner: int) -> _Mixed:
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
        pool="mean",
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
    """The 2015 TensorFlow Inception-v3: images -> 2048 pool features and unbiased logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, stride=1, pad=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, stride=1, pad=True)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1, stride=1, pad=False)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, stride=1, pad=False)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(128)
        self.Mixed_6c = _block_c(160)
        self.Mixed_6d = _block_c(160)
        self.Mixed_6e = _block_c(192)
        self.Mixed_7a = _block_d()
        self.Mixed_7b = _block_e(1280, "mean")
        self.Mixed_7c = _block_e(2048, "max")
        self.fc = nn.Linear(_FEATURES, _CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (n, 2048) and logits without bias (n, 1008).

        Parameters
        ----------
        images : float tensor, shape (n, 3, height, width), 0 to 255
        """
        x = (resize_like_tensorflow1(images, _SIZE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        features = x.mean(dim=(2, 3))
        return features, features @ self.fc.weight.T


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


def load_inception(path: Path, sha256: str) -> Inception:
    """Return the network with weights from a file.

    Parameters
    ----------
    path : Path
        A torch-fidelity or pytorch-fid weight file.
    sha256 : str
        Its SHA-256 in hexadecimal; a name is no proof of what a file holds.

    Raises
    ------
    SettingError
        The file is missing or its SHA-256 is another.
    InputError
        It holds other parameters.
    """
    if not path.is_file():
        raise SettingError(
            "The file with the Inception weights is missing.",
            remedy="Set `evaluate.inception_weights` to its path, or leave it empty.",
        )
    found = sha256_file(path)
    if found != sha256.lower():
        raise SettingError(
            f"The Inception weights have the SHA-256 {found}, not the one in the settings.",
            remedy="Fetch the file again, or correct `evaluate.inception_sha256`.",
        )
    with torch.device("meta"):  # no random start for 24 million values that are replaced at once
        network = Inception()
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        # Counters of training steps are in one of the two files only, and change nothing.
        counters = {
            name: torch.zeros((), dtype=torch.long)
            for name in network.state_dict()
            if name.endswith("num_batches_tracked")
        }
        network.load_state_dict(counters | stored, assign=True)
    except Exception as error:
        raise InputError(
            "The file holds no TF-FID Inception-v3 weights.",
            remedy="Use weights-inception-2015-12-05-6726825d.pth of torch-fidelity.",
        ) from error
    return network.eval().requires_grad_(False)


def slice_features(network: Inception, volumes: FloatArray) -> FloatArray:
    """Return one vector a volume: the mean features of its three middle slices.

    Parameters
    ----------
    volumes : float32 array, shape (n, x, y, z), 0 to 1

    Returns
    -------
    float32 array, shape (n, 2048)
    """
    rows = np.empty((len(volumes), _FEATURES), np.float32)
    with torch.inference_mode():
        for index, volume in enumerate(volumes):
            middle = [np.take(volume, n // 2, axis) for axis, n in enumerate(volume.shape)]
            resized = [_image(plane) for plane in middle]
            rows[index] = network(torch.cat(resized))[0].mean(dim=0).numpy()
    return rows


def _image(plane: FloatArray) -> Tensor:
    """Return one slice as a grey 8-bit image of the network's size, three equal channels."""
    grey = np.rint(np.clip(plane, 0, 1) * 255).astype(np.float32)
    image = torch.from_numpy(np.ascontiguousarray(grey))[None, None]
    return resize_like_tensorflow1(image, _SIZE).expand(1, 3, -1, -1)
