from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from rarescan.cohort.contracts import BRAIN_BOX_MM, brain_grid
from rarescan.cohort.template import block_average, load_lattice, regions
from rarescan.phantom import fields
from rarescan.phantom.persons import AMPLITUDES, Person, draw_person
from rarescan.phantom.spec import PRESETS, PhantomConfig

HALF_MM = np.array(BRAIN_BOX_MM[::-1]).reshape(3, 1, 1, 1) / 2
SHAPE = brain_grid(4).shape


def _in_voxels(field: torch.Tensor) -> np.ndarray:
    """Return a field as displacements in 4 mm voxels, channels x, y, z."""
    return (field.numpy() * HALF_MM / 4)[::-1]


def _divergence(flow: np.ndarray) -> np.ndarray:
    return sum(np.gradient(flow[axis], axis=axis) for axis in range(3))


def _log_jacobian(displacement: np.ndarray) -> np.ndarray:
    slopes = np.stack([np.stack(np.gradient(channel)) for channel in displacement])
    matrices = np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(3)
    return np.log(np.linalg.det(matrices))


def test_random_fields_have_root_mean_square_1() -> None:
    rng = np.random.default_rng(0)
    field = fields.random_field(rng, SHAPE, 18, channels=40)
    assert float(field.pow(2).mean().sqrt()) == pytest.approx(1, abs=0.03)
    assert float(field.mean()) == pytest.approx(0, abs=0.02)


def test_random_fields_are_the_same_place_on_every_grid() -> None:
    fine, coarse = (
        fields.random_field(np.random.default_rng(1), brain_grid(r).shape, 36)[0] for r in (2, 4)
    )
    blocks = fine.view(40, 2, 48, 2, 40, 2).mean(dim=(1, 3, 5))
    assert float((blocks - coarse).abs().max()) < 0.02


def test_a_constant_velocity_is_its_own_displacement() -> None:
    velocity = torch.full((3, *SHAPE), 0.01)
    torch.testing.assert_close(fields.exponentiate(velocity), velocity)


def test_a_linear_velocity_grows_exponentially() -> None:
    # dx/dt = a x has the solution x(1) = e^a x(0).
    centres = fields.voxel_centres(SHAPE).permute(3, 0, 1, 2)
    displacement = fields.exponentiate(-0.2 * centres)
    middle = (slice(None), slice(10, 30), slice(12, 36), slice(10, 30))
    expected = (np.exp(-0.2) - 1) * centres
    torch.testing.assert_close(displacement[middle], expected[middle], atol=2e-3, rtol=0)


def test_unit_velocities_are_as_large_as_in_the_published_model() -> None:
    largest = np.abs(fields.atrophy_velocities().numpy() * HALF_MM).max(axis=(1, 2, 3, 4))
    names = (*AMPLITUDES, "ventricles")
    largest_mm = dict(zip(names, largest, strict=True))
    assert largest_mm["frontal_left"] == pytest.approx(13, abs=0.5)
    assert largest_mm["anterior_temporal_right"] == pytest.approx(9, abs=0.5)
    assert largest_mm["insula_left"] == pytest.approx(8, abs=0.5)
    assert largest_mm["ventricles"] == pytest.approx(4.4, abs=0.1)


@cache
def _tissue(name: str) -> np.ndarray:
    grey, white, _ = (block_average(p, 4) for p in load_lattice().sharpened())
    return regions(brain_grid(4))[name] * (grey + 0.5 * white)


def test_unit_velocities_shrink_their_tissue_alone() -> None:
    flow = _in_voxels(fields.atrophy_velocities()[AMPLITUDES.index("insula_right")])
    divergence = _divergence(flow)
    assert np.average(divergence, weights=_tissue("insula_right")) == pytest.approx(0.84, abs=0.03)
    assert np.average(divergence, weights=_tissue("insula_left")) == pytest.approx(0, abs=0.01)
    assert np.average(divergence, weights=_tissue("occipital_right")) == pytest.approx(0, abs=0.01)
    assert divergence.mean() == pytest.approx(0, abs=0.002)


def _with_atrophy(name: str, units: float) -> Person:
    amounts = tuple(units if n == name else 0.0 for n in AMPLITUDES)
    return replace(draw_person(PhantomConfig(), 0), atrophy=amounts, ventricles=0.0)


@pytest.mark.parametrize(
    ("name", "share"),
    [("frontal_left", 0.58), ("insula_right", 0.84), ("anterior_temporal_left", 0.66)],
)
@pytest.mark.parametrize("units", [1.0, 3.0])
def test_a_unit_of_atrophy_shrinks_its_region_by_the_measured_share(
    name: str, share: float, units: float
) -> None:
    still = replace(PRESETS["easy"], deformation_mm=(0.0, 0.0, 0.0))
    sick, well = (
        fields.displacement(_with_atrophy(name, amount), still, np.random.default_rng(0))
        for amount in (units, 0.0)
    )
    # Both are pull-backs: a larger Jacobian means smaller tissue. Sampling smooths a little more.
    change = _log_jacobian(_in_voxels(sick)) - _log_jacobian(_in_voxels(well))
    mean = np.average(change, weights=_tissue(name))
    assert 0.6 < mean / (0.1 * share * units) < 1.02


def test_nobody_folds_over() -> None:
    preset = PRESETS["hard"]
    for index in range(5):
        person = draw_person(PhantomConfig(preset="hard"), index, severity=1.0)
        shape = fields.displacement(person, preset, np.random.default_rng(index))
        assert np.isfinite(_log_jacobian(_in_voxels(shape))).all()


def test_everybody_is_asymmetric_in_the_same_way() -> None:
    shift_mm = (
        fields.displacement(
            _with_atrophy("insula_left", 0.0),
            replace(PRESETS["easy"], deformation_mm=(0.0, 0.0, 0.0)),
            np.random.default_rng(3),
        ).numpy()
        * HALF_MM
    )
    mirrored = shift_mm[:, ::-1] * np.array([1, 1, -1]).reshape(3, 1, 1, 1)
    assert np.sqrt(((shift_mm - mirrored) ** 2).mean()) > 1
    assert np.sqrt((shift_mm**2).mean()) == pytest.approx(fields.ASYMMETRY_MM, rel=0.35)
