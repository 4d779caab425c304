from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarescan.imaging.convert import PixelFaultError, Volume, read_stack
from rarescan.imaging.header import Header
from rarescan.imaging.parse import read_header
from rarescan.imaging.stacks import File, find_stacks

N = 24


@pytest.fixture
def convert(write_series: Any, tmp_path: Path) -> Callable[..., Volume]:
    """Write slices of any voxels, read them back as one volume."""

    def go(voxels: np.ndarray, **values: Any) -> Volume:
        paths = write_series(tmp_path / "s", voxels=voxels, keep=range(len(voxels)), **values)
        files = []
        for k, path in enumerate(paths):
            header = read_header(path.read_bytes())
            assert isinstance(header, Header)
            files.append(File(number=k, header=header))
        (stack,) = find_stacks(files)
        return read_stack(stack, [paths[f.number] for f in stack.files])

    return go


def as_stored(voxels: np.ndarray) -> np.ndarray:
    """The order of our voxels: the normal of the test series points to the right."""
    return voxels[::-1].transpose(2, 1, 0)


def test_a_constant_scale_is_kept_beside_exact_integers(convert: Any, make_head: Any) -> None:
    voxels = make_head(0, N)
    volume = convert(voxels, RescaleSlope="2.5", RescaleIntercept="-7", RescaleType="US")
    assert np.array_equal(volume.voxels, as_stored(voxels))
    assert (volume.voxels.dtype, volume.slope, volume.intercept) == (np.int16, 2.5, -7)
    assert volume.fixes == ()


def test_a_scale_that_varies_is_applied_slice_by_slice(convert: Any, make_head: Any) -> None:
    voxels, slopes = make_head(0, N), 1 + np.arange(N) / 100

    def scale(k: int, ds: Any) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = f"{slopes[k]:.2f}", "0"

    volume = convert(voxels, edit=scale)
    assert volume.voxels == pytest.approx(as_stored(voxels * slopes[:, None, None]), rel=1e-6)
    assert (volume.voxels.dtype, volume.slope) == (np.float32, 1)
    assert volume.fixes == ("RESCALE_VARIES",)


def test_inverted_brightness_is_turned_back(convert: Any, make_head: Any) -> None:
    voxels = make_head(0, N)
    inverted = (voxels.max() - voxels).astype(np.int16)
    volume = convert(inverted, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(volume.voxels, as_stored(voxels))
    assert volume.fixes == ("MONOCHROME1",)


@pytest.mark.parametrize(("signed", "padding"), [(0, 4095), (1, -2000)])
def test_padding_becomes_zero(convert: Any, make_head: Any, signed: int, padding: int) -> None:
    voxels = make_head(0, N)
    padded = voxels.copy()
    padded[:, :2] = padding
    volume = convert(
        padded,
        PixelRepresentation=signed,
        BitsStored=16,
        HighBit=15,
        PixelPaddingValue=padding,
    )
    voxels[:, :2] = 0
    assert np.array_equal(volume.voxels, as_stored(voxels))
    assert volume.fixes == ("PADDING",)


def constant(voxels: np.ndarray) -> np.ndarray:
    return np.full_like(voxels, 7)


def saturated(voxels: np.ndarray) -> np.ndarray:
    changed = voxels.copy()
    changed[: N // 2 + 2] = 4095
    return changed


def noise(voxels: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.hypot(*rng.normal(0, 50, (2, *voxels.shape))).astype(np.int16)


def with_text(voxels: np.ndarray) -> np.ndarray:
    changed = voxels.copy()
    changed[:, :4, :4] = 4095
    changed[:, 0:4, -4:] = 4095
    return changed


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (constant, "PIXELS_DEAD"),
        (saturated, "PIXELS_DEAD"),
        (noise, "PIXELS_DEAD"),
        (with_text, "BURNED_IN_PIXELS"),
    ],
)
def test_unusable_pixels_are_named(convert: Any, make_head: Any, spoil: Any, code: str) -> None:
    with pytest.raises(PixelFaultError, match=code):
        convert(spoil(make_head(0, N)))
