"""Classical augmentation of pictures: a list of what may happen, for each modality its own.

`PlaneAugmentation` is the way in; it is called like `augment.augment`. There is no flip of up and
down: depth is the vertical axis of an ultrasound picture, and a pleura below its own artefacts
does not exist. A flip of left and right is a choice (`mirror`): a brain is not its mirror image.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

_HALF_A_GREY_LEVEL = 0.5 / 255
"""Less than this is background: interpolation leaves traces of the neighbours there."""


@dataclass(frozen=True, kw_only=True)
class PlaneAugmentation:
    """What may happen to a picture; each picture gets draws of its own, its planes the same."""

    turn_degrees: float = 0.0
    """Standard deviation, like all that follow."""
    zoom: float = 0.0
    """Relative."""
    shift: float = 0.0
    """In half edges of the picture."""
    mirror: bool = False
    """Exchange left and right of every second picture."""
    gain: float = 0.0
    """Relative."""
    offset: float = 0.0
    """In stored units (0 to 1); background stays 0."""
    noise_max: float = 0.0
    """The noise of a picture has a standard deviation between 0 and this."""

    def __call__(
        self, images: torch.Tensor, strength: float, random: torch.Generator
    ) -> torch.Tensor:
        """Return every picture moved, brightened and made noisy by draws of its own.

        Parameters
        ----------
        images : float32 tensor, shape (n, rows, columns, planes)
            Values 0 to 1.
        strength : float
            Multiplies every standard deviation; 0 returns the pictures untouched.
        random : torch.Generator
            On the CPU, so that a GPU sees the same draws.

        Returns
        -------
        float32 tensor, shape (n, rows, columns, planes)
            Values 0 to 1.
        """
        if strength == 0:
            return images
        n = len(images)
        normal = torch.randn(n, 6, generator=random) * strength
        mirrored = torch.rand(n, generator=random) < 0.5
        noise_sd = torch.rand(n, 1, 1, 1, generator=random) * self.noise_max * strength
        noise = torch.randn(images.shape, generator=random) * noise_sd
        matrix = self._matrix(normal, mirrored, images.shape[1] / images.shape[2])
        moved = _look_up(images, matrix.to(images.device))
        gain = (1 + self.gain * normal[:, 4]).reshape(n, 1, 1, 1).to(images.device)
        offset = (self.offset * normal[:, 5]).reshape(n, 1, 1, 1).to(images.device)
        inside = moved > _HALF_A_GREY_LEVEL
        return ((moved * gain + offset + noise.to(images.device)) * inside).clamp_(0, 1)

    def _matrix(
        self, normal: torch.Tensor, mirrored: torch.Tensor, rows_by_columns: float
    ) -> torch.Tensor:
        """Return where each target lies in its source, shape (n, 2, 3), places -1 to 1 (x, y)."""
        angle = normal[:, 0] * math.radians(self.turn_degrees)
        zoom = torch.exp(normal[:, 1] * self.zoom)
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        side = torch.where(mirrored & self.mirror, -1.0, 1.0)
        x = torch.stack(
            (side * cos, -side * sin * rows_by_columns, self.shift * normal[:, 2]), dim=1
        )
        y = torch.stack((sin / rows_by_columns, cos, self.shift * normal[:, 3]), dim=1)
        return torch.stack((x, y), dim=1)


def _look_up(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    planes = images.permute(0, 3, 1, 2)
    grid = functional.affine_grid(matrix, list(planes.shape), align_corners=False)
    return functional.grid_sample(planes, grid, align_corners=False).permute(0, 2, 3, 1)
