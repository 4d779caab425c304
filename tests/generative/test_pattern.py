from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.cohort.contracts import FloatArray, brain_grid
from rarescan.cohort.template import load_template, regions, world_coordinates
from rarescan.errors import SettingError
from rarescan.generative.pattern import Direction, directions, read_pattern, reduced

GRID = brain_grid(8)


def _table(folder: Path, *lines: str) -> Path:
    path = folder / "pattern.csv"
    path.write_text("\n".join(("region,effect", *lines)))
    return path


def _map(folder: Path, values: FloatArray, spacing_mm: float) -> Path:
    path = folder / "map.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, brain_grid(spacing_mm).matrix()), path)
    return path


def _frontal(shrinkage: float = 0.0) -> tuple[Direction, Direction]:
    both = regions(GRID)["frontal_left"] + regions(GRID)["frontal_right"]
    return directions(-both, GRID, shrinkage)


@pytest.fixture(scope="module")
def brain() -> FloatArray:
    """Return a scan with the template's tissues and no noise."""
    maps = load_template(8)
    picture = 0.5 * maps.gm + 0.7 * maps.wm + 0.2 * maps.csf
    return np.where(maps.gm + maps.wm + maps.csf > 0.5, picture, 0).astype(np.float32)


def test_a_table_of_regions_is_the_regions_times_their_effects(tmp_path: Path) -> None:
    found = read_pattern(_table(tmp_path, "insula,-0.2", "frontal_left,0.1"), GRID)
    places = regions(GRID)
    both = places["insula_left"] + places["insula_right"]
    np.testing.assert_allclose(found, 0.1 * places["frontal_left"] - 0.2 * both, atol=1e-6)


@pytest.mark.parametrize("spacing_mm", [2, 4])
def test_a_map_keeps_its_place_in_millimetres_on_another_grid(
    tmp_path: Path, spacing_mm: float
) -> None:
    x, y, z = world_coordinates(brain_grid(spacing_mm))
    path = _map(tmp_path, (x + 2 * y + 3 * z - 1000).astype(np.float32), spacing_mm)
    x, y, z = world_coordinates(GRID)
    np.testing.assert_allclose(read_pattern(path, GRID), x + 2 * y + 3 * z - 1000, atol=0.01)


def test_what_is_no_pattern_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no pattern file"):
        read_pattern(tmp_path / "nothing.nii.gz", GRID)
    with pytest.raises(SettingError, match="insula"):
        read_pattern(_table(tmp_path, "inzula,-0.2"), GRID)
    with pytest.raises(SettingError, match="columns region and effect"):
        read_pattern(_table(tmp_path, "insula,much"), GRID)
    with pytest.raises(SettingError, match="below 0"):
        read_pattern(_map(tmp_path, np.ones(GRID.shape, np.float32), 8), GRID)
    with pytest.raises(SettingError, match="three dimensions"):
        read_pattern(_map(tmp_path, np.ones((4, 4, 4, 2), np.float32), 8), GRID)
    (tmp_path / "text.nii").write_text("no image")
    with pytest.raises(SettingError, match="three dimensions"):
        read_pattern(tmp_path / "text.nii", GRID)


def test_no_amplitude_leaves_the_scan_as_it_is(brain: FloatArray) -> None:
    np.testing.assert_allclose(reduced(brain, _frontal(), (0.0, 0.0)), brain, atol=1e-6)


def test_fluid_gains_what_the_logistic_of_its_log_odds_says(brain: FloatArray) -> None:
    sides = _frontal()
    after = reduced(brain, sides, (1.0, 1.0))
    grey, fluid = 0.5, float(np.quantile(brain[brain > 0], 0.02))
    share = (grey - brain) / (grey - fluid)
    growth = sides[0].opening + sides[1].opening
    mixed = (brain > 0) & (share > 0.1) & (share < 0.9)
    odds = share[mixed] / (1 - share[mixed]) * np.exp(growth[mixed])
    expected = grey - odds / (1 + odds) * (grey - fluid)
    np.testing.assert_allclose(after[mixed], expected, atol=0.01)


@settings(max_examples=8, deadline=None)
@given(st.floats(0, 1.5), st.floats(0.05, 1.5))
def test_more_of_the_pattern_is_less_tissue_and_the_brain_keeps_its_edge(
    less: float, more: float
) -> None:
    maps = load_template(8)
    inside = maps.gm + maps.wm + maps.csf > 0.5
    scan = (inside * (0.5 * maps.gm + 0.7 * maps.wm + 0.2 * maps.csf)).astype(np.float32)
    before, after = (reduced(scan, _frontal(), (a, a)) for a in (less, less + more))
    assert (after <= before + 1e-6).all()
    assert after.sum() < before.sum()
    assert ((after > 0) == (before > 0)).all()


def test_one_side_stays_as_it_is(brain: FloatArray) -> None:
    change = np.abs(reduced(brain, _frontal(), (1.5, 0.0)) - brain)
    left, right = change[:9].sum(), change[11:].sum()
    assert right < 0.05 * left


def test_shrinking_tissue_loses_the_volume_that_is_asked_for(brain: FloatArray) -> None:
    del brain
    sides = _frontal(shrinkage=0.2)
    velocity = sides[0].velocity + sides[1].velocity
    divergence = sum(np.gradient(velocity[a].numpy(), 8.0, axis=a) for a in range(3))
    maps = load_template(8)
    tissue = (maps.gm + 0.5 * maps.wm) * sum(
        regions(GRID)[f"frontal_{s}"] for s in ("left", "right")
    )
    # A pull-back: positive divergence is shrinking. Fluid in the same voxels takes some of it.
    assert 0.05 < (divergence * tissue).sum() / tissue.sum() < 0.2
    assert (divergence * maps.csf).sum() < 0
    assert abs(divergence.mean()) < 0.05 * np.abs(divergence).mean()


def test_tissue_that_shrinks_moves_the_edges_too(brain: FloatArray) -> None:
    opened, shrunk = (reduced(brain, _frontal(share), (1.0, 1.0)) for share in (0.0, 0.2))
    frontal = regions(GRID)["frontal_left"] + regions(GRID)["frontal_right"] > 0.5
    assert shrunk[frontal].sum() < opened[frontal].sum()
    assert ((shrunk > 0) ^ (opened > 0)).any()
    np.testing.assert_allclose(shrunk[:, :3], opened[:, :3], atol=2e-3)
