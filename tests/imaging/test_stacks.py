from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from rarescan.imaging.header import Header
from rarescan.imaging.stacks import File, find_stacks

finite = st.floats(-200, 200, allow_nan=False)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    origin=st.tuples(finite, finite, finite),
    spacing=st.tuples(*[st.floats(0.3, 3)] * 3),
    order=st.permutations(range(5)),
)
def test_the_affine_leads_every_voxel_to_where_its_own_file_says(
    angles: tuple[float, float, float],
    origin: tuple[float, float, float],
    spacing: tuple[float, float, float],
    order: list[int],
) -> None:
    row, column, normal = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    between_rows, between_columns, step = spacing
    places = [np.array(origin) + k * step * normal for k in range(5)]
    files = [
        File(
            number=k,
            header=Header(
                position_mm=tuple(places[k]),
                orientation=(*row, *column),
                pixel_spacing_mm=(between_rows, between_columns),
                rows=7,
                columns=9,
                sha256=str(k),
                sop_uid=str(k),
                pixel_sha256=str(k),
            ),
        )
        for k in order
    ]
    (stack,) = find_stacks(files)
    assert [f.number for f in stack.files] == list(range(5))
    assert stack.voxel_mm == pytest.approx((between_columns, between_rows, step), abs=1e-6)
    for k, i, j in ((0, 0, 0), (4, 8, 6), (2, 3, 5)):
        # DICOM PS3.3 C.7.6.2.1.1: column index along the row, with the spacing of columns.
        lps = places[k] + row * between_columns * i + column * between_rows * j
        ras = stack.affine() @ (i, j, k, 1)
        assert ras[:3] == pytest.approx(lps * (-1, -1, 1), abs=1e-3)


def counts(stacks: list[Any]) -> list[tuple[int, int]]:
    return sorted((len(s.files), s.n_files) for s in stacks)


def test_echoes_in_one_series_are_split(make_files: Any) -> None:
    files = make_files(160, lambda k: {"echo_time_ms": 1.64 + 1.86 * (k % 2)})
    stacks = find_stacks(files)
    assert counts(stacks) == [(80, 80), (80, 80)]
    assert all(s.fixes == ("SPLIT_ECHO",) and not s.whole_series for s in stacks)
    assert all(len({f.header.echo_time_ms for f in s.files}) == 1 for s in stacks)


def test_orientations_in_one_series_are_split(make_files: Any) -> None:
    planes = [(0.0, 1.0, 0.0, 0.0, 0.0, -1.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)]
    places = [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]
    stacks = find_stacks(
        make_files(
            40,
            lambda k: {
                "orientation": planes[k % 2],
                "position_mm": tuple(k * v for v in places[k % 2]),
            },
        )
    )
    assert counts(stacks) == [(20, 20), (20, 20)]
    assert all(s.fixes == ("SPLIT_ORIENTATION",) for s in stacks)


@pytest.mark.parametrize(
    "attribute",
    [
        lambda k: {"acquisition_number": k // 80},
        lambda k: {"temporal_position": k // 80},
        lambda k: {"content_time": f"10{k // 80}000"},
        lambda k: {},
    ],
)
def test_repeated_acquisitions_are_split_by_whatever_separates_them(
    make_files: Any, attribute: Any
) -> None:
    def edit(k: int) -> dict[str, Any]:
        return {"position_mm": (float(k % 80), 0.0, 0.0), "instance_number": k, **attribute(k)}

    stacks = find_stacks(make_files(160, edit))
    assert counts(stacks) == [(80, 80), (80, 80)]
    assert all(s.fixes == ("SPLIT_ACQ",) for s in stacks)
    for stack in stacks:
        assert np.diff(stack.offsets_mm) == pytest.approx(np.ones(79))
        assert len({f.number // 80 for f in stack.files}) == 1


def test_acquisition_numbers_counted_per_slice_split_nothing(make_files: Any) -> None:
    (stack,) = find_stacks(make_files(160, lambda k: {"acquisition_number": k}))
    assert (len(stack.files), stack.fixes) == (160, ())


def test_an_image_sent_twice_is_kept_once_with_the_fuller_header(make_files: Any) -> None:
    files = make_files(160)
    poorer = File(number=900, header=make_files(160, model=None)[9].header)
    richer = File(number=901, header=make_files(160, model="Prisma")[9].header)
    (stack,) = find_stacks([poorer, *files[:9], richer, *files[10:]])
    assert stack.fixes == ("DUP_SOP_HEADER",)
    assert (len(stack.files), stack.n_files) == (160, 161)
    assert 901 in [f.number for f in stack.files]


def test_the_same_slice_under_another_name_is_kept_once(make_files: Any) -> None:
    files = make_files(161, lambda k: {} if k < 160 else {
        "position_mm": (-70.0, -90.0, 90.0), "pixel_sha256": "pixels 10"})  # fmt: skip
    (stack,) = find_stacks(files)
    assert stack.fixes == ("DUP_SLICE",)
    assert (len(stack.files), stack.n_files) == (160, 161)


def test_the_result_does_not_depend_on_the_order_of_files(make_files: Any) -> None:
    files = make_files(160, lambda k: {"echo_time_ms": 1.64 + 1.86 * (k % 2)})
    shuffled = [files[i] for i in np.random.default_rng(0).permutation(160)]
    for a, b in zip(find_stacks(files), find_stacks(shuffled), strict=True):
        assert [f.number for f in a.files] == [f.number for f in b.files]
