import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from rarescan.cohort import template
from rarescan.cohort.contracts import brain_grid
from rarescan.cohort.template import block_average, load_lattice, load_template, regions
from rarescan.errors import MissingExtraError


@pytest.fixture(scope="module")
def lattice() -> template.Lattice:
    return load_lattice()


def test_volumes_are_those_of_the_published_template(lattice: template.Lattice) -> None:
    # Measured once with nilearn's own loaders: 1.883 l above a T1 of 0.2, 1.00 l grey, 0.67 white.
    assert (lattice.t1 > 0.2).sum() / 1e6 == pytest.approx(1.883, abs=0.001)
    assert lattice.gm.sum() / 1e6 == pytest.approx(1.00, abs=0.01)
    assert lattice.wm.sum() / 1e6 == pytest.approx(0.67, abs=0.005)


def test_tissues_have_the_published_brightness(lattice: template.Lattice) -> None:
    assert np.median(lattice.t1[lattice.gm > 0.7]) == pytest.approx(0.655, abs=0.01)
    assert np.median(lattice.t1[lattice.wm > 0.9]) == pytest.approx(0.871, abs=0.01)


@pytest.mark.parametrize("spacing_mm", [1, 4])
def test_averaging_keeps_every_volume(lattice: template.Lattice, spacing_mm: float) -> None:
    maps = load_template(spacing_mm)
    assert maps.t1.shape == maps.grid.shape == brain_grid(spacing_mm).shape
    assert maps.brain.sum() * spacing_mm**3 == pytest.approx(lattice.mask.sum(), rel=1e-4)
    assert maps.gm.sum() * spacing_mm**3 == pytest.approx(lattice.gm.sum(), rel=1e-4)


def test_averaging_keeps_the_place_of_a_linear_ramp() -> None:
    ramp = np.arange(-80, 81, dtype=np.float32)[:, None, None] * np.ones((1, 193, 161), np.float32)
    x, _, _ = template.world_coordinates(brain_grid(4))
    np.testing.assert_allclose(block_average(ramp, 4)[:, :1, :1], x, atol=1e-4)


def test_only_whole_millimetres_are_averaged() -> None:
    with pytest.raises(ValueError, match=r"1\.6"):
        block_average(np.zeros((161, 193, 161), np.float32), 1.6)


def test_template_and_regions_are_mirror_symmetric() -> None:
    maps, places = load_template(4), regions(brain_grid(4))
    np.testing.assert_allclose(maps.t1, maps.t1[::-1], atol=1e-6)
    for name in ("frontal", "insula", "occipital"):
        np.testing.assert_allclose(places[f"{name}_left"], places[f"{name}_right"][::-1], atol=1e-5)


def test_rim_is_the_exact_distance(lattice: template.Lattice) -> None:
    distance = ndimage.distance_transform_edt(~lattice.mask)
    np.testing.assert_allclose(lattice.extent, np.clip(2 - distance / 2, 0, 1), atol=1e-6)


def test_sharpened_maps_fill_the_extent_and_are_crisper(lattice: template.Lattice) -> None:
    grey, white, fluid = lattice.sharpened()
    np.testing.assert_allclose(grey + white + fluid, lattice.extent, atol=1e-5)
    surely = [float((p[lattice.mask] > 0.9).mean()) for p in (lattice.gm, grey)]
    assert surely[1] > 2 * surely[0]


@pytest.mark.parametrize(
    ("name", "point_mm"),
    [
        ("frontal_left", (-10, 50, 20)),
        ("anterior_temporal_right", (40, 10, -30)),
        ("posterior_temporal_left", (-50, -35, -10)),
        ("insula_right", (36, 6, 0)),
        ("parietal_left", (-30, -50, 50)),
        ("occipital_right", (15, -90, 5)),
    ],
)
def test_regions_lie_where_anatomists_put_them(name: str, point_mm: tuple[float, ...]) -> None:
    grid = brain_grid(4)
    index = tuple((np.linalg.inv(grid.matrix()) @ [*point_mm, 1])[:3].round().astype(int))
    weights = {key: float(w[index]) for key, w in regions(grid).items()}
    assert max(weights, key=lambda key: weights[key]) == name
    assert weights[name] > 0.4


def test_ventricles_are_deep_fluid_of_plausible_volume() -> None:
    ventricles = regions(brain_grid(4))["ventricles"]
    assert 15 < ventricles.sum() * 4**3 / 1000 < 40  # ml; adults have 10 to 60
    x, y, z = template.world_coordinates(brain_grid(4))
    inside = np.argwhere(ventricles > 0.5)
    assert np.abs(x[inside[:, 0], 0, 0]).max() < 36
    assert z[0, 0, inside[:, 2]].mean() == pytest.approx(12, abs=8)
    assert y[0, inside[:, 1], 0].mean() == pytest.approx(-20, abs=15)


def test_lobes_share_a_voxel_at_most_once_over() -> None:
    total = sum(w for name, w in regions(brain_grid(4)).items() if name != "ventricles")
    assert isinstance(total, np.ndarray)
    assert total.min() >= 0
    assert total[load_template(4).brain > 0.5].max() < 2
    assert np.mean(total[load_template(4).gm > 0.5]) == pytest.approx(0.8, abs=0.15)


def test_world_coordinates_agree_with_the_affine() -> None:
    grid = brain_grid(8)
    x, y, z = template.world_coordinates(grid)
    expected = grid.matrix() @ [3, 5, 7, 1]
    np.testing.assert_allclose([x[3, 0, 0], y[0, 5, 0], z[0, 0, 7]], expected[:3], atol=1e-4)


def test_maps_are_read_only_because_they_are_shared() -> None:
    with pytest.raises(ValueError, match="read-only"):
        load_template(8).t1[0] = 1


def test_missing_template_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="nilearn"):
        load_lattice()


def test_nilearn_is_found_but_never_imported() -> None:
    code = "import sys; from rarescan.cohort import template as t; t.load_lattice(); "
    code += "print('nilearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
