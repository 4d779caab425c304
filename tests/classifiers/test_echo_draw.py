from pathlib import Path

import av
import numpy as np
import pytest

from rarescan.classifiers.echo.draw import draw_film
from rarescan.classifiers.echo.measure import FilmFigures, measure_film
from rarescan.classifiers.echo.volumes import Track, measure_clip
from rarescan.phantom.echo import Heart, chambers, film, frame_times_s

HEART = Heart(edv_ml=120, esv_ml=54, length_ed_mm=82, heart_rate_bpm=80)
FRAME_MS = 40.0
N = 36
ORANGE, GREEN = (213, 94, 0), (0, 158, 115)


def measured() -> tuple[np.ndarray, np.ndarray, Track, FilmFigures]:
    times = frame_times_s(N, fps=1000 / FRAME_MS, start=0.2)
    masks = chambers(HEART, "a4c", times)
    track = measure_clip(masks[:, 0], HEART.spacing_mm, masks[:, 1])
    figures = measure_film(track, frame_time_ms=FRAME_MS, in_mm=True)
    return film(HEART, "a4c", times, seed=0), masks, track, figures


def drawn(path: Path, remarks: dict[int, str], *, width: int = 112) -> tuple[np.ndarray, float]:
    """Return the film's frames, (frames, rows, columns, 3), and its frames a second."""
    frames, masks, track, figures = measured()
    phases = zip(frames[:, :, :width], masks[:, :, :, :width], track.axes, strict=True)
    flags = [frozenset({remarks[k]} if k in remarks else ()) for k in range(N)]
    draw_film(path, phases, figures, titles=("one", "two"), remarks=flags, frame_time_ms=FRAME_MS)
    with av.open(str(path)) as opened:
        stream = opened.streams.video[0]
        shown = [frame.to_ndarray(format="rgb24") for frame in opened.decode(stream)]
        return np.stack(shown), float(stream.average_rate or 0)


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture.astype(int) - colour).max(axis=-1) < 60).sum() > 15)


def test_a_film_has_the_clips_frames_at_its_speed_and_its_beats_are_marked(tmp_path: Path) -> None:
    shown, rate = drawn(tmp_path / "a.avi", {})
    _, _, _, figures = measured()
    assert len(shown) == N
    assert rate == pytest.approx(25)
    corner = shown[:, :40, -40:]
    ed, es = ({getattr(b, phase) for b in figures.beats.beats} for phase in ("ed", "es"))
    assert {k for k in range(N) if has(corner[k], ORANGE)} == ed
    assert {k for k in range(N) if has(corner[k], GREEN)} == es
    # Under the picture a white line walks along the curve.
    strip = shown[:, -8:].astype(int).min(axis=-1).mean(axis=1)
    assert (np.diff(strip.argmax(axis=1)) > 0).all()


def test_the_outline_lies_on_the_edge_of_the_mask(tmp_path: Path) -> None:
    shown, _ = drawn(tmp_path / "a.avi", {})
    mask = measured()[1][0, 0]
    picture = shown[0, :336].astype(int)
    orange = (picture[..., 0] - picture[..., 2] > 90) & (picture[..., 1] > 90)
    rows, columns = np.nonzero(orange[:, :])
    across = np.nonzero(mask.any(axis=0))[0]
    assert columns.min() / 3 == pytest.approx(across.min(), abs=2)
    assert columns.max() / 3 == pytest.approx(across.max(), abs=2)
    assert rows.min() / 3 == pytest.approx(np.nonzero(mask.any(axis=1))[0].min(), abs=2)


def test_what_is_odd_stands_in_its_frame_and_in_no_other(tmp_path: Path) -> None:
    plain, _ = drawn(tmp_path / "a.avi", {})
    told, _ = drawn(tmp_path / "b.avi", {7: "slipped"})
    differs = np.abs(plain[:, 310:336].astype(int) - told[:, 310:336]).max(axis=(1, 2, 3)) > 80
    assert np.flatnonzero(differs).tolist() == [7]


def test_a_narrow_clip_is_shown_in_the_middle(tmp_path: Path) -> None:
    shown, _ = drawn(tmp_path / "a.mp4", {}, width=41)
    assert shown.shape[1:3] == (476, 320)
    assert shown[0, 100:300, :90].max() < 30
