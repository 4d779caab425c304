"""A network of three weights that learns y = 2 x: for tests of the loop, in and out of process."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rarescan.generative.contract import Batch, Player
from rarescan.generative.train import Plan, Record, TrainingData, fit

CPU = torch.device("cpu")
N_HELD_OUT = 2


class Line(nn.Module):
    """Can be told to stop (SIGTERM), to be slow, or what happens to the loss of a step."""

    def __init__(
        self,
        *,
        stop_at: int = -1,
        bad_steps: tuple[int, ...] = (),
        seconds: float = 0.0,
        change: Callable[[int, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.stop_at, self.bad_steps = stop_at, list(bad_steps)
        self.seconds, self.change = seconds, change
        self.seen: list[Tensor] = []

    def players(self) -> list[Player]:
        return [Player(name="line", parameters=[self.weight], loss=self.loss)]

    def loss(self, batch: Batch) -> Tensor:
        self.seen.append(batch.values)
        time.sleep(self.seconds)
        if batch.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        error = ((self.weight - 2) * batch.values + 0.1 * batch.normal(*batch.values.shape)) ** 2
        if batch.step in self.bad_steps:
            self.bad_steps.remove(batch.step)
            return error.mean() * torch.nan
        return error.mean() if self.change is None else self.change(batch.step, error.mean())

    def held_out_loss(self, codes: Tensor, encoded: Tensor) -> float:
        return float((self.weight - 2).abs().mean())


def train_line(folder: Path, model: Line | None = None, **changes: Any) -> tuple[Line, Record]:
    """Train a line on 20 persons in two classes of 4 and 16."""
    model = model or Line()
    watch = changes.pop("watch", None)
    values = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    data = TrainingData(
        values=values,
        encoded=torch.zeros(20, 0),
        classes=(torch.arange(20) >= 4).long(),
        held_out=(values[:N_HELD_OUT], torch.zeros(N_HELD_OUT, 0)),
        watch=watch,
    )
    plan = Plan(
        **{
            "steps": 40, "batch_size": 8, "learning_rate": 0.05, "ema_decay": 0.9,
            "checkpoint_every": 10, "seed": 3,
        } | changes
    )  # fmt: skip
    return model, fit(model, data, plan, folder=folder, device=CPU, what="train a line")


if __name__ == "__main__":
    # FOLDER STEPS SECONDS_A_STEP GPUS [SIGTERM at step]: trains, saves the weights in FOLDER.
    where, steps, seconds, gpus, *rest = sys.argv[1:]
    line = Line(seconds=float(seconds), stop_at=int(rest[0]) if rest else -1)
    trained, told = train_line(Path(where) / "checkpoints", line, steps=int(steps), gpus=int(gpus))
    torch.save(
        {"weight": trained.weight.detach(), "curve": told.curve, "seen": told.samples_by_class},
        Path(where) / "end.pt",
    )
