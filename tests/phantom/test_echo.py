import numpy as np
import pytest

from rarescan.phantom import echo


def test_the_same_seed_gives_the_same_heart_and_film_and_another_does_not() -> None:
    hearts = [echo.draw_heart(seed, 4) for seed in (1, 1, 2)]
    times = echo.frame_times_s(2)
    films = [echo.film(hearts[0], "a4c", times, seed=seed) for seed in (5, 5, 6)]
    assert hearts[0] == hearts[1] != hearts[2]
    assert (films[0] == films[1]).all()
    assert (films[0] != films[2]).mean() > 0.3


def test_the_half_ellipsoid_has_the_volume_that_was_asked_for() -> None:
    heart = echo.Heart(edv_ml=120, esv_ml=50, length_ed_mm=85, roundness=0.9)
    times = np.array([0.0, echo.SYSTOLE * 60 / heart.heart_rate_bpm])
    four, two = (echo.radii_mm(heart, times, view) for view in echo.VIEWS)
    ellipsoid = 2 / 3 * np.pi * four * two * echo.lengths_mm(heart, times) / 1000
    assert ellipsoid == pytest.approx([120, 50])
    assert heart.ef == pytest.approx(100 * 70 / 120)


def test_a_beat_begins_at_end_diastole_and_empties_after_a_third_of_it() -> None:
    heart = echo.Heart(edv_ml=120, esv_ml=50, length_ed_mm=85, heart_rate_bpm=60)
    times = echo.frame_times_s(100, fps=100)
    volume = echo.volumes_ml(heart, times)
    assert volume.argmax() == 0
    assert volume.argmin() == 35
    assert echo.volumes_ml(heart, times + 1.0) == pytest.approx(volume)


def test_masks_have_the_area_of_their_ellipses_whatever_the_pixels() -> None:
    for spacing in ((1.4, 1.4), (1.35, 1.7)):
        heart = echo.Heart(edv_ml=110, esv_ml=50, length_ed_mm=80, tilt_deg=8, spacing_mm=spacing)
        masks = echo.chambers(heart, "a4c", np.zeros(1))[0]
        radius = float(echo.radii_mm(heart, np.zeros(1), "a4c")[0])
        areas = masks.sum(axis=(1, 2)) * np.prod(spacing)
        assert areas == pytest.approx([np.pi / 2 * radius * 80, np.pi * 20 * 18], rel=0.01)
        assert not (masks[0] & masks[1]).any()


def test_blood_is_darker_than_the_wall_and_nothing_is_seen_outside_the_sector() -> None:
    heart = echo.draw_heart(0, 0)
    frame = echo.film(heart, "a4c", np.zeros(1), seed=0)[0]
    blood = echo.chambers(heart, "a4c", np.zeros(1))[0, 0]
    assert frame[0].max() == 0
    assert frame[:, :5][:50].max() == 0
    assert np.median(frame[blood]) + 40 < np.median(frame[(frame > 0) & ~blood])


def test_the_population_has_the_range_that_the_sample_of_twenty_has() -> None:
    fractions = [echo.draw_heart(20240601, index).ef for index in range(300)]
    assert 15 < min(fractions) < 30
    assert 65 < max(fractions) <= 80
    assert np.mean(np.array(fractions) >= 55) == pytest.approx(0.55, abs=0.1)
