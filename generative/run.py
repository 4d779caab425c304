"""One training run: what it is given, what it knows, what a checkpoint holds of it.

`Plan` and `TrainingData` go in, `Record` comes out; `Run` is the state between. The loop that
moves it stands in `train`.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rarescan.errors import InputError
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Batch, Player
from rarescan.generative.precision import Chosen
from rarescan.generative.snapshots import Watch
from rarescan.generative.spec import GeneratorSpec, Precision
from rarescan.seeds import derive, generator

_WARM_UP_STEPS = 50
_COOL_DOWN = 0.2
"""Share of the steps, at the end, in which the learning rate falls to zero."""
_WEIGHT_DECAY = 1e-2
_REMEMBERED = 50
"""Losses that a new one is compared with; a spike needs as many before it."""
_SPIKE_DEVIATIONS, _SPIKE_FACTOR = 10.0, 3.0
_SPIKE_STEPS = 5
"""So many in a row: a single high loss is a hard batch, or the GAN's penalty at every fourth."""


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
    """How long, how fast, and how it survives."""

    steps: int
    batch_size: int
    learning_rate: float
    ema_decay: float
    checkpoint_every: int
    seed: int
    label_dropout: float = 0.0
    precision: Precision = "auto"
    gpus: int = 1
    checkpoint_minutes: float = 10.0
    checkpoints: str = ""
    """URL of a second place for the checkpoints; none if empty."""
    training: str = ""
    """Id of what is trained, on whom; checkpoints of another are refused. Without one nothing is
    kept at a URL, where trainings could not be told apart."""

    @classmethod
    def of(cls, spec: GeneratorSpec) -> "Plan":
        """Return the plan that a spec describes."""
        return cls(
            steps=spec.steps,
            batch_size=spec.batch_size,
            learning_rate=spec.learning_rate,
            ema_decay=spec.ema_decay,
            checkpoint_every=spec.checkpoint_every,
            seed=spec.seed,
            label_dropout=spec.label_dropout,
            precision=spec.precision,
            gpus=spec.gpus,
            checkpoint_minutes=spec.checkpoint_minutes,
            checkpoints=spec.checkpoints,
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: warmed up, constant, cooled down."""
        warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
        left = (self.steps - step) / (self.steps * _COOL_DOWN)
        return self.learning_rate * warm * min(1.0, left)

    def decides_bytes(self) -> dict[str, Any]:
        """Return the settings that a result depends on; the others may differ on resuming."""
        others = ("gpus", "checkpoint_minutes", "checkpoints")
        return {k: v for k, v in asdict(self).items() if k not in others}


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
    watch: Watch | None = None
    """Says at log-spaced steps whether samples copy training persons; None: nobody looks."""

    def draw(self, plan: Plan, step: int, device: torch.device) -> tuple[Batch, Tensor]:
        """Draw a diagnosis evenly, then a person of it, for each place of a step's batch."""
        random = generator(plan.seed, "batch", step)
        noise = torch.Generator("cpu").manual_seed(derive(plan.seed, "noise", step))
        classes = self.classes.numpy()
        members = [np.flatnonzero(classes == c) for c in np.unique(classes)]
        picked = [members[c] for c in random.integers(len(members), size=plan.batch_size)]
        rows = torch.tensor([int(random.choice(people)) for people in picked])
        encoded = self.encoded[rows]
        if self.encoder is not None:
            encoded = self.encoder.drop(encoded, plan.label_dropout, noise)
        batch = Batch(
            step=step,
            n_steps=plan.steps,
            values=self.values[rows].to(device),
            encoded=encoded.to(device),
            noise=noise,
        )
        return batch, self.classes[rows]


@dataclass(kw_only=True)
class Record:
    """What happened, as it stands in `training.json`."""

    curve: list[dict[str, float | int | None]] = field(default_factory=list)
    """step, loss of each player, validation loss, seconds."""
    events: list[dict[str, float | int | str]] = field(default_factory=list)
    """Recoveries from losses that were not finite, or that jumped."""
    samples_by_class: list[int] = field(default_factory=list)
    """How many training items of each diagnosis were seen."""
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    """What the search for copies said at log-spaced steps, see `snapshots.Watch.look`."""
    stopped: dict[str, Any] = field(default_factory=dict)
    """why (`steps`: all were done, `copies`), step, kept: the step whose weights are kept."""
    precision: Chosen = "fp32"
    seconds: float = 0.0


class Run:
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
        self.recent: dict[str, list[float]] = {p.name: [] for p in players}
        self.high: dict[str, int] = {p.name: 0 for p in players}
        self.record = Record(samples_by_class=[0] * n_classes)

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values, enough to go on to the same bytes."""
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
            "rate_factor": self.rate_factor,
            "recent": self.recent,
            "high": self.high,
            "record": asdict(self.record),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned, read from a checkpoint."""
        self.model.load_state_dict(state["model"])
        for name, values in state["averaged"].items():
            self.averaged[name].copy_(values)
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.step, self.rate_factor = state["step"], state["rate_factor"]
        self.recent, self.high = state["recent"], state["high"]
        self.record = Record(**state["record"])

    def average(self) -> None:
        """Move the averaged weights; early on they follow closely."""
        decay = min(self.plan.ema_decay, (1 + self.step) / (10 + self.step))
        for name, parameter in self.model.named_parameters():
            self.averaged[name].lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Let the model have the averaged weights, and be still, for a while."""
        own = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.model.load_state_dict(self.averaged, strict=False)
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.load_state_dict(own, strict=False)
            self.model.train()

    @property
    def calm(self) -> bool:
        """Whether no loss is suspiciously high at the moment."""
        return not any(self.high.values())

    def jumped(self, losses: dict[str, float]) -> bool:
        """Note the losses; return whether one has been far above the usual for several steps.

        Far: 10 robust standard deviations, and twice its size, above the median of the last 50.
        Suspicious losses do not enter that memory.
        """
        for name, loss in losses.items():
            recent = self.recent[name]
            if len(recent) == _REMEMBERED and loss > _usual(recent):
                self.high[name] += 1
                continue
            self.high[name] = 0
            self.recent[name] = [*recent[-_REMEMBERED + 1 :], loss]
        return max(self.high.values()) >= _SPIKE_STEPS


def _usual(recent: list[float]) -> float:
    """Return the loss above which one is suspicious."""
    middle = median(recent)
    spread = 1.4826 * median(abs(loss - middle) for loss in recent)
    return middle + max(_SPIKE_DEVIATIONS * spread, (_SPIKE_FACTOR - 1) * abs(middle))


@contextmanager
def memory_named(plan: Plan) -> Iterator[None]:
    """Say what to do where memory runs out, on a GPU or on the CPU."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = str(error).lower()
        if not (isinstance(error, MemoryError) or "out of memory" in told or "allocate" in told):
            raise
        raise InputError(
            f"Memory ran out in training with batch_size {plan.batch_size}.",
            remedy="Set a smaller batch_size, or a smaller width, and repeat the command.",
        ) from error


@contextmanager
def termination() -> Iterator[threading.Event]:
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
