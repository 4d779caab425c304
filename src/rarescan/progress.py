"""Progress with time left: a moving line on a terminal, quiet log lines elsewhere.

`track` wraps an iterable; `Progress` serves loops that count by themselves. Everything goes to
stderr, because stdout is for results.
"""

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

_log = logging.getLogger("rarescan")
_QUIET_SECONDS = 10.0
LINES_ONLY = "RARESCAN_PROGRESS_LINES"
"""Environment variable: write lines even on a terminal (set where several jobs share it)."""


class Progress:
    """Count the parts of one long step.

    Parameters
    ----------
    what : str
        What is counted, for example "prepare scans".
    total : int
        How many parts there are.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._start = self._spoken = time.monotonic()
        self._bar: Any = None
        self._note = ""

    def __enter__(self) -> Self:
        if _on_a_terminal():
            self._bar = _rich_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and time.monotonic() - self._start > _QUIET_SECONDS:
            _log.info("%s: done in %s", self._what, _clock(time.monotonic() - self._start))

    def advance(self, parts: int = 1, note: str = "") -> None:
        """Say that `parts` more are done; `note` is shown beside the count (a loss, a figure)."""
        self._done += parts
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, advance=parts, note=self._note)
        elif time.monotonic() - self._spoken > max(
            _QUIET_SECONDS, 0.05 * (time.monotonic() - self._start)
        ):
            self._spoken = time.monotonic()
            _log.info("%s: %s", self._what, self._line())

    def _line(self) -> str:
        elapsed = time.monotonic() - self._start
        left = elapsed / max(self._done, 1) * (self._total - self._done)
        note = f", {self._note}" if self._note else ""
        return f"{self._done} of {self._total}{note}, {_clock(left)} left"


def show_log() -> None:
    """Write what rarescan says of its work to stderr, one plain line each; nobody else's."""
    if not _log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        _log.addHandler(handler)
    _log.setLevel(logging.INFO)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how far the loop is."""
    items = items if total is not None else list(items)
    count = total if total is not None else len(items)  # type: ignore[arg-type]
    with Progress(what, count) as progress:
        for item in items:
            yield item
            progress.advance()


def _on_a_terminal() -> bool:
    plain = os.environ.get("TERM") == "dumb" or LINES_ONLY in os.environ
    a_worker = multiprocessing.parent_process() is not None
    return sys.stderr.isatty() and not plain and not a_worker


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
