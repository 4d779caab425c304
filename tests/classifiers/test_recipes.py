from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from rarescan.classifiers.mri import MRI
from rarescan.classifiers.planes import PICTURES
from rarescan.classifiers.recipes import (
    Landmarks,
    Tones,
    _blur,
    _rescaled,
    apply_curve,
    draw_curves,
    strong,
    with_recipe,
)
from rarescan.errors import SettingError


def _random(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@pytest.fixture(scope="module")
def heads() -> torch.Tensor:
    """Return four balls of two tissues in 20 x 24 x 20 voxels, in stored units."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (20, 24, 20)), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    head = np.where(radius < 0.5, 0.7, np.where(radius < 0.8, 0.5, 0)).astype(np.float32)
    return _rescaled(torch.from_numpy(np.stack([head] * 4)) * 1.6)


@pytest.mark.parametrize("tones", ["none", "rising", "any"])
def test_images_keep_units_shape_and_scale(heads: torch.Tensor, tones: Tones) -> None:
    seen = strong(heads, _random(), tones)
    assert seen.shape == heads.shape
    assert seen.min() >= 0
    assert seen.max() <= 1
    bright = [image[image > 0.35 * image.max()].mean() for image in seen]
    assert np.allclose(bright, 1 / 1.6, atol=0.05)


def test_strength_0_and_equal_seeds(heads: torch.Tensor) -> None:
    assert torch.equal(strong(heads, _random(), strength=0), heads)
    assert torch.equal(strong(heads, _random(3), "any"), strong(heads, _random(3), "any"))
    seen = strong(heads, _random(3))
    assert not torch.allclose(seen[0], seen[1], atol=0.02)  # a draw of its own for every image


def test_rising_curves_rise_from_0_to_full_brightness_and_others_do_not() -> None:
    rising = draw_curves(500, _random(), "rising")
    assert (rising.diff(dim=1) > 0).all()
    assert torch.allclose(rising[:, 0], torch.zeros(500))
    assert torch.allclose(rising[:, -1], torch.full((500,), 1.6))
    falling = (draw_curves(500, _random(), "any").diff(dim=1) < 0).any(1).float().mean()
    assert 0.4 < falling < 0.6


def test_a_curve_is_linear_between_its_points() -> None:
    curve = torch.tensor([[0.0, 0.1, 0.5, 0.6, 0.9, 1.6]])
    at = torch.linspace(0, 1.6, 6)
    places = torch.linspace(0, 1.6, 101)
    found = apply_curve(places.reshape(1, 101, 1, 1), curve).flatten()
    assert np.allclose(found, np.interp(places, at, curve[0]), atol=1e-5)


def test_the_blur_is_a_gaussians(heads: torch.Tensor) -> None:
    found = _blur(heads[:1], torch.tensor([0.6]))[0].numpy()
    expected = ndimage.gaussian_filter(heads[0].numpy(), 0.6, mode="nearest")
    assert np.abs(found - expected).max() < 0.03


def test_landmarks_bring_other_scanners_back(heads: torch.Tensor) -> None:
    rng = np.random.default_rng(0)
    real = (heads.numpy() + rng.normal(0, 0.02, heads.shape) * (heads.numpy() > 0)).clip(0, 1)
    real = real.astype(np.float32)
    learned = Landmarks.of(real)
    other = np.where(real > 0, real**1.5, 0).astype(np.float32)
    assert np.abs(other - real).max() > 0.08
    assert np.abs(learned.apply(other) - real).max() < 0.03  # lines between seven points
    assert np.array_equal(learned.apply(other) == 0, real == 0)
    assert np.abs(learned.apply(real) - real).max() < 0.02


@pytest.mark.parametrize("recipe", ["strong", "tones", "any_tones"])
def test_a_recipe_takes_the_place_of_the_classical_augmentation(
    recipe: Any, heads: torch.Tensor
) -> None:
    modality = with_recipe(MRI, recipe)
    tones: Tones = {"strong": "none", "tones": "rising", "any_tones": "any"}[recipe]
    torch.testing.assert_close(
        modality.augment(heads, 0.5, _random()), strong(heads, _random(), tones, 0.5)
    )
    assert with_recipe(modality, recipe).augment is modality.augment
    assert with_recipe(MRI, "classical") is MRI


def test_pictures_keep_their_own_augmentation() -> None:
    assert with_recipe(PICTURES, "classical") is PICTURES
    with pytest.raises(SettingError, match="brain volumes"):
        with_recipe(PICTURES, "tones")
