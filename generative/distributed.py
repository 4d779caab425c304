"""Several GPUs for one training: each rank takes its share of every batch.

`launch` starts the ranks, `share` gives a rank its rows of a batch with the random numbers that
belong to them, and `mean_over_ranks` makes the gradients those of the whole batch; so the losses
are the ones that a single process has, up to the order of sums. Outside of `launch` there is one
rank and these change nothing. On machines without a GPU the ranks are processes on the CPU.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn

from rarescan.errors import ExitCode, InputError, MissingExtraError, RarescanError, SettingError
from rarescan.generative.contract import Batch
from rarescan.processes import die_with_parent, one_thread_environment
from rarescan.progress import show_log

_LONGEST_WAIT = timedelta(hours=2)
"""The first rank samples alone at some steps, and the others wait."""
_GRACE_SECONDS = 30.0
"""How long other ranks may take to end after one has ended badly; then they are killed."""


def rank() -> int:
    """Return this process's number, from 0."""
    return distributed.get_rank() if _running() else 0


def size() -> int:
    """Return how many ranks there are."""
    return distributed.get_world_size() if _running() else 1


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def meet() -> None:
    """Wait until every rank is here."""
    if _running():
        distributed.barrier()


def any_of(flag: bool) -> bool:
    """Return whether the flag is set on any rank."""
    if not _running():
        return flag
    found = torch.tensor(int(flag))
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return bool(found)


def as_first(flag: bool) -> bool:
    """Return what the first rank says."""
    if not _running():
        return flag
    found = torch.tensor(int(flag))
    distributed.broadcast(found, src=0)
    return bool(found)


def mean_over_ranks(parameters: Sequence[nn.Parameter], loss: float) -> float:
    """Set the gradients to their mean over the ranks; return the mean loss."""
    if not _running():
        return loss
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients] + [gradients[0].new_tensor([loss])])
    distributed.all_reduce(flat)
    flat /= size()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return float(flat[-1])


@dataclass(frozen=True, kw_only=True)
class Share(Batch):
    """A rank's rows of a batch; random numbers are drawn for all rows, and its own are kept."""

    rank: int
    size: int

    def normal(self, *shape: int) -> Tensor:
        """Return this rank's rows of what the whole batch would have drawn."""
        return self._own(torch.randn(self._whole(shape), generator=self.noise))

    def uniform(self, *shape: int) -> Tensor:
        """Return this rank's rows of what the whole batch would have drawn."""
        return self._own(torch.rand(self._whole(shape), generator=self.noise))

    def _whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] * self.size, *shape[1:])

    def _own(self, drawn: Tensor) -> Tensor:
        return rows_of(drawn, self.rank, self.size).to(self.values.device)


def rows_of(values: Tensor, number: int, of: int) -> Tensor:
    """Return the rows of one rank: an equal share, in order."""
    n = len(values) // of
    return values[number * n : (number + 1) * n]


def share(batch: Batch, number: int, of: int) -> Batch:
    """Return one rank's share of a batch; the batch itself where there is one rank."""
    if of == 1:
        return batch
    whole = replace(
        batch, values=rows_of(batch.values, number, of), encoded=rows_of(batch.encoded, number, of)
    )
    return Share(**vars(whole), rank=number, size=of)


def require_ranks(n: int, batch_size: int, device: torch.device) -> None:
    """Raise where a batch cannot be shared evenly, or there are fewer GPUs."""
    if batch_size % n:
        raise SettingError(
            f"A batch of {batch_size} cannot be divided evenly between {n} GPUs.",
            remedy=f"Set batch_size to a multiple of {n}.",
        )
    if device.type == "cuda" and torch.cuda.device_count() < n:
        raise MissingExtraError(
            f"gpus is {n}, and this machine offers {torch.cuda.device_count()}.",
            remedy="Set gpus to what there is.",
        )


def launch(function: Callable[..., None], arguments: Sequence[Any], *, n: int) -> None:
    """Run `function(*arguments)` in n processes that know each other; wait for all of them.

    Parameters
    ----------
    function : callable
        Importable by name.
    arguments : sequence
        The same for every rank; tensors are handed over in shared memory.
    n : int
        How many ranks.

    Raises
    ------
    RarescanError
        What a rank raised.
    InputError
        A rank was killed.
    SystemExit
        143 where SIGTERM ended the ranks; it is passed on to all of them.
    """
    # Tensors travel in shared memory with this one, and a CUDA context survives no fork.
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, _children_environment():
        meeting = Path(folder) / "meeting"
        errors, ends = zip(*[context.Pipe(duplex=False) for _ in range(n)], strict=True)
        ranks = [
            context.Process(
                target=_run_rank, args=(function, arguments, number, n, meeting, ends[number])
            )
            for number in range(n)
        ]
        try:
            for process in ranks:
                process.start()
            with _passing_on(ranks):
                _wait(ranks)
        finally:
            _end(ranks)
        _raise_first(ranks, cast(tuple[Connection, ...], errors))


def _run_rank(
    function: Callable[..., None],
    arguments: Sequence[Any],
    number: int,
    n: int,
    meeting: Path,
    error_end: Connection,
) -> None:
    die_with_parent()
    # Ctrl-C reaches every process of a terminal; the parent ends the ranks in their order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        torch.cuda.set_device(number)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if has_gpus else "gloo",
        init_method=f"file://{meeting}",
        rank=number,
        world_size=n,
        timeout=_LONGEST_WAIT,
    )
    if number == 0:
        show_log()
    try:
        function(*arguments)
        distributed.barrier()
    except RarescanError as error:
        error_end.send(error)
        raise SystemExit(int(error.exit_code)) from None
    finally:
        distributed.destroy_process_group()


@contextmanager
def _children_environment() -> Iterator[None]:
    """Give the ranks one numeric thread each, and keep their talk inside the machine."""
    before = dict(os.environ)
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo", **one_thread_environment()})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _passing_on(ranks: list[Any]) -> Iterator[None]:
    def note(number: int, _frame: FrameType | None) -> None:
        for process in ranks:
            if process.is_alive():
                os.kill(process.pid, number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(ranks: list[Any]) -> None:
    """Wait until all ranks have ended, or one has ended badly."""
    running = list(ranks)
    while running:
        wait([process.sentinel for process in running])
        for process in running:
            process.join(0)
        if any(process.exitcode for process in ranks):
            return
        running = [process for process in running if process.is_alive()]


def _end(ranks: list[Any]) -> None:
    """Ask what still runs to save and end; kill what does not listen."""
    started = [process for process in ranks if process.pid is not None]
    for process in started:
        if process.is_alive():
            process.terminate()
    for process in started:
        process.join(_GRACE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _raise_first(ranks: list[Any], errors: tuple[Connection, ...]) -> None:
    """Raise what ended the ranks, if anything did."""
    for error in errors:
        if error.poll():
            raise error.recv()
    codes = [process.exitcode for process in ranks]
    if not any(codes):
        return
    if int(ExitCode.TERMINATED) in codes:
        raise SystemExit(int(ExitCode.TERMINATED))
    if min(codes) < 0:
        raise InputError(
            "A process of the training was killed, most often because memory ran out.",
            remedy="Repeat the command (it continues), with a smaller batch_size or fewer gpus.",
        )
    raise RuntimeError("a process of the training met a bug; see the traceback above")
