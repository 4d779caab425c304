from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rarescan.classifiers.echo.masks import (
    SETTINGS,
    WEIGHTS,
    Segmenter,
    dice,
    load_segmenter,
    to_square,
)
from rarescan.classifiers.echo.spec import SegmentConfig
from rarescan.classifiers.echo.train import Lessons, fit_segmenter, gather, judge
from rarescan.errors import InputError
from rarescan.phantom.echo import VIEWS, chambers, draw_heart, film

SMALL = SegmentConfig(
    size_px=32, channels=(12, 24, 24), steps=120, batch_size=3, learning_rate=1e-2
)


def traced(n: int, *, known: tuple[bool, bool] = (True, True)) -> Lessons:
    hearts = []
    for index in range(n):
        heart = draw_heart(3, index)
        times = np.array([0.0, 0.3])
        view = VIEWS[index % 2]
        shown = film(heart, view, times, seed=index)
        hearts.append((f"P{index}", shown, chambers(heart, view, times)))
    return replace(gather(hearts, SMALL.size_px), known=np.tile(known, (2 * n, 1)))


@pytest.fixture(scope="module")
def trained() -> Segmenter:
    return fit_segmenter(traced(12), SMALL, device="cpu")


def test_a_heart_that_nobody_trained_on_is_found_at_its_own_size(trained: Segmenter) -> None:
    heart = draw_heart(3, 99)
    frames = film(heart, "a4c", np.array([0.0, 0.3]), seed=99)
    truth = chambers(heart, "a4c", np.array([0.0, 0.3]))
    found = list(trained.follow(frames))
    assert [one.shape for one in found] == [(2, 112, 112)] * 2
    scores = [dice(f[0], t[0]) for f, t in zip(found, truth, strict=True)]
    assert min(scores) > 0.75
    assert judge(trained, [("P99", frames, truth)]) == {"P99": pytest.approx(np.mean(scores))}
    assert trained.chambers == ("lv", "la")


def test_t10_masks_come_in_the_order_of_the_frames(trained: Segmenter) -> None:
    heart = replace(draw_heart(3, 99), tilt_deg=0.0)
    frames = film(heart, "a4c", np.linspace(0, 0.3, 11), seed=1)
    forward = np.stack(list(trained.follow(frames)))
    backward = np.stack(list(trained.follow(frames[::-1])))
    assert np.array_equal(forward, backward[::-1])
    assert forward[0, 0].sum() > forward[-1, 0].sum()


def test_t33_a_mask_does_not_depend_on_the_frames_beside_it(trained: Segmenter) -> None:
    frames = film(draw_heart(3, 50), "a2c", np.linspace(0, 1, 9), seed=1)
    together = list(trained.follow(frames))
    alone = [next(iter(trained.follow(frames[k : k + 1]))) for k in (0, 8)]
    assert np.array_equal(alone[0], together[0])
    assert np.array_equal(alone[1], together[8])


def test_frames_are_read_as_they_are_needed(trained: Segmenter) -> None:
    read = []

    def frames():
        for number in range(100):
            read.append(number)
            yield np.zeros((40, 50), np.uint8)

    stream = trained.follow(frames())
    first = next(stream)
    assert first.shape == (2, 40, 50)
    assert len(read) < 10


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    config = replace(SMALL, steps=2)
    networks = [
        fit_segmenter(traced(3), replace(config, seed=seed), device="cpu") for seed in (0, 0, 1)
    ]
    states = [torch.cat([v.flatten() for v in n.network.state_dict().values()]) for n in networks]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_save_and_load_give_the_same_masks(trained: Segmenter, tmp_path: Path) -> None:
    trained.save(tmp_path)
    again = load_segmenter(tmp_path, "cpu")
    frames = film(draw_heart(3, 7), "a4c", np.zeros(1), seed=0)
    assert np.array_equal(next(trained.follow(frames)), next(again.follow(frames)))
    assert (again.chambers, again.persons, again.config) == (
        trained.chambers,
        trained.persons,
        trained.config,
    )


@pytest.mark.parametrize("name", [WEIGHTS, SETTINGS])
def test_damaged_or_missing_files_are_told(trained: Segmenter, tmp_path: Path, name: str) -> None:
    trained.save(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="damaged"):
        load_segmenter(tmp_path, "cpu")
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match="missing"):
        load_segmenter(tmp_path, "cpu")


def test_a_chamber_that_was_never_traced_is_never_shown() -> None:
    half = fit_segmenter(traced(3, known=(True, False)), replace(SMALL, steps=3), device="cpu")
    assert half.chambers == ("lv",)
    shares = next(half.follow(film(draw_heart(3, 0), "a4c", np.zeros(1), seed=0)))
    assert shares[1].max() == 0


def test_untraced_chambers_teach_nothing() -> None:
    # The atrium's masks are wrong on purpose and marked as not traced: the weights must be those
    # of other wrong masks.
    one = traced(3, known=(True, False))
    other = replace(one, masks=one.masks & np.array([True, False])[:, None, None])
    weights = [
        fit_segmenter(t, replace(SMALL, steps=2), device="cpu").network.state_dict()
        for t in (one, other)
    ]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_frames_of_any_size_are_gathered_and_an_untraced_atrium_is_unknown() -> None:
    small, large = np.full((2, 40, 80), 9, np.uint8), np.full((1, 64, 64), 7, np.uint8)
    ventricle, both = np.ones((2, 1, 40, 80), bool), np.ones((1, 2, 64, 64), bool)
    found = gather([("A", small, ventricle), ("B", large, both)], 32)
    assert found.frames.shape == (3, 32, 32)
    assert found.person_ids == ("A", "A", "B")
    assert found.known.tolist() == [[True, False], [True, False], [True, True]]
    assert found.masks[2].all()
    assert not found.masks[:2, 1].any()


def test_nothing_to_learn_from_is_told() -> None:
    with pytest.raises(InputError, match="no traced ventricle"):
        fit_segmenter(traced(1, known=(False, True)), SMALL, device="cpu")


def test_frames_are_padded_not_stretched() -> None:
    frame = np.zeros((1, 40, 80), np.uint8)
    frame[0, 10:30, 30:50] = 200
    square = to_square(frame, 40)[0]
    rows, columns = np.nonzero(square > 100)
    assert np.ptp(rows) == np.ptp(columns) == 9
    assert rows.mean() == pytest.approx(19.5)
    assert to_square(np.full((1, 32, 32), 7, np.uint8), 32).max() == 7


def test_t20_two_empty_masks_have_no_overlap_figure() -> None:
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert np.isnan(dice(empty, empty))
    assert dice(empty, full) == 0
    assert dice(full, full) == 1
    assert dice(np.arange(16).reshape(4, 4) < 8, full) == pytest.approx(2 * 8 / 24)
