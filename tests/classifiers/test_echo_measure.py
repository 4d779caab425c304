from dataclasses import replace

import numpy as np
import pytest

from rarescan.classifiers.echo.agreement import agreement
from rarescan.classifiers.echo.measure import (
    FilmFigures,
    measure_film,
    measure_study,
    name_fraction,
)
from rarescan.classifiers.echo.spec import FractionConfig
from rarescan.classifiers.echo.volumes import measure_clip
from rarescan.phantom.echo import Heart, chambers, frame_times_s

HEART = Heart(edv_ml=120, esv_ml=54, length_ed_mm=82, roundness=0.85, heart_rate_bpm=75, tilt_deg=8)
FRAME_MS = 1000 / 30


def filmed(heart: Heart, view: str, *, in_mm: bool = True, n: int = 40) -> FilmFigures:
    masks = chambers(heart, view, frame_times_s(n, start=0.2))
    spacing = heart.spacing_mm if in_mm else None
    return measure_film(
        measure_clip(masks[:, 0], spacing, masks[:, 1]),
        frame_time_ms=FRAME_MS,
        in_mm=in_mm,
        atrium=measure_clip(masks[:, 1], spacing),
    )


def test_both_views_give_the_true_volumes_and_one_does_not() -> None:
    four, two = filmed(HEART, "a4c"), filmed(HEART, "a2c")
    both = measure_study({"a4c": [four], "a2c": [two]})
    assert both.method == "biplane"
    assert both.flags == ()
    assert both.edv_ml == pytest.approx(120, rel=0.03)
    assert both.esv_ml == pytest.approx(54, rel=0.03)
    assert both.ef == pytest.approx(55, abs=1)
    one = measure_study({"a4c": [four]})
    assert one.method == "single_plane_a4c"
    assert one.flags == ("one_view",)
    assert one.edv_ml == pytest.approx(120 / 0.85, rel=0.03)


def test_the_atrium_has_the_volume_of_its_ellipse() -> None:
    # Half-axes 20 along and 18 across the ventricle's axis: V = 8 A^2 / (3 pi L), L = 40 mm.
    area = np.pi * 20 * 18
    found = filmed(HEART, "a4c").la_volume_ml
    assert found == pytest.approx(8 * area**2 / (3 * np.pi * 40) / 1000, rel=0.06)


def test_without_a_spacing_there_is_a_fraction_and_no_volume() -> None:
    films = {view: [filmed(HEART, view, in_mm=False)] for view in ("a4c", "a2c")}
    study = measure_study(films)
    assert study.method == "mean_of_views"
    assert study.ef == pytest.approx(55, abs=1)
    assert np.isnan([study.edv_ml, study.esv_ml, films["a4c"][0].la_volume_ml]).all()
    assert study.flags == ("no_spacing",)


def test_axes_that_differ_are_flagged() -> None:
    short = replace(HEART, length_ed_mm=70)
    study = measure_study({"a4c": [filmed(HEART, "a4c")], "a2c": [filmed(short, "a2c")]})
    assert "lengths_differ" in study.flags


def test_frames_in_which_the_mask_slipped_do_not_count_and_are_told() -> None:
    masks = chambers(HEART, "a4c", frame_times_s(40, start=0.2))
    clean = measure_film(
        measure_clip(masks[:, 0], HEART.spacing_mm), frame_time_ms=FRAME_MS, in_mm=True
    )
    # The mask runs into the atrium in three frames, one of them at end-systole.
    wrong = masks[:, 0].copy()
    for frame in (4, clean.beats.beats[0].es, 30):
        wrong[frame] |= masks[frame, 1]
    found = measure_film(measure_clip(wrong, HEART.spacing_mm), frame_time_ms=FRAME_MS, in_mm=True)
    assert found.ef == pytest.approx(clean.ef, abs=1.5)
    assert found.flags == ("gaps", "slipped")


def test_an_unmeasurable_study_says_so_and_has_no_value() -> None:
    nothing = measure_film(
        measure_clip(np.zeros((20, 112, 112)), (1.4, 1.4)), frame_time_ms=FRAME_MS, in_mm=True
    )
    assert np.isnan(nothing.ef)
    assert nothing.flags == ("gaps", "no_cycle")
    for films in ({}, {"a4c": [nothing]}):
        study = measure_study(films)
        assert (study.method, study.flags) == ("none", ("nothing_measured",))
        assert np.isnan(study.ef)


def test_t20_a_view_that_nobody_knows_is_told_not_assumed() -> None:
    study = measure_study({"unknown": [filmed(HEART, "a4c")]})
    assert study.method == "single_plane_unknown"
    assert study.flags == ("view_unknown",)


def test_names_of_fractions_are_settings() -> None:
    cuts = FractionConfig()
    assert [name_fraction(ef, cuts) for ef in (60, 59.9, 40, 39.9, 8)] == [
        "normal",
        "greyzone",
        "greyzone",
        "abnormal",
        "abnormal",
    ]
    assert name_fraction(55, FractionConfig(normal_from=50)) == "normal"
    assert name_fraction(float("nan"), cuts) == "unknown"
    assert name_fraction(30, cuts, flags=["one_view", "slipped"]) == "abnormal"
    assert name_fraction(30, cuts, flags=["axis_jumps", "slipped"]) == "doubtful"


def test_names_by_sex_are_those_of_the_guideline() -> None:
    # Lang et al. 2015, table 4: men 52-72, 41-51, 30-40, < 30; women 54-74, 41-53, 30-40, < 30.
    ase = FractionConfig(scheme="ase2015")
    values = (53, 45, 35, 29)
    assert [name_fraction(v, ase, "M") for v in values] == [
        "normal",
        "mildly abnormal",
        "moderately abnormal",
        "severely abnormal",
    ]
    assert name_fraction(53, ase, "F") == "mildly abnormal"
    assert name_fraction(53, ase) == "depends on sex"
    assert name_fraction(60, ase) == "normal"


def test_agreement_has_known_answers() -> None:
    truth, found = [50.0, 60.0, 40.0, 70.0], [52.0, 58.0, 44.0, 70.0]
    got = agreement(truth, found, ["a", "b", "c", "d"])
    assert got["mae"][0] == pytest.approx(2.0)
    assert got["rmse"][0] == pytest.approx(np.sqrt(6))
    assert got["bias"][0] == pytest.approx(1.0)
    assert got["r2"][0] == pytest.approx(1 - 24 / 500)
    deviation = np.std([2, -2, 4, 0], ddof=1)
    assert got["high_limit"][0] == pytest.approx(1 + 1.96 * deviation)
    assert got["mae"][1] <= 2.0 <= got["mae"][2]


def test_agreement_draws_persons_not_clips() -> None:
    # Ten clips a person with one error a person: only persons carry information.
    random = np.random.default_rng(0)
    error = random.normal(0, 5, 12)
    truth = random.uniform(20, 70, 12)
    once = agreement(truth, truth + error, [f"p{i}" for i in range(12)])
    tenfold = agreement(
        np.repeat(truth, 10), np.repeat(truth + error, 10), [f"p{i // 10}" for i in range(120)]
    )
    widths = [got["bias"][2] - got["bias"][1] for got in (once, tenfold)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    assert agreement([1.0], [np.nan], ["p"]) == {}
    assert np.isnan(agreement([50.0, 40.0], [50.0, 41.0], ["p", "p"])["mae"][1])
