"""How long a training takes, said after its first steps.

`Forecast` is timed by the loop itself on this machine at this load: `took` notes what a step, a
look at validation persons, a search for copies and a checkpoint took, `say` logs the sum once.
Nothing of it is stored, because what a step leaves behind must not depend on when it was made.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Literal

from rarescan.generative.run import Plan, TrainingData
from rarescan.generative.snapshots import is_due

Part = Literal["step", "look", "search", "save"]

FIRST_STEPS = 16
"""Steps that are timed before anything is said."""
_N_LOOKS = 10
"""At validation persons, who are many batches; searches for copies look at them too."""
_log = logging.getLogger("rarescan")


class Forecast:
    """Seconds of one training, by part.

    Parameters
    ----------
    what : str
        What is trained, as the progress line says it.
    plan : Plan
    done : int
        Steps that an earlier process did.
    data : TrainingData
        Says whether validation persons are looked at, and whether copies are searched for.
    """

    def __init__(self, what: str, plan: Plan, done: int, data: TrainingData) -> None:
        steps = range(done + 1, plan.steps + 1)
        searches = {s for s in steps if data.watch is not None and is_due(s, plan.steps)}
        looks = {s for s in steps if s == plan.steps or is_looked_at(s, plan.steps)}
        self._counts: dict[Part, int] = {
            "step": len(steps),
            "look": len(looks | searches) if data.held_out is not None else 0,
            "search": len(searches),
            "save": sum(s % plan.checkpoint_every == 0 for s in steps),
        }
        self._what = what
        self._seconds: dict[Part, list[float]] = {}
        self._begun = time.monotonic()
        self.seconds: float | None = None
        """Of the whole training; None until it is known."""

    @contextmanager
    def took(self, part: Part) -> Iterator[None]:
        """Note how long a part takes."""
        start = time.monotonic()
        yield
        self._seconds.setdefault(part, []).append(time.monotonic() - start)

    def unknown(self, part: Part) -> bool:
        """Return whether a part that will come was not timed yet."""
        return bool(self._counts[part]) and part not in self._seconds

    def say(self) -> None:
        """Log the estimate; a part that was never timed counts as nothing."""
        each = {part: median(found) for part, found in self._seconds.items()}
        self.seconds = sum(each.get(part, 0.0) * n for part, n in self._counts.items())
        looks = each.get("look", 0.0) * self._counts["look"]
        looks += each.get("search", 0.0) * self._counts["search"]
        _log.info(
            "%s: about %s for %d steps (%.3g s each; %.2g s of it for looks at validation persons "
            "and for copies).",
            self._what, _words(self.seconds), self._counts["step"], each["step"], looks,
        )  # fmt: skip

    def compare(self) -> None:
        """Log at the end of a training how good the estimate was."""
        if self.seconds is not None:
            taken = time.monotonic() - self._begun
            _log.info("%s: took %s, expected %s.", self._what, _words(taken), _words(self.seconds))


def _words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def is_looked_at(step: int, n_steps: int) -> bool:
    """Return whether validation persons are looked at, apart from searches for copies."""
    return step % max(1, n_steps // _N_LOOKS) == 0
