import tarfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from rarescan.cohort.contracts import brain_grid
from rarescan.cohort.template import load_template
from rarescan.imaging import register as module
from rarescan.imaging.qc import alignment
from rarescan.imaging.register import (
    NoFitError,
    one_thread,
    ras_matrix,
    register,
    to_array,
    to_grid,
    to_image,
)

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
PAD = 16
angle = st.floats(-180, 180)
shift = st.floats(-100, 100)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    one_thread()


@pytest.fixture(scope="module")
def head_map() -> tuple[Array, Matrix]:
    """The template with fluid, dark skull and bright scalp around it, on 2 mm voxels."""
    template = load_template(2.0)
    t1, brain = np.pad(template.t1, PAD), np.pad(template.brain > 0.5, PAD)
    away_mm = ndimage.distance_transform_edt(~brain) * 2.0
    shells = np.select([away_mm <= 3, away_mm <= 8, away_mm <= 13], [0.25, 0.08, 0.95], 0.0)
    affine = template.grid.matrix()
    affine[:3, 3] -= 2.0 * PAD
    return np.where(brain, t1, shells).astype(np.float32), affine


def scanned(
    head_map: tuple[Array, Matrix], seed: int, turn_degrees: float
) -> tuple[sitk.Image, Matrix]:
    """Return a head as a scanner would see it, and the true map template -> native."""
    rng = np.random.default_rng(seed)
    truth = np.eye(4)
    turn = Rotation.from_euler("xyz", rng.uniform(-turn_degrees, turn_degrees, 3), degrees=True)
    truth[:3, :3] = turn.as_matrix() * rng.uniform(0.93, 1.07)
    truth[:3, 3] = rng.uniform(-15, 15, 3)
    shape, native = (110, 130, 110), np.diag([2.0, 2.0, 2.0, 1.0])
    native[:3, 3] = [-109, -145, -115]
    volume, affine = head_map
    look = np.linalg.inv(affine) @ np.linalg.inv(truth) @ native
    seen = ndimage.affine_transform(volume, look[:3, :3], look[:3, 3], output_shape=shape, order=1)
    ramp = np.linspace(-0.15, 0.15, shape[1])[None, :, None]
    noisy = np.hypot(seen * np.exp(ramp) + rng.normal(0, 0.035, shape), rng.normal(0, 0.035, shape))
    return to_image((500 * noisy).astype(np.float32), native), truth


def displacement_mm(found: Matrix, truth: Matrix) -> float:
    """Return how far brain voxels land from where they belong, on average."""
    template = load_template(4.0)
    voxels = np.argwhere(template.brain > 0.5)
    points = np.c_[voxels, np.ones(len(voxels))] @ template.grid.matrix().T
    return float(np.linalg.norm((points @ (found - truth).T)[:, :3], axis=1).mean())


@given(
    angles=st.tuples(angle, angle, angle),
    origin=st.tuples(shift, shift, shift),
    spacing=st.tuples(*[st.floats(0.4, 6)] * 3),
    mirrored=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_an_itk_image_keeps_the_place_of_every_voxel(
    angles: tuple[float, ...],
    origin: tuple[float, ...],
    spacing: tuple[float, ...],
    mirrored: bool,
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 0] *= -1 if mirrored else 1
    affine[:3, 3] = origin
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    image = to_image(values, affine)
    right, anterior, superior = (affine @ [1, 2, 3, 1])[:3]
    place = image.TransformIndexToPhysicalPoint((1, 2, 3))
    assert place == pytest.approx((-right, -anterior, superior), abs=1e-6)
    back, same = to_array(image)
    np.testing.assert_array_equal(back, values)
    np.testing.assert_allclose(same, affine, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_one_start_finds_a_head_turned_up_to_12_degrees_within_a_millimetre(
    head_map: tuple[Array, Matrix], seed: int
) -> None:
    image, truth = scanned(head_map, seed, 12)
    found = ras_matrix(register(image, starts=1, target_spacing_mm=4.0))
    assert displacement_mm(found, truth) < 1.0
    assert np.linalg.det(found) == pytest.approx(np.linalg.det(truth), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11])
def test_27_starts_find_a_head_turned_up_to_40_degrees(
    head_map: tuple[Array, Matrix], seed: int
) -> None:
    image, truth = scanned(head_map, seed, 40)
    found = ras_matrix(register(image, starts=27, target_spacing_mm=2.0))
    assert displacement_mm(found, truth) < 1.0


def test_the_same_head_gives_the_same_map_to_the_last_bit(
    head_map: tuple[Array, Matrix],
) -> None:
    image, _ = scanned(head_map, 5, 12)
    first, second = (ras_matrix(register(image, starts=1, target_spacing_mm=4.0)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_a_real_head_is_found_better_with_the_metric_mask_than_without(
    real_head: sitk.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit() -> float:
        module._fixed.cache_clear()
        transform = register(real_head, starts=1, target_spacing_mm=4.0)
        return alignment(to_grid(real_head, transform, brain_grid(2.0), spline=False))

    masked = fit()
    monkeypatch.setattr(module, "_METRIC_MASK_MM", 1000.0)
    unmasked = fit()
    module._fixed.cache_clear()
    assert masked < -0.45
    assert masked < unmasked - 0.03


@pytest.fixture(scope="module")
def real_head(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> sitk.Image:
    folder = tmp_path_factory.mktemp("head")
    with tarfile.open(real_data / "dicom/t1/studyforrest_t1w_every2nd.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(next(folder.iterdir())))
    return sitk.BinShrink(sitk.Cast(sitk.ReadImage(names), sitk.sitkFloat32), [3, 3, 1])


def test_an_image_without_foreground_has_no_fit() -> None:
    with pytest.raises(NoFitError):
        register(
            to_image(np.zeros((30, 30, 30), np.float32), np.diag([6.0, 6, 6, 1])),
            starts=1,
            target_spacing_mm=4.0,
        )


@pytest.mark.parametrize("spacing_mm", [2.0, 4.0])
def test_an_image_on_the_grid_already_is_not_changed_by_the_interpolation(
    spacing_mm: float,
) -> None:
    template = load_template(spacing_mm)
    image = to_image(template.t1, template.grid.matrix())
    same = to_grid(image, sitk.AffineTransform(3), template.grid)
    np.testing.assert_allclose(same, template.t1, atol=2e-4)


def test_detail_finer_than_the_target_is_averaged_and_not_aliased() -> None:
    fine = brain_grid(2.0)
    stripes = (np.indices(fine.shape).sum(axis=0) % 2).astype(np.float32)
    affine = fine.matrix()
    affine[:3, 3] += (
        1  # every coarse voxel's centre falls on a fine one's: plain sampling sees 0 or 1
    )
    coarse = to_grid(to_image(stripes, affine), sitk.AffineTransform(3), brain_grid(4.0))
    inner = coarse[3:-3, 3:-3, 3:-3]
    assert inner.mean() == pytest.approx(0.5, abs=0.01)
    assert inner.std() < 0.05


def test_a_template_that_does_not_meet_the_image_gives_zeros() -> None:
    far = sitk.AffineTransform(3)
    far.SetTranslation((2000.0, 0.0, 0.0))
    image = to_image(np.ones((20, 20, 20), np.float32), np.eye(4))
    assert not to_grid(image, far, brain_grid(8.0)).any()
