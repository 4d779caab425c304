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
