import hashlib
import stat
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from rarescan.cohort.contracts import brain_grid
from rarescan.cohort.template import load_template
from rarescan.errors import SettingError
from rarescan.phantom import export
from rarescan.phantom.dicom import uid
from rarescan.phantom.export import write_export
from rarescan.phantom.scanners import SCANNERS
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import person_volumes

T1 = 3
TINY = PhantomConfig(patients=1, controls=1, faults=False, voxel_mm=1.6)


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _used(written) -> list[str]:
    return list(written.truth.index[written.truth["expected"] == "used"])


def test_every_file_is_a_valid_mr_image_of_its_own(written) -> None:
    uids = [str(f.SOPInstanceUID) for stack in written.stacks.values() for f in stack.files]
    assert len(uids) == len(set(uids))
    for stack in written.stacks.values():
        for file in stack.files:
            assert file.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
            assert file.file_meta.MediaStorageSOPInstanceUID == file.SOPInstanceUID
            assert file.pixel_array.shape == (file.Rows, file.Columns)
            assert file.SOPInstanceUID.is_valid
            assert len(file.PixelData) == file.Rows * file.Columns * 2


def test_sites_differ_in_maker_matrix_plane_and_encoding(written) -> None:
    firsts = [written.stacks[p, T1].files[0] for p in _used(written)]
    assert {f.Manufacturer.split()[0] for f in firsts} == {"SIEMENS", "GE", "Philips"}
    assert len({(f.Rows, f.Columns) for f in firsts}) == 3
    assert len({f.file_meta.TransferSyntaxUID for f in firsts}) == 2
    normals = [
        np.abs(np.cross(f.ImageOrientationPatient[:3], f.ImageOrientationPatient[3:])).argmax()
        for f in firsts
    ]
    assert set(normals) == {0, 1, 2}
    assert {f.BitsStored for f in firsts} == {12, 16}


@pytest.mark.parametrize("site", "ABCD")
def test_physics_lies_in_the_makers_ranges(site: str) -> None:
    # Ranges of published protocols: TE, TR (Siemens: inversion to inversion), TI, flip angle.
    siemens = {"TE": (1.6, 4.5), "TR": (1900, 3000), "TI": (700, 1200), "FA": (7, 12)}
    ranges = {
        "A": siemens,
        "B": {"TE": (2, 5), "TR": (5, 12), "TI": (400, 450), "FA": (8, 20)},
        "C": {"TE": (2.5, 5), "TR": (5, 12), "FA": (8, 9)},
        "D": siemens,
    }[site]
    keywords = {"TE": "EchoTime", "TR": "RepetitionTime", "TI": "InversionTime", "FA": "FlipAngle"}
    header = SCANNERS[site].t1
    assert {k for k in keywords if keywords[k] in header} == set(ranges)
    for name, (low, high) in ranges.items():
        assert low <= header[keywords[name]] <= high
    variant, sequence = header["SequenceVariant"], header["ScanningSequence"]
    expected = {
        "A": (["GR", "IR"], ["SK", "SP", "MP"]),
        "B": ("GR", ["SS", "SP", "SK"]),
        "C": ("GR", "MP"),
        "D": (["GR", "IR"], ["SK", "SP", "MP"]),
    }[site]
    assert (sequence, variant) == expected


@pytest.mark.parametrize("voxel_mm", [1.0, 1.5, 1.6])
@pytest.mark.parametrize("site", "ABCD")
def test_every_t1_scores_65_or_more(site: str, voxel_mm: float) -> None:
    scanner = SCANNERS[site]
    size, spacing = scanner.t1_size(voxel_mm)
    header = scanner.t1
    variants = [*header["SequenceVariant"], *header["ScanningSequence"]]
    inversion = "IR" in variants or "MP" in "".join(variants) or header.get("InversionTime", 0) > 0
    gradient = "GR" in "".join(header["ScanningSequence"])
    assert gradient
    assert inversion
    assert header["EchoTime"] <= 8
    assert 4 <= header["FlipAngle"] <= 20
    score = 45
    edge = max(spacing)
    score += 25 if edge <= 1.1 else 18 if edge <= 1.3 else 10 if edge <= 1.6 else 0
    extents = [n * s for n, s in zip(size, spacing, strict=True)]
    score += 5 if min(extents) >= 140 else 0
    score += 4 if "NORM" in header["ImageType"] else 0
    text = header["SeriesDescription"].lower() + header["ProtocolName"].lower()
    score += 6 if any(w in text for w in ("mprage", "bravo", "tfe", "t1")) else 0
    for word in ("t2", "flair", "swi", "mra", "dwi", "loc", "scout", "vibe", "water", "fat", "pd"):
        assert word not in text
    assert score >= 65


def _sample(volume: np.ndarray, affine: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    index = np.linalg.inv(affine) @ np.c_[points_mm, np.ones(len(points_mm))].T
    return ndimage.map_coordinates(volume, index[:3], order=1)


def test_headers_put_the_brain_where_truth_says(written) -> None:
    template, grid = load_template(4), brain_grid(4)
    inside = np.argwhere(template.brain > 0.9)
    points = np.c_[inside, np.ones(len(inside))] @ grid.matrix().T
    expected = template.t1[tuple(inside.T)]
    for patient in _used(written):
        stack = written.stacks[patient, T1]
        volume, affine = stack.volume(), stack.affine()
        pose = np.reshape(written.truth.loc[patient, "pose"], (4, 4))
        fit = {}
        for shift in [
            (0, 0, 0),
            (12, 0, 0),
            (-12, 0, 0),
            (0, 12, 0),
            (0, -12, 0),
            (0, 0, 12),
            (0, 0, -12),
        ]:
            placed = (points[:, :3] + shift) @ pose[:3, :3].T + pose[:3, 3]
            fit[shift] = np.corrcoef(_sample(volume, affine, placed), expected)[0, 1]
        assert max(fit, key=lambda s: fit[s]) == (0, 0, 0)
        assert fit[0, 0, 0] > 0.5


def test_left_and_right_follow_truth_and_not_only_symmetry(written) -> None:
    # Everybody's brain is asymmetric: the true person fits better than the mirrored one.
    for patient in _used(written):
        row = written.truth.loc[patient]
        image = person_volumes(written.config, [int(row["index"])], 4)[0]
        inside = np.argwhere((image > 0) & (image[::-1] > 0))
        points = (np.c_[inside, np.ones(len(inside))] @ brain_grid(4).matrix().T)[:, :3]
        pose = np.reshape(row["pose"], (4, 4))
        stack = written.stacks[patient, T1]
        seen = _sample(stack.volume(), stack.affine(), points @ pose[:3, :3].T + pose[:3, 3])
        right, mirrored = image[tuple(inside.T)], image[::-1][tuple(inside.T)]
        assert np.corrcoef(seen, right)[0, 1] > 0.75
        assert np.corrcoef(seen, right)[0, 1] > np.corrcoef(seen, mirrored)[0, 1] + 0.02


def test_another_converter_agrees_with_the_geometry(written, tmp_path: Path) -> None:
    patient = next(p for p in _used(written) if written.truth.loc[p, "site"] == "C")
    stack = written.stacks[patient, T1]
    tool = Path(sys.executable).with_name("dcm2niix")
    if not tool.exists():
        pytest.skip("dcm2niix is not installed")
    command = [
        tool,
        "-p",
        "n",
        "-b",
        "n",
        "-z",
        "n",
        "-f",
        "out",
        "-o",
        tmp_path,
        stack.paths[0].parent,
    ]
    subprocess.run(command, check=True, capture_output=True)
    image = nibabel.load(tmp_path / "out.nii")
    ours, theirs = stack.affine(), image.affine
    for corner in ([0, 0, 0], [5, 9, 20], [100, 120, 90]):
        mm = (ours @ [*corner, 1])[:3]
        index = np.linalg.inv(theirs) @ [*mm, 1]
        np.testing.assert_allclose(index[:3], index[:3].round(), atol=0.02)
        value = image.get_fdata()[tuple(index[:3].round().astype(int))]
        assert value == pytest.approx(stack.volume()[tuple(corner)], rel=1e-4)


def test_whole_brain_is_inside_every_t1(written) -> None:
    grid = brain_grid(8)
    inside = np.argwhere(load_template(8).brain > 0.5)
    points = (np.c_[inside, np.ones(len(inside))] @ grid.matrix().T)[:, :3]
    for patient in _used(written):
        stack = written.stacks[patient, T1]
        pose = np.reshape(written.truth.loc[patient, "pose"], (4, 4))
        placed = np.c_[points @ pose[:3, :3].T + pose[:3, 3], np.ones(len(points))]
        index = (np.linalg.inv(stack.affine()) @ placed.T)[:3].T
        last = np.array([stack.files[0].Columns, stack.files[0].Rows, len(stack.files)]) - 1
        assert (index >= 0).all()
        assert (index <= last).all()


def test_the_head_has_air_around_it_and_values_below_the_limit(written) -> None:
    for patient in _used(written):
        stack = written.stacks[patient, T1]
        stored = np.stack([f.pixel_array for f in stack.files])
        assert stored.min() >= 0
        assert stored.max() < 2 ** min(stack.files[0].BitsStored, 15) - 1
        assert (stored < 0.15 * np.quantile(stored, 0.98)).mean() > 0.3


def test_each_study_begins_with_a_localizer_in_three_planes(written) -> None:
    for patient in written.truth.index:
        files = written.stacks[patient, 1].files
        assert len(files) == 9
        assert len({f.SeriesInstanceUID for f in files}) == 1
        assert {"LOCALIZER"} <= set(files[0].ImageType)
        assert len({tuple(f.ImageOrientationPatient) for f in files}) == 3
        assert sorted(int(f.InstanceNumber) for f in files) == list(range(1, 10))


def test_private_slice_counts_are_true(written) -> None:
    for patient in _used(written):
        stack = written.stacks[patient, T1]
        file = stack.files[0]
        for tag in ((0x2001, 0x1018), (0x0021, 0x104F)):
            if tag in file:
                assert file[tag].value == len(stack.files)


def test_faults_are_the_ones_that_truth_announces(written) -> None:
    by_kind = {kind: patient for patient, kind in written.truth["expected"].items()}
    lost = written.stacks[by_kind["MISSING_SLICE"], T1]
    positions = [float(f.SliceLocation) for f in lost.files]
    steps = np.diff(positions)
    assert steps.max() == pytest.approx(2 * np.median(steps), rel=1e-3)
    assert (by_kind["NO_T1"], T1) not in written.stacks
    assert (by_kind["NO_T1"], 4) in written.stacks
    assert str(written.stacks[by_kind["PHANTOM"], T1].files[0].PatientName) == "QA^PHANTOM"
    (copy,) = (written.folder / "export").rglob("COPY")
    twins = [p for p in copy.parent.iterdir() if p.read_bytes() == copy.read_bytes()]
    assert len(twins) == 2
    assert (written.folder / "export" / "VIEWER.TXT").exists()


def test_no_truth_is_inside_the_export(written) -> None:
    secrets = [b"PH000", b"bvFTD", b"control", b"severity", b"phantom"]
    for path in (written.folder / "export").rglob("*"):
        if path.is_file():
            header = path.read_bytes()[:8000]
            assert not any(secret in header for secret in secrets), path.name


def test_identity_stands_in_headers_and_never_in_names_of_files(written) -> None:
    names = "/".join(str(p.relative_to(written.folder)) for p in written.folder.rglob("*"))
    for patient in _used(written):
        file = written.stacks[patient, T1].files[0]
        family = str(file.PatientName).split("^")[0]
        assert family
        assert family not in names
        assert patient not in names
        assert file.PatientBirthDate
        copy = file[0x0029, 0x1010].value  # bytes where the transfer syntax names no types
        assert patient in (copy if isinstance(copy, str) else copy.decode())


def test_labels_are_what_a_hospital_holds(written) -> None:
    labels = pd.read_csv(written.folder / "labels.csv", dtype={"patient_id": str})
    assert list(labels.columns) == ["patient_id", "diagnosis", "age_years", "sex", "site"]
    in_headers = {patient for patient, _ in written.stacks} - {"QAPHANTOM"}
    assert set(labels["patient_id"]) == in_headers
    for row in labels.itertuples():
        file = written.stacks[row.patient_id, 1].files[0]
        assert file.PatientSex == row.sex
        assert int(file.PatientAge[:3]) == pytest.approx(row.age_years, abs=1)


def test_truth_leads_to_the_series(written) -> None:
    for patient in _used(written):
        series = written.stacks[patient, T1].files[0].SeriesInstanceUID
        assert written.truth.loc[patient, "t1_series_uid"] == series


def test_each_patient_has_a_twin_without_the_disease(written) -> None:
    patients = written.truth[written.truth["diagnosis"] == "bvFTD"]
    twins = {path.stem for path in (written.folder / "truth" / "twins").iterdir()}
    assert twins == set(patients["person_id"])
    row = patients.iloc[0]
    twin = np.load(written.folder / "truth" / "twins" / f"{row['person_id']}.npy")
    expected = person_volumes(written.config, [int(row["index"])], 4, severity=0.0)[0]
    np.testing.assert_array_equal(twin, expected)


def test_key_and_notice_lie_beside_the_export(written) -> None:
    key = written.folder / "pseudonym.key"
    assert len(bytes.fromhex(key.read_text())) == 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "Louis Collins" in (written.folder / "NOTICE").read_text()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("tiny") / "out", TINY, workers=1)


def test_a_killed_export_goes_on_and_ends_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, started = export.write_study, []

    def dies_in_the_second(visit, folder):
        started.append(visit.person.index)
        real(visit, folder)
        if len(started) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(export, "write_study", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_export(tmp_path / "out", TINY, workers=1)
    assert not (tmp_path / "out").exists()
    write_export(tmp_path / "out", TINY, workers=1)
    assert started == [0, 1, 1]
    assert _tree(tmp_path / "out") == _tree(tiny)


@pytest.mark.long
def test_bytes_do_not_depend_on_the_number_of_workers(tiny: Path, tmp_path: Path) -> None:
    write_export(tmp_path / "out", TINY, workers=2)
    assert _tree(tmp_path / "out") == _tree(tiny)


def test_an_empty_population_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="nobody"):
        write_export(tmp_path / "out", PhantomConfig(patients=0, controls=0))


def test_uids_have_one_length_and_no_repeats() -> None:
    uids = {uid("study", i) for i in range(2000)}
    assert len(uids) == 2000
    assert {len(u) for u in uids} == {44}
    assert all(int(u[5:]) < 2**128 for u in uids)
