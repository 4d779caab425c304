"""The one training loop: every network of the room is trained by `fit`.

Everything random in a step is derived from the seed and the step's number, so a run that was
interrupted ends with the same bytes as one that was not (on CPU). A loss that is not finite, or
that jumps and stays up, takes the run back to its last scheduled checkpoint with half the learning
rate, and that is recorded. SIGTERM ends the step, saves, and exits with 143. At log-spaced steps
samples are searched for copies; a run that has begun to copy ends there, with earlier weights.
"""

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from rarescan.errors import ExitCode, InputError, MissingExtraError
from rarescan.files import content_id
from rarescan.generative import distributed
from rarescan.generative.checkpoint import Store
from rarescan.generative.contract import Batch
from rarescan.generative.forecast import FIRST_STEPS, Forecast, is_looked_at
from rarescan.generative.precision import HalfPrecision, choose
from rarescan.generative.run import (
    Plan,
    Record,
    Run,
    Trainable,
    TrainingData,
    memory_named,
    termination,
)
from rarescan.generative.snapshots import is_due
from rarescan.progress import Progress
from rarescan.threads import one_thread

__all__ = ["Plan", "Record", "Trainable", "TrainingData", "choose_device", "fit"]

_LARGEST_NORM = 1.0
_N_CURVE_POINTS = 50
_MOST_RECOVERIES = 5
_TRAINED = "trained"


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
        Steps, batch, learning rate, seed, precision, GPUs.
    folder : Path
        Where checkpoints lie; training goes on from the newest valid one.
    device : torch.device
        Where the network runs. Random numbers are drawn on the CPU whatever it is.
    what : str
        What the progress line says.

    Returns
    -------
    Record
        Curves, recoveries, looks for copies, where it stopped, items seen, seconds.

    Raises
    ------
    InputError
        The loss was not finite again and again; memory ran out; the checkpoints in the folder are
        another training's.
    SettingError, MissingExtraError
        The batch cannot be shared between the GPUs, or there are fewer; no such place for
        checkpoints.
    UnreachableError
        The second place for checkpoints did not answer at the start.
    SystemExit
        143 after SIGTERM; a checkpoint of the last finished step is then in `folder`.
    """
    store = _store(model, data, plan, folder)
    if plan.gpus == 1:
        with memory_named(plan):
            return _fit(model, data, plan, store, device, what)
    distributed.require_ranks(plan.gpus, plan.batch_size, device)
    distributed.launch(_one_rank, (model, data, plan, folder, device.type, what), n=plan.gpus)
    ended = store.take(_TRAINED)
    model.load_state_dict(ended["weights"], strict=False)
    model.to(device).eval()
    return Record(**ended["record"])


def _store(model: nn.Module, data: TrainingData, plan: Plan, folder: Path) -> Store:
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    about = [plan.decides_bytes(), shapes, data.classes.tolist()]
    url = plan.checkpoints if plan.training else ""
    return Store(folder=folder, training=content_id(about), url=url)


def _one_rank(
    model: nn.Module, data: TrainingData, plan: Plan, folder: Path, device: str, what: str
) -> None:
    """Train in one of several processes; the first leaves the result in the folder."""
    own = torch.device(device, distributed.rank()) if device == "cuda" else torch.device(device)
    # They lie in memory that the ranks share, and each would move them.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    store = _store(model, data, plan, folder)
    with memory_named(plan):
        record = _fit(model, data, plan, store, own, what)
    if distributed.rank() == 0:
        weights = {n: p.detach().cpu() for n, p in model.named_parameters()}
        store.leave(_TRAINED, {"weights": weights, "record": vars(record)})


def _fit(
    model: nn.Module, data: TrainingData, plan: Plan, store: Store, device: torch.device, what: str
) -> Record:
    trainable = cast(Trainable, model)
    model.to(device).train()
    run = Run(model, trainable.players(), plan, int(data.classes.max()) + 1)
    with one_thread(), termination() as asked_to_stop, Progress(what, plan.steps) as progress:
        _begin(run, data, store, device)
        loop = _Loop(run, data, store, device, Forecast(what, run.plan, run.step, data))
        first = run.step
        progress.advance(first)
        while run.step < plan.steps and not run.record.stopped:
            before = run.step
            note = loop.step(trainable)
            progress.advance(run.step - before, note)
            ending = distributed.any_of(asked_to_stop.is_set())
            loop.save(ending=ending)
            if ending:
                raise SystemExit(int(ExitCode.TERMINATED))
            loop.say(trainable, run.step - first)
        loop.forecast.compare()
    _keep(run, store)
    return run.record


def _begin(run: Run, data: TrainingData, store: Store, device: torch.device) -> None:
    """Go on from the newest checkpoint, or write the first."""
    if distributed.rank() == 0:
        store.tidy()
    state = store.newest() if distributed.rank() == 0 else None
    distributed.meet()
    if distributed.rank() > 0:
        state = store.newest()
    if state is not None:
        _restore(run, state)
    else:
        run.record.precision = _precision(run, data, device)
        if distributed.rank() == 0:
            store.save(0, run.state())
            if data.watch is not None:
                store.save_averaged(0, run.averaged)
    distributed.meet()
    if run.record.precision == "bf16" and device.type == "cuda":
        run.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def _precision(run: Run, data: TrainingData, device: torch.device) -> Any:
    batch = _own_batch(run, data, device)[0]

    def losses() -> None:
        for player in run.players:
            player.loss(batch).backward()  # type: ignore[no-untyped-call]

    half = choose(run.plan.precision, device, run.model, losses) == "bf16"
    return "bf16" if distributed.as_first(half) else "fp32"


def _restore(run: Run, state: dict[str, Any]) -> None:
    try:
        run.restore(state)
    except (KeyError, RuntimeError, TypeError, ValueError):
        raise InputError(
            "The newest checkpoint does not fit the model.",
            remedy="Remove the unfinished folder and train again.",
        ) from None


class _Loop:
    """What one step does, and what follows from it."""

    def __init__(
        self, run: Run, data: TrainingData, store: Store, device: torch.device, forecast: Forecast
    ) -> None:
        self.run, self.data, self.store, self.device = run, data, store, device
        self.forecast = forecast
        self.half = run.record.precision == "bf16"
        self._saved = time.monotonic()

    def step(self, model: Trainable) -> str:
        """Train one step, or go back after a bad one; return what the progress line says."""
        run, start = self.run, time.monotonic()
        precision = HalfPrecision(run.model, self.device) if self.half else nullcontext()
        with precision, self.forecast.took("step"):
            losses = _one_step(run, self.data, self.device)
        if losses is None:
            return self._go_back("not finite")
        jumped = run.jumped(losses)
        # A loss that stays high whatever the rate is no accident, and no reason to end.
        if jumped and len(run.record.events) < _MOST_RECOVERIES:
            return self._go_back("spike")
        run.average()
        run.step += 1
        run.record.seconds += time.monotonic() - start
        self._look(model, losses)
        return ", ".join(f"{name} loss {value:.3f}" for name, value in losses.items())

    def save(self, *, ending: bool) -> None:
        """Write a checkpoint if it is time to; a scheduled one never in the middle of a spike."""
        run, plan = self.run, self.run.plan
        scheduled = run.calm and run.step % plan.checkpoint_every == 0
        late = time.monotonic() - self._saved > 60 * plan.checkpoint_minutes
        if distributed.rank() == 0 and (scheduled or late or ending):
            with self.forecast.took("save"):
                self.store.save(run.step, run.state(), scheduled=scheduled)
            self._saved = time.monotonic()

    def say(self, model: Trainable, n_done: int) -> None:
        """Say how long it takes, once, after the first steps of this process."""
        if n_done != FIRST_STEPS or distributed.rank() > 0:
            return
        if self.forecast.unknown("look"):
            with self.run.averaged_weights():
                self._validation(model)
        self.forecast.say()

    def _go_back(self, event: str) -> str:
        """Return to the last scheduled checkpoint and go on with half the learning rate."""
        run = self.run
        failed, factor, events = run.step, run.rate_factor / 2, run.record.events
        if len(events) >= _MOST_RECOVERIES:
            raise InputError(
                f"Training diverged {_MOST_RECOVERIES + 1} times, the last time at step {failed}.",
                remedy="Set a smaller learning_rate; if that does not help, check the scans.",
            )
        distributed.meet()
        state = self.store.newest(scheduled=True)
        distributed.meet()
        if state is None:
            raise InputError(
                "Training diverged and none of its checkpoints can be read.",
                remedy="Check the disk, then train again.",
            )
        _restore(run, state)
        run.rate_factor = factor
        told: dict[str, float | int | str]
        told = {"event": event, "step": failed, "back_to": run.step, "rate_factor": factor}
        run.record.events = [*events, told]
        # Saved at once: an interruption must not forget the smaller rate.
        if distributed.rank() == 0:
            self.store.save(run.step, run.state())
        return f"{event}, back to step {run.step}"

    def _look(self, model: Trainable, losses: dict[str, float]) -> None:
        """Add a point to the curve; at some steps look at validation persons and for copies."""
        run, plan, watch = self.run, self.run.plan, self.data.watch
        looked_at = is_looked_at(run.step, plan.steps)
        last = run.step == plan.steps
        searched = watch is not None and is_due(run.step, plan.steps)
        point = run.step % max(1, plan.steps // _N_CURVE_POINTS) == 0 or looked_at or last
        first = distributed.rank() == 0
        validation = None
        if (looked_at or last or searched) and first:
            with run.averaged_weights():
                validation = self._validation(model)
                if watch is not None and searched:
                    with self.forecast.took("search"):
                        copies = watch.look(self.device)
                    found = {"step": run.step, **copies, "validation": validation}
                    run.record.snapshots.append(found)
        if point and first:
            seconds = round(run.record.seconds, 3)
            told = validation if looked_at or last else None
            run.record.curve.append(
                {"step": run.step, **losses, "validation": told, "seconds": seconds}
            )
        if searched:
            self._judge()

    def _validation(self, model: Trainable) -> float | None:
        if self.data.held_out is None:
            return None
        with self.forecast.took("look"):
            return model.held_out_loss(*(part.to(self.device) for part in self.data.held_out))

    def _judge(self) -> None:
        """Keep the averaged weights that passed, or end the run."""
        run, first = self.run, distributed.rank() == 0
        copies = first and run.record.snapshots[-1]["outcome"] == "fail"
        if distributed.as_first(copies):
            run.record.stopped = {"why": "copies", "step": run.step}
        elif first:
            self.store.save_averaged(run.step, run.averaged)


def _one_step(run: Run, data: TrainingData, device: torch.device) -> dict[str, float] | None:
    """Update every player once; None where a loss or a gradient is not finite."""
    batch, classes = _own_batch(run, data, device)
    losses: dict[str, float] = {}
    for player in run.players:
        optimiser = run.optimisers[player.name]
        for group in optimiser.param_groups:
            group["lr"] = run.plan.rate(run.step) * player.rate * run.rate_factor
        run.model.zero_grad(set_to_none=True)
        loss = player.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        losses[player.name] = distributed.mean_over_ranks(player.parameters, loss.item())
        norm = nn.utils.clip_grad_norm_(player.parameters, _LARGEST_NORM)
        if not (math.isfinite(losses[player.name]) and math.isfinite(norm.item())):
            return None
        optimiser.step()
    for number in classes.tolist():
        run.record.samples_by_class[number] += 1
    return losses


def _own_batch(run: Run, data: TrainingData, device: torch.device) -> tuple[Batch, torch.Tensor]:
    """Return this rank's share of the step's batch, and the classes of all of it."""
    batch, classes = data.draw(run.plan, run.step, device)
    return distributed.share(batch, distributed.rank(), distributed.size()), classes


def _keep(run: Run, store: Store) -> None:
    """Leave in the model the averaged weights of the end, or the last that did not copy."""
    stopped = run.record.stopped
    kept, weights = run.step, run.averaged
    if stopped:
        passed = [s["step"] for s in run.record.snapshots if s["outcome"] != "fail"]
        earlier = ((step, store.averaged(step)) for step in [*reversed(passed), 0])
        found = next(((step, w) for step, w in earlier if w is not None), None)
        if found is None and distributed.rank() == 0:
            raise InputError(
                "The training began to copy persons, and none of its earlier weights can be read.",
                remedy="Check the disk, then train again.",
            )
        kept, weights = found or (kept, weights)
    run.record.stopped = {"why": "steps", "step": run.step, **stopped, "kept": kept}
    run.model.load_state_dict(weights, strict=False)
    run.model.eval()


def choose_device(name: str) -> torch.device:
    """Return the device of `auto`, `cpu` or `cuda`."""
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingExtraError(
            "device is cuda, and this machine offers none.",
            remedy="Set device to auto or cpu, or run where a GPU is.",
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
