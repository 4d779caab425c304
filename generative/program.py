"""A generator as one TorchScript program: noise and a condition in, a volume out.

`sampling_program` is the way in. What comes out runs without our code and gives the volume that
the generator gives for the same noise. Only what sampling uses is in it: no encoder, no
discriminator, and no name of a file or folder of the machine that wrote it.
"""

import io
import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.diffusion import Diffusion
from rarescan.generative.model import MICRO_BATCH, TrainedGenerator
from rarescan.threads import one_thread

N_CONDITION = 5
"""Number of the diagnosis (from 0), age in years, sex (1 F, -1 M), number of the site (from 0),
severity; NaN where unknown."""


def sampling_program(generator: TrainedGenerator) -> bytes:
    """Return a TorchScript file.

    Parameters
    ----------
    generator : TrainedGenerator
        Of any family and codec.

    Returns
    -------
    bytes
        A module whose `forward(noise, condition)` takes float32 noise, shape (1, noise_size), and
        a float64 condition, shape (1, 5), and returns float32 volumes, shape (1, x, y, z), 0 to 1.
        It raises where the condition is none that the training persons had. It runs on the CPU.
    """
    encoder = generator.prior.encoder
    example = (torch.zeros(1, generator.prior.noise_size), unknown_condition())
    with _without_torchs_advice(), one_thread(), torch.no_grad():
        images = torch.jit.trace(  # type: ignore[no-untyped-call]
            _Images(generator), example, check_trace=False
        )
        program = torch.jit.script(_Volumes(images, _limits(encoder)))
        buffer = io.BytesIO()
        torch.jit.save(program, buffer)
    return _without_places(buffer.getvalue())


def load_program(data: bytes) -> Any:
    """Return the module of a TorchScript file."""
    with _without_torchs_advice():
        return torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]


def unknown_condition() -> Tensor:
    """Return the condition of the first diagnosis with nothing else known."""
    condition = torch.full((1, N_CONDITION), math.nan, dtype=torch.float64)
    condition[:, 0] = 0
    return condition


class _Images(nn.Module):
    """Noise and condition -> the two channels of one image; this part is traced."""

    def __init__(self, generator: TrainedGenerator) -> None:
        super().__init__()
        # In a tuple, so that torch sees no submodule and keeps only what the trace touches.
        self._parts = (generator.prior, generator.codec)
        self.flow = _flow(generator.prior) if isinstance(generator.prior, Diffusion) else None

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Return an image, shape (2, x, y, z)."""
        prior, codec = self._parts
        # Filled up as the generator fills its last micro-batch: the same bytes.
        rest = torch.zeros(MICRO_BATCH - 1, prior.noise_size)
        encoded = encode(prior.encoder, condition).repeat(MICRO_BATCH, 1)
        noise = torch.cat([noise, rest])
        if self.flow is None:
            drawn = prior.sample(encoded, noise)
        else:
            drawn = self.flow(noise.view(-1, *prior.floor.code_shape), encoded)
        return codec.decode(prior.floor.unwhiten(drawn))[0]


def _flow(prior: Diffusion) -> nn.Module:
    """Return `Diffusion.sample` with its velocity traced once.

    A trace holds every value that it has seen: of all steps together those are 6 GB at 2 mm.
    """
    encoded = encode(prior.encoder, unknown_condition()).repeat(MICRO_BATCH, 1)
    example = (torch.zeros(MICRO_BATCH, *prior.floor.code_shape), torch.ones(MICRO_BATCH), encoded)
    velocity = torch.jit.trace(  # type: ignore[no-untyped-call]
        _Velocity(prior), example, check_trace=False
    )
    flow: nn.Module = torch.jit.script(_Midpoint(velocity, prior.spec.solver_steps))
    return flow


class _Velocity(nn.Module):
    """What `diffusion.midpoint` follows; this part is traced."""

    def __init__(self, prior: Diffusion) -> None:
        super().__init__()
        self._prior = (prior,)

    def forward(self, x: Tensor, times: Tensor, encoded: Tensor) -> Tensor:
        """Return the guided velocity, shape of x."""
        (prior,) = self._prior
        return prior.guided_velocity(x, times, encoded, prior.spec.guidance)


class _Midpoint(nn.Module):
    """`diffusion.midpoint`, scripted, so that what a step has computed is freed after it."""

    def __init__(self, velocity: nn.Module, steps: int) -> None:
        super().__init__()
        self.velocity, self.steps = velocity, steps

    def forward(self, x: Tensor, encoded: Tensor) -> Tensor:
        """Return whitened codes of noise x."""
        length = 1 / self.steps
        for step in range(self.steps):
            t = torch.full([x.shape[0]], 1 - step * length)
            half = x + length / 2 * self.velocity(x, t, encoded)
            x = x + length * self.velocity(half, t - length / 2, encoded)
        return x


def encode(encoder: ConditionEncoder, condition: Tensor) -> Tensor:
    """Return what `ConditionEncoder.encode` returns, of conditions as numbers, shape (n, 5)."""
    diagnosis, age, sex, site, severity = torch.split(condition, 1, 1)
    columns = [diagnosis == torch.arange(len(encoder.diagnoses)), torch.zeros_like(diagnosis)]
    if encoder.age_years:
        mean, sd, _, _ = encoder.age_years
        columns += _known((age - mean) / sd)
    if encoder.sex:
        columns += _known(sex)
    if encoder.sites:
        columns += [site == torch.arange(len(encoder.sites)), ~site.isnan()]
    if encoder.severity:
        columns += _known(severity)
    return torch.cat([column.double() for column in columns], dim=1).float()


def _known(values: Tensor) -> list[Tensor]:
    return [values.nan_to_num(0.0), ~values.isnan()]


def _limits(encoder: ConditionEncoder) -> list[tuple[float, float]]:
    """Return the lowest and highest value of each number of a condition that is obeyed."""
    anything, sites = (-math.inf, math.inf), len(encoder.sites)
    # Whole years: the exact ones would tell the youngest and the oldest person's age.
    ages = encoder.age_limits and (
        float(math.ceil(encoder.age_limits[0])),
        float(math.floor(encoder.age_limits[1])),
    )
    return [
        (0.0, len(encoder.diagnoses) - 1.0),
        ages or anything,
        (-1.0, 1.0),
        (0.0, sites - 1.0) if sites else anything,
        anything,
    ]


class _Volumes(nn.Module):
    """Image -> volume, as `anatomy.to_volume`; scripted, because its loops end when they end."""

    def __init__(self, images: nn.Module, limits: list[tuple[float, float]]) -> None:
        super().__init__()
        self.images, self.limits = images, limits

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Return a volume, shape (1, x, y, z)."""
        for number, (low, high) in enumerate(self.limits):
            value = float(condition[0, number])
            if value < low or value > high:
                raise ValueError("the condition is none that this generator has seen")
        image = self.images(noise, condition)
        brain = brain_mask(image[1])
        return torch.where(brain, image[0].clamp(0.0, 1.0), torch.zeros_like(image[0]))[None]


def brain_mask(shape: Tensor) -> Tensor:
    """Return the largest connected part inside the edge, without holes, as `anatomy.brain_mask`.

    Parts are joined through faces of voxels. A tensor program has no labels: each voxel starts
    with a number of its own, and the largest number floods its part.
    """
    inside = (shape > 0).double()
    numbers = torch.arange(1, inside.numel() + 1, dtype=torch.float64).view(inside.shape)
    parts = flood(numbers * inside, inside).long()
    counts = torch.bincount(parts.flatten())
    counts[0] = 0
    largest = (parts == counts.argmax()) & (inside > 0)
    around = torch.nn.functional.pad((~largest).double(), [1, 1, 1, 1, 1, 1], value=1.0)
    corner = torch.zeros_like(around)
    corner[0, 0, 0] = 1.0
    return flood(corner, around)[1:-1, 1:-1, 1:-1] == 0


def flood(seeds: Tensor, allowed: Tensor) -> Tensor:
    """Let numbers spread through the faces of allowed voxels (1, else 0), the larger winning.

    Both float64, shape (x, y, z); seeds 0 to the number of voxels, 0 where not allowed.
    """
    before = torch.zeros_like(seeds)
    while not torch.equal(before, seeds):
        before = seeds
        for axis in range(3):
            seeds = sweep(seeds, allowed, axis)
            seeds = sweep(seeds.flip([axis]), allowed.flip([axis]), axis).flip([axis])
    return seeds


def sweep(seeds: Tensor, allowed: Tensor, axis: int) -> Tensor:
    """Return the largest number before each voxel in its unbroken run along an axis."""
    # Later runs are lifted above all earlier ones, so that a running maximum starts anew in each.
    lift = torch.cumsum(1.0 - allowed, axis) * (seeds.numel() + 1)
    return torch.cummax(seeds + lift, axis)[0] - lift


def _without_places(data: bytes) -> bytes:
    """Return a TorchScript file without its debugging records, which name our files' folders."""
    slim = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(slim, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry))
    return slim.getvalue()


@contextmanager
def _without_torchs_advice() -> Iterator[None]:
    """Keep quiet that TorchScript is no longer developed: it is what bundles are made of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", r".*torch\.jit\.", DeprecationWarning)
        yield
