import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.classifiers.echo.beats import (
    beat_fractions,
    clip_fraction,
    find_beats,
    outlying,
    smooth,
)
from rarescan.phantom.echo import SYSTOLE, Heart, frame_times_s, volumes_ml

FRAME_MS = 1000 / 30


def curve(n: int, *, ef: float = 60, rate: float = 60, start: float = 0.0) -> np.ndarray:
    heart = Heart(edv_ml=120, esv_ml=120 * (1 - ef / 100), length_ed_mm=80, heart_rate_bpm=rate)
    return volumes_ml(heart, frame_times_s(n, start=start))


def test_t14_phases_of_a_known_curve() -> None:
    # One beat a second at 30 frames: end-diastole at 30, 60, ..., end-systole 10.5 frames later.
    found = find_beats(curve(130), FRAME_MS)
    assert [beat.es for beat in found.beats] == pytest.approx([10.5, 40.5, 70.5, 100.5], abs=0.6)
    assert [beat.ed for beat in found.beats[1:]] == [30, 60, 90]
    assert found.cycle_ms == pytest.approx(1000, abs=FRAME_MS)
    assert found.heart_rate_bpm == pytest.approx(60, abs=2)
    assert [b.systole_ms for b in found.beats[1:]] == pytest.approx([350] * 3, abs=FRAME_MS)
    assert [b.diastole_ms for b in found.beats[:3]] == pytest.approx([650] * 3, abs=FRAME_MS)
    assert found.flags == ()


def test_t10_time_runs_forward() -> None:
    # Emptying takes 0.35 of a beat and filling 0.65; a reversed clip would have it the other way.
    found = find_beats(curve(64, start=0.5), FRAME_MS).beats[0]
    assert found.systole_ms < found.diastole_ms
    reversed_ = find_beats(curve(64, start=0.5)[::-1].copy(), FRAME_MS).beats[0]
    assert reversed_.systole_ms > reversed_.diastole_ms


def test_t13_no_frame_time_and_no_heart_rate_are_needed_for_a_fraction() -> None:
    volume = curve(64, start=0.2)
    found = find_beats(volume, None)
    assert clip_fraction(beat_fractions(smooth(volume, None), found)) == pytest.approx(60, abs=1.5)
    assert np.isnan(found.cycle_ms)
    assert np.isnan(found.heart_rate_bpm)


@settings(max_examples=12, deadline=None)
@given(ef=st.floats(8, 75), rate=st.floats(45, 130), start=st.floats(0, 1))
def test_any_heart_rate_and_any_beginning_give_the_fraction(
    ef: float, rate: float, start: float
) -> None:
    volume = curve(90, ef=ef, rate=rate, start=start)
    found = find_beats(volume, FRAME_MS)
    got = clip_fraction(beat_fractions(smooth(volume, FRAME_MS), found))
    assert got == pytest.approx(ef, abs=2.5)
    assert found.cycle_ms == pytest.approx(60_000 / rate, abs=1.1 * FRAME_MS)


@pytest.mark.parametrize("n_beats", [2, 4, 6])
def test_t15_noise_of_beats_does_not_shift_the_clips_fraction(n_beats: int) -> None:
    random = np.random.default_rng(n_beats)
    beats = random.normal(55, 5, size=(1500, n_beats))
    found = [clip_fraction(row) for row in beats]
    assert np.mean(found) == pytest.approx(55, abs=0.4)
    assert np.percentile(beats, 90, axis=1).mean() > 57


def test_t15_a_fraction_of_eight_is_reported() -> None:
    volume = curve(64, ef=8, start=0.3)
    got = clip_fraction(beat_fractions(smooth(volume, FRAME_MS), find_beats(volume, FRAME_MS)))
    assert got == pytest.approx(8, abs=0.5)


def test_t21_nan_stays_nan() -> None:
    assert np.isnan(clip_fraction(np.array([np.nan, np.nan])))
    assert np.isnan(clip_fraction(np.empty(0)))
    assert clip_fraction(np.array([np.nan, 50.0])) == 50
    assert find_beats(np.full(40, np.nan), FRAME_MS).flags == ("gaps", "no_cycle")


def test_noisy_areas_give_the_fraction_without_bias() -> None:
    random = np.random.default_rng(0)
    errors = []
    for _ in range(20):
        volume = curve(64, start=0.4)
        noisy = volume + random.normal(0, 2.0, len(volume))
        found = find_beats(noisy, FRAME_MS)
        assert len(found.beats) in (1, 2)
        errors.append(clip_fraction(beat_fractions(smooth(noisy, FRAME_MS), found)) - 60)
    assert np.mean(errors) == pytest.approx(0, abs=0.8)


def test_what_is_no_beat_is_told() -> None:
    assert find_beats(curve(8), FRAME_MS).flags == ("less_than_one_beat",)
    assert find_beats(np.array([100.0, 60.0]), FRAME_MS).flags == (
        "less_than_one_beat",
        "two_frames",
    )
    still = find_beats(np.full(60, 100.0), FRAME_MS)
    assert still.flags == ("no_cycle",)
    assert still.beats == ()
    noise = np.random.default_rng(1).normal(100, 2, 60)
    assert find_beats(noise, FRAME_MS).flags == ("no_cycle",)
    assert find_beats(np.array([100.0]), FRAME_MS).flags == ("no_cycle",)


def test_two_frames_give_their_fraction_whichever_comes_first() -> None:
    for pair in ([100.0, 60.0], [60.0, 100.0]):
        found = find_beats(np.array(pair), None)
        assert clip_fraction(beat_fractions(np.array(pair), found)) == pytest.approx(40)


def test_two_frames_a_second_are_too_few_and_flagged() -> None:
    # Beats of 1.6 s in frames of 0.5 s: about three frames a beat.
    heart = Heart(edv_ml=120, esv_ml=50, length_ed_mm=80, heart_rate_bpm=37.5)
    found = find_beats(volumes_ml(heart, np.arange(40) / 2), 500)
    assert "few_frames_a_beat" in found.flags


def test_gaps_are_bridged_and_told() -> None:
    volume = curve(64, start=0.3)
    holed = volume.copy()
    holed[[5, 6, 30]] = np.nan
    found = find_beats(holed, FRAME_MS)
    whole = find_beats(volume, FRAME_MS)
    assert found.flags == ("gaps",)
    assert [b.es for b in found.beats] == pytest.approx([b.es for b in whole.beats], abs=1)


def test_a_slip_of_the_mask_is_found_and_a_beat_is_none() -> None:
    random = np.random.default_rng(0)
    volume = curve(64, rate=95, start=0.3) + random.normal(0, 1, 64)
    assert not outlying(volume).any()
    slipped = volume.copy()
    slipped[[7, 20, 21, 50]] += 40
    found = set(np.flatnonzero(outlying(slipped)).tolist())
    # Two slips in a row also cast doubt on a frame beside them.
    assert {7, 20, 21, 50} <= found
    assert len(found) <= 5
    assert not outlying(np.array([100.0, 60.0, 100.0])).any()


def test_a_diastole_at_the_border_gives_way_to_one_inside() -> None:
    # The clip begins in the middle of filling: its first frame is no end-diastole.
    volume = curve(45, start=-0.93 + SYSTOLE)
    found = find_beats(volume, FRAME_MS)
    assert 0 < found.beats[0].ed < 44


def test_smoothing_keeps_the_height_of_a_peak() -> None:
    x = np.arange(41.0)
    parabola = 100 - (x - 20) ** 2
    assert smooth(parabola, FRAME_MS) == pytest.approx(parabola)
