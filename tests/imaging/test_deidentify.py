import json
from dataclasses import fields
from typing import Any

import pytest

from rarescan.imaging.deidentify import maker, sidecar
from rarescan.imaging.header import Header


def test_only_listed_values_pass_whatever_the_header_holds() -> None:
    marked: dict[str, Any] = {}
    for field in fields(Header):
        if field.type in (str, str | None):
            marked[field.name] = f"SECRET {field.name}"
        elif str(field.type).startswith("tuple[str"):
            marked[field.name] = ("SECRET", "NORM", "GR", "SP")
    written = json.dumps(sidecar(Header(**marked)))
    # One of three words, which the reader has checked.
    assert written.count("SECRET") == written.count("SECRET acquisition_type") == 1


def test_times_are_seconds_and_numbers_have_six_digits() -> None:
    header = Header(
        repetition_time_ms=2300.0,
        echo_time_ms=2.98123456789,
        inversion_time_ms=0.0,
        field_strength_t=2.89362001,
        model="Prisma",
        manufacturer="SIEMENS",
        image_type=("ORIGINAL", "PRIMARY", "M", "NORM", "FM3_2"),
    )
    assert sidecar(header) == {
        "Modality": "MR",
        "Manufacturer": "Siemens",
        "ManufacturersModelName": "Prisma",
        "MagneticFieldStrength": 2.89362,
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM"],
        "RepetitionTime": 2.3,
        "EchoTime": 0.00298123,
        "Gadolinium": "unknown",
    }


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("SIEMENS", "Siemens"),
        ("Siemens Healthineers", "Siemens"),
        ("GE MEDICAL SYSTEMS", "GE"),
        ("Philips Medical Systems", "Philips"),
        ("TOSHIBA_MEC", "Canon"),
        ("UIH", "UIH"),
        ("Genesis Imaging", "Other"),
        (None, "Other"),
    ],
)
def test_manufacturers_become_one_of_eight_words(written: str | None, expected: str) -> None:
    assert maker(Header(manufacturer=written)) == expected
