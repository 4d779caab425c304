from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.cohort.template import load_template
from rarescan.imaging.qc import (
    Measures,
    alignment,
    as_row,
    from_row,
    measure,
    outliers,
    refusal,
    worst_first,
)
from rarescan.imaging.register import to_image

GOOD = Measures(
    metric=-0.5,
    determinant=0.9,
    smallest_stretch=0.9,
    largest_stretch=1.05,
    brain_ml=1500.0,
    contrast_ordered=True,
    snr=20.0,
    cjv=0.8,
    wrap=0.05,
)


@pytest.fixture(scope="module")
def t1() -> np.ndarray:
    return load_template(2.0).t1


def test_shuffled_voxels_share_nothing_with_the_template(t1: np.ndarray) -> None:
    shuffled = np.random.default_rng(0).permutation(t1.ravel()).reshape(t1.shape)
    assert alignment(t1) < -1.0
    assert alignment(shuffled) == pytest.approx(0, abs=0.02)


@given(gain=st.floats(0.01, 5000), offset=st.floats(0, 100))
@settings(max_examples=8, deadline=None)
def test_alignment_does_not_depend_on_the_intensity_unit(gain: float, offset: float) -> None:
    t1 = load_template(2.0).t1
    other = alignment((gain * (t1 + offset / 100)).astype(np.float32))
    assert other == pytest.approx(alignment(t1), abs=0.01)


def test_alignment_falls_with_every_millimetre_of_displacement(t1: np.ndarray) -> None:
    moved = [alignment(np.roll(t1, steps, axis=1)) for steps in (0, 1, 2, 4, 8)]
    assert moved == sorted(moved)
    assert moved[0] < moved[2] - 0.3


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"metric": -0.19}, "NOT_HEAD"),
        ({"determinant": 1.65}, "NOT_HEAD"),
        ({"determinant": -0.9}, "NOT_HEAD"),
        ({"smallest_stretch": 0.7}, "NOT_HEAD"),
        ({"largest_stretch": 1.5}, "NOT_HEAD"),
        ({"brain_ml": 700.0}, "BRAIN_VOLUME"),
        ({"brain_ml": 2900.0}, "BRAIN_VOLUME"),
        ({"contrast_ordered": False}, "CONTRAST"),
        ({"metric": -0.1, "brain_ml": 0.0}, "NOT_HEAD"),
        ({"snr": None, "cjv": None}, None),
    ],
)
def test_the_first_gate_that_fails_gives_the_code(
    changes: dict[str, float], code: str | None
) -> None:
    assert refusal(replace(GOOD, **changes)) == code


def test_tissue_figures_are_those_of_the_image_they_were_built_from() -> None:
    template = load_template(2.0)
    rng = np.random.default_rng(0)
    tissue = 100 * template.wm + 60 * template.gm + 20 * template.csf
    noise = rng.normal(0, 4, tissue.shape)
    look = (tissue + noise).astype(np.float32)
    head = np.maximum(np.pad(look, 10), np.pad(np.zeros_like(look), 10))
    head = np.where(head == 0, rng.normal(10, 2, head.shape), head).astype(np.float32)
    affine = template.grid.matrix()
    affine[:3, 3] -= 20
    mask = template.brain > 0.5
    matrix = np.diag([0.9, 0.9, 0.9, 1.0])
    found = measure(to_image(head, affine), matrix, look, mask)
    white, grey = (look[mask & (share > 0.8)] for share in (template.wm, template.gm))
    assert found.cjv == pytest.approx(
        (white.std() + grey.std()) / (white.mean() - grey.mean()), rel=1e-4
    )
    # The core's mean is near 75, the air's standard deviation is 2.
    assert found.snr == pytest.approx(37, rel=0.1)
    assert found.wrap == pytest.approx(10 / 75, rel=0.1)
    assert found.determinant == pytest.approx(0.729)
    assert found.brain_ml == pytest.approx(mask.sum() * 8e-3 * 0.729)
    assert found.contrast_ordered


def test_a_t2_contrast_is_not_ordered_as_a_t1() -> None:
    template = load_template(2.0)
    inverted = (20 * template.wm + 60 * template.gm + 100 * template.csf).astype(np.float32)
    image = to_image(inverted, template.grid.matrix())
    found = measure(image, np.eye(4), inverted, template.brain > 0.5)
    assert refusal(found) == "CONTRAST"


@pytest.mark.parametrize("upside_down", [False, True])
def test_the_face_that_the_neck_leaves_by_does_not_count_as_wrapped(upside_down: bool) -> None:
    template = load_template(2.0)
    head = np.pad(template.t1, 8)
    head[20:60, 30:70, :8] = 1.0
    affine = template.grid.matrix()
    affine[:3, 3] -= 16
    if upside_down:
        head = head[:, :, ::-1]
        affine = affine @ np.array(
            [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, head.shape[2] - 1], [0, 0, 0, 1.0]]
        )
    found = measure(
        to_image(np.ascontiguousarray(head), affine), np.eye(4), template.t1, template.brain > 0.5
    )
    assert found.wrap < 0.02


def test_a_scan_beyond_three_robust_deviations_is_named_with_its_measure() -> None:
    values = [1400.0, 1450.0, 1500.0, 1550.0, 1600.0]
    scans = [replace(GOOD, brain_ml=v, metric=-0.5) for v in values]
    # Median 1500, median deviation 50: the limit is 1500 + 3 * 50 / 0.6745 = 1722.4.
    for far, expected in ((1722.0, ()), (1723.0, ("brain_ml",))):
        flags = outliers([*scans, *scans, replace(GOOD, brain_ml=far)])
        assert flags[-1] == expected
        assert not any(flags[:-1])


def test_doubtful_fits_are_flagged_and_shown_first() -> None:
    scans = [GOOD, replace(GOOD, metric=-0.51), replace(GOOD, metric=-0.25), GOOD]
    flags = outliers(scans)
    assert flags[2] == ("doubtful_fit", "metric")
    assert worst_first(scans, flags)[0] == 2


def test_missing_figures_do_not_stand_out() -> None:
    scans = [replace(GOOD, snr=None) for _ in range(4)]
    assert outliers(scans) == [()] * 4


def test_measures_survive_the_way_through_json() -> None:
    assert from_row(as_row(GOOD)) == GOOD
