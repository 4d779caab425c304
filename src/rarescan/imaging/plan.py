"""Which stack becomes whose scan: everything about a person that is decided before pixels.

`Plan.person` is the way in: all series of one person in, sessions to convert and events out. A
`Session` carries no identity any more; it is what conversion works on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rarescan.cohort.contracts import Condition
from rarescan.imaging import faults, identity, select
from rarescan.imaging.labels import Label, Labels
from rarescan.imaging.persons import Register, Series
from rarescan.imaging.reasons import ACTIONS
from rarescan.imaging.spec import IngestConfig
from rarescan.imaging.stacks import Stack, find_stacks, join_series

CONFIRMABLE = ("REVIEW", "NO_PHYSICS")
"""Codes of stacks that a human may confirm to be a T1; no other refusal can be confirmed away."""

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
    terms: dict[str, int]
    """What its points are made of (see `select.terms`)."""
    gadolinium: select.Gadolinium


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
    confirmed: Mapping[str, bool] = field(default_factory=dict)
    """stack_id -> whether a human confirmed that it is a T1."""

    def person(self, series: Sequence[Series]) -> tuple[list[Session], list[Event]]:
        """Judge all stacks of one person; return the sessions to convert, and events.

        Raises
        ------
        InputError
            The labels give the person two diagnoses.
        """
        person = series[0].person
        stacks = join_series(s for one in series for s in find_stacks(one.files, one.facts))
        by_day = select.sessions(stacks)
        accepted: dict[str, list[Stack]] = {}
        events: list[Event] = []
        for day, of_day in sorted(by_day.items()):
            good, own = self._judge(person, of_day)
            events += own
            if good:
                accepted[day] = select.rank(good, of_day)
        known = self._labels(stacks)
        if accepted and not known:
            left_out = [stack for good in accepted.values() for stack in good]
            events += [self._event(s, person, "UNLABELLED", "quarantine") for s in left_out]
            accepted = {}
        sessions = [
            self._session(person, f"{rank:02d}", good, by_day[day], known)
            for rank, (day, good) in enumerate(sorted(accepted.items()), start=1)
        ]
        return sessions, events

    def _judge(self, person: str, stacks: Sequence[Stack]) -> tuple[list[Stack], list[Event]]:
        """Return the accepted stacks of one day."""
        good, events = [], []
        for stack in stacks:
            decided, repairs = self._decide(person, stack, _others(stack, stacks))
            findings = [*repairs, decided] if decided else repairs
            if decided is None:
                good.append(stack)
            elif decided.action == "drop":
                # What is not wanted need not be repaired either.
                findings = [decided]
            events += [self._event(stack, person, f.code, f.action, f.detail) for f in findings]
        return good, events

    def _decide(
        self, person: str, stack: Stack, others: tuple[Stack, ...]
    ) -> tuple[faults.Finding | None, list[faults.Finding]]:
        """Ask the table of faults, then what humans confirmed."""
        case = faults.Case(stack=stack, config=self.config, siblings=others)
        decided, repairs = faults.judge(case)
        if decided and decided.code in CONFIRMABLE:
            if self.confirmed.get(self._stack_id(stack)):
                trusting = replace(self.config, accept_review=True)
                decided, repairs = faults.judge(replace(case, config=trusting))
                repairs = [*repairs, _finding("CONFIRMED")]
            else:
                found = decided.detail | self._looks(person, stack)
                decided = replace(decided, detail=found)
        if "MAPPED" in stack.facts:
            repairs = [*repairs, _finding("MAPPED")]
        if decided is None and "NAME_DIFFERS" in stack.facts:
            decided = _finding("NAME_DIFFERS")
        return decided, repairs

    def _looks(self, person: str, stack: Stack) -> faults.Detail:
        """Return the figures by which a human finds a series again without its texts."""
        h, day = stack.first, stack.first.study_day
        return {
            "day": identity.shifted(self.key, person, day) if day else "",
            "score": select.score(stack),
            "matrix": " x ".join(map(str, stack.shape)),
            "voxel_mm": " x ".join(f"{edge:.3g}" for edge in stack.voxel_mm),
            "tr_ms": h.repetition_time_ms or 0.0,
            "te_ms": h.echo_time_ms or 0.0,
            "ti_ms": h.inversion_time_ms or 0.0,
        }

    def _labels(self, stacks: Sequence[Stack]) -> list[Label]:
        """Return what the labels say about the person of some stacks."""
        if self.labels is None:
            return [Label(row=0, diagnosis="unknown")]
        patients = sorted({stack.first.patient_id or "" for stack in stacks})
        accessions = sorted({stack.first.accession or "" for stack in stacks})
        return self.labels.find(patients, accessions)

    def _label_of(self, of_day: Sequence[Stack], known: Sequence[Label]) -> Label:
        """Return the label of one session; an age that belongs to another day is not used."""
        own = self._labels(of_day)
        return own[0] if own else replace(known[0], age_years=None)

    def _session(
        self,
        person: str,
        session: str,
        good: Sequence[Stack],
        of_day: Sequence[Stack],
        known: Sequence[Label],
    ) -> Session:
        h, label = good[0].first, self._label_of(of_day, known)
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
            day=identity.shifted(self.key, person, h.study_day or ""),
            condition=condition,
            licence=self.config.licence,
            site=site,
            label_row=label.row,
            candidates=tuple(
                Candidate(
                    stack_id=self._stack_id(stack),
                    numbers=tuple(f.number for f in stack.files),
                    n_files=stack.n_files,
                    terms=select.terms(stack, _others(stack, of_day)),
                    gadolinium=select.gadolinium(stack.first, _others(stack, of_day)),
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

    def labels_without_scan(self, used_rows: set[int], register: Register) -> list[Event]:
        """Return an event for each row of the labels that no accepted scan belongs to.

        Its `person_id` is empty where nobody in the export has the row's number.
        """
        rows = self.labels.rows() if self.labels else {}
        missing = {
            row: register.by_accession.get(accession) or register.by_patient.get(patient, "")
            for row, (patient, accession) in rows.items()
            if row not in used_rows
        }
        return [
            event("", person, "LABEL_WITHOUT_SCAN", "drop", 0) | {"detail": {"row": row}}
            for row, person in sorted(missing.items())
        ]


def _others(stack: Stack, stacks: Sequence[Stack]) -> tuple[Stack, ...]:
    return tuple(other for other in stacks if other is not stack)


def _finding(code: str) -> faults.Finding:
    return faults.Finding(code=code, action=ACTIONS[code], detail={})
