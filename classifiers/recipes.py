"""Recipes that cost nothing and that a generator has to beat: strong augmentation, tone curves.

`with_recipe` and `strong` are the ways in for training images, `Landmarks` for a normalisation
that is learned from the training controls and applied to everybody. Nothing here knows of scanners
or sites; what it varies is what scanners vary: shape a little, contrast, sharpness, shading, noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from rarescan.classifiers.augment import augment, move
from rarescan.classifiers.contract import Classifier, Modality, Shape, require_shape
from rarescan.classifiers.spec import RecipeName
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import SettingError
from rarescan.files import write_json

Tones = Literal["none", "rising", "any"]

_UNITS = 1.6
"""Stored 1 is 1.6 times the mean of the bright tissue."""
_LINEAR_SD, _SHIFT_SD = 0.02, 0.03
_ELASTIC_NODES, _ELASTIC_SD_MM, _BOX_MM = 6, 4.0, 160.0
_GAMMA = 0.3
_BLUR_SD_VOXELS, _BLUR_SHARE = 0.6, 0.7
_BIAS_NODES, _BIAS_SD = 4, 0.15
_OFFSET_SD, _NOISE_MAX = 0.025, 0.04
_SEGMENTS, _STEP_SD = 5, 0.5
_LOW_TONE, _HIGH_TONE = 0.1, 1.4
_BRAIN_SHARE = 0.4
"""Of the box: the brightest 2 % of the brain are 0.8 % of all voxels."""
_PERCENTS = (1, 10, 25, 50, 75, 90, 99)


def with_recipe(modality: Modality, recipe: RecipeName) -> Modality:
    """Return a modality whose images are augmented by a recipe; `classical` is its own one.

    Raises
    ------
    SettingError
        The recipe is for brain volumes, and the modality is another.
    """
    if recipe == "classical":
        return modality
    if modality.augment not in RECIPES.values():
        raise SettingError(
            f"The recipe '{recipe}' is for brain volumes; '{modality.name}' has its own "
            "augmentation.",
            remedy="Leave `recipe` at classical, and leave out arms of other recipes.",
        )
    return replace(modality, augment=RECIPES[recipe])


def strong(
    images: torch.Tensor, random: torch.Generator, tones: Tones = "none", strength: float = 1.0
) -> torch.Tensor:
    """Return images moved, bent, and seen as other scanners might; the scale is restored last.

    Small affine and elastic moves, gamma, blur, shading, offset and noise, a draw of its own for
    every image; the strengths are those measured for few patients and unseen scanners.

    Parameters
    ----------
    images : float32 tensor, shape (n, x, y, z)
        0 to 1, 0 outside the brain.
    random : torch.Generator
        On the CPU.
    tones : {"none", "rising", "any"}
        A random tone curve too: rising ones keep the order of tissues (as histogram shifts do);
        `any` draws half of the curves without order, which also covers other sequences and costs
        accuracy on the known one.
    strength : float
        Multiplies every strength; 0 returns the images untouched.

    Returns
    -------
    float32 tensor, shape (n, x, y, z)
        0 to 1.
    """
    if strength == 0:
        return images
    n = len(images)
    normal = torch.randn(n, 13, generator=random) * strength
    uniform = torch.rand(n, 4, generator=random)
    matrix = torch.eye(3) + _LINEAR_SD * normal[:, :9].reshape(n, 3, 3)
    moved = move(images, matrix.to(images.device), (_SHIFT_SD * normal[:, 9:12]).to(images.device))
    bent = _bend(moved, random, strength)
    inside = (bent > 0.02).to(bent.dtype)
    seen = (bent * _UNITS).clamp_min(0)
    if tones != "none":
        seen = apply_curve(seen, draw_curves(n, random, tones, strength).to(seen.device))
    gamma = torch.exp(_GAMMA * strength * (2 * uniform[:, 0] - 1))
    seen = seen.clamp_min(1e-6) ** _each(gamma, seen)
    blurred = uniform[:, 1] < _BLUR_SHARE
    seen = _blur(seen, _BLUR_SD_VOXELS * strength * uniform[:, 2] * blurred)
    seen = seen * _field(seen, random, _BIAS_NODES, _BIAS_SD * strength).exp()
    seen = seen + _each(_OFFSET_SD * normal[:, 12], seen)
    noise = torch.randn(images.shape, generator=random).to(seen.device)
    seen = seen + noise * _each(_NOISE_MAX * strength * uniform[:, 3], seen)
    return _rescaled(seen * inside)


def _strong(images: torch.Tensor, strength: float, random: torch.Generator) -> torch.Tensor:
    return strong(images, random, "none", strength)


def _tones(images: torch.Tensor, strength: float, random: torch.Generator) -> torch.Tensor:
    return strong(images, random, "rising", strength)


def _any_tones(images: torch.Tensor, strength: float, random: torch.Generator) -> torch.Tensor:
    return strong(images, random, "any", strength)


RECIPES: Mapping[str, Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]] = {
    "classical": augment,
    "strong": _strong,
    "tones": _tones,
    "any_tones": _any_tones,
}
"""The augmentations of brain volumes, by name."""


def draw_curves(
    n: int, random: torch.Generator, tones: Tones = "rising", strength: float = 1.0
) -> torch.Tensor:
    """Return the values of tone curves at equal steps from 0 to 1.6, shape (n, 6)."""
    steps = torch.exp(_STEP_SD * strength * torch.randn(n, _SEGMENTS, generator=random))
    rising = functional.pad(steps.cumsum(1) / steps.sum(1, keepdim=True) * _UNITS, (1, 0))
    if tones == "rising":
        return rising
    free = torch.rand(n, _SEGMENTS + 1, generator=random)
    free = _LOW_TONE + (_HIGH_TONE - _LOW_TONE) * free
    chosen = torch.rand(n, 1, generator=random) < 0.5
    return torch.where(chosen, free, rising)


def apply_curve(images: torch.Tensor, curves: torch.Tensor) -> torch.Tensor:
    """Return images (0 to 1.6) through piecewise linear curves, one an image."""
    n_segments = curves.shape[1] - 1
    place = images.clamp(0, _UNITS) * (n_segments / _UNITS)
    low = place.floor().clamp_max(n_segments - 1)
    flat = low.reshape(len(images), -1).long()
    before = curves.gather(1, flat).reshape(images.shape)
    after = curves.gather(1, flat + 1).reshape(images.shape)
    return before + (after - before) * (place - low)


def _each(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return values.to(images.device).reshape(-1, 1, 1, 1)


def _field(
    images: torch.Tensor, random: torch.Generator, nodes: int, sd: float, channels: int = 1
) -> torch.Tensor:
    """Return a smooth random field for each image: normal nodes, linear between them."""
    values = sd * torch.randn(len(images), channels, nodes, nodes, nodes, generator=random)
    field: torch.Tensor = functional.interpolate(
        values.to(images.device), size=tuple(images.shape[1:]), mode="trilinear", align_corners=True
    )
    return field[:, 0] if channels == 1 else field


def _bend(images: torch.Tensor, random: torch.Generator, strength: float) -> torch.Tensor:
    half_boxes = 2 * _ELASTIC_SD_MM * strength / _BOX_MM
    field = _field(images, random, _ELASTIC_NODES, half_boxes, channels=3)
    one = torch.eye(3, 4)[None]
    identity = functional.affine_grid(one, [1, 1, *images.shape[1:]], align_corners=False)
    there = identity.to(images.device) + field.permute(0, 2, 3, 4, 1)
    bent: torch.Tensor = functional.grid_sample(
        images[:, None], there, padding_mode="border", align_corners=False
    )
    return bent[:, 0]


def _blur(images: torch.Tensor, sd_voxels: torch.Tensor) -> torch.Tensor:
    """Return each image under a Gaussian of its own, three taps an axis.

    Taps (s, 1 - 2 s, s) with s = sd^2 / 2 have the variance asked for, up to sd 0.7.
    """
    side = (sd_voxels.to(images.device) ** 2 / 2).reshape(-1, 1, 1, 1)
    for axis in (1, 2, 3):
        padded = torch.cat(
            (images.narrow(axis, 0, 1), images, images.narrow(axis, images.shape[axis] - 1, 1)),
            axis,
        )
        n = images.shape[axis]
        neighbours = padded.narrow(axis, 0, n) + padded.narrow(axis, 2, n)
        images = (1 - 2 * side) * images + side * neighbours
    return images


def _rescaled(seen: torch.Tensor) -> torch.Tensor:
    """Return images in stored units again: the mean of the bright tissue is 1 / 1.6."""
    flat = seen.flatten(1)
    rank = max(1, round(0.02 * _BRAIN_SHARE * flat.shape[1]))
    top = flat.topk(rank, dim=1).values[:, -1:]
    bright = (flat > 0.35 * top).to(flat.dtype)
    mean = (flat * bright).sum(1) / bright.sum(1).clamp_min(1)
    return (seen / _each(_UNITS * mean.clamp_min(1e-3), seen)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """Nyul and Udupa's normalisation (1999; Nyul et al. 2000): percentiles go to their mean."""

    standard: tuple[float, ...]
    """Where the percentiles 1, 10, 25, 50, 75, 90 and 99 of the brain's voxels are brought."""

    @classmethod
    def of(cls, images: FloatArray) -> "Landmarks":
        """Learn the standard from training controls, shape (n, x, y, z), 0 to 1."""
        found = np.mean([_landmarks(image) for image in images], axis=0)
        return cls(standard=tuple(float(v) for v in found))

    def apply(self, images: FloatArray) -> FloatArray:
        """Return images with their percentiles at the standard; the background stays 0."""
        return np.stack([self._apply(image) for image in images])

    def _apply(self, image: FloatArray) -> FloatArray:
        own = np.maximum.accumulate(_landmarks(image) + np.arange(len(_PERCENTS)) * 1e-6)
        xs, ys = np.array([0.0, *own]), np.array([0.0, *self.standard])
        mapped = np.interp(image, xs, ys)
        slope = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
        above = image > xs[-1]
        mapped[above] = ys[-1] + slope * (image[above] - xs[-1])
        result: FloatArray = (mapped * (image > 0)).clip(0, 1).astype(np.float32)
        return result


@dataclass(frozen=True, kw_only=True)
class Normalised:
    """A classifier that sees images at the landmarks that it was trained at."""

    classifier: Classifier
    landmarks: Landmarks

    @property
    def shape(self) -> Shape:
        """Shape of one image."""
        return self.classifier.shape

    def score(self, images: FloatArray) -> FloatArray:
        """Return the probability of the positive diagnosis, float32, shape (n,)."""
        require_shape(images, self.shape)
        return self.classifier.score(self.landmarks.apply(images))

    def save(self, folder: Path) -> None:
        """Write `landmarks.json`, and the classifier below it: nobody may open that alone."""
        write_json(folder / "landmarks.json", asdict(self.landmarks))
        self.classifier.save(folder / "normalised")


def _landmarks(image: FloatArray) -> npt.NDArray[np.float64]:
    inside = image[image > 0]
    tissue = inside[inside > 0.15 * np.percentile(inside, 98)]
    found: npt.NDArray[np.float64] = np.percentile(tissue, _PERCENTS)
    return found
