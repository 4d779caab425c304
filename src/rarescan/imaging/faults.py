"""What can be wrong with a file or a stack, and what is done about it: one table.

`judge` is the way in: the first rule of `RULES` that finds something decides over a stack; every
repair that applies is recorded. Each rule is a small pure function of one `Case`; what follows,
and the words for it, stand in `reasons`. Nothing is guessed silently: what cannot be repaired
safely is set apart with its code, and stays in the export.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

from rarescan.imaging import geometry, identity, select
from rarescan.imaging.deidentify import maker
from rarescan.imaging.header import ENHANCED_MR, MR_IMAGE, Header
from rarescan.imaging.reasons import ACTIONS, Action
from rarescan.imaging.spec import IngestConfig
from rarescan.imaging.stacks import Stack

Detail = dict[str, float | str]
"""Numbers and our own words only, never a text of the source."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A stack, the settings, and the other stacks of its session."""

    stack: Stack
    config: IngestConfig
    siblings: tuple[Stack, ...] = ()

    @property
    def header(self) -> Header:
        """The header of the first slice."""
        return self.stack.first


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One check; what follows stands in `reasons`."""

    code: str
    check: Callable[[Case], Detail | bool | None]
    """Numbers, or True, where the fault is found."""

    @property
    def action(self) -> Action:
        """What follows."""
        return ACTIONS[self.code]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found about one stack."""

    code: str
    action: Action
    detail: Detail


def judge(case: Case) -> tuple[Finding | None, list[Finding]]:
    """Return what decides against a stack (None: it is accepted), and what was repaired."""
    repairs = [f for f in (_apply(rule, case) for rule in RULES if rule.action == "fix") if f]
    found = (_apply(rule, case) for rule in RULES if rule.action != "fix")
    return next((f for f in found if f is not None), None), repairs


def _apply(rule: Rule, case: Case) -> Finding | None:
    detail = rule.check(case)
    if detail is None or detail is False:
        return None
    return Finding(
        code=rule.code, action=rule.action, detail={} if detail is True else dict(detail)
    )


def age_years(header: Header) -> float | None:
    """Return the age at the scan; None where nothing valid says it."""
    return identity.age(header.birth_date, header.study_day, header.age_years)


def _every(case: Case, wanted: Callable[[Header], bool]) -> bool:
    return all(wanted(f.header) for f in case.stack.files)


def _file_fault(code: str) -> Callable[[Case], Detail | None]:
    def check(case: Case) -> Detail | None:
        n = sum(code in f.header.faults for f in case.stack.files)
        return {"files": n} if n else None

    return check


def _fact(code: str) -> Callable[[Case], bool]:
    return lambda case: code in case.stack.facts


def _fixed(code: str) -> Callable[[Case], bool]:
    return lambda case: code in case.stack.fixes


def _where(check: Callable[[Stack], Detail | bool | None]) -> Callable[[Case], object]:
    return lambda case: check(case.stack)


_DERIVED = {"MPR", "MIP", "MINIP", "PROJECTION IMAGE", "SUB", "ADC", "FA", "TRACEW", "CSA"} | {
    "REFORMATTED",
    "T1 MAP",
    "T1_MAP",
}
_TEST_OBJECT = re.compile(r"(?<![a-z])(phantom|qa|qc|test|service|acr|animal)(?![a-z])")
_NO_ID = {"0", "unknown", "anon", "anonymous", "none", "na", "n/a", "xxx", "patient"}
_OTHER_PART = re.compile(
    r"chest|thorax|abdo|pelvis|spine|knee|shoulder|hip|breast|heart|card|ankle|wrist|elbow|hand|"
    r"foot|leg|arm|prostat|liver"
)


def _derived(case: Case) -> bool:
    kinds = {*case.header.image_type}
    if kinds & {"UNI", "MEAN"}:
        return False
    return bool(kinds & _DERIVED) or ("DERIVED" in kinds and not select.has_no_physics(case.header))


def _test_object(case: Case) -> bool:
    h = case.header
    names = (h.patient_name, h.patient_id, h.series_description, h.protocol_name)
    text = " ".join(part for part in (*names, h.study_description) if part).lower()
    return h.quality_subject == "YES" or bool(h.species) or bool(_TEST_OBJECT.search(text))


def _fewer_points(case: Case, limit: int) -> Detail | None:
    terms = select.terms(case.stack, case.siblings)
    points = sum(terms.values())
    return {"score": points, **terms} if points < limit else None


def _not_t1(case: Case) -> Detail | None:
    # Nothing is known yet of frames that could not be told apart.
    return _fewer_points(case, select.REVIEW) if case.header.frames == 1 else None


def _no_identity(case: Case) -> bool:
    known = (case.header.patient_id or "").strip().lower()
    return not known or known in _NO_ID or "NO_IDENTITY" in case.stack.facts


def _iop_rounded(case: Case) -> bool:
    return 1e-3 < geometry.worst_skew(case.stack) <= 1e-2


def _count_mismatch(case: Case) -> Detail | None:
    """Find lost slices; private counts mean something in files of their own maker only."""
    h = case.header
    counts = {"GE": h.ge_slices, "Philips": h.philips_slices}
    return geometry.lost_slices(case.stack, counts.get(maker(h)))


def _mosaic(case: Case) -> bool:
    h = case.header
    tiles = h.siemens_tiles if maker(h) == "Siemens" else None
    return "MOSAIC" in h.image_type or (tiles or 0) > 1


def _colour(h: Header) -> bool:
    return h.samples != 1 or h.photometric not in (None, "MONOCHROME1", "MONOCHROME2")


def _known_layout(h: Header) -> bool:
    stored, allocated = h.bits_stored or 0, h.bits_allocated or 0
    high = stored - 1 if h.high_bit is None else h.high_bit
    return allocated in (8, 16, 32) and 0 < stored <= high + 1 <= allocated


def _not_head(case: Case) -> bool:
    part = (case.header.body_part or "").lower()
    return bool(_OTHER_PART.search(part)) or max(case.stack.extent_mm[:2]) > 320


def _too_young(case: Case) -> bool:
    years = age_years(case.header)
    return years is not None and years < case.config.fewest_age_years


def _absurd_date(case: Case) -> bool:
    h = case.header
    if {"study_date", "acquisition_date", "birth_date", "age_years"} & {*h.bad}:
        return True
    taken = h.study_day
    if not (h.birth_date and taken):
        return False
    days = (date.fromisoformat(taken) - date.fromisoformat(h.birth_date)).days
    return not 0 <= days <= 120 * 365.2425


def _bad_uid(case: Case) -> bool:
    h = case.header
    return any(
        u is not None and (len(u) > 64 or not re.fullmatch(r"\d+(\.\d+)+", u))
        for u in (h.study_uid, h.series_uid, h.sop_uid, h.frame_uid)
    )


def _bad_values(case: Case) -> Detail | None:
    names = {name for f in case.stack.files for name in f.header.bad}
    return {"fields": " ".join(sorted(names))} if names else None


def _rule(code: str, check: Callable[[Case], object]) -> Rule:
    return Rule(code=code, check=check)  # type: ignore[arg-type]


RULES: Sequence[Rule] = (
    # Repairs: recorded, never decisive.
    _rule("NO_PREAMBLE", _file_fault("NO_PREAMBLE")),
    _rule("PREAMBLE_DATA", _file_fault("PREAMBLE_DATA")),
    _rule("TRAILING_DATA", _file_fault("TRAILING_DATA")),
    _rule("DUP_SOP_HEADER", _fixed("DUP_SOP_HEADER")),
    _rule("DUP_SLICE", _fixed("DUP_SLICE")),
    _rule("SPLIT_ECHO", _fixed("SPLIT_ECHO")),
    _rule("SPLIT_ORIENTATION", _fixed("SPLIT_ORIENTATION")),
    _rule("SPLIT_ACQ", _fixed("SPLIT_ACQ")),
    _rule("JOINED", _fixed("JOINED")),
    _rule("SESSION_MERGED", _fixed("SESSION_MERGED")),
    _rule("SESSION_SPLIT", _fixed("SESSION_SPLIT")),
    _rule("IOP_ROUNDED", _iop_rounded),
    _rule("INTERPOLATED", _where(geometry.interpolated)),
    _rule("CHARSET", _file_fault("CHARSET")),
    _rule("DATE_ABSURD", _absurd_date),
    _rule("UID_INVALID", _bad_uid),
    _rule("BAD_VALUE", _bad_values),
    # Two persons in one: nothing of it may be used, whatever it shows.
    _rule("MIXED_PATIENTS", _fact("MIXED_PATIENTS")),
    # Not wanted.
    _rule("SOP_CLASS", lambda c: not _every(c, lambda h: h.sop_class in (MR_IMAGE, ENHANCED_MR))),
    _rule("SYNTHETIC", lambda c: not _every(c, lambda h: h.synthetic != "YES")),
    _rule("PHANTOM", _test_object),
    _rule("TRUNC_HEADER", _fact("TRUNC_HEADER")),
    _rule("MOSAIC", _mosaic),
    _rule("LOCALIZER", lambda c: "LOCALIZER" in c.header.image_type
          or (c.header.frames == 1 and len(c.stack.files) < 20)),
    _rule("MP2RAGE_PART", lambda c: select.is_mp2rage_part(c.stack, c.siblings)),
    _rule("DERIVED", _derived),
    _rule("BURNED_IN", lambda c: not _every(c, lambda h: h.burned_in != "YES")),
    _rule("GD", lambda c: not c.config.allow_gadolinium and select.gadolinium(c.header) == "yes"),
    _rule("LOSSY", lambda c: not c.config.allow_lossy and not _every(c, lambda h: not h.is_lossy)),
    _rule("NOT_T1", _not_t1),
    _rule("AGE_RANGE", _too_young),
    # Wanted, and not safe to use.
    _rule("POLYGLOT", _file_fault("POLYGLOT")),
    _rule("TRUNC_PIXELS", _file_fault("TRUNC_PIXELS")),
    _rule("NO_IDENTITY", _no_identity),
    _rule("NO_DATE", lambda c: c.header.study_day is None),
    _rule("ENHANCED_UNSUPPORTED",
          lambda c: _fact("ENHANCED_UNSUPPORTED")(c) or not _every(c, lambda h: h.frames == 1)),
    _rule("COLOUR", lambda c: not _every(c, lambda h: not _colour(h))),
    _rule("PIXEL_LAYOUT", lambda c: not _every(c, _known_layout)),
    _rule("DUP_SOP_PIXELS", _fact("DUP_SOP_PIXELS")),
    _rule("NO_SPACING", lambda c: not c.stack.placed),
    _rule("IOP_INVALID", lambda c: geometry.worst_skew(c.stack) > 1e-2),
    _rule("LATERALITY", _where(geometry.mirrored)),
    _rule("DUP_POSITION", _where(geometry.repeated_place)),
    _rule("SHEAR", _where(geometry.shear)),
    _rule("MISSING_SLICE", _where(geometry.missing_slice)),
    _rule("SPACING", _where(geometry.uneven)),
    _rule("COUNT_MISMATCH", _count_mismatch),
    _rule("COVERAGE", _where(geometry.coverage)),
    _rule("NOT_HEAD", _not_head),
    _rule("NO_PHYSICS", lambda c: select.has_no_physics(c.header) and not c.config.accept_review),
    _rule("REVIEW", lambda c: None if c.config.accept_review else _fewer_points(c, select.ACCEPT)),
)  # fmt: skip
