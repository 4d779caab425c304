from collections.abc import Callable
from typing import Any

import pytest

from rarescan.imaging.faults import RULES, Case, judge
from rarescan.imaging.reasons import ACTIONS, WORDS
from rarescan.imaging.spec import IngestConfig
from rarescan.imaging.stacks import find_stacks

FLAIR = {
    "scanning_sequence": ("SE", "IR"),
    "sequence_variant": ("SK",),
    "repetition_time_ms": 5000.0,
    "echo_time_ms": 390.0,
    "series_description": "flair",
}
Values = dict[str, Any]


def at(position_mm: Callable[[int], tuple[float, float, float]]) -> Callable[[int], Values]:
    return lambda k: {"position_mm": position_mm(k)}


def one(number: int, **values: Any) -> Callable[[int], Values]:
    return lambda k: values if k == number else {}


def kept(*numbers: int) -> Callable[[int], Values]:
    """Slice k lies and is numbered where slice numbers[k] was."""
    return lambda k: {
        "position_mm": (-80.0 + numbers[k], -90.0, 90.0),
        "instance_number": numbers[k] + 1,
    }


DECISIVE: list[tuple[str, int, Callable[[int], Values] | None, Values]] = [
    ("SOP_CLASS", 160, None, {"sop_class": "1.2.840.10008.5.1.4.1.1.7"}),
    ("PHANTOM", 160, None, {"patient_name": "QA^Phantom"}),
    ("PHANTOM", 160, None, {"quality_subject": "YES"}),
    ("PHANTOM", 160, None, {"species": "Ovis aries"}),
    ("TRUNC_HEADER", 160, one(7, faults=("TRUNC_HEADER",)), {}),
    ("MOSAIC", 160, None, {"image_type": ("ORIGINAL", "PRIMARY", "M", "MOSAIC")}),
    ("LOCALIZER", 160, None, {"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}),
    ("LOCALIZER", 19, None, {}),
    ("DERIVED", 160, None, {"image_type": ("DERIVED", "SECONDARY", "MPR")}),
    ("DERIVED", 160, None, {"image_type": ("DERIVED", "SECONDARY")}),
    ("SYNTHETIC", 160, one(50, synthetic="YES"), {}),
    ("BURNED_IN", 160, one(50, burned_in="YES"), {}),
    ("MP2RAGE_PART", 160, None, {"repetition_time_ms": 5000.0}),
    ("GD", 160, None, {"contrast_agent": "Dotarem"}),
    ("LOSSY", 160, one(9, lossy="01"), {}),
    ("LOSSY", 160, None, {"syntax": "1.2.840.10008.1.2.4.91"}),
    ("NOT_T1", 160, None, FLAIR),
    ("AGE_RANGE", 160, None, {"birth_date": "2010-03-20"}),
    ("POLYGLOT", 160, one(3, faults=("POLYGLOT",)), {}),
    ("TRUNC_PIXELS", 160, one(99, faults=("TRUNC_PIXELS",)), {}),
    ("NO_IDENTITY", 160, None, {"patient_id": None}),
    ("NO_IDENTITY", 160, None, {"patient_id": "ANON"}),
    ("NO_DATE", 160, None, {"study_date": None}),
    ("ENHANCED_UNSUPPORTED", 160, None, {"sop_class": "1.2.840.10008.5.1.4.1.1.4.1",
                                          "frames": 160}),
    ("COLOUR", 160, None, {"samples": 3}),
    ("PIXEL_LAYOUT", 160, None, {"bits_allocated": 12}),
    ("PIXEL_LAYOUT", 160, None, {"bits_stored": 17}),
    ("DUP_SOP_PIXELS", 160, one(5, sop_uid="1.2.6"), {}),
    ("NO_SPACING", 160, None, {"pixel_spacing_mm": None}),
    ("NO_SPACING", 160, None, {"pixel_spacing_mm": (0.0, 1.0)}),
    ("NO_SPACING", 160, lambda k: {"position_mm": None}, {}),
    ("IOP_INVALID", 160, None, {"orientation": (0.0, 1.05, 0.0, 0.0, 0.0, -1.0)}),
    ("IOP_INVALID", 160, None, {"orientation": (0.0, 1.0, 0.0, 0.0, 0.3, -0.954)}),
    ("LATERALITY", 160, None, {"patient_orientation": ("A", "F")}),
    ("LATERALITY", 160, None, {"patient_orientation": ("P", "HR")}),
    ("DUP_POSITION", 160, one(10, position_mm=(-69.0, -90.0, 90.0)), {}),
    ("SHEAR", 160, at(lambda k: (-80.0 + k, -90.0 + 0.3 * k, 90.0)), {}),
    ("MISSING_SLICE", 159, kept(*range(10), *range(11, 160)), {}),
    ("MISSING_SLICE", 157, kept(*range(10), *range(12, 30), *range(31, 160)), {}),
    ("SPACING", 160, at(lambda k: (-80.0 + k + 0.4 * (k > 12), -90.0, 90.0)), {}),
    ("COUNT_MISMATCH", 150, None, {"images_in_acquisition": 160}),
    ("COUNT_MISMATCH", 80, kept(*range(0, 160, 2)), {"slice_spacing_mm": 1.0,
                                                      "slice_thickness_mm": 2.0}),
    ("COUNT_MISMATCH", 159, lambda k: {"instance_number": 1 + k + (k > 40)}, {}),
    ("COVERAGE", 60, None, {}),
    ("COVERAGE", 160, None, {"rows": 120}),
    ("NOT_HEAD", 160, None, {"body_part": "LSPINE"}),
    ("NOT_HEAD", 160, None, {"rows": 400}),
    ("NO_PHYSICS", 160, None, {
        "image_type": ("DERIVED", "SECONDARY"), "scanning_sequence": (),
        "repetition_time_ms": None, "echo_time_ms": None, "inversion_time_ms": None,
        "flip_angle_deg": None}),
    ("REVIEW", 160, None, {"image_type": ("DERIVED", "PRIMARY", "UNI"),
                           "series_description": None}),
]  # fmt: skip

REPAIRED: list[tuple[str, Callable[[int], Values] | None, Values]] = [
    ("NO_PREAMBLE", one(0, faults=("NO_PREAMBLE",)), {}),
    ("PREAMBLE_DATA", one(0, faults=("PREAMBLE_DATA",)), {}),
    ("TRAILING_DATA", one(0, faults=("TRAILING_DATA",)), {}),
    ("IOP_ROUNDED", None, {"orientation": (0.0, 1.003, 0.0, 0.0, 0.0, -1.0)}),
    ("DATE_ABSURD", None, {"bad": ("acquisition_date",)}),
    ("DATE_ABSURD", None, {"birth_date": "2020-01-01"}),
    ("UID_INVALID", None, {"series_uid": "1.2..3"}),
    ("UID_INVALID", None, {"frame_uid": "1." * 40 + "1"}),
    ("BAD_VALUE", None, {"bad": ("flip_angle_deg",)}),
    ("CHARSET", one(0, faults=("CHARSET",)), {}),
    ("INTERPOLATED", None, {"acquisition_matrix": (0, 128, 192, 0)}),
]  # fmt: skip


@pytest.mark.parametrize(("code", "n", "edit", "values"), DECISIVE)
def test_each_fault_alone_is_decided_with_its_own_code(
    make_stack: Any, code: str, n: int, edit: Any, values: Values
) -> None:
    found, _ = judge(Case(stack=make_stack(n, edit, **values), config=IngestConfig()))
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(("code", "edit", "values"), REPAIRED)
def test_each_safe_fault_is_repaired_and_recorded(
    make_stack: Any, code: str, edit: Any, values: Values
) -> None:
    found, repairs = judge(Case(stack=make_stack(160, edit, **values), config=IngestConfig()))
    assert found is None
    assert code in [repair.code for repair in repairs]


@pytest.mark.parametrize("fact", ["MIXED_PATIENTS", "NO_IDENTITY"])
def test_what_only_the_whole_export_shows_decides_too(make_files: Any, fact: str) -> None:
    (stack,) = find_stacks(make_files(160), {fact})
    found, _ = judge(Case(stack=stack, config=IngestConfig()))
    assert found is not None
    assert (found.code, found.action) == (fact, "quarantine")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"orientation": (0.96, 0.28, 0.0, 0.0, 0.0, -1.0)},
        {"image_type": ("ORIGINAL", "PRIMARY", "M", "DIS3D", "MEAN")},
        {"patient_name": "Testa^Paola", "patient_id": "QX100"},
        {"body_part": "HEAD"},
        {"images_in_acquisition": 160, "slice_spacing_mm": 1.0},
        {"birth_date": None, "age_years": 64.0},
    ],
)
def test_a_sound_scan_is_accepted_in_silence(make_stack: Any, values: Values) -> None:
    row = values.get("orientation", (0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    normal = (row[1] * row[5] - row[2] * row[4], row[2] * row[3] - row[0] * row[5], 0.0)
    stack = make_stack(160, at(lambda k: tuple(k * v for v in normal)), **values)  # type: ignore[arg-type,return-value]
    assert judge(Case(stack=stack, config=IngestConfig())) == (None, [])


@pytest.mark.parametrize(
    ("code", "config"),
    [
        ("GD", IngestConfig(allow_gadolinium=True)),
        ("LOSSY", IngestConfig(allow_lossy=True)),
        ("REVIEW", IngestConfig(accept_review=True)),
        ("NO_PHYSICS", IngestConfig(accept_review=True)),
        ("AGE_RANGE", IngestConfig(fewest_age_years=5)),
    ],
)
def test_settings_can_accept_what_they_name(
    make_stack: Any, code: str, config: IngestConfig
) -> None:
    _, n, edit, values = next(row for row in DECISIVE if row[0] == code)
    assert judge(Case(stack=make_stack(n, edit, **values), config=config))[0] is None


def test_a_sibling_with_another_inversion_time_makes_an_mp2rage_part(make_stack: Any) -> None:
    first = make_stack(series_uid="1", inversion_time_ms=700.0)
    second = make_stack(series_uid="2", inversion_time_ms=1300.0)
    case = Case(stack=first, config=IngestConfig(), siblings=(second,))
    found, _ = judge(case)
    assert found is not None
    assert found.code == "MP2RAGE_PART"


def test_every_rule_has_a_test_and_every_code_an_explanation() -> None:
    tested = {row[0] for row in DECISIVE} | {row[0] for row in REPAIRED}
    tested |= {"MIXED_PATIENTS"}
    # Repairs made while stacks are formed are tested with the stacks.
    formed = {"DUP_SOP_HEADER", "DUP_SLICE", "SPLIT_ECHO", "SPLIT_ORIENTATION", "SPLIT_ACQ"}
    formed |= {"JOINED", "SESSION_MERGED", "SESSION_SPLIT"}
    codes = [rule.code for rule in RULES]
    assert {*codes} == tested | formed
    assert len(codes) == len({*codes})
    assert {*codes} <= ACTIONS.keys()
    for code, words in WORDS.items():
        assert len(words) > 8, code
