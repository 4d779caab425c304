"""Acquisitions against closed forms: what is asked for is what is done, and no more."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.cohort.contracts import FloatArray, brain_grid
from rarescan.cohort.store import VOLUMES, create_volumes, tables
from rarescan.errors import SettingError
from rarescan.generative.acquisition import Acquisition, rerender, rerender_batch

GRID = brain_grid(8)
NEUTRAL = Acquisition()


def ball(values: FloatArray) -> FloatArray:
    """Return values within a ball, and 0 outside, shape (1, x, y, z)."""
    axes = [np.linspace(-1, 1, n) for n in GRID.shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = x**2 + y**2 + z**2 < 0.8
    return np.where(inside, values, 0).astype(np.float32)[None]


def halves(dark: float, bright: float) -> FloatArray:
    values = np.full(GRID.shape, bright)
    values[:10] = dark
    return ball(values)


def seen(volumes: FloatArray, seed: int = 3, **asked: object) -> FloatArray:
    how = Acquisition(**asked)  # type: ignore[arg-type]
    return rerender(volumes, [how] * len(volumes), [seed + i for i in range(len(volumes))])


def test_a_neutral_acquisition_changes_no_byte() -> None:
    volumes = ball(np.random.default_rng(1).uniform(0.1, 1, GRID.shape))
    assert rerender(volumes, [NEUTRAL], [5]).tobytes() == volumes.tobytes()


@settings(max_examples=15, deadline=None)
@given(
    dark=st.floats(0.02, 0.4),
    blur_mm=st.floats(0, 20),
    noise=st.floats(0, 0.5),
    bias=st.floats(0, 1),
    seed=st.integers(0, 2**60),
)
def test_the_mask_stays_and_values_stay_in_range(
    dark: float, blur_mm: float, noise: float, bias: float, seed: int
) -> None:
    volumes = ball(np.random.default_rng(seed).uniform(0.01, 1, GRID.shape))
    after = seen(
        volumes, seed, contrast=(dark, dark + 0.1), blur_mm=blur_mm, noise=noise, bias=bias
    )
    np.testing.assert_array_equal(after > 0, volumes > 0)
    assert after.dtype == np.float32
    assert after.max() <= 1
    # Stored with 16 bits, the mask is still the mask.
    assert np.rint(after[after > 0].min() * 32767) > 0


def test_a_scan_is_the_same_whatever_it_is_rendered_with() -> None:
    volumes = np.concatenate([halves(0.3, 0.7), halves(0.2, 0.6), halves(0.4, 0.7)])
    how = [Acquisition(noise=0.02 * i, bias=0.1, blur_mm=4.0 * i) for i in range(3)]
    together = rerender(volumes, how, [7, 8, 9])
    alone = rerender(volumes[2:], how[2:], [9])
    assert together[2].tobytes() == alone[0].tobytes()
    assert not np.array_equal(alone, rerender(volumes[2:], how[2:], [10]))


def test_contrast_takes_grey_levels_where_it_says() -> None:
    values = np.full(GRID.shape, 0.75)
    values[:7], values[7:10] = 0.25, 0.5
    after = seen(ball(values), contrast=(0.1, 0.6))[0]
    white = after[15, 12, 10]
    assert after[5, 12, 10] / white == pytest.approx(0.1 / 0.75, rel=1e-3)
    assert after[8, 12, 10] / white == pytest.approx(0.6 / 0.75, rel=1e-3)


@given(low=st.floats(0.01, 0.7), more=st.floats(0.01, 0.5))
@settings(max_examples=15, deadline=None)
def test_what_was_brighter_stays_brighter(low: float, more: float) -> None:
    middle = min(low + more, 0.74)
    if middle - low < 0.01:
        return
    ramp = ball(np.broadcast_to(np.linspace(0.05, 0.95, 20)[:, None, None], GRID.shape))
    line = seen(ramp, contrast=(low, middle))[0, 2:-2, 12, 10]
    assert np.all(np.diff(line) >= 0)


def test_bright_tissue_keeps_its_mean_because_preparation_scales_by_it() -> None:
    volumes = halves(0.5, 0.7)
    after = seen(volumes, contrast=(0.2, 0.65), noise=0.03, bias=0.2)
    assert after[after > 0].mean() == pytest.approx(volumes[volumes > 0].mean(), rel=0.01)


@pytest.mark.parametrize("blur_mm", [8.0, 14.0])
def test_the_blur_of_a_step_is_as_wide_as_asked_for(blur_mm: float) -> None:
    after = seen(halves(0.4, 0.6), blur_mm=blur_mm)[0, :, 12, 10]
    # The derivative of a blurred step is the kernel; its variance and the voxel's own.
    kernel = np.diff(after[4:16])
    place = np.arange(len(kernel)) * 8.0
    kernel /= kernel.sum()
    variance = (kernel * place**2).sum() - (kernel * place).sum() ** 2
    assert 2.3548 * variance**0.5 == pytest.approx(blur_mm, rel=0.08)


def test_blur_does_not_darken_the_rim() -> None:
    volumes = ball(np.full(GRID.shape, 0.6))
    np.testing.assert_allclose(seen(volumes, blur_mm=12), volumes, atol=1e-3)


def test_noise_in_the_bright_is_gaussian_and_in_the_dark_rayleigh() -> None:
    after = seen(halves(0.001, 0.7), noise=0.05)[0]
    bright, dark = after[11:][after[11:] > 0], after[:9][after[:9] > 0]
    assert bright.std() == pytest.approx(0.05, rel=0.06)
    # Mean and deviation of a Rayleigh distribution.
    assert dark.mean() == pytest.approx(0.05 * (np.pi / 2) ** 0.5, rel=0.05)
    assert dark.std() == pytest.approx(0.05 * (2 - np.pi / 2) ** 0.5, rel=0.08)


def test_the_shading_is_smooth_and_as_strong_as_asked_for() -> None:
    volumes = ball(np.full(GRID.shape, 0.5))
    after = seen(volumes, bias=0.15)
    inside = volumes[0] > 0
    log = np.log(after[0][inside] / 0.5)
    assert log.std() == pytest.approx(0.15, rel=0.01)
    steps = np.diff(np.where(inside, after[0], np.nan), axis=0)
    assert np.nanstd(steps) < 0.35 * after[0][inside].std()


@pytest.mark.parametrize("contrast", [(0.5, 0.3), (0.0, 0.3), (0.3, 0.75)])
def test_a_curve_that_does_not_rise_is_refused(contrast: tuple[float, float]) -> None:
    with pytest.raises(SettingError, match="rising"):
        Acquisition(contrast=contrast)


def test_less_than_nothing_is_refused() -> None:
    with pytest.raises(SettingError, match="below 0"):
        Acquisition(noise=-0.1)


def batch(root: Path, n: int) -> FloatArray:
    volumes = np.concatenate([halves(0.2 + 0.01 * i, 0.7) for i in range(n)])
    create_volumes(root, n, GRID)[:] = volumes
    return volumes


def test_a_batch_on_the_disk_is_what_rerender_gives_and_goes_on_after_a_kill(
    tmp_path: Path,
) -> None:
    how = [Acquisition(noise=0.01 * i, blur_mm=float(i)) for i in range(20)]
    volumes = batch(tmp_path / "drawn", 20)
    expected = rerender(volumes, how, range(20))
    target = tables(tmp_path / "batch") / VOLUMES
    # As a kill leaves it: one block marked, the others not written.
    create_volumes(tmp_path / "batch", 20, GRID)[:16] = expected[:16]
    target.with_suffix(".done").mkdir()
    (target.with_suffix(".done") / "0000000").write_text("")
    rerender_batch(tmp_path / "drawn", tmp_path / "batch", how, range(20))
    np.testing.assert_array_equal(np.load(target), expected)
    assert [p.name for p in target.parent.iterdir()] == [VOLUMES]
