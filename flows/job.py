"""One verb in one process of its own.

`run_job` is the way in: it starts a process that runs one function of `flows.verbs`, waits, and
returns the result or raises the error that the job met. A job that is killed is only an exit
status, so retries work; each job pins its numeric threads; jobs end when their parent ends.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from rarescan import errors
from rarescan.errors import ExitCode, RarescanError
from rarescan.processes import die_with_parent, one_thread_environment
from rarescan.progress import LINES_ONLY, show_log

_MEMORY_EVERY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a finished job says of itself."""

    folder: Path
    seconds: float
    peak_memory_mb: float
    """Largest sum of proportional memory over the job's processes."""


class JobDiedError(RarescanError):
    """The job's process was killed from outside."""


class JobFailedError(Exception):
    """The job met a bug; its traceback stands on stderr."""


def run_job(
    verb: str,
    config: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    overwrite: bool = False,
    beside_others: bool = False,
) -> JobResult:
    """Run `flows.verbs.VERBS[verb]` in a process of its own.

    Parameters
    ----------
    verb : str
        A key of `flows.verbs.VERBS`.
    config : mapping
        The resolved settings as plain values.
    arguments : mapping
        The verb's folders, by name; plain values.
    overwrite : bool
        Replace a result made with other settings.
    beside_others : bool
        Other jobs run at the same time, so progress is written in lines.

    Raises
    ------
    RarescanError
        What the job raised, with the same exit code.
    JobDiedError
        The process was killed; repeating it continues.
    JobFailedError
        A bug.
    SystemExit
        The job was interrupted and saved its work.
    """
    request = {"verb": verb, "config": config, "arguments": arguments, "overwrite": overwrite}
    lines = {LINES_ONLY: "1"} if beside_others else {}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "rarescan.flows.job"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**one_thread_environment(), **lines},
        text=True,
    )
    try:
        answer, _ = process.communicate(json.dumps(request, default=str))
    except BaseException:
        process.terminate()
        raise
    return _read_answer(verb, process.returncode, answer)


def _read_answer(verb: str, status: int, answer: str) -> JobResult:
    if status == ExitCode.DONE:
        values = json.loads(answer.splitlines()[-1])
        return JobResult(**{**values, "folder": Path(values["folder"])})
    if status in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        raise SystemExit(status)
    if status < 0:
        raise JobDiedError(
            f"`rarescan {verb}` was killed ({signal.Signals(-status).name}), most often because "
            "memory ran out.",
            remedy="Repeat the command (it continues), with fewer --workers if memory is short.",
        )
    last = answer.splitlines()[-1] if answer.strip() else ""
    if status == ExitCode.BUG or not last.startswith('{"error"'):
        raise JobFailedError(f"`rarescan {verb}` met a bug; see the traceback above")
    values = json.loads(last)
    raise getattr(errors, values["error"], RarescanError)(
        values["problem"], remedy=values["remedy"]
    )


def main() -> int:
    """Run the job that stands on stdin; return its exit status."""
    die_with_parent()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    show_log()
    request = json.load(sys.stdin)
    # Libraries print to stdout; the answer must stand there alone.
    answer, sys.stdout = sys.stdout, sys.stderr
    try:
        result = _work(request)
    except RarescanError as error:
        values = {
            "error": type(error).__name__,
            "problem": error.problem,
            "remedy": error.remedy,
        }
        answer.write(json.dumps(values) + "\n")
        return int(error.exit_code)
    except OSError as error:
        full = errors.disk_full(error)
        if full is None:
            raise
        answer.write(
            json.dumps({"error": "InputError", "problem": full.problem, "remedy": full.remedy})
            + "\n"
        )
        return int(full.exit_code)
    answer.write(json.dumps(result) + "\n")
    return int(ExitCode.DONE)


def _work(request: Mapping[str, Any]) -> dict[str, Any]:
    from rarescan.configs.schema import parse_config
    from rarescan.flows.verbs import VERBS

    folders = {
        key: value if value is None or key == "model_uri" else Path(value)
        for key, value in request["arguments"].items()
    }
    if request["overwrite"]:
        folders["overwrite"] = True
    start = time.monotonic()
    with peak_memory() as memory:
        folder = VERBS[request["verb"]](parse_config(request["config"]), **folders)
    seconds = time.monotonic() - start
    return {
        "folder": str(folder),
        "seconds": round(seconds, 2),
        "peak_memory_mb": round(memory[0], 1),
    }


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yield a list whose only value becomes the largest memory of this process tree, in MB."""
    peak, finished = [0.0], threading.Event()

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], _tree_memory_mb())
            if finished.wait(_MEMORY_EVERY_SECONDS):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        finished.set()
        watcher.join()


def _tree_memory_mb() -> float:
    """Return the proportional set sizes of this process and all below it, summed."""
    total = 0
    own = psutil.Process(os.getpid())
    for process in [own, *own.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
        except psutil.Error:
            continue
    return total / 1e6


if __name__ == "__main__":
    sys.exit(main())
