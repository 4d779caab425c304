"""The header of one DICOM file, as far as ingest knows it: the allow-list of elements.

`Header` is the record, one field an element with its tag and parser; nothing else of a file is
looked at. The fields of the group "identity" feed pseudonyms and selection and never leave ingest.
"""

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import date
from functools import cache
from typing import Any

Parser = Callable[[bytes], Any]

EXPLICIT = "1.2.840.10008.1.2.1"
LOSSY = frozenset(f"1.2.840.10008.1.2.4.{last}" for last in ("50", "51", "81", "91"))
MR_IMAGE, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"


def text(value: bytes) -> str | None:
    """Return one text without padding; None where it is empty."""
    return value.decode("latin-1").strip(" \0") or None


def word(*allowed: str) -> Parser:
    """Return the parser of one word out of a closed list."""

    def parse(value: bytes) -> str | None:
        found = text(value)
        if found is not None and found.upper() not in allowed:
            raise ValueError("word")
        return found and found.upper()

    return parse


def words(value: bytes) -> tuple[str, ...]:
    """Return a multi-valued code string."""
    parts = value.decode("latin-1").strip(" \0").upper().split("\\")
    return tuple(p.strip() for p in parts if p.strip())


def _decimal(written: str) -> float:
    # Python also reads 1_000, which no scanner writes.
    if "_" in written:
        raise ValueError("decimal")
    return float(written)


def number(low: float, high: float) -> Parser:
    """Return the parser of one decimal number in a range."""

    def parse(value: bytes) -> float | None:
        found = text(value)
        if found is None:
            return None
        result = _decimal(found.split("\\")[0])
        if not low <= result <= high:
            raise ValueError("range")
        return result

    return parse


def numbers(count: int) -> Parser:
    """Return the parser of exactly `count` decimal numbers."""

    def parse(value: bytes) -> tuple[float, ...] | None:
        if text(value) is None:
            return None
        found = tuple(_decimal(part) for part in value.decode("latin-1").strip(" \0").split("\\"))
        if len(found) != count or not all(abs(v) < 1e5 for v in found):
            raise ValueError("count")
        return found

    return parse


def integer(value: bytes) -> int | None:
    """Return one integer that is written as text."""
    found = text(value)
    result = None if found is None else int(_decimal(found.split("\\")[0]))
    if result is not None and abs(result) >= 1 << 31:
        raise ValueError("range")
    return result


def binary(value: bytes) -> int | None:
    """Return one little-endian unsigned integer (US, UL)."""
    if len(value) > 4:
        raise ValueError("length")
    return int.from_bytes(value, "little") if value else None


def count(value: bytes) -> int | None:
    """Return a private number of slices; None where it cannot be one."""
    found = binary(value)
    return found if found and found < 1 << 15 else None


def shorts(value: bytes) -> tuple[int, ...]:
    """Return four little-endian unsigned integers (US), or none."""
    return struct.unpack("<4H", value) if value else ()


def real(value: bytes) -> float | None:
    """Return one little-endian double (FD)."""
    return float(struct.unpack("<d", value)[0]) if value else None


def day(first_year: int) -> Parser:
    """Return the parser of a date, as YYYY-MM-DD, between `first_year` and today."""

    def parse(value: bytes) -> str | None:
        found = text(value)
        if found is None:
            return None
        if not re.fullmatch(r"\d{8}", found):
            raise ValueError("date")
        result = date(int(found[:4]), int(found[4:6]), int(found[6:]))
        if not first_year <= result.year or result > date.today():
            raise ValueError("date")
        return result.isoformat()

    return parse


def age(value: bytes) -> float | None:
    """Return an age string (AS) in years."""
    found = text(value)
    if found is None:
        return None
    if not re.fullmatch(r"\d{3}[DWMY]", found):
        raise ValueError("age")
    return int(found[:3]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[found[3]]


def present(value: bytes) -> bool:
    """Return that the element is there and not empty."""
    return bool(value)


def _tag(tag: int, parse: Parser, default: Any = None) -> Any:
    return field(default=default, metadata={"tag": tag, "parse": parse})


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What ingest knows of one DICOM file; None where a value is absent or invalid."""

    # Identity: feeds pseudonyms, selection and checks, never written.
    charset: str | None = _tag(0x00080005, text)
    patient_id: str | None = _tag(0x00100020, text)
    other_ids: tuple[str, ...] = _tag(0x00101000, words, ())
    issuer: str | None = _tag(0x00100021, text)
    patient_name: str | None = _tag(0x00100010, text)
    birth_date: str | None = _tag(0x00100030, day(1880))
    accession: str | None = _tag(0x00080050, text)
    institution: str | None = _tag(0x00080080, text)
    study_date: str | None = _tag(0x00080020, day(1980))
    acquisition_date: str | None = _tag(0x00080022, day(1980))
    acquisition_time: str | None = _tag(0x00080032, text)
    content_time: str | None = _tag(0x00080033, text)
    series_description: str | None = _tag(0x0008103E, text)
    protocol_name: str | None = _tag(0x00181030, text)
    sequence_name: str | None = _tag(0x00180024, text)
    study_description: str | None = _tag(0x00081030, text)
    contrast_agent: str | None = _tag(0x00180010, text)
    contrast_sequence: bool = _tag(0x00180012, present, False)
    contrast_volume_ml: float | None = _tag(0x00181041, number(0, 1000))
    quality_subject: str | None = _tag(0x00100200, text)
    species: str | None = _tag(0x00102201, text)
    study_uid: str | None = _tag(0x0020000D, text)
    series_uid: str | None = _tag(0x0020000E, text)
    sop_uid: str | None = _tag(0x00080018, text)
    frame_uid: str | None = _tag(0x00200052, text)
    # Kind of object.
    sop_class: str | None = _tag(0x00080016, text)
    image_type: tuple[str, ...] = _tag(0x00080008, words, ())
    complex_part: str | None = _tag(0x00089208, text)
    manufacturer: str | None = _tag(0x00080070, text)
    model: str | None = _tag(0x00081090, text)
    sex: str | None = _tag(0x00100040, word("M", "F", "O"))
    age_years: float | None = _tag(0x00101010, age)
    body_part: str | None = _tag(0x00180015, text)
    synthetic: str | None = _tag(0x0008001C, word("YES", "NO"))
    burned_in: str | None = _tag(0x00280301, word("YES", "NO"))
    # Physics.
    scanning_sequence: tuple[str, ...] = _tag(0x00180020, words, ())
    sequence_variant: tuple[str, ...] = _tag(0x00180021, words, ())
    acquisition_type: str | None = _tag(0x00180023, word("1D", "2D", "3D"))
    angio: str | None = _tag(0x00180025, word("Y", "N"))
    repetition_time_ms: float | None = _tag(0x00180080, number(0.1, 1e5))
    echo_time_ms: float | None = _tag(0x00180081, number(0, 1e4))
    inversion_time_ms: float | None = _tag(0x00180082, number(0, 1e5))
    flip_angle_deg: float | None = _tag(0x00181314, number(0, 360))
    field_strength_t: float | None = _tag(0x00180087, number(0.01, 30))
    bandwidth_hz: float | None = _tag(0x00180095, number(1, 1e5))
    b_value: float | None = _tag(0x00189087, real)
    # Numbers that tell files of one series apart.
    series_number: int | None = _tag(0x00200011, integer)
    acquisition_number: int | None = _tag(0x00200012, integer)
    instance_number: int | None = _tag(0x00200013, integer)
    temporal_position: int | None = _tag(0x00200100, integer)
    images_in_acquisition: int | None = _tag(0x00201002, integer)
    # Private, so they mean this only in files of these makers.
    ge_slices: int | None = _tag(0x0021104F, count)
    philips_slices: int | None = _tag(0x20011018, count)
    siemens_tiles: int | None = _tag(0x0019100A, count)
    # Geometry.
    position_mm: tuple[float, float, float] | None = _tag(0x00200032, numbers(3))
    orientation: tuple[float, ...] | None = _tag(0x00200037, numbers(6))
    pixel_spacing_mm: tuple[float, float] | None = _tag(0x00280030, numbers(2))
    slice_spacing_mm: float | None = _tag(0x00180088, number(0.01, 100))
    slice_thickness_mm: float | None = _tag(0x00180050, number(0.01, 100))
    patient_orientation: tuple[str, ...] = _tag(0x00200020, words, ())
    acquisition_matrix: tuple[int, ...] = _tag(0x00181310, shorts, ())
    # Pixels.
    rows: int | None = _tag(0x00280010, binary)
    columns: int | None = _tag(0x00280011, binary)
    samples: int | None = _tag(0x00280002, binary, 1)
    frames: int | None = _tag(0x00280008, integer, 1)
    photometric: str | None = _tag(0x00280004, text)
    bits_allocated: int | None = _tag(0x00280100, binary)
    bits_stored: int | None = _tag(0x00280101, binary)
    high_bit: int | None = _tag(0x00280102, binary)
    signed: int | None = _tag(0x00280103, binary, 0)
    padding_value: int | None = _tag(0x00280120, binary)
    rescale_intercept: float | None = _tag(0x00281052, number(-1e9, 1e9), 0.0)
    rescale_slope: float | None = _tag(0x00281053, number(-1e9, 1e9), 1.0)
    lossy: str | None = _tag(0x00282110, word("00", "01"))
    # Found while reading.
    syntax: str = EXPLICIT
    pixel_offset: int = -1
    """Where the native pixel values begin in the file; -1 where they are encoded."""
    sha256: str = ""
    pixel_sha256: str = ""
    faults: tuple[str, ...] = ()
    """Reason codes of what is wrong with the file itself."""
    bad: tuple[str, ...] = ()
    """Names of fields whose value was invalid."""
    per_frame: tuple[dict[str, Any], ...] = ()
    """For each frame of an Enhanced MR image, the fields that differ between frames."""
    frame: int = 0
    """Which frame of its file this is."""

    @property
    def study_day(self) -> str | None:
        """The calendar day of the scan, YYYY-MM-DD."""
        return self.study_date or self.acquisition_date

    @property
    def is_lossy(self) -> bool:
        """Whether the pixels were ever compressed with loss."""
        return self.lossy == "01" or self.syntax in LOSSY

    @property
    def acquired_mm(self) -> tuple[float, float, float] | None:
        """Edges of what was measured along row, column and normal, mm; None where unknown."""
        if not (self.acquisition_matrix and self.pixel_spacing_mm):
            return None
        # Frequency rows, frequency columns, phase rows, phase columns; two of them are 0.
        a, b, c, d = self.acquisition_matrix
        rows, columns = max(a, c), max(b, d)
        if not (rows and columns and self.rows and self.columns and self.slice_thickness_mm):
            return None
        between_rows, between_columns = self.pixel_spacing_mm
        edges = between_columns * self.columns / columns, between_rows * self.rows / rows
        return *edges, self.slice_thickness_mm

    def spread(self) -> list["Header"]:
        """Return one header a frame; the header itself where the file holds one image."""
        if not self.per_frame:
            return [self]
        n_bytes = (self.rows or 0) * (self.columns or 0) * (self.bits_allocated or 16) // 8
        frames = []
        for k, own in enumerate(self.per_frame):
            changed: dict[str, Any] = {
                n: tuple(v) if isinstance(v, list) else v for n, v in own.items()
            }
            changed |= {"frame": k, "frames": 1, "per_frame": ()}
            changed["pixel_sha256"] = f"{self.pixel_sha256}/{k}"
            if self.pixel_offset >= 0:
                changed["pixel_offset"] = self.pixel_offset + k * n_bytes
            frames.append(replace(self, **changed))
        return frames

    def to_json(self) -> str:
        """Return the header as text, for the index."""
        return json.dumps([getattr(self, name) for name in _names()])

    @classmethod
    def from_json(cls, stored: str) -> "Header":
        """Return what `to_json` wrote."""
        parts = (tuple(v) if isinstance(v, list) else v for v in json.loads(stored))
        values: dict[str, Any] = dict(zip(_names(), parts, strict=True))
        return cls(**values)


@cache
def _names() -> tuple[str, ...]:
    return tuple(f.name for f in fields(Header))


PARSERS: dict[int, tuple[str, Parser]] = {
    f.metadata["tag"]: (f.name, f.metadata["parse"]) for f in fields(Header) if f.metadata
}
"""Tag -> name of the field, and its parser."""
