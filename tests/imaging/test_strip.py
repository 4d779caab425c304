import importlib.util
import tarfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from rarescan.cohort.contracts import brain_grid
from rarescan.cohort.template import load_template
from rarescan.errors import MissingExtraError
from rarescan.imaging.register import register, to_grid
from rarescan.imaging.strip import (
    NoBrainError,
    brain_mask,
    resolve,
    surface_distance_mm,
    template_mask,
)

GRID = brain_grid(2.0)


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    """The template's own head: fluid, dark skull, bright scalp around the brain."""
    template = load_template(2.0)
    away_mm = ndimage.distance_transform_edt(template.brain <= 0.5) * 2.0
    shells = np.select([away_mm <= 3, away_mm <= 8], [0.25, 0.08], 0.95)
    return np.where(template.brain > 0.5, template.t1, shells).astype(np.float32)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_the_template_mask_keeps_the_brain_and_nothing_of_skull_and_scalp(
    head: np.ndarray,
) -> None:
    mask = template_mask(head, GRID)
    assert dice(mask, load_template(2.0).brain > 0.5) > 0.975
    assert not mask[surface_distance_mm(2.0) > 4].any()
    assert mask[surface_distance_mm(2.0) < -6].all()


def test_scalp_is_not_reached_over_the_skull_when_the_head_lies_6_mm_off(
    head: np.ndarray,
) -> None:
    away_mm = ndimage.distance_transform_edt(load_template(2.0).brain <= 0.5) * 2.0
    for axis in range(3):
        moved, scalp = (np.roll(v, 3, axis=axis) for v in (head, away_mm > 8))
        assert (template_mask(moved, GRID) & scalp).sum() < 20


def test_the_mask_does_not_depend_on_the_intensity_unit(head: np.ndarray) -> None:
    np.testing.assert_array_equal(template_mask(head, GRID), template_mask(head * 512, GRID))


def test_fluid_that_replaces_shrunken_cortex_is_left_outside(head: np.ndarray) -> None:
    front = (np.arange(head.shape[1]) * 2 - 111 > 50)[None, :, None]
    rim = front & (np.abs(surface_distance_mm(2.0) + 1.5) <= 2.0)
    shrunk = np.where(rim, np.float32(0.2), head)
    mask = template_mask(shrunk, GRID)
    assert mask[rim].mean() < 0.35
    assert template_mask(head, GRID)[rim].mean() > 0.8


def test_the_mask_is_one_piece_without_holes(head: np.ndarray) -> None:
    noisy = head + np.random.default_rng(0).normal(0, 0.15, head.shape).astype(np.float32)
    mask = template_mask(noisy, GRID)
    assert ndimage.label(mask)[1] == 1
    assert (ndimage.binary_fill_holes(mask) == mask).all()


def test_an_empty_image_has_no_brain() -> None:
    with pytest.raises(NoBrainError):
        template_mask(np.zeros(GRID.shape, np.float32), GRID)


def test_the_surface_lies_between_the_voxels_on_both_its_sides() -> None:
    distance = surface_distance_mm(2.0)
    inside = load_template(2.0).brain >= 0.5
    assert distance[inside].max() == -1.0
    assert distance[~inside].min() == 1.0
    # The template is mirror-symmetric, and so is the distance.
    np.testing.assert_array_equal(distance, distance[::-1])


def test_deepbet_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert resolve("auto") == resolve("deepbet") == "deepbet"
    assert resolve("template") == "template"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve("auto") == "template"
    with pytest.raises(MissingExtraError, match=r"prepare\.strip"):
        resolve("deepbet")


@pytest.mark.slow
def test_both_methods_agree_on_a_real_head(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepbet")
    with tarfile.open(real_data / "dicom/t1/studyforrest_t1w_every2nd.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(next(tmp_path.iterdir())))
    native = sitk.BinShrink(sitk.Cast(sitk.ReadImage(names), sitk.sitkFloat32), [2, 2, 1])
    transform = register(native, starts=1, target_spacing_mm=2.0)
    network = brain_mask(native, transform, GRID, "deepbet")
    carried = brain_mask(native, transform, GRID, "template")
    assert dice(network, carried) > 0.95
    # The head of a healthy adult; deepbet found 1795 ml at full resolution.
    millilitres = network.sum() * 8e-3 * abs(np.prod(np.linalg.eigvals(_linear(transform)))).real
    assert millilitres == pytest.approx(1795, rel=0.03)
    assert to_grid(native, transform, GRID)[network].min() >= 0


def _linear(transform: sitk.AffineTransform) -> np.ndarray:
    return np.array(transform.GetMatrix()).reshape(3, 3)
