"""How fast and how flat an export of 300,000 files is indexed.

    python benchmarks/index_many.py [FOLDER]

Makes hard links to small DICOM files (and, for the speed, to files as large as a real slice),
indexes 10,000, 100,000 and 300,000 of them, kills one run in the middle and times the rest.
Prints files a second and core of the limited child beside `pydicom.dcmread` in the same run.
"""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

HERE = Path(__file__).resolve()
SERIES, SLICES = 40, 25


def dicom(series: int, k: int, edge: int) -> bytes:
    """Return one slice with the elements of a usual MR header."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MRImageStorage
    ds.SOPInstanceUID = generate_uid(entropy_srcs=[str(series), str(k)])
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]
    ds.PatientName, ds.PatientID = f"Name^{series}", f"{series:08d}"
    ds.PatientBirthDate, ds.PatientSex, ds.StudyDate = "19550320", "F", "20190611"
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[str(series), "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[str(series), "series"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[str(series), "frame"])
    ds.Modality, ds.Manufacturer, ds.SeriesDescription = "MR", "SIEMENS", "t1_mprage_sag"
    ds.ScanningSequence, ds.SequenceVariant = ["GR", "IR"], ["SK", "SP", "MP"]
    ds.MRAcquisitionType, ds.SliceThickness, ds.FlipAngle = "3D", "1", "9"
    ds.RepetitionTime, ds.EchoTime, ds.InversionTime = "2300", "2.98", "900"
    ds.ImagePositionPatient = [-80 + k, -90, 90]
    ds.ImageOrientationPatient, ds.PixelSpacing = [0, 1, 0, 0, 0, -1], [1, 1]
    ds.InstanceNumber, ds.Rows, ds.Columns = k + 1, edge, edge
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    for number in range(60):
        ds.add_new(0x00211001 + number, "LO", f"private {number} of a usual header")
    pixels = np.random.default_rng([series, k]).integers(0, 4096, (edge, edge), dtype=np.uint16)
    ds.PixelData = pixels.tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def export(folder: Path, n_files: int, edge: int) -> Path:
    """Return a folder with hard links to 1,000 files, in folders of 500."""
    sources = folder / f"sources{edge}"
    if not sources.exists():
        sources.mkdir(parents=True)
        for number in range(SERIES * SLICES):
            (sources / f"{number:04d}").write_bytes(dicom(*divmod(number, SLICES), edge))
    root = folder / f"export{edge}-{n_files}"
    originals = sorted(sources.iterdir())
    for number in range(n_files):
        path = root / f"{number // 500:04d}/{number % 500:03d}"
        if number % 500 == 0:
            path.parent.mkdir(parents=True)
        os.link(originals[number % len(originals)], path)
    return root


def index(root: str, private: str) -> None:
    """Index in this process and its children; print what it took."""
    from rarescan.imaging.index import build_index

    start = time.perf_counter()
    built = build_index(Path(root), Path(private), workers=1)
    own, children = (
        resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(
        json.dumps(
            {
                "files": built.n_files(),
                "wall_s": round(time.perf_counter() - start, 1),
                "cpu_s": round(sum(u.ru_utime + u.ru_stime for u in (own, children)), 1),
                "parent_mb": own.ru_maxrss // 1024,
                "child_mb": children.ru_maxrss // 1024,
            }
        )
    )


def run(root: Path, private: Path, *, kill_after_s: float | None = None) -> dict[str, float]:
    """Index in a process of its own, which is killed after a while or ends."""
    process = subprocess.Popen(
        [sys.executable, "-P", HERE, "index", root, private],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.killpg(process.pid, signal.SIGKILL)
    out = process.communicate()[0]
    return json.loads(out) if kill_after_s is None else {}


def speed(folder: Path) -> None:
    """Compare our reader (with hash and database) and pydicom's on files of 131 kB."""
    from rarescan.imaging.index import _read_chunk

    root = export(folder, 3000, 256)
    names = [str(p) for p in sorted(root.rglob("*")) if p.is_file()]
    for _ in range(2):
        start = time.process_time()
        for name in names:
            pydicom.dcmread(name, stop_before_pixels=True)
        theirs = len(names) / (time.process_time() - start)
        start = time.process_time()
        _read_chunk((root, tuple((k, name) for k, name in enumerate(names))))
        ours = len(names) / (time.process_time() - start)
    print(f"131 kB: pydicom header only {theirs:.0f} files/s/core, ours with hashes {ours:.0f}")
    found = run(export(folder, 20_000, 256), folder / "private")
    print(f"131 kB: whole index {found['files'] / found['cpu_s']:.0f} files/s/core {found}")


def main(folder: Path) -> None:
    """Print everything."""
    speed(folder)
    for n_files in (10_000, 100_000, 300_000):
        root = export(folder, n_files, 16)
        private = folder / f"private{n_files}"
        found = run(root, private)
        print(f"{n_files}: {found['files'] / found['cpu_s']:.0f} files/s/core {found}", flush=True)
    shutil.rmtree(private)
    run(root, private, kill_after_s=found["wall_s"] / 2)
    print(f"killed half way, the rest: {run(root, private)}")
    print(f"repeated when complete: {run(root, private)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["index"]:
        index(*sys.argv[2:])
    else:
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as temporary:
            main(Path(temporary))
