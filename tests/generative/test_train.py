import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rarescan.errors import InputError, MissingExtraError
from rarescan.generative import checkpoint
from rarescan.generative.contract import Batch, Player
from rarescan.generative.train import Plan, TrainingData, choose_device, fit
from rarescan.seeds import generator

CPU = torch.device("cpu")


class Line(nn.Module):
    """Learns y = 2 x; can be told to stop or to fail at a step."""

    def __init__(self, stop_at: int = -1, bad_steps: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.stop_at, self.bad_steps = stop_at, list(bad_steps)
        self.seen: list[Tensor] = []

    def players(self) -> list[Player]:
        return [Player(name="line", parameters=[self.weight], loss=self.loss)]

    def loss(self, batch: Batch) -> Tensor:
        self.seen.append(batch.values)
        if batch.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        error = ((self.weight - 2) * batch.values + 0.1 * batch.normal(*batch.values.shape)) ** 2
        if batch.step in self.bad_steps:
            self.bad_steps.remove(batch.step)
            return error.mean() * torch.nan
        return error.mean()

    def held_out_loss(self, codes: Tensor, encoded: Tensor) -> float:
        return float((self.weight - 2).abs().mean())


def run(folder: Path, model: Line | None = None, **changes: Any) -> tuple[Line, Any]:
    model = model or Line()
    values = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    classes = (torch.arange(20) >= 4).long()
    data = TrainingData(
        values=values,
        encoded=torch.zeros(20, 0),
        classes=classes,
        held_out=(values[:2], torch.zeros(2, 0)),
    )
    plan = Plan(
        **{
            "steps": 40, "batch_size": 8, "learning_rate": 0.05, "ema_decay": 0.9,
            "checkpoint_every": 10, "seed": 3,
        } | changes
    )  # fmt: skip
    return model, fit(model, data, plan, folder=folder, device=CPU, what="train a line")


def test_the_loop_learns_and_keeps_the_averaged_weights(tmp_path: Path) -> None:
    model, record = run(tmp_path, steps=300)
    torch.testing.assert_close(model.weight.detach(), torch.full((3,), 2.0), atol=0.1, rtol=0)
    assert record.curve[-1]["step"] == 300
    looked_at = [p["validation"] for p in record.curve if p["validation"] is not None]
    assert len(looked_at) == 10
    assert looked_at[-1] < looked_at[0]


def test_batches_draw_evenly_from_rare_and_frequent_classes(tmp_path: Path) -> None:
    _, record = run(tmp_path, steps=200)
    rare, frequent = record.samples_by_class
    assert rare + frequent == 1600
    assert rare == pytest.approx(800, abs=80)


@pytest.mark.parametrize("case", range(3))
def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path: Path, case: int) -> None:
    stop_at = int(generator(case, "stop").integers(1, 39))
    whole, whole_record = run(tmp_path / "whole")
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "parts", Line(stop_at=stop_at))
    assert stopped.value.code == 143
    resumed, record = run(tmp_path / "parts")
    assert torch.equal(resumed.weight, whole.weight)
    assert record.samples_by_class == whole_record.samples_by_class
    losses = [[(p["step"], p["line"]) for p in r.curve] for r in (record, whole_record)]
    assert losses[0] == losses[1]
    assert len(resumed.seen) == 40 - stop_at - 1


def test_a_kill_without_warning_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")

    class Killed(Line):
        def loss(self, batch: Batch) -> Tensor:
            if batch.step == 25:
                raise KeyboardInterrupt
            return super().loss(batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", Killed())
    resumed, _ = run(tmp_path / "parts")
    assert len(resumed.seen) == 20
    assert torch.equal(resumed.weight, whole.weight)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: Any) -> None:
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", Line(stop_at=25))
    newest = max((tmp_path / "parts").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed, _ = run(tmp_path / "parts")
    assert "cannot be used" in caplog.text
    assert len(resumed.seen) == 20
    assert torch.equal(resumed.weight, whole.weight)


def test_only_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-00000030.pt", "step-00000040.pt"]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    checkpoint.save(tmp_path, 1, {"model": Hostile()})
    assert checkpoint.newest(tmp_path) is None
    assert not (tmp_path / "ran").exists()


def test_a_loss_that_is_not_finite_goes_back_with_half_the_rate(tmp_path: Path) -> None:
    _, record = run(tmp_path, Line(bad_steps=(17, 33)))
    assert record.events == [
        {"event": "not finite", "step": 17, "back_to": 10, "rate_factor": 0.5},
        {"event": "not finite", "step": 33, "back_to": 30, "rate_factor": 0.25},
    ]
    assert record.curve[-1]["step"] == 40
    assert [p["step"] for p in record.curve] == list(range(1, 41))


def test_training_that_always_diverges_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"diverged 6 times.*learning_rate"):
        run(tmp_path, Line(bad_steps=(5,) * 20))


def test_another_seed_draws_other_batches(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "one", steps=3)
    same, _ = run(tmp_path / "same", steps=3)
    other, _ = run(tmp_path / "other", steps=3, seed=4)
    assert torch.equal(one.seen[0], same.seen[0])
    assert not torch.equal(one.seen[0], other.seen[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named() -> None:
    assert choose_device("auto") == CPU
    with pytest.raises(MissingExtraError, match="device to auto"):
        choose_device("cuda")
