"""Work in several processes, one BLAS thread each.

`run_parallel` is the way in: results in the order of the items, whatever the number of workers.
A worker that dies (a crash in a native library) costs one item, not the run. Workers die with
their parent, so nothing is left behind when a command is killed.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import TypeVar

from rarescan.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
_PR_SET_PDEATHSIG = 1


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def one_thread_environment() -> dict[str, str]:
    """Return the environment of a worker: this one, with one thread for each numeric library."""
    return {**os.environ, **dict.fromkeys(_THREAD_COUNTS, "1")}


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends (Linux; elsewhere nothing)."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (AttributeError, OSError):
        return


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_command, daemon=True).start()


def _die_with_command() -> None:
    """End this worker when the process that asked for it ends; its own parent is the server."""
    command = multiprocessing.parent_process()
    if command is not None:
        wait([command.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


def run_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    what: str,
    workers: int | None = None,
    on_death: Callable[[Item], Result] | None = None,
) -> list[Result]:
    """Return `[function(item) for item in items]`, computed in worker processes.

    Parameters
    ----------
    function : callable
        Importable by name; called with one item in a worker with one numeric thread.
    items : sequence
        Picklable and small: paths and settings, never volumes.
    what : str
        What the progress line says.
    workers : int, optional
        Number of processes; all available cores by default. With 1 nothing is started.
    on_death : callable, optional
        Gives the result of an item whose worker died. Without it a death is an error.

    Returns
    -------
    list
        One result an item, in order.
    """
    workers = min(workers or available_cores(), len(items)) or 1
    results: dict[int, Result] = {}
    with Progress(what, len(items)) as progress:
        if workers == 1 and on_death is None:
            for index, item in enumerate(items):
                results[index] = function(item)
                progress.advance()
            return [results[index] for index in range(len(items))]
        try:
            _collect(function, items, range(len(items)), workers, results, progress)
        except BrokenProcessPool:
            if on_death is None:
                raise
            _one_by_one(function, items, on_death, results, progress)
    return [results[index] for index in range(len(items))]


def _collect(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    indices: Sequence[int],
    workers: int,
    results: dict[int, Result],
    progress: Progress,
) -> None:
    # A fork of a process with numeric threads may hang in the child, and a fresh interpreter a
    # worker costs seconds: so workers are forked from a server that only imported what they need.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    with (
        _one_thread_for_children(),
        ProcessPoolExecutor(workers, context, _start_worker) as pool,
    ):
        waiting: dict[Future[Result], int] = {pool.submit(function, items[i]): i for i in indices}
        for future in as_completed(waiting):
            results[waiting[future]] = future.result()
            progress.advance()


@contextmanager
def _one_thread_for_children() -> Iterator[None]:
    """Set the thread counts before children start: libraries read them when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREAD_COUNTS}
    os.environ.update(one_thread_environment())
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _one_by_one(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    on_death: Callable[[Item], Result],
    results: dict[int, Result],
    progress: Progress,
) -> None:
    """Give each item that has no result yet a process of its own."""
    for index in [i for i in range(len(items)) if i not in results]:
        try:
            _collect(function, items, [index], 1, results, progress)
        except BrokenProcessPool:
            results[index] = on_death(items[index])
            progress.advance()
