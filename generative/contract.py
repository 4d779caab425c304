"""What a codec, a prior and a generator are; every family and codec passes one conformance test.

A `Generator` is what other rooms see. Inside, it is a `Codec` (image <-> code) and a `Prior` (the
distribution of codes given a condition). Priors never see raw codes but *whitened* ones, in which
the cohort's conditional Gaussian (`floor.Floor`) is the unit normal around a known mean: a
network that outputs zero therefore samples the baseline, not noise.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from rarescan.cohort.contracts import Condition, FloatArray, Grid
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.floor import Floor
from rarescan.generative.spec import CodecName, Family, GeneratorSpec


class Generator(Protocol):
    """A trained generator; `families.load_generator` returns one.

    Attributes
    ----------
    family, spec, grid
        What it is, its settings, and the grid of its volumes.
    diagnoses : tuple of str
        The diagnoses that it can be asked for.
    near_copies : bool
        Whether its samples keep a real person's anatomy; such a generator is never released.
    """

    family: Family
    spec: GeneratorSpec
    grid: Grid
    diagnoses: tuple[str, ...]
    near_copies: bool

    def sample(
        self, conditions: Sequence[Condition], seed: int, first_index: int = 0
    ) -> Iterator[FloatArray]:
        """Yield one volume a condition, in order: float32, shape (x, y, z), 0 to 1."""
        ...

    def served(self, condition: Condition) -> Condition:
        """Return the part of a condition that this generator obeys."""
        ...


class Codec(Protocol):
    """Image <-> code, on one grid. Images are `anatomy` channels: intensity and shape."""

    name: ClassVar[CodecName]
    code_shape: tuple[int, ...]

    def encode(self, images: Tensor) -> Tensor:
        """Return codes, float32, shape (n, *code_shape), of images, shape (n, 2, x, y, z)."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Return images, shape (n, 2, x, y, z), of codes, shape (n, *code_shape)."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything that `codecs.restore_codec` needs beside the settings."""
        ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one training step sees."""

    step: int
    n_steps: int
    values: Tensor
    """Images or whitened codes, shape (batch, ...)."""
    encoded: Tensor
    """Encoded conditions, shape (batch, features); some diagnoses hidden."""
    noise: torch.Generator
    """The step's own source of random numbers, on the CPU."""

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers on the device of the values."""
        return torch.randn(*shape, generator=self.noise).to(self.values.device)

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers from 0 to 1 on the device of the values."""
        return torch.rand(*shape, generator=self.noise).to(self.values.device)


@dataclass(frozen=True, kw_only=True)
class Player:
    """One set of weights with a loss of its own; only the GAN has two."""

    name: str
    parameters: list[nn.Parameter]
    loss: Callable[[Batch], Tensor]
    rate: float = 1.0
    """Factor on the learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)


class Prior(nn.Module):
    """The distribution of codes given a condition; a family overrides what it changes.

    Without a network (`players` empty) it is the conditional Gaussian itself.
    """

    family: ClassVar[Family]
    near_copies: ClassVar[bool] = False
    learns_hidden: ClassVar[bool] = False
    """Whether it is trained with conditions hidden at random."""

    def __init__(self, spec: GeneratorSpec, floor: Floor, encoder: ConditionEncoder) -> None:
        super().__init__()
        self.spec, self.floor, self.encoder = spec, floor, encoder
        self.network_kept = True

    @property
    def noise_size(self) -> int:
        """How many standard normal numbers one sample is made of."""
        return self.floor.size

    def players(self) -> list[Player]:
        """Return what is trained, in the order of its updates within a step."""
        return []

    def held_out_loss(self, codes: Tensor, encoded: Tensor) -> float | None:
        """Return the loss on validation persons at fixed noise; nothing is fitted to it."""
        del codes, encoded  # families with a network use them
        return None

    def close(self, codes: Tensor, encoded: Tensor) -> None:
        """Fit, on training persons, what is fitted once the network stands."""

    def judge(self, codes: Tensor, encoded: Tensor) -> dict[str, Any]:
        """Compare with the Gaussian on validation persons; may set `network_kept`."""
        del codes, encoded  # families with a floor to beat use them
        return {}

    def sample(self, encoded: Tensor, noise: Tensor) -> Tensor:
        """Return whitened codes, shape (n, *code_shape), of noise, shape (n, noise_size)."""
        raise NotImplementedError
