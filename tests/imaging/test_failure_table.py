"""Every row of the table of faults: made on the fly, sent through the whole gate.

The number in a test's name is the row. Archives (rows 8 to 11), persons and duplicates (12, 14,
29, 43) and prepared scans (52, 56) are tested where they live.
"""

import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import N
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from spoilt_series import (
    CORONAL,
    GE,
    PHILIPS,
    PHYSICS,
    TURNED,
    Edit,
    Spoil,
    at,
    both,
    each,
    element,
    encode,
    enhanced,
    graft,
    item,
    only,
    overlay,
    place,
    private,
    undefined_vr,
    without,
)
from through_the_gate import codes, gate

from rarescan.imaging import faults, select
from rarescan.imaging.convert import PixelFaultError, read_plane
from rarescan.imaging.deidentify import sidecar
from rarescan.imaging.header import Header
from rarescan.imaging.parse import read_header
from rarescan.imaging.spec import IngestConfig
from rarescan.imaging.stacks import File, Stack, find_stacks


@pytest.fixture(scope="module")
def make(make_dataset: Any, make_head: Any) -> Callable[..., list[bytes]]:
    """Return the maker of one series in memory."""
    sound = make_head()

    def one(k: int, edit: Edit | None, voxels: np.ndarray, syntax: str, **values: Any) -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # faulty values are what is wanted
            ds = make_dataset(voxels, k, values.pop("name", "1"), **values)
            if edit is not None:
                edit(k, ds)
            return encode(ds, syntax)

    plain = [one(k, None, sound, ExplicitVRLittleEndian) for k in range(N)]

    def series(
        edit: Edit | None = None,
        spoil: Spoil | None = None,
        *,
        keep: Sequence[int] = range(N),
        voxels: np.ndarray = sound,
        syntax: str = ExplicitVRLittleEndian,
        **values: Any,
    ) -> list[bytes]:
        varies = getattr(edit, "varies", False) or syntax != ExplicitVRLittleEndian
        if varies or voxels is not sound or "name" in values:
            files = [one(k, edit, voxels, syntax, **values) for k in keep]
        else:
            # Encoding is slow: what every slice has alike is encoded once.
            first = one(keep[0], edit, sound, syntax, **values)
            files = [graft(first, plain[k]) for k in keep]
        return [spoil(k, data) for k, data in zip(keep, files, strict=True)] if spoil else files

    return series


Row = tuple[str, dict[str, Any], list[tuple[str, str]]]
ONE_SERIES: list[Row] = [
    # Name with the row's number, how the series is made, codes and actions for all of its files.
    ("0 a sound series", {}, []),
    ("2 preamble lost", {"spoil": lambda k, b: b[132:]}, [("NO_PREAMBLE", "fix")]),
    ("3 preamble with data", {"spoil": lambda k, b: b"II*\0" + b[4:]}, [("PREAMBLE_DATA", "fix")]),
    ("3 a program", {"spoil": only(5, lambda k, b: b"MZ" + b[2:])}, [("POLYGLOT", "quarantine")]),
    ("4 header cut", {"spoil": only(5, lambda k, b: b[: -N * N * 2 - 4])},
     [("TRUNC_HEADER", "quarantine")]),
    ("5 pixels cut", {"spoil": only(5, lambda k, b: b[:-7000])}, [("TRUNC_PIXELS", "quarantine")]),
    ("6 bytes behind", {"spoil": only(5, lambda k, b: b + b"left over")},
     [("TRAILING_DATA", "fix")]),
    ("6 padding element", {"spoil": lambda k, b: b + b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0abcd"},
     [("TRAILING_DATA", "fix")]),
    ("17 mosaic by type", {"edit": each(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])},
     [("MOSAIC", "drop")]),
    ("17 mosaic by count", {"edit": private(0x0019100A, "SIEMENS MR HEADER", "US", 36)},
     [("MOSAIC", "drop")]),
    ("18 constant scale", {"edit": each(RescaleSlope="2.5", RescaleIntercept="0")}, []),
    ("18 varying scale", {"edit": each(RescaleSlope=lambda k: str(1 + k / 100),
                                       RescaleIntercept="0")}, [("RESCALE_VARIES", "fix")]),
    ("19 GE", {"edit": private(0x0019109C, "GEMS_ACQU_01", "LO", "EFGRE3D"), **GE}, []),
    ("20 zero filling", {"edit": each(AcquisitionMatrix=[0, 64, 64, 0])},
     [("INTERPOLATED", "fix")]),
    ("20 overlapping slices", {"edit": each(SliceThickness="3", AcquisitionMatrix=[0, N, N, 0])},
     [("INTERPOLATED", "fix")]),
    ("20 as measured", {"edit": each(AcquisitionMatrix=[0, N, N - 6, 0])}, []),
    ("21 slice missing", {"keep": [k for k in range(N) if k != 10]},
     [("MISSING_SLICE", "quarantine")]),
    ("22 tail missing", {"keep": range(70)}, [("COVERAGE", "quarantine")]),
    ("22 numbers with gaps", {"edit": each(InstanceNumber=lambda k: 1 + k + (k > 40))},
     [("COUNT_MISMATCH", "quarantine")]),
    ("22 every second slice", {"edit": each(SpacingBetweenSlices="0.75")},
     [("COUNT_MISMATCH", "quarantine")]),
    ("22 Philips count", {"edit": private(0x20011018, "Philips Imaging DD 001", "SL", 120,
                                          **PHILIPS)}, [("COUNT_MISMATCH", "quarantine")]),
    ("22 Philips right count", {"edit": private(0x20011018, "Philips Imaging DD 001", "SL", N,
                                                **PHILIPS)}, []),
    ("22 Philips count by another maker", {"edit": private(0x20011018, "X", "SL", 120)}, []),
    ("22 GE count", {"edit": private(0x0021104F, "GEMS_RELA_01", "SS", 124), **GE},
     [("COUNT_MISMATCH", "quarantine")]),
    ("22 images in acquisition", {"edit": each(ImagesInAcquisition="120")},
     [("COUNT_MISMATCH", "quarantine")]),
    ("23 two slices in one place", {"edit": only(10, place(lambda k: at(11)))},
     [("DUP_POSITION", "quarantine")]),
    ("24 uneven", {"edit": place(lambda k: at(k) + 0.4 * (k > 12))}, [("SPACING", "quarantine")]),
    ("25 sheared", {"edit": place(at, lambda k: -70 + 0.3 * k)}, [("SHEAR", "quarantine")]),
    ("26 oblique", {"edit": each(ImageOrientationPatient=TURNED, ImagePositionPatient=lambda k: [
        -0.28 * 1.5 * k, 0.96 * 1.5 * k, 0])}, []),
    ("28 orientation rounded", {"edit": each(ImageOrientationPatient=[0, 1.004, 0, 0, 0, -1])},
     [("IOP_ROUNDED", "fix")]),
    ("28 orientation impossible", {"edit": each(ImageOrientationPatient=[0, 1.05, 0, 0, 0, -1])},
     [("IOP_INVALID", "quarantine")]),
    ("33 localizer", {"keep": range(3)}, [("LOCALIZER", "drop")]),
    ("33 localizer by type", {"edit": each(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])},
     [("LOCALIZER", "drop")]),
    *[(f"34 {kind}", {"edit": each(ImageType=["DERIVED", "SECONDARY", kind])},
       [("DERIVED", "drop")])
      for kind in ("MPR", "MIP", "MINIP", "PROJECTION IMAGE", "SUB", "ADC", "FA", "TRACEW", "CSA",
                   "REFORMATTED", "OTHER")],
    ("34b no physics", {"edit": both(without(*PHYSICS), each(
        ImageType=["DERIVED", "SECONDARY"]))}, [("NO_PHYSICS", "quarantine")]),
    ("35 capture", {"edit": each(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")},
     [("SOP_CLASS", "drop")]),
    ("36 burned in", {"edit": each(BurnedInAnnotation="YES")}, [("BURNED_IN", "drop")]),
    ("37 overlays and curves", {"edit": overlay}, []),
    ("38 lossy once", {"edit": each(LossyImageCompression="01")}, [("LOSSY", "drop")]),
    ("40 undeclared alphabet", {"edit": without("SpecificCharacterSet"), "spoil": lambda k, b:
                                b.replace(b"Mustermann", b"M\xfcstermann"[:10])},
     [("CHARSET", "fix")]),
    ("40 declared alphabet", {"spoil": lambda k, b: b.replace(b"Mustermann", b"M\xfcsterman_")},
     []),
    ("41 date of birth after the scan", {"edit": each(PatientBirthDate="20200101")},
     [("DATE_ABSURD", "fix")]),
    ("41 ill-formed date", {"edit": each(AcquisitionDate="20191399")},
     [("DATE_ABSURD", "fix"), ("BAD_VALUE", "fix")]),
    ("41 no date at all", {"edit": without("StudyDate")}, [("NO_DATE", "quarantine")]),
    ("42 no ID", {"edit": without("PatientID")}, [("NO_IDENTITY", "quarantine")]),
    *[(f"42 {word}", {"PatientID": word}, [("NO_IDENTITY", "quarantine")])
      for word in ("0", "UNKNOWN", "ANON")],
    ("44 value out of range", {"edit": each(FlipAngle="900")}, [("BAD_VALUE", "fix")]),
    ("44 not a number", {"edit": only(3, each(SliceThickness="1_5"))}, [("BAD_VALUE", "fix")]),
    ("44 standard element as UN", {"edit": undefined_vr}, []),
    ("45 huge private element", {"edit": only(7, private(
        0x00291010, "SOMEONE", "OB", bytes(20 << 20)))}, []),
    ("46 high bit too high", {"edit": each(HighBit=16)}, [("PIXEL_LAYOUT", "quarantine")]),
    ("46 one bit", {"edit": each(BitsAllocated=1, BitsStored=1, HighBit=0)},
     [("TRAILING_DATA", "fix"), ("PIXEL_LAYOUT", "quarantine")]),
    ("46 palette", {"edit": each(PhotometricInterpretation="PALETTE COLOR")},
     [("COLOUR", "quarantine")]),
    ("46 inverted", {"edit": each(PhotometricInterpretation="MONOCHROME1")},
     [("MONOCHROME1", "fix")]),
    ("47 constant", {"voxels": np.full((N, N, N), 7, np.int16)}, [("PIXELS_DEAD", "quarantine")]),
    ("49 T1 FLAIR", {"edit": each(ScanningSequence=["SE", "IR"], SequenceVariant="SK",
                                  MRAcquisitionType="2D", SliceThickness="1.5")},
     [("NOT_T1", "drop")]),
    ("49 SPACE", {"edit": each(ScanningSequence="SE", SequenceVariant="SK", RepetitionTime="600",
                               EchoTime="11", InversionTime="0")}, [("REVIEW", "quarantine")]),
    ("49 VIBE", {"edit": each(ScanningSequence="GR", SequenceVariant="SP", RepetitionTime="4",
                              EchoTime="1.3", InversionTime="0", FlipAngle="10",
                              SeriesDescription="t1_vibe_dixon")}, [("NOT_T1", "drop")]),
    ("50 contrast agent", {"edit": each(ContrastBolusAgent="Gadovist")}, [("GD", "drop")]),
    ("51 phantom", {"edit": each(PatientName="PHANTOM^ACR")}, [("PHANTOM", "drop")]),
    ("51 quality control", {"edit": each(QualityControlSubject="YES")}, [("PHANTOM", "drop")]),
    ("52 another part", {"edit": each(BodyPartExamined="KNEE")}, [("NOT_HEAD", "quarantine")]),
    ("52 field of 400 mm", {"edit": each(PixelSpacing=[4.2, 4.2])}, [("NOT_T1", "drop")]),
    ("53 slab", {"keep": range(60)}, [("COVERAGE", "quarantine")]),
    ("54 child", {"edit": both(without("PatientBirthDate"), each(PatientAge="008M"))},
     [("AGE_RANGE", "drop")]),
    ("55 directions in words", {"edit": each(PatientOrientation=["P", "F"])}, []),
    ("55 mirrored", {"edit": each(PatientOrientation=["A", "F"])}, [("LATERALITY", "quarantine")]),
    ("57 ill-formed UID", {"spoil": lambda k, b: b.replace(b"1.2.826.0.1", b"1.2..26.0.1")},
     [("UID_INVALID", "fix")]),
    ("58 no spacing", {"edit": without("PixelSpacing")}, [("NO_SPACING", "quarantine")]),
    ("58 spacing of 0", {"edit": each(PixelSpacing=[0, 1.5])}, [("NO_SPACING", "quarantine")]),
    ("58 no position", {"edit": only(9, without("ImagePositionPatient"))},
     [("NO_SPACING", "quarantine")]),
]  # fmt: skip


@pytest.mark.parametrize("row", ONE_SERIES, ids=lambda row: row[0].replace(" ", "-"))
def test_row(row: Row, make: Any, tmp_path: Path) -> None:
    _, how, expected = row
    files = make(**how)
    outcome = gate(files, tmp_path)
    n = len(files)
    assert outcome.events == Counter((code, action, n) for code, action in expected)
    refused = any(action != "fix" for _, action in expected)
    assert outcome.n_used == (0 if refused else n)


def as_stored(voxels: np.ndarray) -> np.ndarray:
    """The order of our voxels: the normal of the test series points to the right."""
    return voxels[::-1].transpose(2, 1, 0)


def test_row_1_what_is_no_dicom_is_counted(make: Any, tmp_path: Path) -> None:
    others = [b"\xff\xd8\xff\xe0" + bytes(900), b"readme " * 90, b"MZ" + bytes(500)]
    outcome = gate([*others, *make()], tmp_path)
    assert outcome.events == {("NOT_DICOM", "drop", 1): 3}
    assert outcome.n_used == N


def test_row_4_an_empty_file_leaves_a_gap(make: Any, tmp_path: Path) -> None:
    outcome = gate(make(only(40, each()), only(40, lambda k, b: b"")), tmp_path)
    assert codes(outcome) == {
        ("TRUNC_HEADER", "quarantine", 1),
        ("MISSING_SLICE", "quarantine", 95),
    }


def test_row_7_the_index_of_a_medium_is_only_counted(make: Any, tmp_path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    medium, stream = Dataset(), BytesIO()
    medium.file_meta, medium.FileSetID = meta, "DISC"
    inner = Dataset()
    inner.ReferencedFileID = ["ETC", "PASSWD"]
    medium.DirectoryRecordSequence = [inner]
    pydicom.dcmwrite(stream, medium, enforce_file_format=True)
    outcome = gate([stream.getvalue(), *make()], tmp_path)
    assert codes(outcome) == {("DICOMDIR", "drop", 1)}
    assert outcome.n_used == N


def test_row_13_an_image_with_two_headers_is_kept_once(make: Any, tmp_path: Path) -> None:
    fuller = make(each(SoftwareVersions="E11", BodyPartExamined="HEAD"), keep=[9])
    outcome = gate([*make(), *fuller], tmp_path)
    assert codes(outcome) == {("DUP_SOP_HEADER", "fix", N + 1)}
    assert "HEAD" in [f.header.body_part for f in outcome.used[0][0].files]


def test_row_13_two_images_under_one_identifier(make: Any, tmp_path: Path) -> None:
    changed = make(keep=[9], spoil=lambda k, b: b[:-1] + b"\7")
    outcome = gate([*make(), *changed], tmp_path)
    assert codes(outcome) == {("DUP_SOP_PIXELS", "quarantine", N + 1)}


def test_row_15_echoes_are_split(make: Any, tmp_path: Path) -> None:
    later = each(EchoTime="5.2", SOPInstanceUID=lambda k: f"2.25.{k + 1}")
    outcome = gate([*make(), *make(later)], tmp_path, IngestConfig(accept_review=True))
    assert outcome.events == {("SPLIT_ECHO", "fix", N): 2}
    assert {s.first.echo_time_ms for s, _ in outcome.used} == {2.98, 5.2}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless])
def test_row_16_the_frames_of_an_enhanced_image_become_a_volume(
    make_dataset: Any, make_head: Any, syntax: str, tmp_path: Path
) -> None:
    order = np.random.default_rng(0).permutation(N)
    ds = enhanced(make_head()[order], make_dataset(make_head(), 0, "1"))
    for k, frame in zip(order, ds.PerFrameFunctionalGroupsSequence, strict=True):
        frame.PlanePositionSequence = item(ImagePositionPatient=[at(int(k)), -70.0, 71.0])
    data = encode(ds, syntax)
    outcome = gate([data], tmp_path)
    assert codes(outcome) == set()
    ((stack, volume),) = outcome.used
    assert stack.n_files == 1
    assert np.array_equal(volume.voxels, as_stored(make_head()))
    assert stack.affine()[:3, 3] == pytest.approx([-70.5, 70, 71])
    again = Stack(files=(File(number=0, header=_read(data)),) * N)
    assert again.files == stack.files


def _read(data: bytes) -> Header:
    header = read_header(data)
    assert isinstance(header, Header)
    return header


@pytest.mark.parametrize(
    ("repeat", "whole"),
    [(2, {}), (1, {"PerFrameFunctionalGroupsSequence": []}), (1, {"NumberOfFrames": N - 1})],
)
def test_row_16_frames_that_are_not_one_volume_are_set_apart(
    make_dataset: Any, make_head: Any, repeat: int, whole: dict[str, Any], tmp_path: Path
) -> None:
    voxels = np.concatenate([make_head()] * repeat)
    ds = enhanced(voxels, make_dataset(make_head(), 0, "1"), **whole)
    outcome = gate([encode(ds, ExplicitVRLittleEndian)], tmp_path)
    refused = [event for event in outcome.events if event[1] != "fix"]
    assert {event[:2] for event in refused} == {("ENHANCED_UNSUPPORTED", "quarantine")}
    assert sum(n for _, action, n in refused) == 1


def test_row_23_the_same_slice_under_two_names_is_kept_once(make: Any, tmp_path: Path) -> None:
    again = make(each(SOPInstanceUID=lambda k: "2.25.77"), keep=[10])
    outcome = gate([*make(), *again], tmp_path)
    assert codes(outcome) == {("DUP_SLICE", "fix", N + 1)}
    assert outcome.n_used == N + 1


def test_row_27_each_orientation_must_pass_alone(make: Any, tmp_path: Path) -> None:
    other = each(ImageOrientationPatient=CORONAL, ImagePositionPatient=lambda k: [-70, at(k), 71],
                 SOPInstanceUID=lambda k: f"2.25.{k + 1}")  # fmt: skip
    outcome = gate([*make(), *make(other, keep=range(3))], tmp_path)
    assert codes(outcome) == {("SPLIT_ORIENTATION", "fix", N), ("LOCALIZER", "drop", 3)}
    assert outcome.n_used == N


def test_row_30_two_acquisitions_in_one_series_are_split(
    make: Any, make_head: Any, tmp_path: Path
) -> None:
    second = each(AcquisitionNumber=2, SOPInstanceUID=lambda k: f"2.25.{k + 1}")
    outcome = gate([*make(), *make(second, voxels=make_head(1))], tmp_path)
    assert outcome.events == {("SPLIT_ACQ", "fix", N): 2}
    assert {s.first.acquisition_number for s, _ in outcome.used} == {1, 2}


def test_row_31_one_acquisition_in_two_series_is_joined(
    make: Any, make_head: Any, tmp_path: Path
) -> None:
    odd = make(each(SeriesInstanceUID="2.25.9"), keep=range(1, N, 2))
    outcome = gate([*make(keep=range(0, N, 2)), *odd], tmp_path)
    assert codes(outcome) == {("JOINED", "fix", N)}
    assert np.array_equal(outcome.used[0][1].voxels, as_stored(make_head()))


@pytest.mark.parametrize("change", [{"AcquisitionTime": "111500"}, {"FlipAngle": "8"}, {}])
def test_row_31_what_does_not_fit_together_stays_apart(
    make: Any, change: dict[str, Any], tmp_path: Path
) -> None:
    lost = () if change else (33,)
    odd = each(SeriesInstanceUID="2.25.9", **change)
    files = make(odd, keep=[k for k in range(1, N, 2) if k not in lost])
    outcome = gate([*make(keep=range(0, N, 2)), *files], tmp_path)
    assert "JOINED" not in {code for code, _, _ in outcome.events}
    assert not outcome.used


def test_row_32_two_studies_within_a_day_are_one_session(make: Any, tmp_path: Path) -> None:
    other = {"StudyInstanceUID": "2.25.3", "SeriesInstanceUID": "2.25.4"}
    morning = each(**other, StudyDate="20190612", AcquisitionTime="081500")
    outcome = gate([*make(), *make(morning)], tmp_path)
    assert outcome.events == {("SESSION_MERGED", "fix", N): 2}


def test_row_32_one_study_with_two_dates_is_two_sessions(make: Any, tmp_path: Path) -> None:
    later = each(SeriesInstanceUID="2.25.4", StudyDate="20190912", ContrastBolusAgent="gd")
    stacks = [s for own in (make(), make(later)) for s in find_stacks(_files(own))]
    found = select.sessions(stacks)
    assert {day: len(own) for day, own in found.items()} == {"2019-06-11": 1, "2019-09-12": 1}
    assert all(s.fixes == ("SESSION_SPLIT",) for own in found.values() for s in own)


def _files(data: Iterable[bytes]) -> list[File]:
    return [File(number=k, header=_read(one)) for k, one in enumerate(data)]


def test_row_36_text_on_all_slices_is_seen(make: Any, make_head: Any, tmp_path: Path) -> None:
    voxels = make_head().copy()
    for line in range(2, 12, 2):
        voxels[:, line, 2:14] = 4000
    outcome = gate(make(voxels=voxels), tmp_path)
    assert codes(outcome) == {("BURNED_IN_PIXELS", "quarantine", N)}


SYNTAXES = (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless,
            JPEGLSLossless, JPEG2000Lossless)  # fmt: skip


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_rows_38_and_39_every_encoding_gives_the_same_voxels(
    make: Any, make_head: Any, syntax: str, tmp_path: Path
) -> None:
    voxels = make_head()
    plain = _files(make(keep=range(0, N, 24)))
    coded = make(keep=range(0, N, 24), syntax=syntax)
    for k, (expected, data) in enumerate(zip(plain, coded, strict=True)):
        header = _read(data)
        assert header.position_mm == expected.header.position_mm
        (tmp_path / "x").write_bytes(data)
        assert np.array_equal(read_plane(header, tmp_path / "x"), voxels[24 * k])


def test_row_38_jpeg_without_loss_is_decoded_without_a_copyleft_plugin(
    make_dataset: Any, make_head: Any, tmp_path: Path
) -> None:
    signed = (make_head() - 300).astype(np.int16)
    for voxels, values in ((make_head(), {}), (signed, _SIGNED)):
        ds = make_dataset(voxels, 40, "1", **values)
        frame = _jpeg(voxels[40], tmp_path / "j.dcm")
        ds.PixelData = pydicom.encaps.encapsulate([frame])
        (tmp_path / "x").write_bytes(encode(ds, JPEGLosslessSV1))
        header = _read((tmp_path / "x").read_bytes())
        assert np.array_equal(read_plane(header, tmp_path / "x"), voxels[40])
        ds.PixelData = pydicom.encaps.encapsulate([frame[:100]])
        (tmp_path / "x").write_bytes(encode(ds, JPEGLosslessSV1))
        with pytest.raises(PixelFaultError, match="TRUNC_PIXELS"):
            read_plane(header, tmp_path / "x")


_SIGNED = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15}


def _jpeg(plane: np.ndarray, path: Path) -> bytes:
    """Return a plane as lossless JPEG, process 14, selection value 1."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetUseCompression(True)
    writer.SetCompressor("JPEG")
    writer.SetFileName(str(path))
    writer.Execute(sitk.GetImageFromArray(plane[None]))
    ds = pydicom.dcmread(path)
    assert ds.file_meta.TransferSyntaxUID == JPEGLosslessSV1
    return next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_padded.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
    ],
)
def test_rows_38_and_39_real_files_of_other_encoders(name: str, other: str) -> None:
    paths = [Path(str(pydicom.data.get_testdata_file(n, download=False))) for n in (name, other)]
    ours, theirs = (read_plane(_read(p.read_bytes()), p) for p in paths)
    assert np.array_equal(ours, theirs)
    assert np.array_equal(theirs, pydicom.dcmread(paths[1]).pixel_array)


def test_row_38_twelve_bit_jpeg_is_decoded_and_known_as_lossy() -> None:
    path = Path(str(pydicom.data.get_testdata_file("JPEG-lossy.dcm", download=False)))
    header = _read(path.read_bytes())
    assert (header.syntax[-3:], header.is_lossy) == (".51", True)
    plane = read_plane(header, path)
    assert (plane.shape, int(plane.max()) < 4096) == ((1024, 256), True)


@pytest.mark.parametrize(
    ("charset", "written", "name"),
    [
        ("ISO_IR 144", "Люкceмбypг".encode("iso8859_5"), "Люкceмбypг"),
        ("GB18030", "王^小东".encode("gb18030"), "王^小东"),
        ("ISO_IR 192", "Zoë^Müller".encode(), "Zoë^Müller"),
        ("\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
         "Yamada^Tarou=山田^太郎"),
    ],
)  # fmt: skip
def test_row_40_names_are_read_in_their_alphabet(
    make: Any, charset: str, written: bytes, name: str
) -> None:
    value = written + b" " * (len(written) % 2)
    (data,) = make(keep=[0], SpecificCharacterSet=None)
    head = b"\x08\0\5\0CS" + len(charset + " " * (len(charset) % 2)).to_bytes(2, "little")
    declared = head + charset.encode() + b" " * (len(charset) % 2)
    data = data.replace(b"\x08\0\x08\0CS", declared + b"\x08\0\x08\0CS", 1)
    start, end = element(data, b"\x10\0\x10\0PN")
    named = b"\x10\0\x10\0PN" + len(value).to_bytes(2, "little") + value
    header = _read(data[:start] + named + data[end:])
    assert (header.patient_name, header.faults) == (name, ())
    # Every byte means something in ISO 8859, so nothing is wrong there.
    wrong = _read(
        data[:start] + named[: -len(value)] + b"\xff\xfe" * (len(value) // 2) + data[end:]
    )
    assert wrong.faults == (("CHARSET",) if charset in ("GB18030", "ISO_IR 192") else ())


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("<i2", {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15}),
        ("<u2", {"BitsStored": 12, "HighBit": 15}),
        ("<u2", {"BitsStored": 12, "HighBit": 11}),
        ("<u1", {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}),
        ("<u4", {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}),
    ],
)
def test_row_46_every_layout_of_pixels_gives_its_values(
    make_dataset: Any, make_head: Any, kind: str, values: dict[str, Any], tmp_path: Path
) -> None:
    true = make_head()[40].astype(np.int32) % 256
    true = true - 100 * (kind == "<i2")
    shift = values["HighBit"] + 1 - values["BitsStored"]
    junk = 0xA000 if (values["BitsStored"], shift) == (12, 0) else 0
    ds = make_dataset(make_head(), 40, "1", **values)
    ds.PixelData = ((true << shift) | junk).astype(kind).tobytes()
    (tmp_path / "x").write_bytes(encode(ds, ExplicitVRLittleEndian))
    header = _read((tmp_path / "x").read_bytes())
    assert header.faults == ()
    assert np.array_equal(read_plane(header, tmp_path / "x"), true)


def test_row_48_of_the_four_series_of_mp2rage_only_uni_goes_to_review(
    make: Any, tmp_path: Path
) -> None:
    timing = {"RepetitionTime": "3900", "FlipAngle": "4", "SeriesDescription": "t1_mp2rage"}
    parts = {"2.25.1": ("700", "M"), "2.25.2": ("1350", "M"), "2.25.3": ("0", "T1 MAP"),
             "2.25.4": ("0", "UNI")}  # fmt: skip
    files = []
    for series, (delay, kind) in parts.items():
        image_type = ["ORIGINAL" if kind == "M" else "DERIVED", "PRIMARY", "M", "ND", kind]
        files += make(each(SeriesInstanceUID=series, InversionTime=delay, ImageType=image_type,
                           **timing))  # fmt: skip
    outcome = gate(files, tmp_path)
    assert {e: n for e, n in outcome.events.items() if e[1] != "fix"} == {
        ("MP2RAGE_PART", "drop", N): 3,
        ("REVIEW", "quarantine", N): 1,
    }


def test_row_50_a_t1_before_one_with_contrast_agent_is_without(make: Any) -> None:
    given = each(ContrastBolusAgent="Dotarem", AcquisitionTime="103000", SeriesInstanceUID="2.25.1")
    (before,), (after,) = (find_stacks(_files(own)) for own in (make(), make(given)))
    assert select.gadolinium(after.first, [before]) == "yes"
    assert select.gadolinium(before.first, [after]) == "no"
    assert select.gadolinium(before.first) == "unknown"
    assert sidecar(before.first, "no")["Gadolinium"] == "no"


def test_row_20_the_true_resolution_stands_in_the_sidecar(make: Any) -> None:
    (stack,) = find_stacks(_files(make(each(AcquisitionMatrix=[0, 64, 48, 0]))))
    assert sidecar(stack.first)["AcquisitionVoxelSize"] == [2.25, 3.0, 1.5]


def test_the_reasons_of_a_decision_are_numbers_that_add_up(make: Any) -> None:
    (stack,) = find_stacks(_files(make()))
    terms = select.terms(stack)
    assert terms == {"sequence": 45, "voxel": 10, "extent": 5, "normalised": 4, "words": 6}
    assert sum(terms.values()) == select.score(stack)


def test_row_41_a_date_of_one_file_does_not_decide_over_the_others(
    make: Any, tmp_path: Path
) -> None:
    outcome = gate(make(only(0, each(AcquisitionDate="00000000"))), tmp_path)
    assert outcome.n_used == N


def test_row_34b_a_real_head_that_a_tool_rewrote_waits_for_a_person(
    real_data: Path, tmp_path: Path
) -> None:
    with tarfile.open(real_data / "dicom/t1/studyforrest_t1w_every2nd.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    headers = [_read(p.read_bytes()) for p in sorted(tmp_path.rglob("*.dcm"))]
    # As if it had never lost every second slice.
    whole = [replace(h, slice_spacing_mm=None, instance_number=None) for h in headers]
    (stack,) = find_stacks([File(number=k, header=h) for k, h in enumerate(whole)])
    found, _ = faults.judge(faults.Case(stack=stack, config=IngestConfig()))
    assert (found and found.code, len(stack.files)) == ("NO_PHYSICS", 192)


def test_row_19_a_real_ge_series_is_a_t1_by_its_header(real_data: Path, tmp_path: Path) -> None:
    with tarfile.open(real_data / "dicom/ge_irspgr_fruit.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    paths = sorted((tmp_path / "In").iterdir())
    (stack,) = find_stacks([File(number=k, header=_read(p.read_bytes()))
                            for k, p in enumerate(paths)])  # fmt: skip
    found, _ = faults.judge(faults.Case(stack=stack, config=IngestConfig()))
    assert (found, select.score(stack), stack.first.ge_slices) == (None, 74, 196)
