"""The `gaussian` baseline: the floor itself, which networks must beat."""

from typing import ClassVar

from torch import Tensor

from rarescan.generative.contract import Prior
from rarescan.generative.spec import Family


class Gaussian(Prior):
    """Codes given a condition are normal; nothing is trained."""

    family: ClassVar[Family] = "gaussian"

    def sample(self, encoded: Tensor, noise: Tensor) -> Tensor:
        """Return whitened codes: the condition's mean plus the noise."""
        mean = self.floor.mean(encoded)
        return mean + noise.view_as(mean)
