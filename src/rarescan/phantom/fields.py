"""Smooth fields: random ones, and those that make a region shrink by a known amount.

Displacements are pull-backs on the 4 mm brain grid: a voxel of the output looks up the template
at x + u(x), so a positive divergence is shrinking tissue. They are kept as torch wants them for
sampling: shape (3, x, y, z), channels ordered z, y, x, in units of half the brain box, which
makes them valid on a grid of any spacing.
"""

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn.functional import grid_sample

from rarescan.cohort.contracts import BRAIN_BOX_MM, FloatArray, brain_grid
from rarescan.cohort.template import block_average, load_lattice, regions
from rarescan.phantom.persons import AMPLITUDES, Person
from rarescan.phantom.spec import Preset
from rarescan.seeds import generator

FIELD_MM = 4.0
ASYMMETRY_MM = 1.5
"""Size of the deformation that everybody has: the template itself is exactly symmetric."""

_ASYMMETRY_SEED = 0
_NODES_MM = (72.0, 36.0, 18.0)
_SPLINE_RMS = 0.333
_PADDING = 8
_SQUARINGS = 5
_HALF_BOX_MM = torch.tensor(BRAIN_BOX_MM[::-1]).view(3, 1, 1, 1) / 2


@cache
def _basis(length_mm: float, n: int, node_mm: float) -> FloatArray:
    """Return cubic B-spline weights, shape (n voxels, nodes), for voxel centres along an axis."""
    n_nodes = math.ceil(length_mm / node_mm) + 3
    place = (np.arange(n) + 0.5) * length_mm / n / node_mm + 1
    away = np.abs(place[:, None] - np.arange(n_nodes))
    near, far = 2 / 3 - away**2 + away**3 / 2, (2 - away) ** 3 / 6
    weights = np.where(away < 1, near, np.where(away < 2, far, 0))
    return weights.astype(np.float32)


def random_field(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    node_mm: float,
    *,
    box_mm: tuple[float, float, float] = BRAIN_BOX_MM,
    channels: int = 1,
) -> torch.Tensor:
    """Return a smooth random field of root mean square 1, the same place on any grid of the box.

    Cubic B-splines with independent normal coefficients: three small matrix products instead of
    filtering full-size noise.

    Parameters
    ----------
    rng : numpy generator
        Draws the coefficients; how many depends on the box and the nodes, not on the shape.
    shape : tuple of int
        Voxels.
    node_mm : float
        Distance of the nodes.
    box_mm : tuple of float
        Edges of the box.
    channels : int
        Independent fields.

    Returns
    -------
    float32 tensor, shape (channels, x, y, z)
    """
    axes = [_basis(e, n, node_mm) for e, n in zip(box_mm, shape, strict=True)]
    nodes = rng.standard_normal((channels, *(a.shape[1] for a in axes)), dtype=np.float32)
    a, b, c = (torch.from_numpy(axis) for axis in axes)
    field = torch.from_numpy(nodes / np.float32(_SPLINE_RMS)) @ c.T
    field = b @ field
    return (a @ field.flatten(2)).view(channels, *shape)


def displacement(person: Person, preset: Preset, rng: np.random.Generator) -> torch.Tensor:
    """Return a person's shape: random anatomy, atrophy and the asymmetry of everybody.

    Parameters
    ----------
    person : Person
        Gives the atrophy.
    preset : Preset
        Gives the size of the random velocity.
    rng : numpy generator
        The person's anatomy stream.

    Returns
    -------
    float32 tensor, shape (3, 40, 48, 40)
        Pull-back on the 4 mm grid, channels z, y, x, in half boxes.
    """
    shape = brain_grid(FIELD_MM).shape
    velocity = _asymmetry().clone()
    for node_mm, size_mm in zip(_NODES_MM, preset.deformation_mm, strict=True):
        velocity += size_mm * random_field(rng, shape, node_mm, channels=3) / _HALF_BOX_MM
    amounts = torch.tensor([*(0.10 * units for units in person.atrophy), person.ventricles])
    velocity += torch.tensordot(amounts, atrophy_velocities(), 1)
    return exponentiate(velocity)


def exponentiate(velocity: torch.Tensor) -> torch.Tensor:
    """Return the displacement of a stationary velocity, by scaling and squaring."""
    field: torch.Tensor = velocity / 2**_SQUARINGS
    identity = voxel_centres(brain_grid(FIELD_MM).shape)
    for _ in range(_SQUARINGS):
        there = identity + field.permute(1, 2, 3, 0)
        field = field + pull(field, there)
    return field


def voxel_centres(shape: tuple[int, int, int]) -> torch.Tensor:
    """Return where the voxels of a box lie, shape (x, y, z, 3): z, y, x from -1 to 1."""
    axes = [(torch.arange(n, dtype=torch.float32) + 0.5) * (2 / n) - 1 for n in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([z, y, x], dim=-1)


def pull(volume: torch.Tensor, there: torch.Tensor, padding: str = "border") -> torch.Tensor:
    """Return the channels of a volume, read (trilinear) at places in half boxes.

    Parameters
    ----------
    volume : float32 tensor, shape (channels, x, y, z)
    there : float32 tensor, shape (i, j, k, 3)
        Ordered z, y, x.
    padding : str
        What lies outside: `border` or `zeros`.

    Returns
    -------
    float32 tensor, shape (channels, i, j, k)
    """
    read: torch.Tensor = grid_sample(
        volume[None], there[None], padding_mode=padding, align_corners=False
    )
    return read[0]


@cache
def _asymmetry() -> torch.Tensor:
    """Return the velocity that breaks the template's mirror symmetry, the same for everybody."""
    rng = generator(_ASYMMETRY_SEED, "phantom", "asymmetry")
    shape = brain_grid(FIELD_MM).shape
    both = [random_field(rng, shape, node_mm, channels=3) for node_mm in _NODES_MM[:2]]
    return (both[0] + both[1]) * (ASYMMETRY_MM / math.sqrt(2)) / _HALF_BOX_MM


@cache
def atrophy_velocities() -> torch.Tensor:
    """Return unit velocities, shape (13, 3, 40, 48, 40): twelve regions and the ventricles.

    Unit amplitude asks for a change of 1 in the logarithm of local volume. Tissue is the source
    of the pull-back, the fluid around it the sink that takes the room. What tissue loses in the
    mean is less (measured: 0.58 frontal, 0.66 anterior temporal, 0.84 insula), because voxels of
    4 mm hold both and central differences smooth; the presets are calibrated to that.
    """
    grey, white, fluid = (block_average(p, FIELD_MM) for p in load_lattice().sharpened())
    places = regions(brain_grid(FIELD_MM))
    fields = []
    for name in AMPLITUDES:
        tissue = places[name] * (grey + 0.5 * white)
        nearby = fluid * ndimage.gaussian_filter(tissue, 16 / FIELD_MM)
        sink = nearby * (tissue.sum() / nearby.sum())
        fields.append(_gradient_flow((tissue - sink) / _mean_over(tissue)))
    ventricles = places["ventricles"]
    around = ndimage.gaussian_filter(ventricles, 12 / FIELD_MM) * white
    source = around * (ventricles.sum() / around.sum())
    fields.append(_gradient_flow((source - ventricles) / _mean_over(ventricles)))
    return torch.stack(fields)


def _mean_over(weights: FloatArray) -> float:
    return float((weights**2).sum() / weights.sum())


def _gradient_flow(divergence: npt.NDArray[np.float32]) -> torch.Tensor:
    """Return the curl-free velocity of this divergence, in half boxes: solve Laplace by FFT."""
    padded = np.pad(divergence, _PADDING)
    padded -= padded.mean()
    laplacian = np.zeros(padded.shape)
    for axis, n in enumerate(padded.shape):
        wave = 2 * np.cos(2 * np.pi * np.fft.fftfreq(n)) - 2
        laplacian += wave.reshape([-1 if axis == other else 1 for other in range(3)])
    laplacian[0, 0, 0] = 1  # the mean of the divergence is 0, whatever it is divided by
    potential = np.fft.ifftn(np.fft.fftn(padded) / laplacian).real
    inside = (slice(_PADDING, -_PADDING),) * 3
    slopes = [np.gradient(potential, axis=axis)[inside] * FIELD_MM for axis in (2, 1, 0)]
    flow = torch.from_numpy(np.stack(slopes).astype(np.float32))
    return flow / _HALF_BOX_MM
