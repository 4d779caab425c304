"""Which stack is the T1: physics first, words last.

`score` gives the points of one stack, `gadolinium` says whether contrast agent was given, `rank`
orders the stacks of one session. Words (series description, protocol name) are looked at and
dropped; they decide nothing by themselves. The ranges come from public sidecars and headers of
Siemens, GE, Philips, Canon and UIH scanners; repetition times are no gate, because they count
from inversion to inversion on one vendor's scanners and from excitation to excitation on others'.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal

from rarescan.imaging.header import Header
from rarescan.imaging.stacks import Stack

ACCEPT, REVIEW = 65, 45
"""Points from which a stack is taken, and from which a person may confirm it."""

Gadolinium = Literal["yes", "no", "unknown"]

_T1_WORDS = re.compile(r"mp-?rage|bravo|f?spgr|tfe|tfl|t1")
_OTHER_WORDS = re.compile(
    r"(?<![a-z])(t2w?|t2_?star|flair|swi|tof|mra|angio|dwi|adc|bold|perf|asl|pdw?|dess|ciss|"
    r"fiesta|mip|loc|localizer|scout|vibe|dixon|water|fat)(?![a-z])"
)
_NO_CONTRAST = re.compile(r"(?<![a-z])(pre|without|nativ|native|sans|ohne|w/?o|no)(?![a-z])")
_CONTRAST = re.compile(
    r"(?<!without )(?<!without_)(?<!ohne )(?<!ohne_)(?<!sans )(?<!sans_)(?<!no )(?<!no_)"
    r"(?<!w/o )(?<!pre)(\bgd\b|_gd\b|gado|dotarem|magnevist|gadovist|prohance|post|\+ ?c\b|"
    r"[-_ ]c\+|(?<![a-z])km(?![a-z])|kontrast|contrast)"
)
_NO_AGENT = {"", "none", "no", "no contrast", "n", "-", "0"}


def words_of(header: Header) -> str:
    """Return the free text about a series, in lower case; for looking at, never for writing."""
    parts = (header.series_description, header.protocol_name, header.sequence_name)
    return " ".join(part for part in parts if part).lower()


def is_inversion_prepared(header: Header) -> bool:
    """Return whether a gradient echo follows an inversion pulse (MPRAGE, IR-SPGR, 3D TFE)."""
    inverted = "IR" in header.scanning_sequence or "MP" in header.sequence_variant
    return _gradient_echo(header) and (inverted or (header.inversion_time_ms or 0) > 0)


def has_no_physics(header: Header) -> bool:
    """Return whether the header was rewritten by a tool that dropped how the image was made."""
    return not header.scanning_sequence and not any(
        (
            header.repetition_time_ms,
            header.echo_time_ms,
            header.inversion_time_ms,
            header.flip_angle_deg,
        )
    )


def score(stack: Stack, siblings: Sequence[Stack] = ()) -> int:
    """Return the points of a stack: 65 and more is a T1, 45 to 64 may be one.

    Parameters
    ----------
    stack : Stack
        The stack.
    siblings : sequence of Stack
        The other stacks of its session; single echoes of a set lose against its combination.
    """
    return sum(terms(stack, siblings).values())


def terms(stack: Stack, siblings: Sequence[Stack] = ()) -> dict[str, int]:
    """Return what the points of a stack are made of, by reason; arguments as for `score`."""
    h = stack.first
    if "EP" in h.scanning_sequence or h.angio == "Y" or (h.b_value or 0) > 0:
        return {"never_t1": -100}
    if has_no_physics(h):
        # Nothing to judge by: only words could speak for it, so a person has to.
        return {"words_alone": REVIEW if _T1_WORDS.search(words_of(h)) and not _other(h) else -40}
    echo = "MEAN" not in h.image_type and _is_one_of_several_echoes(stack, siblings)
    points = {
        "sequence": _sequence_points(h),
        "voxel": _size_points(max(stack.voxel_mm)),
        "extent": 5 * (min(stack.extent_mm) >= 140),
        "normalised": 4 * ("NORM" in h.image_type),
        "undistorted": 2 * bool({"DIS2D", "DIS3D"} & {*h.image_type}),
        "words": 6 * bool(_T1_WORDS.search(words_of(h))),
        "other_words": -15 * _other(h),
        "uniform_mp2rage": -20 * ("UNI" in h.image_type),
        "single_echo": -12 * echo,
    }
    return {reason: n for reason, n in points.items() if n}


def _other(header: Header) -> bool:
    return bool(_OTHER_WORDS.search(words_of(header)))


def _gradient_echo(h: Header) -> bool:
    return bool({"GR", "RM"} & {*h.scanning_sequence})


def _within(value: float | None, low: float, high: float, *, absent: bool = False) -> bool:
    return absent if value is None else low <= value <= high


def _sequence_points(h: Header) -> int:
    te, tr, ti, flip = (
        h.echo_time_ms,
        h.repetition_time_ms,
        h.inversion_time_ms,
        h.flip_angle_deg,
    )
    three_d = h.acquisition_type == "3D"
    if three_d and is_inversion_prepared(h) and _within(te, 0, 8):
        right_delay = _within(ti or None, 300, 1400, absent=True)
        if right_delay and _within(flip, 4, 20, absent=True):
            return 45
    if three_d and _gradient_echo(h) and "SP" in h.sequence_variant and _within(te, 0, 8):
        return 30 if _within(tr, 0, 50) and _within(flip, 10, 40) else -40
    return _spin_echo_points(h, three_d=three_d)


def _spin_echo_points(h: Header, *, three_d: bool) -> int:
    te, tr = h.echo_time_ms, h.repetition_time_ms
    if "SE" not in h.scanning_sequence:
        return -40
    inverted = "IR" in h.scanning_sequence
    if three_d and not inverted and _within(tr, 400, 1100) and _within(te, 0, 40):
        return 22
    if not three_d and not inverted and _within(tr, 300, 1000) and _within(te, 0, 25):
        return 15
    t1_flair = inverted and _within(h.inversion_time_ms, 600, 1100) and _within(te, 0, 30)
    return 10 if t1_flair and _within(tr, 0, 3500) else -40


def _size_points(largest_mm: float) -> int:
    for limit, points in ((1.1, 25), (1.3, 18), (1.6, 10), (2.5, 0)):
        if largest_mm <= limit + 1e-3:
            return points
    return -25


def _is_one_of_several_echoes(stack: Stack, siblings: Sequence[Stack]) -> bool:
    mine = _timing(stack)
    return any(
        _timing(other) == mine and other.first.echo_time_ms != stack.first.echo_time_ms
        for other in siblings
    )


def _timing(stack: Stack) -> tuple[object, ...]:
    h = stack.first
    return h.repetition_time_ms, h.inversion_time_ms, h.flip_angle_deg, h.rows, h.columns


def is_mp2rage_part(stack: Stack, siblings: Sequence[Stack]) -> bool:
    """Return whether a stack is an inversion image of MP2RAGE, named like an MPRAGE, or its map."""
    h = stack.first
    if "UNI" in h.image_type or not is_inversion_prepared(h):
        return False
    siemens_times = (h.repetition_time_ms or 0) >= 4000 or (h.inversion_time_ms or 0) > 1400
    return siemens_times or any(_other_inversion(h, other.first) for other in siblings)


def _other_inversion(h: Header, other: Header) -> bool:
    same = (h.repetition_time_ms, h.echo_time_ms, h.rows, h.columns) == (
        other.repetition_time_ms,
        other.echo_time_ms,
        other.rows,
        other.columns,
    )
    times = h.inversion_time_ms, other.inversion_time_ms
    return same and ("UNI" in other.image_type or (None not in times and times[0] != times[1]))


def gadolinium(header: Header, siblings: Sequence[Stack] = ()) -> Gadolinium:
    """Return whether contrast agent was given; an absent tag is not a no.

    Parameters
    ----------
    header : Header
        The header of a stack's first slice.
    siblings : sequence of Stack
        The other stacks of its session: what was taken before a T1 with contrast agent is without.
    """
    agent = (header.contrast_agent or "").strip().lower()
    text = words_of(header)
    if agent not in _NO_AGENT or header.contrast_sequence or (header.contrast_volume_ml or 0) > 0:
        return "yes"
    if _CONTRAST.search(text):
        return "yes"
    before_one_with = any(
        _taken_before(header, other.first)
        and _sequence_points(other.first) > 0
        and gadolinium(other.first) == "yes"
        for other in siblings
    )
    return "no" if agent or before_one_with or _NO_CONTRAST.search(text) else "unknown"


def _taken_before(header: Header, other: Header) -> bool:
    mine, theirs = ((h.study_day, h.acquisition_time) for h in (header, other))
    return None not in (*mine, *theirs) and mine < theirs


def sessions(stacks: Iterable[Stack]) -> dict[str, list[Stack]]:
    """Return the stacks of one person by session, as first day (YYYY-MM-DD, or "") -> stacks.

    A session is what was taken within 24 hours of its first stack, whatever the study's identifier
    says: one study may hold two visits (noted as the repair `SESSION_SPLIT`), and one visit may be
    sent as two studies (`SESSION_MERGED`).
    """
    visits: list[list[Stack]] = []
    end = _NEVER
    for stack in sorted(stacks, key=lambda s: _moment(s.first)):
        if visits and _moment(stack.first) < end:
            visits[-1].append(stack)
        else:
            visits.append([stack])
            end = _moment(stack.first) + _ONE_DAY
    n_visits: Counter[str | None] = Counter(
        uid for found in visits for uid in {s.first.study_uid for s in found} if uid
    )
    return {found[0].first.study_day or "": _noted(found, n_visits) for found in visits}


_NEVER, _ONE_DAY = datetime(1, 1, 1), timedelta(days=1)
_MIDNIGHT = ("", "0", "0")


def _moment(h: Header) -> datetime:
    """Return when a stack was taken; midnight where the time is missing or ill-formed."""
    if h.study_day is None:
        return _NEVER
    clock = re.match(r"([01]\d|2[0-3])([0-5]\d)", h.acquisition_time or "") or _MIDNIGHT
    hour, minute = int(clock[1]), int(clock[2])
    return datetime.fromisoformat(h.study_day) + timedelta(hours=hour, minutes=minute)


def _noted(stacks: list[Stack], n_visits: Mapping[str | None, int]) -> list[Stack]:
    """Return a session's stacks with the repairs that made it; `n_visits` is by study."""
    if not stacks[0].first.study_day:
        return stacks
    merged = ("SESSION_MERGED",) * (len({s.first.study_uid for s in stacks}) > 1)
    split = ("SESSION_SPLIT",)
    return [
        replace(s, fixes=(*s.fixes, *merged, *split * (n_visits[s.first.study_uid] > 1)))
        for s in stacks
    ]


def rank(stacks: Sequence[Stack], siblings: Sequence[Stack]) -> list[Stack]:
    """Return the stacks of one session, the best first.

    Highest score, without contrast agent first; then normalised, then the stronger field, then
    the earlier acquisition; contents decide between equals, never the order of files.
    """

    def key(stack: Stack) -> tuple[object, ...]:
        h = stack.first
        points = score(stack, [s for s in siblings if s is not stack])
        return (
            60 * (gadolinium(h) == "yes") - points,
            "NORM" not in h.image_type,
            -(h.field_strength_t or 0),
            h.acquisition_time or "~",
            min(f.header.sha256 for f in stack.files),
        )

    return sorted(stacks, key=key)
