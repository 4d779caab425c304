"""Small brains for the tests of scoring: the template, warped and folded differently per person."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from rarescan.cohort.contracts import FloatArray
from rarescan.cohort.template import load_template, regions


@pytest.fixture(scope="session")
def brains() -> Callable[..., FloatArray]:
    """Return a function (n, seed, spacing_mm=8, atrophy=0, warp=1) -> volumes of n persons."""

    def draw(
        n: int, seed: int, *, spacing_mm: float = 8.0, atrophy: float = 0.0, warp: float = 1.0
    ) -> FloatArray:
        template = load_template(spacing_mm)
        weight = regions(template.grid)
        frontal = weight["frontal_left"] + weight["frontal_right"]
        random = np.random.default_rng(seed)
        people = [_person(template, frontal, random, atrophy=atrophy, warp=warp) for _ in range(n)]
        return np.stack(people)

    return draw


def _person(template, frontal, random, *, atrophy, warp):
    shape, mm = template.t1.shape, template.grid.spacing_mm
    places = np.indices(shape, dtype=np.float32)
    for axis in range(3):
        places[axis] += warp * 2.0 / mm * _field(shape, 24 / mm, random)
    folds = _field(shape, 8 / mm, random)
    share = np.clip(atrophy * (1 + 0.3 * random.standard_normal()), 0, 1)
    tissue = 0.65 * template.gm + 0.87 * template.wm + 0.25 * template.csf
    image = tissue * (1 - 0.4 * share * frontal) + warp * 0.15 * folds * template.gm
    volume = ndimage.map_coordinates(image, places, order=1)
    brain = ndimage.map_coordinates(template.brain, places, order=1) > 0.5
    noise = 0.01 * random.standard_normal(shape)
    return (np.clip(0.8 * volume + noise, 0.02, 1) * brain).astype(np.float32)


def _field(shape, smooth, random):
    field = ndimage.gaussian_filter(random.standard_normal(shape), smooth / 2, mode="wrap")
    return (field / field.std()).astype(np.float32)
