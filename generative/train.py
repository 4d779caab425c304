"""The one training loop: every network of the room is trained by `fit`.

Everything random in a step is derived from the seed and the step's number, so a run that was
interrupted ends with the same bytes as one that was not (on CPU). A loss that is not finite
takes the run back to its last checkpoint with half the learning rate, and that is recorded.
SIGTERM ends the step, saves, and exits with 143.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rarescan.errors import ExitCode, InputError, MissingExtraError
from rarescan.generative import checkpoint
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Batch, Player
from rarescan.progress import Progress
from rarescan.seeds import derive, generator
from rarescan.threads import one_thread

_WARM_UP_STEPS = 50
_COOL_DOWN = 0.2
"""Share of the steps, at the end, in which the learning rate falls to zero."""
_WEIGHT_DECAY = 1e-2
_LARGEST_NORM = 1.0
_N_CURVE_POINTS = 50
_N_HELD_OUT_POINTS = 10
"""Fewer, because validation persons are many batches."""
_MOST_RECOVERIES = 5


class Trainable(Protocol):
    """A module that the loop can train: a prior or the kl codec."""

    def players(self) -> list[Player]:
        """Return what is trained, in the order of its updates within a step."""
        ...

    def held_out_loss(self, codes: Tensor, encoded: Tensor) -> float | None:
        """Return the loss on validation persons; nothing is fitted to it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast."""

    steps: int
    batch_size: int
    learning_rate: float
    ema_decay: float
    checkpoint_every: int
    seed: int
    label_dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """One row a training person, and the validation persons who are only looked at."""

    values: Tensor
    """Images or whitened codes, shape (n, ...)."""
    encoded: Tensor
    """Encoded conditions, shape (n, features)."""
    classes: Tensor
    """Number of each person's diagnosis, shape (n,); batches draw evenly from them."""
    encoder: ConditionEncoder | None = None
    """Hides conditions (label dropout); None where there are none."""
    held_out: tuple[Tensor, Tensor] | None = None
    """Values and encoded conditions of validation persons."""


@dataclass(kw_only=True)
class Record:
    """What happened, as it stands in `training.json`."""

    curve: list[dict[str, float | int | None]] = field(default_factory=list)
    """step, loss of each player, validation loss, seconds."""
    events: list[dict[str, float | int | str]] = field(default_factory=list)
    """Recoveries from losses that were not finite."""
    samples_by_class: list[int] = field(default_factory=list)
    """How many training items of each diagnosis were seen."""
    seconds: float = 0.0


class _Run:
    """The state of one training run: what a checkpoint holds."""

    def __init__(self, model: nn.Module, players: list[Player], plan: Plan, n_classes: int):
        self.model, self.players, self.plan = model, players, plan
        self.optimisers = {
            p.name: torch.optim.AdamW(
                p.parameters, lr=0.0, betas=p.betas, weight_decay=_WEIGHT_DECAY, fused=True
            )
            for p in players
        }
        self.averaged = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.step, self.rate_factor = 0, 1.0
        self.record = Record(samples_by_class=[0] * n_classes)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
            "rate_factor": self.rate_factor,
            "record": asdict(self.record),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for name, values in state["averaged"].items():
            self.averaged[name].copy_(values)
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.step, self.rate_factor = state["step"], state["rate_factor"]
        self.record = Record(**state["record"])

    def average(self) -> None:
        """Move the averaged weights; early on they follow closely."""
        decay = min(self.plan.ema_decay, (1 + self.step) / (10 + self.step))
        for name, parameter in self.model.named_parameters():
            self.averaged[name].lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Let the model have the averaged weights for a while."""
        own = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.model.load_state_dict(self.averaged, strict=False)
        try:
            yield
        finally:
            self.model.load_state_dict(own, strict=False)


def fit(
    model: nn.Module,
    data: TrainingData,
    plan: Plan,
    *,
    folder: Path,
    device: torch.device,
    what: str,
) -> Record:
    """Train a `Trainable` and leave the averaged weights in it.

    Parameters
    ----------
    model : nn.Module that is `Trainable`
        Changed in place; moved to `device`.
    data : TrainingData
        On the CPU or on `device`.
    plan : Plan
        Steps, batch, learning rate, seed.
    folder : Path
        Where checkpoints lie; training goes on from the newest valid one.
    device : torch.device
        Where the network runs. Random numbers are drawn on the CPU whatever it is.
    what : str
        What the progress line says.

    Returns
    -------
    Record
        Curves, recoveries, items seen, seconds.

    Raises
    ------
    InputError
        The loss was not finite again and again.
    SystemExit
        143 after SIGTERM; a checkpoint of the last finished step is then in `folder`.
    """
    trainable: Trainable = model  # type: ignore[assignment]  # nn.Module hides the protocol
    players = trainable.players()
    model.to(device).train()
    run = _Run(model, players, plan, int(data.classes.max()) + 1)
    state = checkpoint.newest(folder)
    if state is None:
        checkpoint.save(folder, 0, run.state())
    else:
        run.restore(state)
    with one_thread(), _termination() as asked_to_stop, Progress(what, plan.steps) as progress:
        progress.advance(run.step)
        while run.step < plan.steps:
            start, before = time.monotonic(), run.step
            losses = _one_step(run, data, device)
            if losses is None:
                _go_back(run, folder)
            else:
                run.average()
                run.step += 1
                run.record.seconds += time.monotonic() - start
                _note(run, trainable, data, losses)
            progress.advance(run.step - before, _words(losses))
            if asked_to_stop.is_set() or run.step % plan.checkpoint_every == 0:
                checkpoint.save(folder, run.step, run.state())
            if asked_to_stop.is_set():
                raise SystemExit(int(ExitCode.TERMINATED))
    model.load_state_dict(run.averaged, strict=False)
    model.eval()
    return run.record


def _one_step(run: _Run, data: TrainingData, device: torch.device) -> dict[str, float] | None:
    """Update every player once; None where a loss or a gradient is not finite."""
    batch, classes = _draw_batch(data, run.plan, run.step, device)
    losses: dict[str, float] = {}
    for player in run.players:
        optimiser = run.optimisers[player.name]
        for group in optimiser.param_groups:
            group["lr"] = _rate(run.plan, run.step) * player.rate * run.rate_factor
        run.model.zero_grad(set_to_none=True)
        loss = player.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(player.parameters, _LARGEST_NORM)
        losses[player.name] = loss.item()
        if not (math.isfinite(losses[player.name]) and math.isfinite(norm.item())):
            return None
        optimiser.step()
    for number in classes.tolist():
        run.record.samples_by_class[number] += 1
    return losses


def _draw_batch(
    data: TrainingData, plan: Plan, step: int, device: torch.device
) -> tuple[Batch, Tensor]:
    """Draw a diagnosis evenly, then a person of it, for each place of the batch."""
    random = generator(plan.seed, "batch", step)
    noise = torch.Generator("cpu").manual_seed(derive(plan.seed, "noise", step))
    classes = data.classes.numpy()
    members = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    picked = [members[c] for c in random.integers(len(members), size=plan.batch_size)]
    rows = torch.tensor([int(random.choice(people)) for people in picked])
    encoded = data.encoded[rows]
    if data.encoder is not None:
        encoded = data.encoder.drop(encoded, plan.label_dropout, noise)
    batch = Batch(
        step=step,
        n_steps=plan.steps,
        values=data.values[rows].to(device),
        encoded=encoded.to(device),
        noise=noise,
    )
    return batch, data.classes[rows]


def _rate(plan: Plan, step: int) -> float:
    warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
    left = (plan.steps - step) / (plan.steps * _COOL_DOWN)
    return plan.learning_rate * warm * min(1.0, left)


def _go_back(run: _Run, folder: Path) -> None:
    """Return to the last good checkpoint and go on with half the learning rate."""
    failed, factor, events = run.step, run.rate_factor / 2, run.record.events
    if len(events) >= _MOST_RECOVERIES:
        raise InputError(
            f"Training diverged {_MOST_RECOVERIES + 1} times, the last time at step {failed}.",
            remedy="Set a smaller learning_rate; if that does not help, check the scans.",
        )
    state = checkpoint.newest(folder)
    if state is None:
        raise InputError(
            "Training diverged and none of its checkpoints can be read.",
            remedy="Check the disk, then train again.",
        )
    run.restore(state)
    run.rate_factor = factor
    event: dict[str, float | int | str]
    event = {"event": "not finite", "step": failed, "back_to": run.step, "rate_factor": factor}
    run.record.events = [*events, event]
    # Saved at once: an interruption must not forget the smaller rate.
    checkpoint.save(folder, run.step, run.state())


def _note(run: _Run, model: Trainable, data: TrainingData, losses: dict[str, float]) -> None:
    """Add a point to the curve, at evenly spaced steps; at some, look at validation persons."""
    looked_at = run.step % max(1, run.plan.steps // _N_HELD_OUT_POINTS) == 0
    last = run.step == run.plan.steps
    if run.step % max(1, run.plan.steps // _N_CURVE_POINTS) and not (looked_at or last):
        return
    validation = None
    if data.held_out is not None and (looked_at or last):
        values, encoded = (part.to(next(run.model.parameters()).device) for part in data.held_out)
        run.model.eval()
        with run.averaged_weights(), torch.no_grad():
            validation = model.held_out_loss(values, encoded)
        run.model.train()
    point = {"step": run.step, **losses, "validation": validation}
    run.record.curve.append({**point, "seconds": round(run.record.seconds, 3)})


def _words(losses: dict[str, float] | None) -> str:
    if losses is None:
        return "loss not finite, back to the last checkpoint"
    return ", ".join(f"{name} loss {value:.3f}" for name, value in losses.items())


@contextmanager
def _termination() -> Iterator[threading.Event]:
    """Yield a flag that SIGTERM sets (only the main thread can listen to signals)."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(*_: int | FrameType | None) -> None:
        asked.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def choose_device(name: str) -> torch.device:
    """Return the device of `auto`, `cpu` or `cuda`."""
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingExtraError(
            "device is cuda, and this machine offers none.",
            remedy="Set device to auto or cpu, or run where a GPU is.",
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
