"""Files in memory through the whole gate: header, stacks, rules, pixels; what became of them."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rarescan.imaging import faults, select
from rarescan.imaging.convert import PixelFaultError, Volume, read_stack
from rarescan.imaging.header import Header
from rarescan.imaging.parse import read_header
from rarescan.imaging.reasons import ACTIONS
from rarescan.imaging.spec import IngestConfig
from rarescan.imaging.stacks import File, Stack, find_stacks, join_series

Event = tuple[str, str, int]


@dataclass(kw_only=True)
class Outcome:
    """What became of some files."""

    events: Counter[Event] = field(default_factory=Counter)
    used: list[tuple[Stack, Volume]] = field(default_factory=list)

    @property
    def n_used(self) -> int:
        return sum(stack.n_files for stack, _ in self.used)

    def add(self, code: str, action: str, n_files: int) -> None:
        self.events[(code, action, n_files)] += 1


def gate(files: Iterable[bytes], folder: Path, config: IngestConfig | None = None) -> Outcome:
    """Send files of one person through all that looks at them before they are written."""
    outcome, headers, paths = Outcome(), [], {}
    for number, data in enumerate(files):
        paths[number] = folder / str(number)
        paths[number].write_bytes(data)
        header = read_header(data)
        if isinstance(header, str):
            outcome.add(header, ACTIONS[header], 1)
        else:
            headers.append(File(number=number, header=Header.from_json(header.to_json())))
    series = defaultdict(list)
    for file in headers:
        series[(file.header.study_uid, file.header.series_uid)].append(file)
    stacks = join_series([stack for own in series.values() for stack in find_stacks(own)])
    for session in select.sessions(stacks).values():
        for stack in session:
            others = tuple(s for s in session if s is not stack)
            _judge(stack, others, paths, outcome, config or IngestConfig())
    return outcome


def _judge(
    stack: Stack,
    siblings: tuple[Stack, ...],
    paths: dict[int, Path],
    outcome: Outcome,
    config: IngestConfig,
) -> None:
    case = faults.Case(stack=stack, config=config, siblings=siblings)
    decided, repairs = faults.judge(case)
    found = [decided] if decided and decided.action == "drop" else [*repairs, decided]
    for finding in found:
        if finding is not None:
            outcome.add(finding.code, finding.action, stack.n_files)
    if decided is None:
        # As it comes back from the index: whole files, one entry a slice.
        try:
            volume = read_stack(stack, [paths[f.number] for f in stack.files])
        except PixelFaultError as fault:
            outcome.add(str(fault), ACTIONS[str(fault)], stack.n_files)
        else:
            outcome.used.append((stack, volume))
            for code in volume.fixes:
                outcome.add(code, ACTIONS[code], stack.n_files)


def codes(outcome: Outcome) -> set[Event]:
    assert set(outcome.events.values()) <= {1}
    return set(outcome.events)
