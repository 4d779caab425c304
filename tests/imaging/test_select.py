import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from rarescan.imaging import select
from rarescan.imaging.faults import Case, judge
from rarescan.imaging.header import Header
from rarescan.imaging.spec import IngestConfig
from rarescan.imaging.stacks import Stack


def stack_of(row: dict[str, str], make_stack: Any) -> Stack:
    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    step = float(row["thickness_mm"])
    stack: Stack = make_stack(
        int(150 / step) + 1,
        lambda k: {"position_mm": (k * step, 0.0, 0.0)},
        series_uid=row["id"],
        image_type=tuple(row["image_type"].split("\\")),
        scanning_sequence=tuple(row["scanning_sequence"].split("\\")),
        sequence_variant=tuple(row["sequence_variant"].split("\\")),
        acquisition_type=row["acq"],
        echo_time_ms=number("te_ms"),
        repetition_time_ms=number("tr_ms"),
        inversion_time_ms=number("ti_ms"),
        flip_angle_deg=number("flip_deg"),
        series_description=row["text"],
    )
    return stack


def session_of(name: str) -> str:
    return next((part for part in ("memprage", "mp2rage") if part in name), name)


def test_real_header_sets_are_decided_as_their_sources_say(
    real_data: Path, make_stack: Any
) -> None:
    sessions: dict[str, list[tuple[dict[str, str], Stack]]] = defaultdict(list)
    with (real_data / "dicom/t1_physics.csv").open() as table:
        for row in csv.DictReader(table):
            sessions[session_of(row["id"])].append((row, stack_of(row, make_stack)))
    decided = {}
    for session in sessions.values():
        stacks = [stack for _, stack in session]
        good = {}
        for row, stack in session:
            others = tuple(s for s in stacks if s is not stack)
            finding, _ = judge(Case(stack=stack, config=IngestConfig(), siblings=others))
            if finding is None:
                good[row["id"]] = stack
            decided[row["id"]] = (
                "review"
                if finding and finding.code == "REVIEW"
                else "reject"
                if finding
                else "accept"
            )
        ranked = select.rank(list(good.values()), stacks)
        for name, stack in good.items():
            if stack is not ranked[0]:
                decided[name] = "runner_up"
    expected = {row["id"]: row["expect"] for s in sessions.values() for row, _ in s}
    assert decided == expected


@pytest.mark.parametrize(
    ("values", "points"),
    [
        # Points measured with an independent prototype on nominal parameter sets.
        ({"series_description": None}, 79),
        ({"scanning_sequence": ("GR",), "sequence_variant": ("SP",), "inversion_time_ms": None,
          "repetition_time_ms": 20.0, "flip_angle_deg": 25.0, "series_description": "fspgr",
          "image_type": ("ORIGINAL", "PRIMARY")}, 66),
        ({"scanning_sequence": ("SE",), "sequence_variant": ("SK",), "inversion_time_ms": None,
          "repetition_time_ms": 600.0, "echo_time_ms": 11.0}, 62),
        ({"scanning_sequence": ("SE", "IR"), "sequence_variant": ("SK",), "acquisition_type": "3D",
          "repetition_time_ms": 5000.0, "echo_time_ms": 390.0, "inversion_time_ms": 1800.0,
          "series_description": "t2_space_flair"}, -21),
        ({"scanning_sequence": ("EP", "GR")}, -100),
        ({"angio": "Y"}, -100),
        ({"b_value": 1000.0}, -100),
    ],
)  # fmt: skip
def test_points_of_sequences(make_stack: Any, values: dict[str, Any], points: int) -> None:
    assert select.score(make_stack(**values)) == points


SE, IR_SE = ("SE",), ("SE", "IR")
SPOILED = {"scanning_sequence": ("GR",), "sequence_variant": ("SP",), "inversion_time_ms": None}
NOMINAL: list[tuple[str, dict[str, Any], str]] = [
    # Nominal parameters of scanners' manuals, and what a radiographer calls the series.
    ("MPRAGE", {}, "accept"),
    ("MPRAGE without a word", {"series_description": None}, "accept"),
    ("MPRAGE 1.2 mm", {"step_mm": 1.2}, "accept"),
    ("IR-FSPGR BRAVO", {"repetition_time_ms": 8.2, "echo_time_ms": 3.2, "inversion_time_ms": 450.0,
                        "flip_angle_deg": 12.0, "series_description": "Sag BRAVO"}, "accept"),
    ("3D TFE", {"scanning_sequence": ("GR",), "sequence_variant": ("MP",), "flip_angle_deg": 8.0,
                "repetition_time_ms": 6.7, "echo_time_ms": 3.1, "series_description": "T1W_3D_TFE"},
     "accept"),
    ("unprepared FSPGR", {**SPOILED, "repetition_time_ms": 20.0, "echo_time_ms": 4.0,
                          "flip_angle_deg": 25.0, "step_mm": 1.2, "series_description": None,
                          "image_type": ("ORIGINAL", "PRIMARY")}, "review"),
    ("T1 SPACE", {"scanning_sequence": SE, "sequence_variant": ("SK", "SP"),
                  "inversion_time_ms": None, "repetition_time_ms": 700.0, "echo_time_ms": 11.0,
                  "image_type": ("ORIGINAL", "PRIMARY"), "series_description": "t1_space"},
     "review"),
    ("UNI of MP2RAGE", {"image_type": ("DERIVED", "PRIMARY", "M", "UNI"), "flip_angle_deg": None,
                        "repetition_time_ms": 5000.0, "inversion_time_ms": None,
                        "series_description": "mp2rage UNI"}, "review"),
    ("3D FLAIR", {"scanning_sequence": IR_SE, "repetition_time_ms": 5000.0, "echo_time_ms": 388.0,
                  "inversion_time_ms": 1800.0, "series_description": "t2_space_flair"}, "reject"),
    ("3D T2 SPACE", {"scanning_sequence": SE, "repetition_time_ms": 3200.0, "echo_time_ms": 563.0,
                     "inversion_time_ms": None, "series_description": "T2w_SPC"}, "reject"),
    ("2D T1 SE", {"scanning_sequence": SE, "acquisition_type": "2D", "repetition_time_ms": 500.0,
                  "echo_time_ms": 10.0, "inversion_time_ms": None, "step_mm": 5.0,
                  "series_description": "t1_se_tra"}, "reject"),
    ("2D T1 FLAIR", {"scanning_sequence": IR_SE, "acquisition_type": "2D", "step_mm": 5.0,
                     "repetition_time_ms": 2500.0, "echo_time_ms": 20.0,
                     "inversion_time_ms": 860.0, "series_description": "Ax T1 FLAIR"}, "reject"),
    ("2D T2 TSE", {"scanning_sequence": SE, "acquisition_type": "2D", "repetition_time_ms": 6000.0,
                   "echo_time_ms": 100.0, "inversion_time_ms": None, "step_mm": 4.0,
                   "series_description": "t2_tse_tra"}, "reject"),
    ("SWI", {**SPOILED, "repetition_time_ms": 27.0, "echo_time_ms": 20.0, "flip_angle_deg": 15.0,
             "step_mm": 1.5, "series_description": "SWI_Images"}, "reject"),
    ("CISS", {"scanning_sequence": ("GR",), "sequence_variant": ("SS",), "inversion_time_ms": None,
              "repetition_time_ms": 5.4, "echo_time_ms": 2.4, "flip_angle_deg": 50.0,
              "series_description": "ciss3d"}, "reject"),
    ("TOF angiography", {**SPOILED, "repetition_time_ms": 21.0, "echo_time_ms": 3.4, "angio": "Y",
                         "flip_angle_deg": 18.0, "series_description": "TOF_3D"}, "reject"),
    ("VIBE", {**SPOILED, "repetition_time_ms": 5.0, "echo_time_ms": 2.3, "flip_angle_deg": 10.0,
              "step_mm": 3.0, "series_description": "t1_vibe_tra"}, "reject"),
    ("MPRAGE after contrast agent", {"contrast_agent": "GADOVIST"}, "reject"),
    ("diffusion", {"scanning_sequence": ("EP", "SE"), "acquisition_type": "2D",
                   "b_value": 1000.0, "step_mm": 2.0}, "reject"),
    ("BOLD", {"scanning_sequence": ("EP", "GR"), "acquisition_type": "2D", "step_mm": 3.0},
     "reject"),
    ("T1 map", {"image_type": ("DERIVED", "PRIMARY", "T1 MAP")}, "reject"),
    ("first inversion of MP2RAGE", {"repetition_time_ms": 5000.0, "inversion_time_ms": 700.0,
                                    "flip_angle_deg": 4.0}, "reject"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), [case[1:] for case in NOMINAL],
                         ids=[case[0] for case in NOMINAL])  # fmt: skip
def test_nominal_sequences_are_decided_as_a_radiographer_would(
    make_stack: Any, values: dict[str, Any], expected: str
) -> None:
    values = dict(values)
    step_mm = values.pop("step_mm", 1.0)
    stack = make_stack(
        int(160 / step_mm),
        lambda k: {"position_mm": (-80.0 + k * step_mm, -90.0, 90.0)},
        **{"slice_thickness_mm": step_mm, **values},
    )
    finding, _ = judge(Case(stack=stack, config=IngestConfig()))
    answer = "accept" if finding is None else "review" if finding.code == "REVIEW" else "reject"
    assert answer == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"contrast_agent": "GADOVIST"}, "yes"),
        ({"contrast_agent": "none"}, "no"),
        ({"contrast_sequence": True}, "yes"),
        ({"contrast_volume_ml": 7.5}, "yes"),
        ({"series_description": "t1_mprage_KM"}, "yes"),
        ({"series_description": "T1 MPRAGE +C"}, "yes"),
        ({"series_description": "t1 post gd"}, "yes"),
        ({"series_description": "t1_mprage ohne KM"}, "no"),
        ({"series_description": "T1 without contrast"}, "no"),
        ({"series_description": "t1_mprage_pre"}, "no"),
        ({"series_description": "t1_mprage_sag"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_contrast_agent_is_yes_no_or_unknown(values: dict[str, Any], expected: str) -> None:
    assert select.gadolinium(Header(**values)) == expected


def test_a_session_prefers_the_scan_without_contrast_then_normalised_then_earlier(
    make_stack: Any,
) -> None:
    plain = {"acquisition_time": "110000", "image_type": ("ORIGINAL", "PRIMARY", "NORM")}
    stacks = [
        make_stack(series_uid="1", **plain | {"contrast_agent": "gd", "acquisition_time": "1"}),
        make_stack(series_uid="2", **plain),
        make_stack(series_uid="3", **plain | {"acquisition_time": "100000"}),
        make_stack(series_uid="4", **plain | {"image_type": ("ORIGINAL", "PRIMARY")}),
    ]
    expected = ["3", "2", "4", "1"]
    for order in (stacks, stacks[::-1]):
        assert [s.first.series_uid for s in select.rank(order, order)] == expected
