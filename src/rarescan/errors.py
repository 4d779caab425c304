"""Errors that the person at the keyboard can solve.

    RarescanError              exit 4
    |- InputError              exit 4   the data are not what the step needs
    |- SettingError            exit 4   a key, a value or a file named in the settings is wrong
    |- GridMismatchError       exit 4   two things on different grids were brought together
    |- ChangedRecipeError      exit 4   another result lies where this one would go
    |- MissingExtraError       exit 4   an optional package or a device is not there
    |- GateRefusedError        exit 3   the result is valid and the answer is no
    `- UnreachableError        exit 5   an outside service did not answer after retries

Each carries a problem and a remedy; the command line prints both on one line and nothing else.
A bad scan is no error but a quarantine row; a refused model is a `Decision`; any other
exception is a bug and keeps its traceback.
"""

import errno
from difflib import get_close_matches
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status means."""

    DONE = 0
    BUG = 1
    USAGE = 2
    GATE_REFUSED = 3
    BAD_INPUT = 4
    UNREACHABLE = 5
    INTERRUPTED = 130
    TERMINATED = 143


class RarescanError(Exception):
    """A problem that the person at the keyboard can solve."""

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, problem: str, *, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem, self.remedy = problem, remedy

    def __reduce__(self) -> tuple[object, ...]:
        """Keep problem and remedy when the error crosses a process boundary."""
        return _rebuild, (type(self), self.problem, self.remedy)


def _rebuild(kind: type[RarescanError], problem: str, remedy: str) -> RarescanError:
    return kind(problem, remedy=remedy)


class InputError(RarescanError):
    """The data are not what the step needs."""


class SettingError(RarescanError):
    """A key, a value or a file named in the settings is wrong."""


class GridMismatchError(RarescanError):
    """Two things on different grids were brought together."""


class ChangedRecipeError(RarescanError):
    """Another result lies where this one would go."""


class MissingExtraError(RarescanError):
    """An optional package or a device is not there."""


class GateRefusedError(RarescanError):
    """The result is valid and the answer is no."""

    exit_code = ExitCode.GATE_REFUSED


class UnreachableError(RarescanError):
    """An outside service did not answer after retries."""

    exit_code = ExitCode.UNREACHABLE


def disk_full(error: OSError) -> InputError | None:
    """Return what to tell the person when an error means that the disk is full."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return InputError(
        f"The disk is full{f' ({error.filename})' if error.filename else ''}.",
        remedy="Free some space and repeat the command: finished steps are kept.",
    )


def nearest(word: str, valid: list[str]) -> str:
    """Return a hint that names the nearest valid word, or all of them."""
    close = get_close_matches(word, valid, n=1)
    return f"Did you mean '{close[0]}'?" if close else f"Valid: {', '.join(sorted(valid))}."
