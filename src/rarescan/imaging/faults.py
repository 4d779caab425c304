"""What can be wrong with a file or a stack, and what is done about it: one table.

`judge` is the way in: the first rule of `RULES` that finds something decides over a stack; every
repair that applies is recorded. `FILE_CODES` and `PIXEL_CODES` name what is found before there is
a stack and once its pixels are decoded. Each rule is a small pure function of one `Case`; a code
means one thing and one action. Nothing is guessed silently: what cannot be repaired safely is
set apart with its code, and stays in the export.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import numpy as np

from rarescan.imaging import identity, select
from rarescan.imaging.header import Header
from rarescan.imaging.spec import IngestConfig
from rarescan.imaging.stacks import FloatVector, Stack, axes_of

Action = Literal["fix", "drop", "quarantine"]
Detail = dict[str, float | str]
"""Numbers and our own words only, never a text of the source."""

MR_IMAGE, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"

FILE_CODES: dict[str, tuple[Action, str]] = {
    "NOT_DICOM": ("drop", "is no DICOM file"),
    "ARCHIVE_INSIDE": ("drop", "is an archive inside the export: unpack it first"),
    "DICOMDIR": ("drop", "is the index of a medium; the files themselves are read"),
    "DUP_EXACT": ("drop", "is the same file again"),
    "TRUNC_HEADER": ("quarantine", "ends within its header"),
    "FILE_SIZE": ("quarantine", "is larger than any MR slice"),
    "PARSER_CRASH": ("quarantine", "made the reader crash or run out of its limits"),
}
PIXEL_CODES: dict[str, tuple[Action, str]] = {
    "TRUNC_PIXELS": ("quarantine", "a file ends within its pixels, or they cannot be decoded"),
    "NO_DECODER": ("quarantine", "the pixels are encoded in a way that no decoder is here for"),
    "PIXELS_DEAD": ("quarantine", "the pixels are constant, saturated or mere noise"),
    "BURNED_IN_PIXELS": ("quarantine", "seems to have text drawn into its slices"),
    "SAME_PIXELS_TWO_PEOPLE": ("quarantine", "the same pixels stand under two persons"),
    "DUP_STACK": ("drop", "the same pixels are in the cohort already"),
    "RUNNER_UP": ("drop", "another T1 of the session is better"),
    "UNLABELLED": ("quarantine", "the labels do not name this person"),
    "LABEL_WITHOUT_SCAN": ("drop", "the labels name a person without an accepted scan"),
    "MONOCHROME1": ("fix", "bright and dark were exchanged"),
    "RESCALE_VARIES": ("fix", "each slice had its own scale; it was applied"),
    "PADDING": ("fix", "padding outside the image became 0"),
}
ADOPT_CODES: dict[str, tuple[Action, str]] = {
    "FILE_MISSING": ("quarantine", "is named in the table and not there"),
    "UNREADABLE": ("quarantine", "cannot be read as NIfTI"),
    "NOT_3D": ("quarantine", "is no volume of three dimensions"),
    "AFFINE_INVALID": ("quarantine", "has an impossible geometry"),
}


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
    """One check: what it finds, what follows, and why, in words for people."""

    code: str
    action: Action
    why: str
    check: Callable[[Case], Detail | bool | None]
    """Numbers, or True, where the fault is found."""


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


def why(code: str) -> str:
    """Return what a reason code means, as the end of the sentence "a scan or file that ..."."""
    known = {rule.code: rule.why for rule in RULES}
    return known.get(code) or {**FILE_CODES, **PIXEL_CODES, **ADOPT_CODES}[code][1]


def count_codes(codes: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return `codes` (reason code -> how often) and `reasons` (code -> words) for a cohort."""
    counts = dict(sorted(Counter(codes).items()))
    return {"codes": counts, "reasons": {code: why(code) for code in counts}}


def age_years(header: Header) -> float | None:
    """Return the age at the scan; None where nothing valid says it."""
    return identity.age(header.birth_date, study_day(header), header.age_years)


def study_day(header: Header) -> str | None:
    """Return the calendar day of a scan, YYYY-MM-DD."""
    return header.study_date or header.acquisition_date


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


def _type_has(*wanted: str) -> Callable[[Case], bool]:
    return lambda case: bool({*wanted} & {*case.header.image_type})


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
    return bool(kinds & _DERIVED) or ("DERIVED" in kinds and not _no_physics(case))


def _no_physics(case: Case) -> bool:
    return select.has_no_physics(case.header)


def _test_object(case: Case) -> bool:
    h = case.header
    names = (h.patient_name, h.patient_id, h.series_description, h.protocol_name)
    text = " ".join(part for part in (*names, h.study_description) if part).lower()
    return h.quality_subject == "YES" or bool(h.species) or bool(_TEST_OBJECT.search(text))


def _not_t1(case: Case) -> Detail | None:
    points = select.score(case.stack, case.siblings)
    return {"score": points} if points < select.REVIEW else None


def _review(case: Case) -> Detail | None:
    points = select.score(case.stack, case.siblings)
    open_question = points < select.ACCEPT and not case.config.accept_review
    return {"score": points} if open_question else None


def _no_identity(case: Case) -> bool:
    known = (case.header.patient_id or "").strip().lower()
    return not known or known in _NO_ID or "NO_IDENTITY" in case.stack.facts


def _skew(h: Header) -> float:
    """Return how far an orientation is from two unit vectors at a right angle."""
    if h.orientation is None:
        return np.inf
    row, column = np.reshape(np.array(h.orientation), (2, 3))
    lengths = [abs(float(np.linalg.norm(v)) - 1) for v in (row, column)]
    return max(*lengths, abs(float(row @ column)))


def _worst_skew(case: Case) -> float:
    return max(_skew(f.header) for f in case.stack.files)


def _gaps_mm(case: Case) -> FloatVector:
    return np.diff(case.stack.offsets_mm)


def _repeated_place(case: Case) -> Detail | None:
    n = int((_gaps_mm(case) < 0.01).sum())
    return {"slices": n} if n else None


def _shear(case: Case) -> Detail | None:
    places = np.array([f.header.position_mm for f in case.stack.files])
    steps = places - places[0]
    along = steps @ axes_of(case.header)[2]
    sideways = np.linalg.norm(steps - np.outer(along, axes_of(case.header)[2]), axis=1)
    sines = sideways[1:] / np.maximum(np.linalg.norm(steps[1:], axis=1), 1e-6)
    worst = float(sines.max(initial=0))
    return {"sine": round(worst, 4)} if worst > 0.005 else None


def _missing_slice(case: Case) -> Detail | None:
    gaps = _gaps_mm(case)
    ratio = gaps / np.median(gaps)
    multiple = np.round(ratio)
    lost = (multiple >= 2) & (abs(ratio - multiple) < 0.05)
    regular = abs(ratio - 1) < 0.05
    if not lost.any() or not (lost | regular).all():
        return None
    return {"slices": int((multiple[lost] - 1).sum())}


def _uneven(case: Case) -> Detail | None:
    gaps = _gaps_mm(case)
    middle = float(np.median(gaps))
    worst = float(abs(gaps - middle).max(initial=0))
    return {"deviation_mm": round(worst, 4)} if worst > max(0.02, 0.01 * middle) else None


def _count_mismatch(case: Case) -> Detail | None:
    """Find slices lost at an end or at a regular stride, which leave the spacing uniform."""
    stack, n = case.stack, len(case.stack.files)
    declared = stack.first.slice_spacing_mm
    if declared and declared < 0.9 * stack.step_mm:
        return {"declared_mm": declared, "found_mm": round(stack.step_mm, 4)}
    numbers = [f.header.instance_number for f in stack.files]
    known = [k for k in numbers if k is not None]
    if not stack.whole_series or len(set(known)) < n:
        return None
    expected = max(known[0], known[-1], *known) - min(known) + 1
    expected = max(expected, stack.first.images_in_acquisition or 0)
    return {"expected": expected, "found": n} if expected != n else None


def _coverage(case: Case) -> Detail | None:
    smallest = min(case.stack.extent_mm)
    return {"extent_mm": round(smallest, 1)} if smallest < 140 else None


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
    taken = study_day(h)
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


def _rule(code: str, action: Action, why: str, check: Callable[[Case], object]) -> Rule:
    return Rule(code=code, action=action, why=why, check=check)  # type: ignore[arg-type]


RULES: Sequence[Rule] = (
    # Repairs: recorded, never decisive.
    _rule("NO_PREAMBLE", "fix", "lost the first 132 bytes", _file_fault("NO_PREAMBLE")),
    _rule("PREAMBLE_DATA", "fix", "carried data in the preamble; not copied",
          _file_fault("PREAMBLE_DATA")),
    _rule("TRAILING_DATA", "fix", "carried data after the pixels; not copied",
          _file_fault("TRAILING_DATA")),
    _rule("DUP_SOP_HEADER", "fix", "held an image twice with two headers",
          _fixed("DUP_SOP_HEADER")),
    _rule("DUP_SLICE", "fix", "held a slice twice under two names", _fixed("DUP_SLICE")),
    _rule("SPLIT_ECHO", "fix", "held several echoes; split", _fixed("SPLIT_ECHO")),
    _rule("SPLIT_ORIENTATION", "fix", "held several orientations; split",
          _fixed("SPLIT_ORIENTATION")),
    _rule("SPLIT_ACQ", "fix", "held several acquisitions; split", _fixed("SPLIT_ACQ")),
    _rule("IOP_ROUNDED", "fix", "had an orientation a little off the right angle",
          lambda c: 1e-3 < _worst_skew(c) <= 1e-2),
    _rule("DATE_ABSURD", "fix", "had an impossible date or age; not used", _absurd_date),
    _rule("UID_INVALID", "fix", "had an ill-formed unique identifier; never used as a name",
          _bad_uid),
    _rule("BAD_VALUE", "fix", "had header values out of range; counted as absent", _bad_values),
    # Two persons in one: nothing of it may be used, whatever it shows.
    _rule("MIXED_PATIENTS", "quarantine", "belongs to a series or study with two patients",
          _fact("MIXED_PATIENTS")),
    # Not wanted.
    _rule("SOP_CLASS", "drop", "is no MR image (capture, report, document)",
          lambda c: not _every(c, lambda h: h.sop_class in (MR_IMAGE, ENHANCED_MR))),
    _rule("PHANTOM", "drop", "shows a test object or an animal", _test_object),
    _rule("TRUNC_HEADER", "quarantine", "belongs to a series in which a file ends in its header",
          _fact("TRUNC_HEADER")),
    _rule("MOSAIC", "drop", "is a mosaic of many slices", _type_has("MOSAIC")),
    _rule("LOCALIZER", "drop", "is a localizer, or has fewer than 20 slices",
          lambda c: _type_has("LOCALIZER")(c)
          or (c.header.frames == 1 and len(c.stack.files) < 20)),
    _rule("DERIVED", "drop", "was computed from other images", _derived),
    _rule("BURNED_IN", "drop", "has text burned into the pixels",
          lambda c: not _every(c, lambda h: h.burned_in != "YES")),
    _rule("MP2RAGE_PART", "drop", "is one inversion image of MP2RAGE",
          lambda c: select.is_mp2rage_part(c.stack, c.siblings)),
    _rule("GD", "drop", "was taken with contrast agent",
          lambda c: select.gadolinium(c.header) == "yes" and not c.config.allow_gadolinium),
    _rule("NOT_T1", "drop", "is no T1 by its physics", _not_t1),
    _rule("AGE_RANGE", "drop", "shows a person younger than the settings allow", _too_young),
    # Wanted, and not safe to use.
    _rule("POLYGLOT", "quarantine", "is a program and an image at once", _file_fault("POLYGLOT")),
    _rule("TRUNC_PIXELS", "quarantine", PIXEL_CODES["TRUNC_PIXELS"][1],
          _file_fault("TRUNC_PIXELS")),
    _rule("NO_IDENTITY", "quarantine", "has no usable patient ID, or one with two birth dates",
          _no_identity),
    _rule("NO_DATE", "quarantine", "has no valid date at all",
          lambda c: study_day(c.header) is None),
    _rule("ENHANCED_UNSUPPORTED", "quarantine", "holds many frames in one file",
          lambda c: not _every(c, lambda h: h.frames == 1 and h.sop_class == MR_IMAGE)),
    _rule("COLOUR", "quarantine", "is in colour",
          lambda c: not _every(c, lambda h: h.samples == 1)),
    _rule("PIXEL_LAYOUT", "quarantine", "has an unknown pixel layout",
          lambda c: not _every(c, lambda h: h.bits_allocated in (8, 16, 32)
                               and 0 < (h.bits_stored or 0) <= h.bits_allocated
                               and (h.bits_stored or 0) - 1 <= (h.high_bit or h.bits_allocated - 1)
                               < h.bits_allocated)),
    _rule("DUP_SOP_PIXELS", "quarantine", "holds different images under one identifier",
          _fact("DUP_SOP_PIXELS")),
    _rule("NO_SPACING", "quarantine", "does not say where its slices and pixels lie",
          lambda c: not c.stack.placed),
    _rule("IOP_INVALID", "quarantine", "has an impossible orientation",
          lambda c: _worst_skew(c) > 1e-2),
    _rule("DUP_POSITION", "quarantine", "holds different slices in one place", _repeated_place),
    _rule("SHEAR", "quarantine", "is sheared: slices are shifted sideways", _shear),
    _rule("MISSING_SLICE", "quarantine", "misses slices in the middle", _missing_slice),
    _rule("SPACING", "quarantine", "has uneven distances between slices", _uneven),
    _rule("COUNT_MISMATCH", "quarantine", "has fewer slices than its numbers promise",
          _count_mismatch),
    _rule("COVERAGE", "quarantine", "covers less than 140 mm", _coverage),
    _rule("NOT_HEAD", "quarantine", "shows another part of the body", _not_head),
    _rule("NO_PHYSICS", "quarantine", "does not say how it was made: a person must confirm it",
          lambda c: _no_physics(c) and not c.config.accept_review),
    _rule("REVIEW", "quarantine", "may be a T1: a person must confirm it", _review),
)  # fmt: skip
