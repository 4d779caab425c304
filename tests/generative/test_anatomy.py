import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.cohort.contracts import FloatArray
from rarescan.generative.anatomy import brain_mask, to_image, to_volume

SHAPE = (20, 24, 20)


def ball(centre: tuple[float, float, float], radius: float, value: float = 0.8) -> FloatArray:
    places = np.indices(SHAPE)
    squared = sum((p - c) ** 2 for p, c in zip(places, centre, strict=True))
    return np.where(squared < radius**2, value, 0).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(
    centre=st.tuples(*[st.floats(8, 11)] * 3),
    radius=st.floats(2, 7),
    seed=st.integers(0, 2**31),
)
def test_a_volume_comes_back_exactly(
    centre: tuple[float, float, float], radius: float, seed: int
) -> None:
    texture = np.random.default_rng(seed).uniform(0.2, 1, SHAPE).astype(np.float32)
    volume = ball(centre, radius, 1.0) * texture
    np.testing.assert_array_equal(to_volume(to_image(volume)), volume)


def test_zeros_inside_the_brain_stay_zeros() -> None:
    volume = ball((10, 12, 10), 7)
    volume[10, 12, 10] = 0
    np.testing.assert_array_equal(to_volume(to_image(volume)), volume)


def test_the_mean_of_two_displaced_brains_has_one_contour() -> None:
    one, other = ball((9, 12, 10), 8), ball((11, 12, 10), 8)
    mixed = to_volume((to_image(one) + to_image(other)) / 2)
    assert ((one + other) / 2)[(one + other) > 0].min() == pytest.approx(0.4)
    assert mixed[mixed > 0].min() > 0.6
    assert abs((mixed > 0).sum() / (one > 0).sum() - 1) < 0.1


def test_only_the_largest_part_is_brain() -> None:
    shape = to_image(ball((9, 12, 10), 6))[1]
    alone = brain_mask(shape)
    shape[0, 0, 0] = 0.1
    np.testing.assert_array_equal(brain_mask(shape), alone)


def test_an_image_without_inside_is_an_empty_volume() -> None:
    assert to_volume(np.full((2, *SHAPE), -1, np.float32)).sum() == 0
