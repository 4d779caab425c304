"""Pictures show the side, the slice and the brightness that they promise."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rarescan.cohort.contracts import brain_grid
from rarescan.evaluation import figures

GRID = brain_grid(4)


def _marked(axis: int, *, high_end: bool) -> np.ndarray:
    """Return a volume that is bright in one half only."""
    volume = np.zeros(GRID.shape, np.float32)
    half = GRID.shape[axis] // 2
    index = [slice(None)] * 3
    index[axis] = slice(half, None) if high_end else slice(0, half)
    volume[tuple(index)] = 1
    return volume


def test_the_patients_left_is_on_the_right_of_axial_and_coronal_pictures() -> None:
    # RAS: the first index grows to the patient's right, so low indices are left.
    cut = figures.planes(_marked(0, high_end=False), GRID)
    for plane in ("axial", "coronal"):
        width = cut[plane].shape[1]
        assert cut[plane][:, width // 2 :].all()
        assert not cut[plane][:, : width // 2].any()


def test_anterior_is_at_the_top_of_axial_and_at_the_left_of_sagittal_pictures() -> None:
    cut = figures.planes(_marked(1, high_end=True), GRID)
    height, width = cut["axial"].shape[0], cut["sagittal"].shape[1]
    assert cut["axial"][: height // 2].all()
    assert not cut["axial"][height // 2 :].any()
    assert cut["sagittal"][:, : width // 2].all()
    assert not cut["sagittal"][:, width // 2 :].any()


def test_superior_is_at_the_top_of_coronal_and_sagittal_pictures() -> None:
    cut = figures.planes(_marked(2, high_end=True), GRID)
    for plane in ("coronal", "sagittal"):
        height = cut[plane].shape[0]
        assert cut[plane][: height // 2].all()
        assert not cut[plane][height // 2 :].any()


@pytest.mark.parametrize("spacing_mm", [2, 4, 8])
def test_slices_lie_at_the_same_place_in_millimetres_on_every_grid(spacing_mm: float) -> None:
    grid = brain_grid(spacing_mm)
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        place_mm = np.arange(grid.shape[axis]) * spacing_mm + grid.affine[axis][3]
        shape = [1, 1, 1]
        shape[axis] = -1
        volume = np.broadcast_to(place_mm.reshape(shape), grid.shape).astype(np.float32)
        found = figures.planes(volume, grid)[plane]
        assert np.ptp(found) == 0
        assert abs(found[0, 0] - figures.SLICES_MM[plane]) <= spacing_mm / 2


@pytest.mark.parametrize("spacing_mm", [1, 2, 4, 8])
def test_pictures_are_as_large_as_the_brain_box_whatever_the_grid(spacing_mm: float) -> None:
    grid = brain_grid(spacing_mm)
    cut = figures.planes(np.zeros(grid.shape, np.float32), grid)
    assert figures.sheet([[cut["axial"]]], spacing_mm).shape == (230, 192)


@settings(max_examples=20, deadline=None)
@given(value=st.floats(0, 3, width=32))
def test_brightness_is_never_stretched(value: float) -> None:
    picture = figures.sheet([[np.full((5, 6), value, np.float32)]], 8)
    expected = round(255 * min(value, 1))
    assert abs(int(picture.min()) - expected) <= 1
    assert abs(int(picture.max()) - expected) <= 1


def test_tiles_stand_in_reading_order_on_black() -> None:
    rows = [[np.full((10, 10), 0.1 * (2 * r + c + 1), np.float32) for c in (0, 1)] for r in (0, 1)]
    picture = figures.sheet(rows, 10)
    # 120 pixels a tile and a gap of 6 between them.
    assert picture.shape == (246, 246)
    centres = [picture[y, x] for y in (60, 186) for x in (60, 186)]
    assert [round(value / 25.5) for value in centres] == [1, 2, 3, 4]
    assert not picture[120:126].any()
    assert not picture[:, 120:126].any()


def test_side_marks_stand_at_the_edges_of_the_first_tile() -> None:
    tile = np.zeros((40, 40), np.float32)
    marked = figures.sheet([[tile, tile]], 4, sides=True)
    assert marked[:20, :20].any()
    assert marked[:20, 172:192].any()
    assert not marked[:, 24:168].any()
    assert not marked[:, 192:].any()


def test_a_picture_survives_its_way_into_the_page() -> None:
    ramp = np.tile(np.linspace(0, 255, 200).astype(np.uint8), (100, 1))
    kind, data = figures.webp(ramp).split(",")
    assert kind == "data:image/webp;base64"
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"), dtype=float)
    assert back.shape == ramp.shape
    assert np.abs(back - ramp).mean() < 3
