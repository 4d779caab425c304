"""Which stack becomes whose scan: everything about a person that is decided before pixels.

`Plan.person` is the way in: all series of one person in, sessions to convert and events out. A
`Session` carries no identity any more; it is what conversion works on.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rarescan.cohort.contracts import Condition
from rarescan.imaging import faults, identity, select
from rarescan.imaging.labels import Label, Labels
from rarescan.imaging.persons import Series
from rarescan.imaging.spec import IngestConfig
from rarescan.imaging.stacks import Stack, find_stacks

Event = dict[str, Any]
"""One row of `rarescan/events.parquet`."""


def event(stack_id: str, person: str, code: str, action: str, n_files: int) -> Event:
    """Return one row of the events."""
    return {
        "stack_id": stack_id,
        "person_id": person,
        "code": code,
        "action": action,
        "detail": {},
        "n_files": n_files,
    }


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A stack that could be the scan of its session."""

    stack_id: str
    numbers: tuple[int, ...]
    n_files: int
    score: int


@dataclass(frozen=True, kw_only=True)
class Session:
    """All that a worker needs to make one scan; no identity in it."""

    person: str
    session: str
    day: str
    condition: Condition
    licence: str
    site: str | None
    candidates: tuple[Candidate, ...]
    """The best first."""
    label_row: int
    """Line of the labels that names this person."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides over persons: settings, key, labels."""

    key: bytes
    config: IngestConfig
    labels: Labels | None

    def person(self, series: Sequence[Series]) -> tuple[list[Session], list[Event]]:
        """Judge all stacks of one person; return the sessions to convert, and events."""
        header = series[0].files[0].header
        known = identity.normalise(header.patient_id)
        person = identity.person_id(self.key, header.issuer, known) if known else ""
        stacks = [stack for one in series for stack in find_stacks(one.files, one.facts)]
        by_day: dict[str, list[Stack]] = defaultdict(list)
        for stack in stacks:
            by_day[faults.study_day(stack.first) or ""].append(stack)
        accepted: dict[str, list[Stack]] = {}
        events: list[Event] = []
        for day, of_day in sorted(by_day.items()):
            good, own = self._judge(person, of_day)
            events += own
            if good:
                accepted[day] = select.rank(good, of_day)
        label = self._label(stacks)
        if accepted and label is None:
            left_out = [stack for good in accepted.values() for stack in good]
            events += [self._event(s, person, "UNLABELLED", "quarantine") for s in left_out]
            accepted = {}
        sessions = [
            self._session(person, f"{rank:02d}", good, label or Label(row=0, diagnosis="unknown"))
            for rank, (_, good) in enumerate(sorted(accepted.items()), start=1)
        ]
        return sessions, events

    def _judge(self, person: str, stacks: Sequence[Stack]) -> tuple[list[Stack], list[Event]]:
        """Return the accepted stacks of one day."""
        good, events = [], []
        for stack in stacks:
            others = tuple(other for other in stacks if other is not stack)
            case = faults.Case(stack=stack, config=self.config, siblings=others)
            decided, repairs = faults.judge(case)
            findings = [*repairs, decided] if decided else repairs
            if decided is None:
                good.append(stack)
            elif decided.action == "drop":
                # What is not wanted need not be repaired either.
                findings = [decided]
            events += [self._event(stack, person, f.code, f.action, f.detail) for f in findings]
        return good, events

    def _label(self, stacks: Sequence[Stack]) -> Label | None:
        if self.labels is None:
            return Label(row=0, diagnosis="unknown")
        accessions = sorted({stack.first.accession or "" for stack in stacks})
        return self.labels.find(stacks[0].first.patient_id, accessions)

    def _session(self, person: str, session: str, good: list[Stack], label: Label) -> Session:
        h = good[0].first
        sex = h.sex if h.sex in ("F", "M") else label.sex
        hospital = identity.normalise(h.institution)
        site = label.site or (
            f"site{identity.token(self.key, 'site', hospital, 6)}" if hospital else None
        )
        years = faults.age_years(h)
        condition = Condition(
            diagnosis=label.diagnosis,
            age_years=identity.shown_age(label.age_years if years is None else years),
            sex=sex,  # type: ignore[arg-type]
            site=site,
        )
        return Session(
            person=person,
            session=session,
            day=identity.shifted(self.key, person, faults.study_day(h) or ""),
            condition=condition,
            licence=self.config.licence,
            site=site,
            label_row=label.row,
            candidates=tuple(
                Candidate(
                    stack_id=self._stack_id(stack),
                    numbers=tuple(f.number for f in stack.files),
                    n_files=stack.n_files,
                    score=select.score(stack, [s for s in good if s is not stack]),
                )
                for stack in good
            ),
        )

    def _stack_id(self, stack: Stack) -> str:
        content = " ".join(sorted(f.header.sha256 for f in stack.files))
        return "ST" + identity.token(self.key, "stack", content)

    def _event(
        self, stack: Stack, person: str, code: str, action: str, detail: object = None
    ) -> Event:
        return event(self._stack_id(stack), person, code, action, stack.n_files) | {
            "detail": detail or {}
        }

    def labels_without_scan(self, used_rows: set[int]) -> list[Event]:
        """Return an event for each row of the labels that no accepted scan belongs to."""
        if self.labels is None:
            return []
        missing = {
            label.row: identity.person_id(self.key, None, patient)
            for patient, label in self.labels.by_patient.items()
        }
        rows = {label.row for label in self.labels.by_accession.values()} | missing.keys()
        left = sorted(missing.get(row, "") for row in rows - used_rows)
        return [event("", person, "LABEL_WITHOUT_SCAN", "drop", 0) for person in left]
