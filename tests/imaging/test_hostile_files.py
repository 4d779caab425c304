"""Whatever an export holds: it is counted, nothing of it leaks, and what is used is right.

Series are drawn (size, obliquity, spacing, sign, transfer syntax) and spoilt by any of `FAULTS`;
the whole ingest runs on them, in this process so that many fit. `benchmarks/mutate.py` does the
same with ten thousand files in the real children with their limits.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from scipy.spatial.transform import Rotation

from rarescan.cohort.store import open_cohort, read_about, read_events
from rarescan.imaging import index, ingest, unpack
from rarescan.imaging.header import Header
from rarescan.imaging.ingest import ingest_export
from rarescan.imaging.parse import read_header
from rarescan.imaging.spec import IngestConfig

Files = list[bytes]
SOUND_SLICES = 58
KEY = "5a" * 32
TOKENS = (b"Mustermann", b"Erika", b"00471199", b"19550320", b"Kreiskrankenhaus", b"HOSTILE7")


def ball(n: int, edge: int, seed: int) -> np.ndarray:
    """Return a textured ball, shape (slices, rows, columns)."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.linspace(-1, 1, m).reshape(s) for m, s in (
        (n, (-1, 1, 1)), (edge, (1, -1, 1)), (edge, (1, 1, -1))))  # fmt: skip
    noise = rng.integers(0, 40, (n, edge, edge))
    return (noise + (x**2 + y**2 + z**2 < 0.6) * (500 + 90 * (x > 0))).astype(np.int16)


def encode(ds: Any, syntax: str) -> bytes:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    if syntax == RLELossless:
        ds.compress(RLELossless, generate_instance_uid=False)
    stream = BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How a series is made."""

    n: int = SOUND_SLICES
    edge: int = 60
    angles: tuple[float, ...] = (0, 0, 0)
    step: float = 2.5
    signed: bool = False
    syntax: str = ExplicitVRLittleEndian
    seed: int = 7


shapes = st.builds(
    Shape,
    n=st.integers(57, 62),
    edge=st.integers(57, 64),
    angles=st.tuples(*[st.integers(-30, 30)] * 3),
    step=st.sampled_from([2.5, 2.49]),
    signed=st.booleans(),
    syntax=st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless,
                            DeflatedExplicitVRLittleEndian]),
    seed=st.integers(0, 99),
)  # fmt: skip


class Source:
    """A series: its voxels, where they lie, and its files."""

    def __init__(self, make_dataset: Any, shape: Shape, **values: Any):
        n, step, signed, syntax = shape.n, shape.step, shape.signed, shape.syntax
        turn = Rotation.from_euler("xyz", shape.angles, degrees=True).as_matrix().round(6)
        row, column = (turn @ v for v in ((0, 1, 0), (0, 0, -1)))
        normal = np.cross(row, column)
        self.voxels = ball(n, shape.edge, shape.seed) - np.int16(20 * signed)
        # Column, row, slice -> LPS mm.
        self.to_lps = np.eye(4)
        self.to_lps[:3, :3] = np.stack([row, column, normal], axis=1) * (2.5, 2.5, step)
        self.to_lps[:3, 3] = (-70, -75, 75)
        self.files = []
        for k in range(n):
            place = [f"{v:.4f}" for v in (self.to_lps @ (0, 0, k, 1))[:3]]
            ds = make_dataset(
                self.voxels, k, f"{values}", ImagePositionPatient=place,
                ImageOrientationPatient=[f"{v:.6f}" for v in (*row, *column)],
                PixelSpacing=[2.5, 2.5], SliceThickness=step, PixelRepresentation=int(signed),
                BitsStored=16, HighBit=15, **values,
            )  # fmt: skip
            self.files.append(encode(ds, syntax))

    def at(self, lps: np.ndarray) -> np.ndarray:
        """Return the voxels at world coordinates, shape (3, n), in mm."""
        place = np.linalg.solve(self.to_lps[:3, :3], lps - self.to_lps[:3, 3:])
        i, j, k = place.round().astype(int)
        assert abs(place - place.round()).max() < 0.01
        return self.voxels[k, j, i]


def drop_one(files: Files, k: int) -> Files:
    return files[:k] + files[k + 1 :]


def lose_tail(files: Files, k: int) -> Files:
    return files[: max(k, 1)]


def repeat(files: Files, k: int) -> Files:
    return [*files, files[k]]


def cut(files: Files, k: int) -> Files:
    return [*files[:k], files[k][: 40 * k], *files[k + 1 :]]


def empty(files: Files, k: int) -> Files:
    return [*files[:k], b"", *files[k + 1 :]]


def lose_preamble(files: Files, k: int) -> Files:
    return [*files[:k], files[k][132:], *files[k + 1 :]]


def append(files: Files, k: int) -> Files:
    return [*files[:k], files[k] + b"left over", *files[k + 1 :]]


def add_text(files: Files, k: int) -> Files:
    return [*files, b"Readme of Mustermann^Erika\r\n" * (k + 1)]


def become_program(files: Files, k: int) -> Files:
    return [*files[:k], b"MZ" + files[k][2:], *files[k + 1 :]]


def other_patient(files: Files, k: int) -> Files:
    return [f.replace(b"00471199", b"HOSTILE7") for f in files[:k]] + files[k:]


FAULTS: list[Callable[[Files, int], Files]] = [
    drop_one, lose_tail, repeat, cut, empty, lose_preamble, append, add_text, become_program,
    other_patient,
]  # fmt: skip

spoilt = st.lists(st.tuples(st.sampled_from(FAULTS), st.integers(0, 56)), max_size=3)


@pytest.fixture(scope="module", autouse=True)
def here() -> Iterator[None]:
    """Run what ingest gives to children in this process."""

    def inline(function: Any, items: Sequence[Any], **_: Any) -> list[Any]:
        return [function(item) for item in items]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RARESCAN_KEY", KEY)
        for module in (index, ingest, unpack):
            patch.setattr(module, "run_parallel", inline)
        yield


@pytest.fixture(scope="module")
def sound(make_dataset: Any) -> "Source":
    """A second person without any fault, so that there is always a cohort."""
    return Source(make_dataset, Shape(), PatientID="SOUND1", PatientName="S")


def run(files: Sequence[bytes], folder: Path, *, packed: bool = False) -> Path:
    """Write files in a tree or a zip within a zip, and ingest them."""
    export = folder / "export"
    for k, data in enumerate(files):
        path = export / f"{k % 3}" / f"{len(files) - k:03d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if packed:
        inner = BytesIO()
        with zipfile.ZipFile(inner, "w") as archive:
            for path in sorted(export.rglob("*")):
                if path.is_file():
                    archive.write(path, path.name)
        shutil.rmtree(export)
        export = folder / "export.zip"
        with zipfile.ZipFile(export, "w") as archive:
            archive.writestr("inner.zip", inner.getvalue())
    return ingest_export(export, folder / "cohort", IngestConfig(accept_review=True), workers=1)


def state(cohort: Path) -> tuple[Any, ...]:
    """Return what an ingest decided, without what depends on how files were packed."""
    about = read_about(cohort)
    scans = sorted((s.scan_id, s.sha256) for s in open_cohort(cohort).scans)
    rows = [(e["person_id"], e["code"], e["action"], e["n_files"]) for e in read_events(cohort)]
    kept = sorted(row for row in rows if not row[1].startswith("ARCHIVE"))
    files = {k: v for k, v in about["files"].items() if k in ("used", "quarantined")}
    return scans, kept, files


def require_no_token(cohort: Path) -> None:
    for path in cohort.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if path.name.endswith(".gz"):
                image: Any = nib.load(path)
                data = image.header.binaryblock
            assert not [token for token in TOKENS if token in data], path.name
        assert not [token for token in TOKENS if token.decode() in path.name]


bounded = settings(
    deadline=None,
    derandomize=True,
    max_examples=10,
    phases=[Phase.generate],
    suppress_health_check=[*HealthCheck],
)


@pytest.mark.long
@bounded
@given(shape=shapes, faults=spoilt, order=st.integers(0, 99), packed=st.booleans())
def test_spoilt_series_are_counted_do_not_leak_and_are_right_where_used(
    make_dataset: Any, sound: Source, shape: Shape, faults: Any, order: int, packed: bool
) -> None:
    source = Source(make_dataset, shape)
    files = source.files
    for fault, k in faults:
        files = fault(files, min(k, len(files) - 1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cohort = run([*files, *sound.files], folder / "a")
        about = read_about(cohort)["files"]
        assert about["found"] == len(files) + len(sound.files)
        assert about["found"] == about["used"] + about["dropped"] + about["quarantined"]
        require_no_token(cohort)
        assert sorted(p.name for p in (folder / "a").iterdir()) == ["cohort", "export"]
        every = [*files, *sound.files]
        shuffled = [every[k] for k in np.random.default_rng(order).permutation(len(every))]
        other = run(shuffled, folder / "b", packed=packed)
        assert state(other) == state(cohort)
        assert faults or len(open_cohort(cohort).scans) == 2
        _require_true_voxels(cohort, source)


def _require_true_voxels(cohort: Path, source: Source) -> None:
    """Compare an accepted stack, voxel by voxel, with what the generator put there."""
    for scan in open_cohort(cohort).scans:
        image: Any = nib.load(cohort / scan.path)
        values = np.asarray(image.dataobj)
        if values.shape[:2] != source.voxels.shape[:0:-1] or _is_sound(values):
            continue
        i, j, k = (a.ravel() for a in np.indices(values.shape))
        ras = (image.affine @ np.stack([i, j, k, np.ones_like(i)]))[:3]
        assert np.array_equal(values.ravel(), source.at(ras * [[-1], [-1], [1]]))


def _is_sound(values: np.ndarray) -> bool:
    return np.array_equal(values, ball(SOUND_SLICES, 60, 7)[::-1].transpose(2, 1, 0))


def test_a_second_import_of_the_same_files_adds_nothing(sound: Source, tmp_path: Path) -> None:
    once, twice = (
        run(sound.files, tmp_path / "a"),
        run([*sound.files, *sound.files], tmp_path / "b"),
    )
    assert [s.sha256 for s in open_cohort(once).scans] == [
        s.sha256 for s in open_cohort(twice).scans
    ]
    assert read_about(twice)["codes"] == {"DUP_EXACT": 1}
    before = {p: p.stat().st_mtime_ns for p in once.rglob("*")}
    ingest_export(tmp_path / "a/export", once, IngestConfig(accept_review=True), workers=1)
    assert {p: p.stat().st_mtime_ns for p in once.rglob("*")} == before


def mutate(data: st.DataObject, whole: bytes) -> bytes:
    """Splice, flip or cut raw bytes; headers are hit as often as pixels."""
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        if not broken:
            break
        header = data.draw(st.booleans())
        at = data.draw(
            st.integers(0, max(min(len(broken), 1800) if header else len(broken), 1) - 1)
        )
        kind = data.draw(st.sampled_from(["flip", "splice", "cut"]))
        if kind == "flip":
            broken[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "splice":
            broken[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=12))
        else:
            del broken[at:]
    return bytes(broken)


@settings(bounded, max_examples=250)
@given(data=st.data(), which=st.integers(0, 3))
def test_raw_bytes_never_raise_and_headers_survive_the_index(
    coded: Callable[[int], bytes], data: st.DataObject, which: int
) -> None:
    found = read_header(mutate(data, coded(which)))
    if isinstance(found, Header):
        assert Header.from_json(found.to_json()).to_json() == found.to_json()
        assert len(found.spread()) <= 1000


@pytest.fixture(scope="module")
def coded(make_dataset: Any) -> Callable[[int], bytes]:
    """Return the same slice in one of four encodings."""
    syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless,
                DeflatedExplicitVRLittleEndian)  # fmt: skip
    voxels = ball(3, 32, 1)
    return [encode(make_dataset(voxels, 1, "s"), syntax) for syntax in syntaxes].__getitem__


@settings(bounded, max_examples=8)
@given(data=st.data())
def test_a_series_with_broken_bytes_is_counted_and_leaks_nothing(
    make_dataset: Any, sound: Source, data: st.DataObject
) -> None:
    files = list(Source(make_dataset, Shape(seed=3)).files)
    for _ in range(data.draw(st.integers(1, 4))):
        k = data.draw(st.integers(0, len(files) - 1))
        files[k] = mutate(data, files[k])
    with tempfile.TemporaryDirectory() as name:
        cohort = run([*files, *sound.files], Path(name))
        about = read_about(cohort)["files"]
        assert about["found"] == len(files) + len(sound.files)
        assert about["found"] == about["used"] + about["dropped"] + about["quarantined"]
        require_no_token(cohort)
