"""Classical augmentation: small affine moves, gain, offset and noise, a new draw for each image.

`augment` is the way in. Nothing is flipped: a brain is not its mirror image, and half of the
signal of a lateralised disease would go. The strengths are the measured recipe of the field's
3D T1 classifiers; 0 leaves every image as it is.
"""

import torch
from torch.nn import functional

_LINEAR_SD = 0.02
"""Of all nine entries of the matrix beside the identity."""
_SHIFT_SD = 0.03
"""In half edges of the box: about 2.5 mm."""
_GAIN_SD = 0.08
_OFFSET_SD = 0.016
"""In stored units (0 to 1); background, gain and noise are relative to the same scale."""
_NOISE_MAX = 0.025
"""The noise of an image has a standard deviation between 0 and this."""


def augment(images: torch.Tensor, strength: float, random: torch.Generator) -> torch.Tensor:
    """Return every image moved, brightened and made noisy by draws of its own.

    Parameters
    ----------
    images : float32 tensor, shape (n, x, y, z)
        Values 0 to 1.
    strength : float
        Multiplies every standard deviation; 0 returns the images untouched.
    random : torch.Generator
        On the CPU, so that a GPU sees the same draws.

    Returns
    -------
    float32 tensor, shape (n, x, y, z)
        Values 0 to 1.
    """
    if strength == 0:
        return images
    n, device = len(images), images.device
    normal = torch.randn(n, 14, generator=random) * strength
    noise_sd = torch.rand(n, 1, 1, 1, generator=random) * _NOISE_MAX * strength
    noise = torch.randn(images.shape, generator=random) * noise_sd
    matrix = torch.eye(3) + _LINEAR_SD * normal[:, :9].reshape(n, 3, 3)
    moved = move(images, matrix.to(device), (_SHIFT_SD * normal[:, 9:12]).to(device))
    gain = (1 + _GAIN_SD * normal[:, 12]).reshape(n, 1, 1, 1).to(device)
    offset = (_OFFSET_SD * normal[:, 13]).reshape(n, 1, 1, 1).to(device)
    return (moved * gain + offset + noise.to(device)).clamp_(0, 1)


def move(images: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return images looked up at `matrix @ place + shift`, places from -1 to 1 along each axis.

    Linear interpolation, one axis after the other: first within the slices across x, then along
    x (two-pass resampling, Catmull and Smith 1980). Each axis is still interpolated once, and
    torch has fast code for planes but not for volumes: 3.5 times quicker than a 3D look-up.

    Parameters
    ----------
    images : float32 tensor, shape (n, x, y, z)
    matrix : float32 tensor, shape (n, 3, 3)
        Near the identity.
    shift : float32 tensor, shape (n, 3)
    """
    n, nx, ny, nz = images.shape
    x, y, z = (_centres(size, images.device) for size in (nx, ny, nz))

    def field(row: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
        a, b, c, d = (v.reshape(n, 1, 1, 1) for v in (*row.unbind(1), constant))
        return (a * x.reshape(1, nx, 1, 1) + d) + (b * y.reshape(1, 1, ny, 1) + c * z)

    def in_plane(axis: int) -> torch.Tensor:
        # Along a slice of the source the target's x is known from the first row, so it is
        # replaced by the source's x here.
        slope = matrix[:, axis, 0] / matrix[:, 0, 0]
        row = matrix[:, axis] - slope[:, None] * matrix[:, 0]
        row = torch.cat((slope[:, None], row[:, 1:]), 1)
        return field(row, shift[:, axis] - slope * shift[:, 0])

    planes = torch.stack((in_plane(2), in_plane(1)), -1).reshape(n * nx, ny, nz, 2)
    slices = _look_up(images.reshape(n * nx, 1, ny, nz), planes)
    along = field(matrix[:, 0], shift[:, 0]).reshape(n, nx, ny * nz)
    columns = _centres(ny * nz, images.device).expand(n, nx, -1)
    lines = torch.stack((columns, along), -1)
    return _look_up(slices.reshape(n, 1, nx, ny * nz), lines).reshape(images.shape)


def _look_up(planes: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return functional.grid_sample(planes, grid, padding_mode="border", align_corners=False)


def _centres(size: int, device: torch.device) -> torch.Tensor:
    return torch.linspace(-1 + 1 / size, 1 - 1 / size, size, device=device)
