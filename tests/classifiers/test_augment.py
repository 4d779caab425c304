"""Classical augmentation: known moves, the torch 3D look-up as an independent reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from rarescan.classifiers.augment import augment, move


def _images(n: int = 4) -> torch.Tensor:
    noise = np.random.default_rng(0).random((n, 20, 24, 18))
    smooth = gaussian_filter(noise, (0, 1.5, 1.5, 1.5))
    edge = np.zeros_like(smooth)
    edge[:, 4:-4, 4:-4, 4:-4] = smooth[:, 4:-4, 4:-4, 4:-4]
    return torch.from_numpy(edge.astype(np.float32))


def _random(seed: int = 1) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def test_strength_0_leaves_every_bit() -> None:
    images = _images()
    assert torch.equal(augment(images, 0.0, _random()), images)


@settings(max_examples=25, deadline=None)
@given(strength=st.floats(0.01, 3), seed=st.integers(0, 2**31))
def test_shape_type_and_range_are_kept(strength: float, seed: int) -> None:
    images = _images(2)
    moved = augment(images, strength, _random(seed))
    assert moved.shape == images.shape
    assert moved.dtype == torch.float32
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_one_seed_gives_one_draw_and_each_image_its_own() -> None:
    same = _images(1).expand(3, -1, -1, -1).contiguous()
    once, again = augment(same, 1.0, _random()), augment(same, 1.0, _random())
    assert torch.equal(once, again)
    assert not torch.allclose(once[0], once[1], atol=1e-3)
    assert not torch.equal(once, augment(same, 1.0, _random(2)))


def test_an_image_is_changed_alike_whatever_lies_beside_it() -> None:
    images = _images(4)
    others = images.clone()
    others[1:] = 0.5
    alone = augment(images, 1.0, _random())[0]
    assert torch.equal(augment(others, 1.0, _random())[0], alone)


def test_the_input_is_not_written_to() -> None:
    images = _images()
    before = images.clone()
    augment(images, 1.0, _random())
    assert torch.equal(images, before)


def test_the_identity_moves_nothing() -> None:
    images = _images()
    moved = move(images, torch.eye(3).expand(4, 3, 3), torch.zeros(4, 3))
    torch.testing.assert_close(moved, images, atol=2e-4, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_by_two_edges_of_a_voxel_is_a_shift_by_two_voxels(axis: int) -> None:
    images = _images(1)
    shift = torch.zeros(1, 3)
    shift[0, axis] = 2 * 2 / images.shape[axis + 1]
    moved = move(images, torch.eye(3)[None], shift)
    torch.testing.assert_close(moved, images.roll(-2, axis + 1), atol=2e-4, rtol=0)


def test_the_result_is_the_one_of_a_look_up_in_three_dimensions() -> None:
    images = _images(8)
    random = _random(5)
    matrix = torch.eye(3) + 0.02 * torch.randn(8, 3, 3, generator=random)
    shift = 0.03 * torch.randn(8, 3, generator=random)
    # torch orders coordinates z, y, x.
    theta = torch.cat((matrix.flip(1, 2), shift.flip(1)[..., None]), -1)
    grid = functional.affine_grid(theta, [8, 1, *images.shape[1:]], align_corners=False)
    reference = functional.grid_sample(
        images[:, None], grid, padding_mode="border", align_corners=False
    )
    error = (move(images, matrix, shift) - reference[:, 0]).abs()
    change = (images - reference[:, 0]).abs()
    assert error.mean() < 0.01 * change.mean()
    assert error.max() < 0.1 * change.max()


def test_strengths_are_the_measured_recipe() -> None:
    flat = torch.full((400, 4, 4, 4), 0.5)
    moved = augment(flat, 1.0, _random())
    means, noise = moved.mean((1, 2, 3)), moved.std((1, 2, 3))
    # A flat image shows gain 1 + N(0, 0.08), offset N(0, 0.016), noise sd U(0, 0.025).
    assert means.std().item() == pytest.approx(np.hypot(0.5 * 0.08, 0.016), rel=0.1)
    assert noise.mean().item() == pytest.approx(0.0125, rel=0.1)
    assert noise.max().item() < 0.03
