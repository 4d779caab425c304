from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from rarescan.imaging.convert import PixelFaultError, read_plane
from rarescan.imaging.header import Header
from rarescan.imaging.parse import read_header


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 4000, (1, 12, 10)).astype(np.int16)


@pytest.fixture(scope="module")
def to_bytes(make_dataset: Any, voxels: np.ndarray) -> Any:
    def make(syntax: str = ExplicitVRLittleEndian, **values: Any) -> bytes:
        ds = make_dataset(voxels, 0, "1", **values)
        if syntax == ExplicitVRBigEndian:
            ds.PixelData = voxels[0].astype(">i2").tobytes()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = syntax
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        if syntax == RLELossless:
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.compress(RLELossless, generate_instance_uid=False)
        stream = BytesIO()
        pydicom.dcmwrite(stream, ds, enforce_file_format=True)
        return stream.getvalue()

    return make


@pytest.fixture(scope="module")
def plain(to_bytes: Any) -> bytes:
    return bytes(to_bytes())


def header_of(data: bytes) -> Header:
    header = read_header(data)
    assert isinstance(header, Header)
    return header


def test_values_are_those_that_pydicom_reads(plain: bytes) -> None:
    ds, header = pydicom.dcmread(BytesIO(plain)), header_of(plain)
    assert header.patient_id == ds.PatientID == "00471199"
    assert header.birth_date == "1955-03-20"
    assert header.position_mm == tuple(ds.ImagePositionPatient)
    assert header.orientation == tuple(ds.ImageOrientationPatient)
    assert header.echo_time_ms == ds.EchoTime
    assert header.image_type == tuple(ds.ImageType)
    assert (header.rows, header.columns, header.bits_stored) == (12, 10, 12)
    assert plain[header.pixel_offset :] == ds.PixelData
    assert header.faults == header.bad == ()


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless],
)
def test_every_transfer_syntax_gives_the_same_header_and_voxels(
    to_bytes: Any, plain: bytes, voxels: np.ndarray, syntax: str, tmp_path: Path
) -> None:
    data = to_bytes(syntax)
    found, expected = header_of(data), header_of(plain)
    for name in (
        "patient_id",
        "position_mm",
        "rows",
        "bits_stored",
        "image_type",
        "flip_angle_deg",
    ):
        assert getattr(found, name) == getattr(expected, name)
    (tmp_path / "x").write_bytes(data)
    assert np.array_equal(read_plane(found, tmp_path / "x"), voxels[0])


def test_a_header_survives_the_index(plain: bytes) -> None:
    header = header_of(plain)
    assert Header.from_json(header.to_json()) == header


def test_a_file_cut_anywhere_is_never_taken_for_whole(plain: bytes) -> None:
    pixels_at = header_of(plain).pixel_offset
    for n in range(0, len(plain), 3):
        found = read_header(plain[:n])
        if n >= pixels_at:
            assert isinstance(found, Header)
            assert found.faults == ("TRUNC_PIXELS",)
        elif isinstance(found, Header):
            assert found.faults == ("TRUNC_HEADER",)
        else:
            assert found in ("TRUNC_HEADER", "NOT_DICOM")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "TRUNC_HEADER"),
        (b"Readme: open the viewer on the disc.\r\n" * 9, "NOT_DICOM"),
        (b"\xff\xd8\xff\xe0" + bytes(400), "NOT_DICOM"),
        (b"PK\x03\x04" + bytes(400), "ARCHIVE_INSIDE"),
    ],
)
def test_what_is_no_dicom_file_is_named(data: bytes, code: str) -> None:
    assert read_header(data) == code


def test_oddities_of_the_file_are_found_and_the_header_is_still_read(plain: bytes) -> None:
    whole = header_of(plain)
    for data, fault in [
        (plain[132:], "NO_PREAMBLE"),
        (b"II*\0" + plain[4:], "PREAMBLE_DATA"),
        (b"MZ\x90\0" + plain[4:], "POLYGLOT"),
        (plain + b"appended", "TRAILING_DATA"),
    ]:
        found = header_of(data)
        assert found.faults == (fault,)
        assert found.pixel_sha256 == whole.pixel_sha256
        assert found.patient_id == whole.patient_id


def test_values_out_of_range_or_ill_formed_count_as_absent(to_bytes: Any) -> None:
    with pytest.warns(UserWarning, match="Invalid value"):
        data = to_bytes(PatientBirthDate="31.12.55", RepetitionTime="0", FlipAngle="9000")
    header = header_of(data)
    assert header.birth_date is None
    assert header.flip_angle_deg is None
    assert {"birth_date", "flip_angle_deg", "repetition_time_ms"} == {*header.bad}


@pytest.mark.parametrize(
    ("tag", "vr", "value", "name"),
    [
        # More digits than Python turns into text.
        (b"\x28\0\x10\0", b"US", b"\xff" * 4000, "rows"),
        (b"\x18\0\x10\x13", b"US", b"\1\0" * 3, "acquisition_matrix"),
        (b"\x20\0\x13\0", b"IS", b"1" * 60, "instance_number"),
    ],
)
def test_numbers_of_impossible_length_count_as_absent(
    plain: bytes, tag: bytes, vr: bytes, value: bytes, name: str
) -> None:
    given = tag + vr + len(value).to_bytes(2, "little") + value
    start = plain.find(tag + vr)
    if start > 0:
        length = int.from_bytes(plain[start + 6 : start + 8], "little")
        data = plain[:start] + given + plain[start + 8 + length :]
    else:
        data = plain.replace(b"\x20\0\x0d\0UI", given + b"\x20\0\x0d\0UI", 1)
    header = header_of(data)
    assert (header.bad, header.patient_id) == ((name,), "00471199")
    assert Header.from_json(header.to_json()) == header


def test_nested_sequences_of_any_depth_and_encoding_are_stepped_over(
    to_bytes: Any, plain: bytes
) -> None:
    def nest(depth: int, *, undefined: bool) -> Dataset:
        inner = Dataset()
        inner.PatientID = f"NESTED{depth}"
        if depth:
            inner.ReferencedImageSequence = Sequence([nest(depth - 1, undefined=undefined)])
            inner["ReferencedImageSequence"].is_undefined_length = undefined
            inner.is_undefined_length_sequence_item = undefined
        return inner

    for undefined in (False, True):
        sequence = Sequence([nest(40, undefined=undefined)])
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            data = to_bytes(syntax, ReferencedImageSequence=sequence)
            found = header_of(data)
            assert (found.patient_id, found.faults) == ("00471199", ())
            assert found.pixel_sha256 == header_of(plain).pixel_sha256


def test_a_million_nested_sequences_end_as_a_cut_header(plain: bytes) -> None:
    opening = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    at = plain.index(b"\x08\x00\x16\x00UI")
    found = read_header(plain[:at] + opening * 200_000)
    assert found == "TRUNC_HEADER"


def test_a_deflate_bomb_ends_at_the_limit(to_bytes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rarescan.imaging.parse._LARGEST_INFLATED", 1000)
    assert read_header(to_bytes(DeflatedExplicitVRLittleEndian)) == "TRUNC_HEADER"


@settings(deadline=None, max_examples=300, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_mutated_files_never_raise(plain: bytes, data: st.DataObject) -> None:
    broken = bytearray(plain)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(broken) - 1))
        broken[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=8))
        if not broken:
            break
    assert isinstance(read_header(bytes(broken)), Header | str)


@pytest.mark.parametrize("stored", [12, 16])
@pytest.mark.parametrize("signed", [0, 1])
def test_bits_above_the_stored_ones_are_cleared_and_the_sign_is_kept(
    to_bytes: Any, tmp_path: Path, signed: int, stored: int
) -> None:
    low = -(1 << (stored - 1)) if signed else 0
    true = np.linspace(low, low + (1 << stored) - 1, 120).astype(np.int32).reshape(12, 10)
    junk = 0 if stored == 16 else 0xA000
    raw = ((true & ((1 << stored) - 1)) | junk).astype(np.uint16)
    data = to_bytes(BitsStored=stored, HighBit=stored - 1, PixelRepresentation=signed)
    header = header_of(data)
    (tmp_path / "x").write_bytes(data[: header.pixel_offset] + raw.tobytes())
    assert np.array_equal(read_plane(header, tmp_path / "x"), true)


def test_broken_codes_and_cut_files_are_pixel_faults(to_bytes: Any, tmp_path: Path) -> None:
    for syntax in (RLELossless, ExplicitVRLittleEndian):
        data = to_bytes(syntax)
        header = header_of(data)
        (tmp_path / "x").write_bytes(data[:-90])
        with pytest.raises(PixelFaultError, match="TRUNC_PIXELS"):
            read_plane(header, tmp_path / "x")


def test_what_the_reader_finds_odd_is_not_said_aloud(
    to_bytes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    name = b"\x10\0\x40\0CS\x0a\0mustermann"
    at = (data := to_bytes(RLELossless)).index(b"\x10\0\x40\0CS")
    data = data[:at] + name + data[at + 10 :]
    (tmp_path / "x").write_bytes(data[:-60])
    with pytest.raises(PixelFaultError, match="TRUNC_PIXELS"):
        read_plane(header_of(data), tmp_path / "x")
    assert (capfd.readouterr(), caplog.text) == (("", ""), "")


def test_a_code_without_decoder_is_named(to_bytes: Any, tmp_path: Path) -> None:
    film = b"1.2.840.10008.1.2.4.102\0"
    data = to_bytes(RLELossless).replace(b"\x14\0" + RLELossless.encode() + b"\0", b"")
    at = data.index(b"\2\0\x10\0UI")
    data = data[: at + 6] + b"\x18\0" + film + data[at + 6 :]
    (tmp_path / "x").write_bytes(data)
    header = header_of(data)
    assert header.syntax == "1.2.840.10008.1.2.4.102"
    with pytest.raises(PixelFaultError, match="NO_DECODER"):
        read_plane(header, tmp_path / "x")
