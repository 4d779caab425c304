import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.classifiers.echo.volumes import (
    DISCS,
    Chamber,
    area_length_ml,
    biplane_ml,
    ejection_fraction,
    measure_chamber,
    measure_clip,
    simpson_ml,
)
from rarescan.imaging.echonet import fill_tracing, film_name, read_tracings
from rarescan.phantom.echo import (
    SYSTOLE,
    Heart,
    chambers,
    lengths_mm,
    volumes_ml,
)

HEART = Heart(edv_ml=108.385, esv_ml=45.574, length_ed_mm=90, roundness=0.92, depth_mm=14)


def phases(heart: Heart) -> np.ndarray:
    return np.array([0.0, SYSTOLE * 60 / heart.heart_rate_bpm])


def measured(heart: Heart, view: str, *, seen_atrium: bool = True) -> list[Chamber]:
    masks = chambers(heart, view, phases(heart))
    found = [
        measure_chamber(m[0], heart.spacing_mm, atrium=m[1] if seen_atrium else None) for m in masks
    ]
    assert all(found)
    return [one for one in found if one]


def half_ellipsoid(radius: float, n: int = DISCS) -> np.ndarray:
    """Full diameters of a half-ellipsoid at the middles of n discs, from the apex."""
    u = (np.arange(n) + 0.5) / n
    return 2 * radius * np.sqrt(1 - (1 - u) ** 2)


def test_simpsons_worked_example() -> None:
    # The closed forms: V = 2/3 pi R4 R2 L, and the disc sum 2/3 + 1/(12 n^2) of 20 discs.
    edv, _ = biplane_ml((90.0, half_ellipsoid(25)), (90.0, half_ellipsoid(23)))
    esv, _ = biplane_ml((80.0, half_ellipsoid(17)), (80.0, half_ellipsoid(16)))
    assert edv == pytest.approx(108.419, abs=1e-3)
    assert esv == pytest.approx(45.588, abs=1e-3)
    assert ejection_fraction(edv, esv) == pytest.approx(57.952, abs=1e-3)
    coarse, _ = biplane_ml((90.0, half_ellipsoid(25, 4)), (90.0, half_ellipsoid(23, 4)))
    assert coarse == pytest.approx(109.232, abs=1e-3)
    single = simpson_ml(np.array([90.0, 80.0]), np.stack([half_ellipsoid(25), half_ellipsoid(17)]))
    assert single == pytest.approx([117.847, 48.437], abs=1e-3)
    assert ejection_fraction(*single) == pytest.approx(58.9, abs=0.05)


def test_area_length_is_exact_for_an_ellipsoid() -> None:
    # Whole ellipsoid of axes 90, 50, 50 mm: V = pi/6 * 90 * 50^2, A = pi/4 * 90 * 50.
    volume = area_length_ml(np.pi / 4 * 90 * 50, 90.0)
    assert volume == pytest.approx(np.pi / 6 * 90 * 50**2 / 1000)


@pytest.mark.parametrize("tilt", [0, 12, 25, -20])
@pytest.mark.parametrize("spacing", [1.25, 1.4])
def test_t11_exact_masks_at_any_tilt_give_volume_and_fraction(tilt: int, spacing: float) -> None:
    heart = replace(HEART, tilt_deg=tilt, spacing_mm=(spacing, spacing))
    four, two = measured(heart, "a4c"), measured(heart, "a2c")
    volumes = [
        biplane_ml((a.length_mm, a.diameters_mm), (b.length_mm, b.diameters_mm))[0]
        for a, b in zip(four, two, strict=True)
    ]
    assert volumes == pytest.approx(volumes_ml(heart, phases(heart)), rel=0.03)
    assert ejection_fraction(*volumes) == pytest.approx(heart.ef, abs=1)
    assert [c.length_mm for c in four] == pytest.approx(lengths_mm(heart, phases(heart)), rel=0.015)


def test_t12_both_spacings_count_and_ten_per_cent_more_is_a_third_more_volume() -> None:
    true = volumes_ml(HEART, phases(HEART))
    for spacing in ((1.1, 1.6), (1.7, 1.2)):
        heart = replace(HEART, tilt_deg=15, spacing_mm=spacing)
        four, two = measured(heart, "a4c"), measured(heart, "a2c")
        volumes = [
            biplane_ml((a.length_mm, a.diameters_mm), (b.length_mm, b.diameters_mm))[0]
            for a, b in zip(four, two, strict=True)
        ]
        assert volumes == pytest.approx(true, rel=0.03)
    mask = chambers(HEART, "a4c", np.zeros(1))[0, 0]
    small, large = (measure_chamber(mask, (s, s)) for s in (1.0, 1.1))
    assert small
    assert large
    ratio = simpson_ml(large.length_mm, large.diameters_mm) / simpson_ml(
        small.length_mm, small.diameters_mm
    )
    assert ratio == pytest.approx(1.1**3, rel=1e-3)


def test_t16_one_view_misses_unequal_diameters_and_two_do_not() -> None:
    # The ventricle flattens: R2/R4 is 0.75, which a single plane cannot see.
    heart = replace(HEART, roundness=0.75, tilt_deg=10)
    four, two = measured(heart, "a4c")[0], measured(heart, "a2c")[0]
    true = float(volumes_ml(heart, np.zeros(1))[0])
    single = float(simpson_ml(four.length_mm, four.diameters_mm))
    both, agree = biplane_ml((four.length_mm, four.diameters_mm), (two.length_mm, two.diameters_mm))
    assert single / true == pytest.approx(1 / 0.75, rel=0.03)
    assert both == pytest.approx(true, rel=0.03)
    assert agree


def test_views_with_different_axes_are_told() -> None:
    a, b = (90.0, half_ellipsoid(25)), (79.0, half_ellipsoid(25))
    assert biplane_ml(a, b) == (pytest.approx(float(simpson_ml(90.0, a[1]))), False)
    assert biplane_ml(a, (82.0, b[1]))[1]


@pytest.mark.parametrize("seen_atrium", [True, False])
def test_the_apex_is_found_whichever_way_the_picture_hangs(seen_atrium: bool) -> None:
    heart = replace(HEART, tilt_deg=10)
    masks = chambers(heart, "a4c", np.zeros(1))[0]
    for turns in range(4):
        ventricle, atrium = (np.rot90(m, turns) for m in masks)
        found = measure_chamber(ventricle, heart.spacing_mm, atrium=atrium if seen_atrium else None)
        assert found
        middle = np.argwhere(atrium).mean(axis=0)
        assert np.linalg.norm(np.array(found.base) - middle) < np.linalg.norm(
            np.array(found.apex) - middle
        )
        assert found.diameters_mm[0] < 0.6 * found.diameters_mm[-1]


@settings(max_examples=8, deadline=None)
@given(tilt=st.floats(-30, 30), row=st.integers(-8, 3), column=st.integers(-10, 10))
def test_volume_does_not_depend_on_place_or_direction(tilt: float, row: int, column: int) -> None:
    heart = replace(HEART, tilt_deg=tilt, spacing_mm=(1.5, 1.5))
    mask = np.roll(chambers(heart, "a4c", np.zeros(1))[0, 0], (row, column), axis=(0, 1))
    found = measure_chamber(mask, heart.spacing_mm)
    assert found
    true = float(volumes_ml(heart, np.zeros(1))[0]) / heart.roundness
    assert float(simpson_ml(found.length_mm, found.diameters_mm)) == pytest.approx(true, rel=0.03)


def test_soft_masks_with_haze_measure_like_their_sharp_ones() -> None:
    from scipy.ndimage import gaussian_filter

    mask = chambers(HEART, "a4c", np.zeros(1))[0, 0]
    hazy = np.maximum(gaussian_filter(mask.astype(float), 0.7), 0.05)
    sharp, soft = (measure_chamber(m, HEART.spacing_mm) for m in (mask, hazy))
    assert sharp
    assert soft
    volumes = [float(simpson_ml(c.length_mm, c.diameters_mm)) for c in (sharp, soft)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.04)


def test_what_is_odd_about_a_mask_is_told() -> None:
    mask = chambers(HEART, "a4c", np.zeros(1))[0, 0]
    pieces = mask.copy()
    pieces[90:100, 5:20] = True
    disc = np.hypot(*(np.indices((112, 112)) - 56)) < 20

    def flags(picture: np.ndarray) -> tuple[str, ...]:
        found = measure_chamber(picture, None)
        return found.flags if found else ("not_seen",)

    assert flags(mask) == ()
    assert flags(pieces) == ("several_pieces",)
    assert flags(np.roll(mask, 60, axis=0) * (np.arange(112) > 60)[:, None]) == ("touches_border",)
    assert flags(disc) == ("round",)
    assert flags(np.zeros((112, 112))) == ("not_seen",)
    assert flags(np.eye(112)[:30] * 0 + (np.indices((30, 112)).sum(axis=0) < 5)) == ("not_seen",)


def test_a_second_piece_does_not_enlarge_the_first() -> None:
    mask = chambers(HEART, "a4c", np.zeros(1))[0, 0]
    pieces = mask.copy()
    pieces[90:100, 5:20] = True
    alone, found = (measure_chamber(m, (1.4, 1.4)) for m in (mask, pieces))
    assert alone
    assert found
    assert found.area_mm2 == pytest.approx(alone.area_mm2)
    assert found.length_mm == pytest.approx(alone.length_mm)


def test_frames_without_a_ventricle_are_gaps_and_stay_in_their_place() -> None:
    masks = chambers(HEART, "a4c", np.zeros(3))[:, 0]
    masks[1] = False
    track = measure_clip(masks, (1.4, 1.4))
    assert np.isnan(track.area_mm2).tolist() == [False, True, False]
    assert track.flags[1] == {"not_seen"}


def test_t15_t21_no_fraction_is_cut_off_and_nan_stays_nan() -> None:
    fractions = ejection_fraction(
        np.array([100.0, 100.0, np.nan, 0.0, 100.0]), np.array([92.0, 15.0, 40.0, 0.0, 110.0])
    )
    assert fractions[[0, 1, 4]] == pytest.approx([8, 85, -10])
    assert np.isnan(fractions[[2, 3]]).all()


def test_t23_tracings_are_ordered_by_area_and_fill_the_pixels_they_were_made_of(
    real_data: Path, tmp_path: Path
) -> None:
    source = real_data / "echo"
    with (source / "labels.csv").open() as stream:
        labels = {film_name(row["file"]): row for row in csv.DictReader(stream)}
    # The tracing of end-systole comes first here, and the rows of a frame stay in order.
    lines = (source / "VolumeTracings.csv").read_text().splitlines()
    blocks = [lines[1:][start : start + 21] for start in range(0, len(lines) - 1, 21)]
    turned = [line for block in reversed(blocks) for line in block]
    (tmp_path / "VolumeTracings.csv").write_text("\n".join([lines[0], *turned]) + "\n")
    errors = []
    for name, traced in read_tracings(tmp_path).items():
        truth, spacing = labels[name], float(labels[name]["mm_per_px"])
        assert [t.frame for t in traced] == [int(truth["ed_frame"]), int(truth["es_frame"])]
        masks = [fill_tracing(t.lines, (112, 112)) for t in traced]
        areas = [int(truth["area_ed_px"]), int(truth["area_es_px"])]
        assert [int(m.sum()) for m in masks] == pytest.approx(areas, rel=0.005)
        found = [measure_chamber(m, (spacing, spacing)) for m in masks]
        volumes = [float(simpson_ml(c.length_mm, c.diameters_mm)) for c in found if c]
        errors.append(float(ejection_fraction(*volumes)) - float(truth["ef"]))
    assert len(errors) == 40
    assert np.abs(errors).mean() < 0.4
