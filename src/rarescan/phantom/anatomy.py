"""One person's brain: tissues in template space, and the picture that a scanner makes of them.

`brain_of` gives a person's tissues and shape, `prepared_volume` the image that preparation would
make of a scan of that person. Every spacing shows the same person.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch.nn.functional import interpolate

from rarescan.cohort.contracts import BRAIN_BOX_LOW_MM, BRAIN_BOX_MM, FloatArray, brain_grid
from rarescan.cohort.template import block_average, load_lattice, regions
from rarescan.phantom.fields import displacement, pull, random_field, voxel_centres
from rarescan.phantom.persons import AMPLITUDES, Person, Site, draw_site, stream
from rarescan.phantom.spec import PRESETS, PhantomConfig
from rarescan.seeds import generator

FWHM = 2.3548
"""Full width at half maximum of a Gaussian, in standard deviations."""

_TINY = 1e-4
_TEMPLATE_BRIGHTNESS = (0.65, 0.87, 0.25)
_MIXING = 0.55
_BIAS_NODES_MM = 80.0


@dataclass(frozen=True, kw_only=True)
class Maps:
    """What all persons share at one spacing; float32 tensors, shape (..., x, y, z)."""

    log_tissue: torch.Tensor
    """Logarithms of grey, white and fluid."""
    extent: torch.Tensor
    """Brain with its rim of fluid."""
    texture: torch.Tensor
    """What the template shows beyond its tissues: deep nuclei."""
    opening: torch.Tensor
    """Where fluid may come and go: everywhere but in the ventricles."""
    places: torch.Tensor
    """Twelve region weights."""


@dataclass(frozen=True, kw_only=True)
class Brain:
    """One person's brain in template space."""

    tissues: torch.Tensor
    """Shape (3, x, y, z): grey, white and fluid, together the extent."""
    shape: torch.Tensor
    """Pull-back on the 4 mm grid, see `fields`."""
    maps: Maps

    def seen(self, brightness: npt.NDArray[np.float64]) -> torch.Tensor:
        """Return the picture, shape (x, y, z), for brightnesses of grey, white and fluid."""
        weights = torch.from_numpy(brightness.astype(np.float32))
        picture: torch.Tensor = torch.tensordot(weights, self.tissues, 1)
        return picture + 0.5 * self.maps.texture


@lru_cache(maxsize=2)
def load_maps(spacing_mm: float) -> Maps:
    """Return the maps of one spacing, calculated on the template's voxels and then averaged."""
    lattice, places = load_lattice(), regions(brain_grid(spacing_mm))
    tissues = (lattice.gm, lattice.wm, lattice.csf)
    expected = sum(b * p for b, p in zip(_TEMPLATE_BRIGHTNESS, tissues, strict=True))
    texture = np.clip((lattice.t1 - expected) * lattice.mask, -0.25, 0.25)
    extent = block_average(lattice.extent, spacing_mm)
    shares = [block_average(p, spacing_mm) for p in lattice.sharpened()]
    log_tissue = np.log(np.stack(shares) / np.maximum(extent, _TINY) + _TINY)
    return Maps(
        log_tissue=torch.from_numpy(log_tissue),
        extent=torch.from_numpy(extent),
        texture=torch.from_numpy(block_average(texture.astype(np.float32), spacing_mm)),
        opening=torch.from_numpy(np.clip(1 - 2 * places["ventricles"], 0, 1)),
        places=torch.from_numpy(np.stack([places[name] for name in AMPLITUDES])),
    )


@lru_cache(maxsize=1)  # the same person at several scanners, one after the other
def brain_of(config: PhantomConfig, person: Person, spacing_mm: float) -> Brain:
    """Return a person's tissues at one spacing, and their shape.

    Folds are each person's own: smooth shifts of the tissues' log-odds, which open and close
    sulci where grey matter and fluid mix and leave white matter alone. Atrophy opens them too.
    """
    maps = load_maps(spacing_mm)
    rng = generator(config.seed, "phantom", person.index, "anatomy", "folds")
    grid = tuple(maps.extent.shape)
    folds = 0.8 * random_field(rng, (grid[0], grid[1], grid[2]), 12, channels=2)
    if spacing_mm <= 4:
        folds += 0.6 * random_field(rng, (grid[0], grid[1], grid[2]), 7, channels=2)
    amounts = torch.tensor([_MIXING * units for units in person.atrophy])
    log_odds = maps.log_tissue.clone()
    log_odds[1] += 0.7 * folds[1]
    log_odds[2] += (torch.tensordot(amounts, maps.places, 1) + folds[0]) * maps.opening
    shape_rng = generator(config.seed, "phantom", person.index, "anatomy", "shape")
    return Brain(
        tissues=torch.softmax(log_odds, 0) * maps.extent,
        shape=displacement(person, PRESETS[config.preset], shape_rng),
        maps=maps,
    )


def brightness_of(
    config: PhantomConfig, person: Person, site: Site | None = None
) -> npt.NDArray[np.float64]:
    """Return the brightness of a person's grey matter, white matter and fluid at their site."""
    site = site or draw_site(config, person.site)
    deviation = PRESETS[config.preset].contrast / 2
    own = 1 + stream(config, person.index, "contrast").normal(0, deviation, 3)
    return np.array([site.grey, site.white, site.fluid]) * own


def prepared_volume(
    config: PhantomConfig, person: Person, spacing_mm: float, *, site: Site | None = None
) -> FloatArray:
    """Return a person's brain as preparation would deliver it.

    Parameters
    ----------
    config : PhantomConfig
        The population.
    person : Person
        Who, with the atrophy that they have.
    spacing_mm : float
        1, 2, 4 or 8.
    site : Site, optional
        Another scanner than the person's own: the same person, seen differently.

    Returns
    -------
    float32 array, shape of `brain_grid(spacing_mm)`
        0 to 1, 0 outside the brain.
    """
    brain, site = brain_of(config, person, spacing_mm), site or draw_site(config, person.site)
    picture = brain.seen(brightness_of(config, person, site))
    both = pull(torch.stack([picture, brain.maps.extent]), _residual(config, person, brain))
    inside = both[1] > 0.5
    stripped = (both[0] * inside).numpy()
    blurred = ndimage.gaussian_filter(stripped, site.blur_mm / FWHM / spacing_mm)
    gain = np.exp(stream(config, person.index, "gain").normal(0, 0.2))
    received = receive(
        torch.from_numpy(blurred * np.float32(gain)),
        stream(config, person.index, "receiver"),
        bias=PRESETS[config.preset].bias if site.bias is None else site.bias,
        noise=site.noise * gain,
        box_mm=BRAIN_BOX_MM,
    )
    return scale((received * inside).numpy())


def _residual(config: PhantomConfig, person: Person, brain: Brain) -> torch.Tensor:
    """Return where each voxel looks: through the affine that registration leaves, and the shape."""
    translation_mm, rotation, scaling = PRESETS[config.preset].residual
    rng = stream(config, person.index, "residual")
    turn = Rotation.from_rotvec(rng.normal(0, rotation, 3)).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3] = turn * (1 + rng.normal(0, scaling, 3))
    matrix[:3, 3] = rng.normal(0, translation_mm, 3)
    grid = brain.maps.extent.shape
    shape = brain.shape[None]
    if shape.shape[2:] != grid:
        shape = interpolate(shape, size=grid, mode="trilinear", align_corners=False)
    there = voxel_centres((grid[0], grid[1], grid[2])) + shape[0].permute(1, 2, 3, 0)
    linear, offset = in_half_boxes(matrix, BRAIN_BOX_LOW_MM, BRAIN_BOX_MM)
    return there @ linear.T + offset


def in_half_boxes(
    matrix: npt.NDArray[np.float64],
    low_mm: tuple[float, ...],
    box_mm: tuple[float, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a map of millimetres as a map of places z, y, x from -1 to 1 in a box."""
    half = np.array(box_mm) / 2
    to_mm = np.diag([*half, 1.0])
    to_mm[:3, 3] = np.array(low_mm) + half
    inner = np.linalg.inv(to_mm) @ matrix @ to_mm
    linear, offset = inner[2::-1, 2::-1].copy(), inner[2::-1, 3].copy()
    return torch.from_numpy(linear).float(), torch.from_numpy(offset).float()


def receive(
    picture: torch.Tensor,
    rng: np.random.Generator,
    *,
    bias: float,
    noise: float,
    box_mm: tuple[float, float, float],
) -> torch.Tensor:
    """Return a picture with the coil's shading and the receiver's Rician noise."""
    shape = (picture.shape[0], picture.shape[1], picture.shape[2])
    shading = random_field(rng, shape, _BIAS_NODES_MM, box_mm=box_mm)[0]
    seen = picture * shading.mul_(bias).exp_()
    real, imaginary = (
        torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for _ in range(2)
    )
    return torch.hypot(seen.add_(real, alpha=noise), imaginary.mul_(noise))


def scale(volume: FloatArray) -> FloatArray:
    """Return a stripped volume in the product's units: 1 is 1.6 times the bright tissue's mean."""
    inside = volume[volume > 0]
    bright = inside[inside > 0.35 * np.quantile(inside, 0.98)]
    return (volume / np.float32(1.6 * bright.mean())).clip(0, 1)
