"""Pictures that are no brains: planes are never mixed, copies are found, no brain is asked for."""

from pathlib import Path

import numpy as np
import pytest
from picture_cohort import picture, write_pictures

from rarescan.cohort.contracts import plane_grid
from rarescan.cohort.planes import are_planes, smoothing, spatial_axes
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.evaluation import canaries, copies, measures
from rarescan.evaluation.appearance import describe_planes, plane_names
from rarescan.evaluation.diversity import ms_ssim
from rarescan.evaluation.figures import planes, shown_mm
from rarescan.evaluation.scan_gate import copy_check
from rarescan.evaluation.spec import EvaluateConfig


def some(n: int, planes_: int, edge: int = 48) -> np.ndarray:
    return np.stack([picture(i, i % 2 == 1, edge, planes_) for i in range(n)])


def test_three_slices_are_planes_and_four_are_a_volume() -> None:
    assert are_planes((9, 64, 64, 3))
    assert not are_planes((20, 24, 20))
    assert spatial_axes((7, 64, 64, 1)) == (1, 2)
    assert spatial_axes((20, 24, 20)) == (0, 1, 2)
    assert smoothing(1.5, (64, 64, 3)) == (1.5, 1.5, 0.0)


def test_what_is_measured_in_one_plane_does_not_depend_on_the_others() -> None:
    pictures = some(4, 3)
    other = pictures.copy()
    other[..., 1] = pictures[::-1, ..., 1]
    alone, beside = describe_planes(pictures), describe_planes(other)
    n = len(plane_names(1))
    np.testing.assert_array_equal(alone[:, :n], beside[:, :n])
    np.testing.assert_array_equal(alone[::-1, n : 2 * n], beside[:, n : 2 * n])
    np.testing.assert_array_equal(alone[:, :n], describe_planes(pictures[..., :1]))
    assert alone.shape[1] == len(plane_names(3))


def test_a_half_bright_picture_is_described_by_hand() -> None:
    made = np.zeros((1, 8, 8, 1), np.float32)
    made[0, :4, :, 0] = 0.5
    found = dict(zip(plane_names(1), describe_planes(made)[0], strict=True))
    assert found["size"] == 0.5
    assert found["brightness"] == 0.5
    assert found["contrast"] == 0
    assert found["upper_left"] == 0.5
    assert found["lower_right"] == 0
    assert not describe_planes(np.zeros((1, 8, 8, 1), np.float32)).any()


def test_detail_is_seen_in_each_plane_on_its_own() -> None:
    pictures = some(1, 3)
    window = measures.apodised(measures.outline(pictures))
    wanted = 0.0
    for plane in range(3):
        centred = pictures[0, ..., plane]
        weight = window[..., plane]
        mean = (pictures[0] * window).sum() / window.sum()
        power = np.abs(np.fft.fft2((centred - mean) * weight)) ** 2
        wanted += power.sum()
    found = np.abs(measures.waves((pictures[0] - np.float32(mean)) * window)) ** 2
    full = 2 * found.sum() - found[0].sum() - found[-1].sum()
    assert full == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("planes_", [1, 3])
def test_blur_is_told_from_sharp_pictures(planes_: int) -> None:
    pictures = some(6, planes_)
    window = measures.apodised(measures.outline(pictures))
    sharp = measures.high_frequency(pictures, window)
    blurred = measures.blurred_high_frequency(pictures, window)
    assert (np.diff(np.column_stack([sharp, blurred]), axis=1) < 0).all()


def test_the_similarity_of_planes_is_that_of_each_plane() -> None:
    a, b = some(2, 3, edge=64)
    alone = [ms_ssim(a[..., i : i + 1], b[..., i : i + 1]) for i in range(3)]
    assert ms_ssim(a, b) == pytest.approx(np.mean(alone))
    assert ms_ssim(a, a) == pytest.approx(1)


@pytest.mark.parametrize("planes_", [1, 3])
def test_planted_copies_are_found_among_pictures_and_strangers_are_not(planes_: int) -> None:
    pictures = some(60, planes_)
    names = [f"P{i:02d}" for i in range(40)]
    assay = copies.Assay.of(pictures[:40], names, voxel_mm=4.0, shift_mm=8.0)
    strangers = assay.match(pictures[40:])
    planted = canaries.plant(pictures[:12], shift_voxels=assay.shift_voxels, seed=0)
    for kind, made in planted.items():
        found = assay.match(made)
        right = found.person == np.arange(12)
        higher = found.score > strangers.score.max()
        assert (right & higher).mean() >= 0.9, kind


def test_a_shifted_copy_of_one_plane_is_not_sought_in_another_plane() -> None:
    pictures = some(8, 3)
    assay = copies.Assay.of(pictures, [f"P{i}" for i in range(8)], voxel_mm=4.0, shift_mm=8.0)
    turned = np.roll(pictures, 1, axis=-1)
    assert assay.match(turned).correlation.max() < 0.5
    moved = np.roll(pictures, (2, -1), axis=(1, 2))
    assert assay.match(moved).correlation.min() > 0.8


def test_the_check_of_a_batch_refuses_copies_of_pictures(tmp_path: Path) -> None:
    root = write_pictures(tmp_path, edge=48, persons=60)
    cohort, config = open_cohort(root), EvaluateConfig(canary_persons=10)
    check = copy_check(root, config)
    volumes = open_volumes(cohort)
    train, test = (np.array(volumes[cohort.indices(part)]) for part in ("train", "test"))
    assert check(train[:6]).all()
    assert check(train[:6, :, ::-1]).mean() > 0.8
    assert check(test).mean() < 0.2


@pytest.mark.parametrize(("edge", "expected"), [(64, 64), (48, 48), (256, 64), (100, 50)])
def test_pictures_are_searched_at_about_64_pixels(edge: int, expected: int) -> None:
    made = np.ones((1, edge, edge, 3), np.float32)
    assert copies.coarsen(made, 0.0).shape == (1, expected, expected, 3)


def test_pictures_are_shown_as_they_are_and_as_large_as_brains() -> None:
    made = some(1, 3)[0]
    grid = plane_grid(48, 48, 3)
    tiles = planes(made, grid)
    np.testing.assert_array_equal(np.stack(list(tiles.values()), axis=-1), made)
    assert shown_mm(grid) * 48 == pytest.approx(160)
