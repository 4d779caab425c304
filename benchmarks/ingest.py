"""How long ingest takes beside dcm2niix, how it scales, and what memory it takes.

    python benchmarks/ingest.py [FOLDER] [--part one|many|memory|profile] [--repeats N]

`one`: a series of 208 x 256 x 256, folder -> gated, de-identified NIfTI, against the wall time of
bare `dcm2niix` with gzip in the same run. `many`: sixty-four such series with one worker and with
two. `memory`: the peak of the whole process tree, this one included, for 4, 16 and 64 series of
96 x 96 x 96. `profile`: where the time of `one` goes. Best of N everywhere.
"""

import argparse
import cProfile
import pstats
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import zoom
from scipy.spatial.transform import Rotation

from rarescan.cohort.store import open_cohort
from rarescan.cohort.template import load_template
from rarescan.flows.job import peak_memory
from rarescan.imaging.bids import write_image
from rarescan.imaging.convert import read_stack
from rarescan.imaging.header import Header
from rarescan.imaging.parse import read_header
from rarescan.imaging.stacks import File, find_stacks
from rarescan.phantom import dicom
from rarescan.phantom.identities import draw_identity
from rarescan.phantom.persons import draw_person
from rarescan.phantom.scanners import SCANNERS, lay_slices
from rarescan.phantom.spec import PhantomConfig

LARGE, SMALL = (208, 256, 256), (96, 96, 96)


def main() -> None:
    """Make the series, run the parts, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--part", choices=("one", "many", "memory", "profile"))
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="ingest_"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key").write_text("5a" * 32)
    (folder / "key").chmod(0o600)
    parts: dict[str, Callable[[Path, int], None]] = {
        "one": one,
        "many": many,
        "memory": memory,
        "profile": profile,
    }
    for part in [given.part] if given.part else [p for p in parts if p != "profile"]:
        parts[part](folder, given.repeats)
    if not given.folder:
        shutil.rmtree(folder)


def one(folder: Path, repeats: int) -> None:
    """Compare one large series with dcm2niix, interleaved so that both meet the same machine."""
    export = make_export(folder / "one", 1, LARGE)
    ours, theirs = [], []
    for _ in range(repeats):
        theirs.append(_timed(lambda: _dcm2niix(export, folder / "theirs")))
        ours.append(_timed(lambda: ingest(folder, export, 1)))
    print(f"dcm2niix -z y: {_best(theirs)}")
    print(f"rarescan, with the start of Python: {_best(ours)}")
    print(f"ratio of best walls: {min(ours)[0] / min(theirs)[0]:.2f} (asked: 3.00)")


def many(folder: Path, repeats: int) -> None:
    """Compare one worker with two on sixty-four large series."""
    export = make_export(folder / "many", 64, LARGE)
    times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, found in times.items():
            found.append(_timed(lambda w=workers: ingest(folder, export, w)))
    for workers, found in times.items():
        print(f"64 series, {workers} workers: {_best(found)}")
    print(f"gain: {min(times[1])[0] / min(times[2])[0]:.2f} x (asked: 1.80)")


def memory(folder: Path, _repeats: int) -> None:
    """Print the peak memory for more and more series."""
    for n_series in (4, 16, 64):
        export = make_export(folder / f"memory{n_series}", n_series, SMALL)
        with peak_memory() as peak:
            ingest(folder, export, 2)
        print(f"{n_series} small series: {peak[0]:.0f} MB at most, all processes")
        shutil.rmtree(export)


def profile(folder: Path, _repeats: int) -> None:
    """Print where the time of one large series goes, in each of its processes."""
    export = make_export(folder / "one", 1, LARGE)
    ingest(folder, export, 1, "-X", "importtime")
    profiler = cProfile.Profile()
    profiler.runcall(_convert_here, export, folder / "x.nii.gz")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(15)


def _convert_here(export: Path, image: Path) -> None:
    """Do in this process what the children do with one series."""
    paths = sorted((export / "000").iterdir())
    headers = [read_header(path.read_bytes()) for path in paths]
    files = [File(number=k, header=h) for k, h in enumerate(headers) if isinstance(h, Header)]
    (stack,) = find_stacks(files)
    volume = read_stack(stack, [paths[f.number] for f in stack.files])
    write_image(image, volume.voxels, stack.affine(), slope=volume.slope)


def make_export(root: Path, n_series: int, size: tuple[int, int, int]) -> Path:
    """Write `n_series` T1 series of as many persons; an export that is there is kept."""
    if root.exists():
        return root
    scanner, config = SCANNERS["A"], PhantomConfig(patients=0, controls=n_series)
    edge_mm = 160 / size[0] if size == SMALL else 1.0
    template = load_template(2).t1
    head = zoom(template, np.array(size) / template.shape, order=1).astype(np.float32)
    spread = np.random.default_rng(0)
    for k in range(n_series):
        person = replace(draw_person(config, k), site="A")
        slices = lay_slices(
            "sagittal",
            size=size,
            spacing_mm=(edge_mm, edge_mm, edge_mm),
            centre_mm=np.zeros(3),
            tilt=Rotation.identity(),
        )
        series = dicom.Series(number=3, slices=slices, header=scanner.t1)
        identity = draw_identity(config, person)
        dataset = dicom.header_of(series, scanner, person, identity, study=f"bench{k}")
        noisy = head * 0.9 + np.abs(spread.normal(0, 0.02, size)).astype(np.float32)
        pixels = dicom.stored_values(noisy, scanner)
        dicom.write_series(root / f"{k:03d}", series, pixels, dataset, study=f"bench{k}")
    return root


_CODE = """
import sys
from pathlib import Path
from rarescan.imaging.ingest import ingest_export
from rarescan.imaging.spec import IngestConfig
export, out, key, workers = sys.argv[1:]
config = IngestConfig(key_file=key, accept_review=True)
ingest_export(Path(export), Path(out), config, workers=int(workers))
"""


def ingest(folder: Path, export: Path, workers: int, *options: str) -> None:
    """Ingest into a fresh cohort, in a process of its own; every series must be accepted."""
    out = folder / "cohort"
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, *options, "-c", _CODE, export, out, folder / "key", str(workers)]
    subprocess.run(words, check=True)
    if len(open_cohort(out).scans) != len(list(export.iterdir())):
        raise RuntimeError("not every series was accepted")


def _dcm2niix(export: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    converter = Path(sys.executable).with_name("dcm2niix")
    words = [converter, "-z", "y", "-o", out, "-f", "theirs", export]
    subprocess.run(words, check=True, capture_output=True)


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return wall seconds and the user seconds of child processes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.monotonic()
    work()
    wall = time.monotonic() - start
    return wall, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def _best(times: list[tuple[float, float]]) -> str:
    wall, user = min(times)
    return f"{wall:.2f} s wall, {user:.2f} s CPU"


if __name__ == "__main__":
    main()
