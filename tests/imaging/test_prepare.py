import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from rarescan.cohort.contracts import Condition, Scan, brain_grid
from rarescan.cohort.partition import PartitionConfig
from rarescan.cohort.store import (
    open_cohort,
    open_volumes,
    read_about,
    read_events,
    tables,
    write_cohort,
)
from rarescan.cohort.template import load_template
from rarescan.errors import ChangedRecipeError, InputError
from rarescan.files import Recipe, run_step, sha256_file
from rarescan.imaging import prepare, qc
from rarescan.imaging.prepare import prepare_cohort
from rarescan.imaging.register import to_image
from rarescan.imaging.scan import (
    RefusedScanError,
    correct_bias,
    prepare_scan,
    read_native,
    scale,
)
from rarescan.imaging.spec import PrepareConfig

DONE = ("stripped", "template_space", "bias_corrected")
QUICK = PrepareConfig(
    spacing_mm=4.0, registration_starts=1, bias_correction="coarse", strip="template"
)
PARTS = PartitionConfig(fewest_validation=0)


@pytest.fixture(scope="module")
def head() -> sitk.Image:
    """A whole head, turned by 8 degrees, with shading and noise, on 2.4 mm voxels."""
    template = load_template(2.0)
    t1, brain = np.pad(template.t1, 16), np.pad(template.brain > 0.5, 16)
    away_mm = ndimage.distance_transform_edt(~brain) * 2.0
    shells = np.select([away_mm <= 3, away_mm <= 8, away_mm <= 13], [0.25, 0.08, 0.95], 0.0)
    volume, affine = np.where(brain, t1, shells), template.grid.matrix()
    affine[:3, 3] -= 32
    pose, native, shape = np.eye(4), np.diag([2.4, 2.4, 2.4, 1.0]), (90, 105, 90)
    pose[:3, :3] = Rotation.from_euler("xyz", [8, -5, 3], degrees=True).as_matrix()
    native[:3, 3] = [-107, -140, -112]
    look = np.linalg.inv(affine) @ np.linalg.inv(pose) @ native
    seen = ndimage.affine_transform(volume, look[:3, :3], look[:3, 3], output_shape=shape, order=1)
    rng = np.random.default_rng(3)
    shaded = seen * np.exp(np.linspace(-0.4, 0.4, shape[1]))[None, :, None]
    noisy = np.hypot(shaded + rng.normal(0, 0.03, shape), rng.normal(0, 0.03, shape))
    return to_image((700 * noisy).astype(np.float32), native)


def refused(image: sitk.Image, flags: tuple[str, ...] = ()) -> str:
    with pytest.raises(RefusedScanError) as error:
        prepare_scan(image, flags, QUICK)
    return error.value.code


def test_a_head_comes_out_as_the_template_with_its_intensities_on_the_common_scale(
    head: sitk.Image,
) -> None:
    prepared = prepare_scan(head, (), QUICK)
    template = load_template(4.0)
    assert prepared.volume.dtype == np.float32
    assert prepared.volume.shape == template.grid.shape
    brain = template.brain > 0.99
    assert np.corrcoef(prepared.volume[brain], template.t1[brain])[0, 1] > 0.95
    # White matter near 0.8, nothing of the skull and scalp around the brain.
    assert np.median(prepared.volume[template.wm > 0.95]) == pytest.approx(0.8, abs=0.04)
    outside = ndimage.distance_transform_edt(template.brain < 0.1) > 2
    assert not prepared.volume[outside].any()
    assert prepared.measures.determinant == pytest.approx(1, abs=0.04)


def test_another_intensity_unit_gives_the_same_volume(head: sitk.Image) -> None:
    first, other = (prepare_scan(image, (), QUICK).volume for image in (head, head * 7.3))
    # A voxel on the mask's very edge may fall to the other side.
    assert (np.abs(first - other) > 2e-3).mean() < 2e-4


def test_a_head_can_be_prepared_on_the_2_mm_grid_without_bias_correction(
    head: sitk.Image,
) -> None:
    config = replace(QUICK, spacing_mm=2.0, bias_correction="none")
    prepared = prepare_scan(head, ("bias_corrected",), config)
    assert prepared.volume.shape == brain_grid(2.0).shape
    assert prepared.measures.metric < -0.6


def test_coarse_bias_correction_takes_half_of_a_strong_shading_away(head: sitk.Image) -> None:
    def slope(image: sitk.Image) -> float:
        values = sitk.GetArrayFromImage(image)[40:50, :, 40:50].mean(axis=(0, 2))
        core = np.log(values[30:75])
        return float(np.polyfit(np.linspace(0, 1, len(core)), core, 1)[0])

    assert abs(slope(correct_bias(head, "coarse"))) < 0.6 * abs(slope(head))


@pytest.mark.parametrize("spacing_mm", [2.0, 4.0])
def test_what_is_on_the_grid_already_is_only_scaled(spacing_mm: float) -> None:
    template = load_template(spacing_mm)
    brain = np.where(template.brain >= 0.5, template.t1, 0) * np.float32(300)
    image = to_image(brain.astype(np.float32), template.grid.matrix())
    prepared = prepare_scan(image, DONE, replace(QUICK, spacing_mm=spacing_mm))
    np.testing.assert_allclose(prepared.volume, scale(brain, brain > 0), atol=3e-4)
    np.testing.assert_array_equal(prepared.matrix, np.eye(4))


@pytest.mark.parametrize("stored_as", ["RAS", "LAS", "PSR", "oblique"])
def test_what_lies_left_stays_left(stored_as: str, tmp_path: Path) -> None:
    template = load_template(2.0)
    values = template.t1.copy()
    # A dark spot 40 mm left of the midline, in white matter.
    values[19:23, 48:52, 47:51] = 0.02
    image = nibabel.Nifti1Image(values, template.grid.matrix())
    if stored_as == "oblique":
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix()
        native = turn @ np.diag([-2.0, 2.0, 2.0, 1.0])
        native[:3, 3] = [110, -130, -90]
        look = np.linalg.inv(template.grid.matrix()) @ native
        turned = ndimage.affine_transform(
            values, look[:3, :3], look[:3, 3], output_shape=(130, 130, 90), order=1
        )
        image = nibabel.Nifti1Image(turned, native)
    else:
        wanted = nibabel.orientations.axcodes2ornt(stored_as)
        image = image.as_reoriented(
            nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted)
        )
        assert "".join(nibabel.aff2axcodes(image.affine)) == stored_as
    nibabel.save(image, tmp_path / "scan.nii.gz")
    scan = read_native(tmp_path / "scan.nii.gz")
    prepared = prepare_scan(scan, DONE, replace(QUICK, spacing_mm=2.0)).volume
    assert prepared[20:22, 49:51, 48:50].mean() < 0.15
    assert prepared[::-1][20:22, 49:51, 48:50].mean() > 0.5


def test_what_is_no_head_is_refused_with_its_code() -> None:
    affine = np.diag([2.5, 2.5, 2.5, 1.0])
    affine[:3, 3] = -100
    rng = np.random.default_rng(0)
    place = np.indices((80, 80, 80)) - 40
    ball = np.where((place**2).sum(axis=0) < 32**2, 100.0, 0.0) + rng.normal(0, 3, (80,) * 3)
    noise = rng.random((80, 80, 80))
    assert refused(to_image(ball.astype(np.float32), affine)) == "NOT_HEAD"
    assert refused(to_image(noise.astype(np.float32), affine)) == "NOT_HEAD"
    assert refused(to_image(np.zeros((40,) * 3, np.float32), affine)) == "PIXELS_DEAD"
    saturated = np.minimum(rng.random((40,) * 3), 0.3).astype(np.float32)
    assert refused(to_image(saturated, affine)) == "PIXELS_DEAD"


def test_half_a_brain_is_refused_for_its_volume() -> None:
    template = load_template(2.0)
    half = template.t1.copy()
    half[:, :, 34:] = 0
    assert refused(to_image(half, template.grid.matrix()), DONE) in ("NOT_HEAD", "BRAIN_VOLUME")


def test_real_brains_that_are_declared_done_pass(real_data: Path) -> None:
    for path in sorted((real_data / "t1/vol").glob("*.nii.gz"))[::30]:
        prepared = prepare_scan(read_native(path), DONE, QUICK)
        inside = prepared.volume[prepared.volume > 0]
        assert prepared.measures.metric < -0.3
        assert 0.45 < np.median(inside) < 0.7
        assert inside.size * 0.064 == pytest.approx(prepared.measures.brain_ml, rel=0.03)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, image: path.write_bytes(path.read_bytes()[:-400]),
        lambda path, image: path.write_bytes(b"no image"),
        lambda path, image: path.unlink(),
        lambda path, image: nibabel.save(
            nibabel.Nifti1Image(np.zeros((9, 9, 9, 4), np.float32), np.eye(4)), path
        ),
        lambda path, image: nibabel.save(
            nibabel.Nifti1Image(np.full((9, 9, 9), np.nan, np.float32), np.eye(4)), path
        ),
    ],
    ids=["cut off", "no NIfTI", "missing", "four dimensions", "not finite"],
)
def test_a_damaged_file_is_refused_by_its_code(
    damage: Callable[[Path, object], None], tmp_path: Path
) -> None:
    path = tmp_path / "scan.nii.gz"
    rng = np.random.default_rng(0)
    nibabel.save(nibabel.Nifti1Image(rng.random((20,) * 3).astype(np.float32), np.eye(4)), path)
    damage(path, None)
    with pytest.raises(RefusedScanError) as error:
        read_native(path)
    assert error.value.code == "READ_FAILED"


def test_the_scale_of_a_uniform_brain_is_one_over_1_6() -> None:
    volume = np.full((4, 4, 4), 812.0, np.float32)
    mask = np.zeros((4, 4, 4), bool)
    mask[1:3] = True
    expected = np.where(mask, 1 / 1.6, 0)
    np.testing.assert_allclose(scale(volume, mask), expected, rtol=1e-6)


@given(unit=st.floats(1e-3, 1e4), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_scale_forgets_the_unit_and_stays_within_0_and_1(unit: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    volume = rng.gamma(2, 1, (6, 6, 6)).astype(np.float32)
    mask = rng.random((6, 6, 6)) > 0.4
    first, other = scale(volume, mask), scale(volume * np.float32(unit), mask)
    np.testing.assert_allclose(first, other, atol=1e-5)
    assert first.min() == 0
    assert first.max() <= 1
    assert not first[~mask].any()


# ---------------------------------------------------------------- whole cohorts


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native cohort of 13 persons, declared done; the scan of the seventh is empty."""
    root = tmp_path_factory.mktemp("native") / "cohort"
    template = load_template(4.0)

    def build(work: Path) -> None:
        scans = []
        for index in range(13):
            values = template.t1 + 0.1 * np.sin(index + 1) * template.gm
            values = values * (template.brain > 0.5) * (index != 6)
            path = Path("anat") / f"scan-{index:02d}.nii.gz"
            (work / path).parent.mkdir(exist_ok=True)
            counts = (values * 1000).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(counts, template.grid.matrix()), work / path)
            scans.append(
                Scan(
                    scan_id=f"P{index:02d}_ses-01",
                    person_id=f"P{index:02d}",
                    path=str(path),
                    condition=Condition(diagnosis="bvFTD" if index < 6 else "control"),
                    flags=DONE,
                )
            )
        write_cohort(work, scans=scans, grid=None, partition={})

    return run_step(root, Recipe(step="ingest", schema=1), build)


CONFIG = replace(QUICK, spacing_mm=8.0)


@pytest.fixture(scope="module")
def prepared(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "cohort"
    return prepare_cohort(native, folder, CONFIG, PARTS, workers=1)


def digests(folder: Path) -> dict[str, str]:
    names = ("volumes.npy", "scans.parquet", "cohort.json", "events.parquet")
    return {name: sha256_file(tables(folder) / name) for name in names}


def test_a_prepared_cohort_holds_the_accepted_scans_on_one_grid(
    native: Path, prepared: Path
) -> None:
    cohort = open_cohort(prepared)
    volumes = open_volumes(cohort)
    assert cohort.grid == brain_grid(8.0)
    assert volumes.shape == (12, *brain_grid(8.0).shape)
    assert [scan.scan_id for scan in cohort.scans] == [
        scan.scan_id for scan in open_cohort(native).scans if scan.person_id != "P06"
    ]
    assert set(cohort.partition) == {scan.person_id for scan in cohort.scans}
    for scan, volume, source in zip(
        cohort.scans, volumes, [i for i in range(13) if i != 6], strict=True
    ):
        single = read_native(native / f"anat/scan-{source:02d}.nii.gz")
        np.testing.assert_array_equal(volume, prepare_scan(single, DONE, CONFIG).volume)
        assert scan.path == ""
        assert scan.flags == (*DONE, "prepared")
        assert scan.sha256 == _sha256(volume)


def _sha256(volume: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(volume).tobytes()).hexdigest()


def test_a_refused_scan_is_an_event_with_its_code(prepared: Path) -> None:
    [event] = read_events(prepared)
    assert (event["stack_id"], event["person_id"]) == ("P06_ses-01", "P06")
    assert (event["code"], event["action"]) == ("PIXELS_DEAD", "quarantine")
    about = read_about(prepared)
    assert (about["scans"], about["prepared"]) == (13, 12)
    assert about["refused"] == {"PIXELS_DEAD": 1}


def test_the_quality_table_has_one_row_a_scan(prepared: Path) -> None:
    table = pd.read_parquet(tables(prepared) / "qc.parquet")
    assert list(table["scan_id"]) == [scan.scan_id for scan in open_cohort(prepared).scans]
    assert (table["metric"] < qc.DOUBTFUL_METRIC).all()
    assert (table["determinant"] == 1).all()


@pytest.mark.long
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    native: Path, prepared: Path, tmp_path: Path
) -> None:
    other = prepare_cohort(native, tmp_path / "other", CONFIG, PARTS, workers=2)
    assert digests(other) == digests(prepared)


@pytest.mark.long
def test_a_killed_run_goes_on_where_it_stopped(
    native: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    root = tmp_path / "native"
    shutil.copytree(native, root)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_collect_volumes", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_cohort(root, tmp_path / "out", CONFIG, PARTS, workers=1)
    assert not (tmp_path / "out").exists()
    # Only the third scan is open: every other source is gone, and must not be missed.
    (tmp_path / ".out.unfinished/qc/scans/P02_ses-01.json").unlink()
    for path in root.glob("anat/*.nii.gz"):
        if path.name != "scan-02.nii.gz":
            path.unlink()
    again = prepare_cohort(root, tmp_path / "out", CONFIG, PARTS, workers=1)
    assert digests(again) == digests(prepared)


@pytest.mark.parametrize("step", ["write_events", "_write_quality"])
def test_a_run_killed_while_it_writes_its_tables_ends_the_same(
    step: str, native: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, step, killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_cohort(native, tmp_path / "out", CONFIG, PARTS, workers=1)
    assert digests(prepare_cohort(native, tmp_path / "out", CONFIG, PARTS)) == digests(prepared)


def test_other_settings_do_not_replace_a_result_unasked_and_keep_the_partition(
    native: Path, prepared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cohort"
    shutil.copytree(prepared, folder)
    other = replace(PARTS, seed=99)
    with pytest.raises(ChangedRecipeError, match=r"partition\.seed"):
        prepare_cohort(native, folder, CONFIG, other)
    before = open_cohort(folder).partition
    prepare_cohort(native, folder, CONFIG, other, workers=1, overwrite=True)
    assert open_cohort(folder).partition == before


def test_a_dead_worker_costs_one_scan(tmp_path: Path) -> None:
    job = prepare._Job(
        source=tmp_path / "a.nii.gz",
        scan_id="P1_ses-01",
        flags=(),
        row=0,
        work=tmp_path,
        config=CONFIG,
    )
    prepare._note_refusal(job, code="WORKER_DIED")
    assert prepare.read_json(job.result) == {
        "scan_id": "P1_ses-01",
        "code": "WORKER_DIED",
        "measures": {},
    }


def test_a_prepared_cohort_is_not_prepared_again(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prepared already"):
        prepare_cohort(prepared, tmp_path / "twice", CONFIG, PARTS)


@pytest.mark.parametrize(("n_scans", "words"), [(0, "holds no scans"), (2, "2 PIXELS_DEAD")])
def test_a_cohort_without_a_usable_scan_is_an_error_that_says_why(
    n_scans: int, words: str, tmp_path: Path
) -> None:
    def build(work: Path) -> None:
        empty = nibabel.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4))
        nibabel.save(empty, work / "empty.nii.gz")
        condition = Condition(diagnosis="control")
        scans = [
            Scan(scan_id=f"S{i}", person_id=f"P{i}", path="empty.nii.gz", condition=condition)
            for i in range(n_scans)
        ]
        write_cohort(work, scans=scans, grid=None, partition={})

    root = run_step(tmp_path / "native", Recipe(step="ingest", schema=1), build)
    with pytest.raises(InputError, match=words):
        prepare_cohort(root, tmp_path / "out", CONFIG, PARTS, workers=1)
    assert not (tmp_path / "out").exists()


def cohort_of(root: Path, images: dict[str, sitk.Image], flags: tuple[str, ...] = ()) -> Path:
    """Return a native cohort with one scan a person."""

    def build(work: Path) -> None:
        scans = []
        for person, image in images.items():
            sitk.WriteImage(image, str(work / f"{person}.nii.gz"))
            condition = Condition(diagnosis="control")
            scan = Scan(scan_id=f"{person}_ses-01", person_id=person, condition=condition)
            scans.append(replace(scan, path=f"{person}.nii.gz", flags=flags))
        write_cohort(work, scans=scans, grid=None, partition={})

    return run_step(root, Recipe(step="ingest", schema=1), build)


def series(archive: Path, folder: Path, every: list[int]) -> sitk.Image:
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    place = max(folder.rglob("*.dcm"), key=lambda path: path.stat().st_size).parent
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(place))
    return sitk.BinShrink(sitk.Cast(sitk.ReadImage(names), sitk.sitkFloat32), every)


@pytest.mark.long
def test_a_real_head_handed_over_directly_passes_the_gate_of_brain_volume(
    real_data: Path, tmp_path: Path
) -> None:
    head = series(real_data / "dicom/t1/studyforrest_t1w_every2nd.tar.xz", tmp_path, [2, 2, 1])
    measures = prepare_scan(head, (), replace(QUICK, spacing_mm=2.0)).measures
    # deepbet finds 1795 ml at full resolution; the template's mask holds up to 7 % less.
    assert 1650 < measures.brain_ml < 1830
    assert measures.metric < -0.45


@pytest.mark.slow
def test_a_series_of_fruit_is_refused(real_data: Path, tmp_path: Path) -> None:
    fruit = series(real_data / "dicom/ge_irspgr_fruit.tar.xz", tmp_path, [2, 2, 2])
    assert refused(fruit) == "NOT_HEAD"


def test_a_head_with_exchanged_contrast_is_refused(head: sitk.Image) -> None:
    template = load_template(2.0)
    inside = template.brain > 0.5
    # As in a T2: fluid bright, white matter dark; it lies on the template exactly.
    t2 = np.where(inside, 20 * template.wm + 60 * template.gm + 100 * template.csf, 0)
    image = to_image(t2.astype(np.float32), template.grid.matrix())
    assert refused(image, DONE) == "CONTRAST"
    assert refused(image, ("stripped", "bias_corrected")) == "CONTRAST"


def test_the_command_s_name_and_version_are_kept_and_its_failures_are_events(
    head: sitk.Image, tmp_path: Path
) -> None:
    tool = tmp_path / "bet"
    tool.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "if sys.argv[1] == '--version': print('bet 3.2'); raise SystemExit\n"
        "raise SystemExit('no weights')\n"
    )
    tool.chmod(0o755)
    config = replace(CONFIG, strip="auto", strip_command=(str(tool), "{in}", "{out}"))
    root = cohort_of(tmp_path / "native", {"P1": head})
    with pytest.raises(InputError, match="1 STRIP_FAILED"):
        prepare_cohort(root, tmp_path / "out", config, PARTS, workers=1)
    done = cohort_of(
        tmp_path / "done",
        {f"P{i}": to_image(load_template(4.0).t1, brain_grid(4.0).matrix()) for i in range(6)},
        DONE,
    )
    out = prepare_cohort(done, tmp_path / "out2", config, PARTS, workers=1)
    assert read_about(out)["versions"]["bet"] == "3.2"
    recipe = (out / "recipe.json").read_text()
    assert '"bet"' in recipe
    assert str(tmp_path) not in recipe


def test_a_page_of_pictures_and_the_status_of_everybody_are_written(prepared: Path) -> None:
    page = (prepared / "qc" / "index.html").read_text()
    assert page.count("<article>") == page.count("data:image/webp;base64,") == 12
    status = pd.read_csv(prepared / "status.tsv", sep="\t", dtype=str, keep_default_na=False)
    assert len(status) == 13
    assert status.set_index("person_id").loc["P06", "prepare"] == "PIXELS_DEAD"
    assert status.set_index("person_id")["partition"].to_dict() == {
        **open_cohort(prepared).partition,
        "P06": "n/a",
    }
