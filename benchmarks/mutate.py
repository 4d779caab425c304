"""Ten thousand broken DICOM files through the real ingest, in its children with their limits.

    python benchmarks/mutate.py [--files N] [--seed S] [--workers W]

Series in seven encodings are made, most of their files are broken (bits flipped, bytes spliced,
cut, preambles, lengths, elements moved between files), and `rarescan ingest` runs on each batch
beside one sound person. Printed are what became of the files, crashes of the child, the slowest
header, and everything that was written outside the cohort's folder. The exit status is 1 where
a file was lost from the count, something was written elsewhere, or a batch did not end.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from rarescan.cohort.store import read_about, read_events
from rarescan.imaging.ingest import ingest_export
from rarescan.imaging.parse import read_header
from rarescan.imaging.spec import IngestConfig

N = 58
SERIES_A_BATCH = 25
SYNTAXES = (
    *(uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian),
    *(uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless, "enhanced"),
)


def main() -> None:
    """Break, ingest, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    os.environ["RARESCAN_KEY"] = "5a" * 32
    chance = random.Random(given.seed)
    total: Counter[str] = Counter()
    slowest_header = slowest_batch = 0.0
    person = 0
    while total["mutated"] < given.files:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, 0, series(0, SYNTAXES[0]))
            for _ in range(SERIES_A_BATCH):
                person += 1
                files, n_broken = spoil(series(person, chance.choice(SYNTAXES)), chance)
                total["mutated"] += n_broken
                write(folder, person, files)
            slowest_header = max(slowest_header, *map(seconds, folder.glob("export/*/*")))
            start = time.monotonic()
            total += ingest(folder, given.workers)
            slowest_batch = max(slowest_batch, time.monotonic() - start)
        print(f"{total['mutated']} mutated files", file=sys.stderr, flush=True)
    names = ("mutated", "found", "used", "dropped", "quarantined", "scans", "crashes", "outside")
    print("  ".join(f"{name} {total[name]}" for name in names))
    print(f"slowest header {slowest_header:.3f} s, slowest batch {slowest_batch:.1f} s")
    codes = {code[1:]: n for code, n in total.items() if code.startswith("#")}
    print(
        "files by code, repairs among them:", dict(sorted(codes.items(), key=lambda item: -item[1]))
    )
    counted = total["used"] + total["dropped"] + total["quarantined"]
    sys.exit(counted != total["found"] or total["outside"] > 0)


def seconds(path: Path) -> float:
    """Return how long reading one header takes."""
    start = time.perf_counter()
    read_header(path.read_bytes())
    return time.perf_counter() - start


def ingest(folder: Path, workers: int) -> Counter[str]:
    """Ingest one batch; return its counts."""
    before = {*folder.rglob("*")}
    config = IngestConfig(accept_review=True)
    cohort = ingest_export(folder / "export", folder / "cohort", config, workers=workers)
    about, events = read_about(cohort), read_events(cohort)
    outside = {p for p in {*folder.rglob("*")} - before if cohort not in (p, *p.parents)}
    found = Counter(about["files"]) + Counter(scans=about["scans"], outside=len(outside))
    for event in events:
        found[f"#{event['code']}"] += event["n_files"]
        found["crashes"] += event["n_files"] * (event["code"] == "PARSER_CRASH")
    return found


def write(folder: Path, person: int, files: list[bytes]) -> None:
    """Write the files of one series."""
    place = folder / "export" / f"{person:05d}"
    place.mkdir(parents=True)
    for k, data in enumerate(files):
        (place / f"{k:03d}").write_bytes(data)


def series(person: int, syntax: str) -> list[bytes]:
    """Return a sound series of one person: 58 slices of 60 x 60 voxels of 2.5 mm."""
    rng = np.random.default_rng(person)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in (N, 60, 60)], indexing="ij")
    inside = x**2 + y**2 + z**2 < 0.6
    voxels = (rng.integers(0, 40, inside.shape) + inside * 500).astype(np.int16)
    if syntax == "enhanced":
        return [encode(enhanced(voxels, person), uid.ExplicitVRLittleEndian)]
    return [encode(one_slice(voxels, k, person), syntax) for k in range(N)]


def one_slice(voxels: np.ndarray, k: int, person: int) -> Dataset:
    """Return a slice of a sagittal MPRAGE."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = uid.MRImageStorage, f"2.25.{person + 1}.{k + 1}"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "NORM"]
    ds.StudyDate, ds.AcquisitionTime, ds.Modality = "20190611", "101500", "MR"
    ds.Manufacturer, ds.InstitutionName = "SIEMENS", "Kreiskrankenhaus Musterstadt"
    ds.PatientName, ds.PatientID = f"Muster^P{person}", f"ID{person:06d}"
    ds.PatientBirthDate, ds.PatientSex = "19550320", "F"
    ds.SeriesDescription, ds.MRAcquisitionType = "t1_mprage", "3D"
    ds.ScanningSequence, ds.SequenceVariant = ["GR", "IR"], ["SK", "SP", "MP"]
    ds.RepetitionTime, ds.EchoTime, ds.InversionTime, ds.FlipAngle = "2300", "2.98", "900", "9"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"2.25.9{person}1", f"2.25.9{person}2"
    ds.FrameOfReferenceUID, ds.InstanceNumber, ds.SliceThickness = f"2.25.9{person}3", k + 1, "2.5"
    ds.ImagePositionPatient = [-70 + 2.5 * k, -75, 75]
    ds.ImageOrientationPatient, ds.PixelSpacing = [0, 1, 0, 0, 0, -1], [2.5, 2.5]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns, ds.PixelRepresentation = 60, 60, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelData = voxels[k].tobytes()
    return ds


def enhanced(voxels: np.ndarray, person: int) -> Dataset:
    """Return the series as one Enhanced MR image."""

    def item(**values: object) -> list[Dataset]:
        ds = Dataset()
        for name, value in values.items():
            setattr(ds, name, value)
        return [ds]

    ds = one_slice(voxels, 0, person)
    ds.SOPClassUID, ds.NumberOfFrames = uid.EnhancedMRImageStorage, N
    ds.EchoPulseSequence, ds.Spoiling = "GRADIENT", "RF"
    ds.SharedFunctionalGroupsSequence = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=ds.ImageOrientationPatient),
        PixelMeasuresSequence=item(PixelSpacing=[2.5, 2.5], SliceThickness="2.5"),
        MRTimingAndRelatedParametersSequence=item(RepetitionTime="2300", FlipAngle="9"),
        MRModifierSequence=item(InversionRecovery="YES", InversionTimes=900.0),
        MREchoSequence=item(EffectiveEchoTime=2.98),
    )
    places = [item(ImagePositionPatient=[-70 + 2.5 * k, -75, 75]) for k in range(N)]
    ds.PerFrameFunctionalGroupsSequence = [item(PlanePositionSequence=p)[0] for p in places]
    ds.PixelData = voxels.tobytes()
    return ds


def encode(ds: Dataset, syntax: str) -> bytes:
    """Return a data set as a file."""
    native = uid.UID(syntax) in SYNTAXES[:3]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax if native else uid.ExplicitVRLittleEndian)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    if not native:
        ds.compress(syntax, generate_instance_uid=False)
    stream = BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def spoil(files: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    """Break one, some, most or all files of a series; return them and how many were broken."""
    share = chance.choice([0.02, 0.3, 1.0, 1.0, 1.0])
    broken = [mutate(f, files, chance) if chance.random() < share else f for f in files]
    return broken, sum(a is not b for a, b in zip(files, broken, strict=True))


def mutate(whole: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Break one file in one to five ways; the header is hit more often than the pixels."""
    data = bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 5])):
        reach = min(len(data), chance.choice([160, 1600, len(data)])) or 1
        at, kind = chance.randrange(reach), chance.randrange(7)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(12))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at : at + 4] = chance.choice(
                [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"]
            )
        elif kind == 4:
            other = chance.choice(others)
            data[at : at + 64] = other[at : at + 64]
        elif kind == 5:
            data = data[132:] if chance.random() < 0.5 else data + chance.randbytes(40)
        else:
            data[at:at] = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 50
    return bytes(data)


if __name__ == "__main__":
    main()
