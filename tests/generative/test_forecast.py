"""The estimate of a training's time is the sum of what its parts took."""

import logging

import pytest
import torch

from rarescan.generative import forecast
from rarescan.generative.forecast import Forecast, is_looked_at
from rarescan.generative.run import Plan, TrainingData
from rarescan.generative.snapshots import is_due


class _Clock:
    """A clock that stands still unless a part takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(forecast, "time", clock)
    return clock


def _plan(steps: int) -> Plan:
    return Plan(
        steps=steps, batch_size=4, learning_rate=1e-3, ema_decay=0.9, checkpoint_every=50, seed=0
    )


def _data(*, held_out: bool) -> TrainingData:
    codes, encoded = torch.zeros(4, 3), torch.zeros(4, 2)
    return TrainingData(
        values=codes,
        encoded=encoded,
        classes=torch.tensor([0, 0, 1, 1]),
        held_out=(codes, encoded) if held_out else None,
    )


def test_the_estimate_adds_steps_looks_and_checkpoints(
    clock: _Clock, caplog: pytest.LogCaptureFixture
) -> None:
    found = Forecast("train it", _plan(200), 0, _data(held_out=True))
    for seconds in (9.0, 0.5, 0.5, 0.5, 0.5):  # the first step compiles and allocates
        with found.took("step"):
            clock.now += seconds
    with found.took("look"):
        clock.now += 2
    with found.took("save"):
        clock.now += 3
    with caplog.at_level(logging.INFO, logger="rarescan"):
        found.say()
    assert found.seconds == pytest.approx(200 * 0.5 + 10 * 2 + 4 * 3)
    assert "train it: about 2 min for 200 steps" in caplog.text


def test_a_resumed_training_counts_what_is_left(clock: _Clock) -> None:
    found = Forecast("train", _plan(200), 150, _data(held_out=False))
    with found.took("step"):
        clock.now += 1
    found.say()
    assert found.seconds == pytest.approx(50)


def test_validation_persons_are_looked_at_ten_times_and_copies_searched_at_powers_of_two() -> None:
    assert [s for s in range(1, 101) if is_looked_at(s, 100)] == list(range(10, 101, 10))
    assert [s for s in range(1, 101) if is_due(s, 100)] == [16, 32, 64, 100]
