from pathlib import Path

import nibabel
import numpy as np
import pytest

from rarescan.cohort.contracts import brain_grid
from rarescan.cohort.template import regions
from rarescan.phantom.persons import REGIONS, draw_person
from rarescan.phantom.published import _related, _t_values, write_published_map
from rarescan.phantom.questions import DrawConfig, draw_pattern
from rarescan.phantom.spec import PhantomConfig


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "map.nii.gz"
    return write_published_map(path, DrawConfig(number=1), persons=40)


def test_a_study_finds_less_grey_matter_where_the_disease_is_strongest(published: Path) -> None:
    values = nibabel.load(published).get_fdata()
    assert values.shape == brain_grid(4).shape
    by_region = []
    for name in REGIONS:
        weight = sum(regions(brain_grid(4))[f"{name}_{side}"] for side in ("left", "right"))
        inside = weight * (values != 0)
        by_region.append(float((values * inside).sum() / inside.sum()))
    assert np.corrcoef(by_region, draw_pattern(DrawConfig(number=1)))[0, 1] < -0.5
    assert by_region[1] < -1


def test_the_map_is_the_same_again_and_another_for_another_draw(tmp_path: Path) -> None:
    first, again, other = (
        nibabel.load(
            write_published_map(tmp_path / f"{i}.nii", DrawConfig(number=n), persons=6)
        ).get_fdata()
        for i, n in enumerate((2, 2, 3))
    )
    assert (first == again).all()
    assert not (first == other).all()


def test_related_diseases_are_as_alike_as_asked_and_as_strong() -> None:
    draws = [DrawConfig(number=n) for n in range(400)]
    own = np.array([draw_pattern(draw) for draw in draws])
    np.testing.assert_allclose([_related(draw, 1.0) for draw in draws], own)
    for likeness, low, high in ((0.7, 0.6, 0.75), (0.0, -0.08, 0.08)):
        related = np.array([_related(draw, likeness) for draw in draws])
        np.testing.assert_allclose(
            np.linalg.norm(related, axis=1), np.linalg.norm(own, axis=1), rtol=1e-6
        )
        centred = [v - v.mean(0) for v in (own, related)]
        found = (centred[0] * centred[1]).sum() / np.prod([np.linalg.norm(v) for v in centred])
        assert low < found < high


def test_t_values_are_those_of_the_partial_correlation_with_the_diagnosis() -> None:
    population = PhantomConfig(preset="hard", patients=12, controls=14)
    persons = [draw_person(population, i) for i in range(26)]
    grey = np.random.default_rng(0).normal(1, 0.2, (26, 2, 2, 2)).astype(np.float32)
    ages = np.array([p.age_years for p in persons])
    ill = np.array([p.severity > 0 for p in persons], float)
    rest = [v - np.polyval(np.polyfit(ages, v, 1), ages) for v in (ill, grey[:, 0, 1, 1])]
    r = np.corrcoef(*rest)[0, 1]
    expected = r * np.sqrt(26 - 3) / np.sqrt(1 - r**2)
    assert _t_values(grey, persons)[0, 1, 1] == pytest.approx(expected, rel=1e-4)
