"""Deformations against closed forms, and against the phantom's own true velocities."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.ndimage import map_coordinates
from torch import Tensor
from torch.nn.functional import interpolate

from rarescan.cohort.contracts import BRAIN_BOX_MM
from rarescan.cohort.template import load_template
from rarescan.generative.anatomy import to_image
from rarescan.generative.deformation import (
    LATTICE_MM,
    exponentiate,
    fit_velocity,
    lattice_shape,
    moved,
)
from rarescan.phantom.fields import atrophy_velocities
from rarescan.phantom.persons import draw_person
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import person_volumes

INNER = (slice(None), slice(4, -4), slice(4, -4), slice(4, -4))


def places_mm() -> Tensor:
    """Return each node's place from the box's centre, shape (3, i, j, k)."""
    axes = [LATTICE_MM * (torch.arange(n) - (n - 1) / 2) for n in lattice_shape()]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def smooth_velocity(seed: int, size_mm: float) -> Tensor:
    """Return a random velocity with nodes every 40 mm, largest `size_mm`."""
    nodes = torch.randn(1, 3, 4, 5, 4, generator=torch.Generator().manual_seed(seed))
    field = interpolate(nodes, size=lattice_shape(), mode="trilinear", align_corners=False)[0]
    return field * size_mm / field.abs().max()


def jacobian(displacement: Tensor) -> Tensor:
    slopes = torch.stack([torch.stack(torch.gradient(u)) for u in displacement]) / LATTICE_MM
    determinants: Tensor = torch.linalg.det(slopes.permute(2, 3, 4, 0, 1) + torch.eye(3))
    return determinants


def read_at(field: Tensor, displacement: Tensor) -> Tensor:
    """Return a field at x + u(x), by nothing of the product's."""
    index = np.indices(field.shape[1:]) + displacement.numpy() / LATTICE_MM
    return torch.stack(
        [torch.from_numpy(map_coordinates(f.numpy(), index, order=1, mode="nearest"))
         for f in field]
    )  # fmt: skip


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_no_velocity_moves_nothing() -> None:
    still = exponentiate(torch.zeros(3, *lattice_shape()))
    assert not still.any()
    image = to_image(load_template(4).t1)
    np.testing.assert_allclose(moved(image, still), image, atol=1e-5)


def test_a_constant_velocity_is_a_shift() -> None:
    velocity = torch.tensor([5.0, -3.0, 20.0]).view(3, 1, 1, 1).expand(3, *lattice_shape())
    torch.testing.assert_close(exponentiate(velocity), velocity, rtol=0, atol=1e-4)


def test_a_linear_velocity_is_the_exponential_of_its_matrix() -> None:
    matrix = torch.tensor([[0.10, -0.12, 0.0], [0.15, -0.05, 0.02], [0.0, 0.03, 0.08]])
    x = places_mm()
    there = exponentiate(torch.tensordot(matrix, x, 1)) + x
    expected = torch.tensordot(torch.from_numpy(expm(matrix.numpy())).float(), x, 1)
    torch.testing.assert_close(there[INNER], expected[INNER], rtol=0, atol=0.1)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), size_mm=st.floats(0.5, 12))
def test_there_and_back_is_where_one_was_and_nothing_folds(seed: int, size_mm: float) -> None:
    velocity = smooth_velocity(seed, size_mm)
    there, back = exponentiate(velocity), exponentiate(-velocity)
    left = (there + read_at(back, there))[INNER]
    assert left.abs().max() < 0.15 * size_mm
    assert left.abs().mean() < 0.01 * size_mm
    assert jacobian(there).min() > 0
    assert jacobian(back).min() > 0


def test_twice_half_the_way_is_the_way() -> None:
    velocity = smooth_velocity(3, 8)
    half = exponentiate(velocity / 2)
    both = half + read_at(half, half)
    torch.testing.assert_close(both[INNER], exponentiate(velocity)[INNER], rtol=0, atol=0.1)


def test_a_shift_of_one_voxel_moves_the_image_by_one_voxel() -> None:
    image = to_image(load_template(4).t1)
    shift = torch.zeros(3, *lattice_shape())
    shift[1] = 4.0
    np.testing.assert_allclose(moved(image, shift)[:, :, :-1], image[:, :, 1:], atol=1e-4)


@pytest.mark.long
def test_a_planted_velocity_is_found_again() -> None:
    image = to_image(load_template(4).t1)
    planted = smooth_velocity(7, 4)
    seen = torch.from_numpy(moved(image, exponentiate(planted)))
    found = fit_velocity(torch.from_numpy(image), seen, torch.tensor([1e-4, 1e-5]))
    inside = interpolate(torch.from_numpy(image)[None, 1:], size=lattice_shape())[0, 0] > 0
    assert correlation(found[:, inside], planted[:, inside]) > 0.85
    unlike = np.square(moved(image, exponentiate(found)) - seen.numpy())[0].mean()
    assert unlike < 0.05 * np.square(image - seen.numpy())[0].mean()


def test_equal_means_give_no_velocity() -> None:
    image = torch.from_numpy(to_image(load_template(8).t1))
    assert fit_velocity(image, image, torch.tensor([1e-4, 1e-5])).abs().max() < 1e-3


@pytest.mark.long
def test_the_phantoms_atrophy_is_found_from_two_mean_images() -> None:
    config = PhantomConfig(patients=0, controls=8, seed=3)
    well, ill = (
        torch.from_numpy(
            np.mean([to_image(v) for v in person_volumes(config, range(8), 8, severity=s)], 0)
        )
        for s in (0.0, 0.7)
    )
    found = fit_velocity(well, ill, torch.tensor([3e-4, 1e-4]))
    amounts = []
    for index in range(8):
        sick, twin = (draw_person(config, index, severity=s) for s in (0.7, 0.0))
        change = 0.1 * np.subtract(sick.atrophy, twin.atrophy)
        amounts.append([*change, sick.ventricles - twin.ventricles])
    # The phantom's velocities have channels z, y, x in half boxes.
    true = torch.tensordot(torch.tensor(np.mean(amounts, 0)).float(), atrophy_velocities(), 1)
    true = true.flip(0) * torch.tensor(BRAIN_BOX_MM).view(3, 1, 1, 1) / 2
    brain = well[1] > 0
    true = interpolate(true[None], size=lattice_shape(), mode="area")[0]
    assert correlation(found[:, brain], true[:, brain]) > 0.7


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_severity_is_a_share_of_the_way(share: float) -> None:
    velocity = smooth_velocity(5, 3)
    way = exponentiate(share * velocity)
    assert correlation(way, share * exponentiate(velocity)) > 0.99
