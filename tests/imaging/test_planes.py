from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rarescan.cohort.contracts import plane_grid
from rarescan.cohort.partition import PartitionConfig
from rarescan.cohort.store import open_cohort, open_volumes, read_about, read_events, read_metadata
from rarescan.errors import InputError
from rarescan.imaging.frames import open_clip
from rarescan.imaging.pictures import adopt_pictures
from rarescan.imaging.planes import clip_on_grid, on_grid, prepare_planes
from rarescan.imaging.spec import PicturesConfig, PlanesConfig

PARTITION = PartitionConfig(fewest_validation=0)
SIZES = {"axial": (104, 88), "coronal": (88, 88), "sagittal": (88, 104)}


def picture(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Return a bright ellipse in the middle of a black picture."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    down, right = rows / shape[0] - 0.5, columns / shape[1] - 0.5
    values = np.random.default_rng(seed).integers(80, 200, shape)
    return np.where(np.hypot(down, right) < 0.4, values, 0).astype(np.uint8)


@pytest.fixture(scope="session")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a native cohort: 14 persons with three planes each, the last without its third."""
    source = tmp_path_factory.mktemp("slices")
    lines = ["file,person,label,plane,item"]
    for person in range(14):
        for k, (plane, shape) in enumerate(SIZES.items()):
            if (person, k) == (13, 2):
                continue
            name = f"{person}_{k}.png"
            Image.fromarray(picture(3 * person + k, shape)).save(source / name)
            lines.append(f"{name},P{person:02d},{'ill' if person % 2 else 'healthy'},{plane},a")
    (source / "labels.csv").write_text("\n".join(lines))
    config = PicturesConfig(table="labels.csv", labels=("healthy", "ill"), modality="MR2D")
    return adopt_pictures(source, source / "cohort", config, workers=1)


def prepare(cohort: Path, folder: Path, **values: Any) -> Path:
    return prepare_planes(cohort, folder, PlanesConfig(**values), PARTITION, overwrite=True)


def test_the_planes_of_a_person_are_one_scan(slices: Path, tmp_path: Path) -> None:
    root = prepare(slices, tmp_path / "p", rows=32, columns=24, planes=tuple(SIZES), crop="none")
    cohort, volumes = open_cohort(root), open_volumes(open_cohort(root))
    assert cohort.grid == plane_grid(32, 24, 3)
    assert not cohort.grid.is_brain
    assert volumes.shape == (13, 32, 24, 3)
    assert volumes.dtype == np.float32
    assert Counter(s.person_id for s in cohort.scans).most_common(1)[0][1] == 1
    assert [row["scan_id"] for row in read_metadata(root)] == [s.scan_id for s in cohort.scans]
    assert {s.target for s in cohort.scans} == {"healthy", "ill"}
    assert [e["person_id"] for e in read_events(root)] == ["P13", "P13"]
    assert read_about(root)["refused"] == {"PLANE_MISSING": 2}


def test_planes_keep_one_scale_and_their_middle(slices: Path, tmp_path: Path) -> None:
    """Of 104 x 88, 88 x 88 and 88 x 104 pixels all ellipses keep their size in pixels."""
    root = prepare(slices, tmp_path / "p", rows=52, columns=52, planes=tuple(SIZES), crop="none")
    volumes = open_volumes(open_cohort(root))
    for k, shape in enumerate(SIZES.values()):
        rows, columns = (np.flatnonzero((volumes[0, ..., k] > 0.1).any(axis=a)) for a in (1, 0))
        assert np.ptp(rows) + 1 == pytest.approx(0.8 * shape[0] / 2, abs=1.5)
        assert np.ptp(columns) + 1 == pytest.approx(0.8 * shape[1] / 2, abs=1.5)
        assert (rows.mean(), columns.mean()) == pytest.approx((25.5, 25.5), abs=1)


def test_every_picture_is_a_scan_where_no_planes_are_named(slices: Path, tmp_path: Path) -> None:
    root = prepare(slices, tmp_path / "p", rows=16, columns=16)
    cohort = open_cohort(root)
    assert open_volumes(cohort).shape == (41, 16, 16, 1)
    assert len({s.scan_id for s in cohort.scans}) == 41


def test_the_partition_divides_persons_and_is_kept(slices: Path, tmp_path: Path) -> None:
    first = open_cohort(prepare(slices, tmp_path / "p", rows=16, columns=16))
    assert set(first.partition) == {s.person_id for s in first.scans}
    assert set(first.partition.values()) == {"train", "validation", "test"}
    assert open_cohort(prepare(slices, tmp_path / "p", rows=24, columns=16)).partition == (
        first.partition
    )
    other = prepare_planes(
        slices, tmp_path / "q", PlanesConfig(rows=16, columns=16), replace(PARTITION, seed=5)
    )
    assert open_cohort(other).partition != first.partition


def test_preparing_again_gives_the_same_bytes(slices: Path, tmp_path: Path) -> None:
    roots = [prepare(slices, tmp_path / name, rows=16, columns=16) for name in "ab"]
    names = ("rarescan/volumes.npy", "rarescan/scans.parquet", "rarescan/metadata.parquet")
    for name in names:
        assert (roots[0] / name).read_bytes() == (roots[1] / name).read_bytes()


@pytest.mark.parametrize("aspect", ["keep", "ignore"])
def test_intensities_are_scaled_once_and_black_stays_black(aspect: Any) -> None:
    frame = np.zeros((60, 90), np.uint8)
    frame[10:50, 20:80] = 255
    volume = on_grid([frame], PlanesConfig(rows=20, columns=20, aspect=aspect))
    assert volume.shape == (20, 20, 1)
    assert (volume.min(), volume.max()) == (0, 1)
    # A share of the area: 40 x 60 of the padded or of the stretched picture.
    area = 90 * 90 if aspect == "keep" else 60 * 90
    assert volume.mean() == pytest.approx(40 * 60 / area, rel=5e-3)


def test_the_frames_of_a_clip_are_cut_by_one_box(tmp_path: Path) -> None:
    """A target that moves to the right in the clip moves in the prepared frames, too."""
    frames = np.zeros((6, 60, 60), np.uint8)
    for time in range(6):
        frames[time, 20:40, 10 + 5 * time : 20 + 5 * time] = 200
    clips.save_gif(tmp_path / "clip.gif", frames)
    still = np.zeros((60, 60), np.uint8)
    lines = ["file,person,label", "clip.gif,P0,a"]
    for person in range(1, 14):
        still[20:40, 10:45] = 100 + person
        Image.fromarray(still).save(tmp_path / f"{person}.png")
        lines.append(f"{person}.png,P{person},{'ab'[person % 2]}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    config = PicturesConfig(table="t.csv", labels=("a", "b"))
    root = prepare(adopt_pictures(tmp_path, tmp_path / "c", config, workers=1), tmp_path / "p",
                   rows=20, columns=35)  # fmt: skip
    cohort = open_cohort(root)
    clip = [i for i, scan in enumerate(cohort.scans) if scan.person_id == "P0"]
    volumes = open_volumes(cohort)[clip][..., 0]
    centres = [np.argwhere(volume > 0.5)[:, 1].mean() for volume in volumes]
    assert centres == pytest.approx(list(range(4, 34, 5)), abs=0.6)
    assert open_volumes(cohort)[-1].min() > 0.4


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 70), st.integers(8, 70), st.integers(0, 99))
def test_areas_keep_the_mean_where_the_aspect_is_ignored(
    rows: int, columns: int, seed: int
) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (70, 70)).astype(np.uint8)
    config = PlanesConfig(rows=rows, columns=columns, crop="none", aspect="ignore")
    volume = on_grid([frame], config)
    assert 0 <= volume.min() <= volume.max() <= 1
    assert volume.mean() == pytest.approx(frame.mean() / 255, abs=0.01)


def test_small_pictures_are_enlarged_without_steps_or_overshoot() -> None:
    frame = np.tile(np.linspace(10, 250, 12).astype(np.uint8), (12, 1))
    volume = on_grid([frame], PlanesConfig(rows=48, columns=48, crop="none"))[..., 0]
    assert (np.diff(volume, axis=1) >= 0).all()
    assert volume.max() <= 250 / 255 + 1e-6
    assert np.diff(volume, axis=1).max() < 0.6 * (frame[0, 1] - frame[0, 0]) / 255


@pytest.mark.parametrize("mirror", ["none", "left"])
def test_t34_a_new_clip_looks_as_it_would_in_a_prepared_cohort(tmp_path: Path, mirror: Any) -> None:
    lines = ["file,person,label"]
    for person in range(12):
        frames = clips.with_text(clips.fan(72, person, n_frames=8))
        clips.save_gif(tmp_path / f"{person}.gif", frames)
        lines.append(f"{person}.gif,P{person},{'ab'[person % 2]}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    config = PicturesConfig(table="t.csv", labels=("a", "b"), show="sector", frames_per_clip=8)
    root = prepare(adopt_pictures(tmp_path, tmp_path / "c", config, workers=1), tmp_path / "p",
                   rows=24, columns=24, mirror=mirror)  # fmt: skip
    planes = PlanesConfig(rows=24, columns=24, mirror=mirror)
    cohort, volumes = open_cohort(root), open_volumes(open_cohort(root))
    for person in (0, 7):
        with open_clip(tmp_path / f"{person}.gif") as clip:
            ours = clip_on_grid(list(clip.frames()), planes, show="sector")
        rows = [i for i, scan in enumerate(cohort.scans) if scan.person_id == f"P{person}"]
        assert np.array_equal(ours, volumes[rows])


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_t12_a_circle_stays_a_circle_where_pixels_are_not_square(ratio: float) -> None:
    rows, columns = np.mgrid[:120, :120]
    circle = np.hypot((rows - 60) * ratio, columns - 60) < 25
    config = PlanesConfig(rows=60, columns=60)
    volume = on_grid([circle.astype(np.uint8) * 255], config, pixel_ratio=ratio)[..., 0]
    height, width = (float(volume.sum(axis=axis).max()) for axis in (0, 1))
    assert height == pytest.approx(width, rel=0.03)


def test_breasts_of_both_sides_look_to_the_right() -> None:
    rows, columns = np.mgrid[:80, :60]
    left = np.where(columns < 40 * np.sqrt(np.clip(1 - ((rows - 40) / 30) ** 2, 0, 1)), 150, 0)
    config = PlanesConfig(rows=40, columns=30, mirror="left")
    films = [left.astype(np.uint8), left[:, ::-1].astype(np.uint8)]
    volumes = [on_grid([film], config) for film in films]
    assert np.array_equal(*volumes)
    assert volumes[0][:, 0].mean() > 0.4
    assert volumes[0][:, -1].mean() < 0.1


@pytest.fixture(scope="session")
def write_films(real_data: Path) -> Callable[[Path], Path]:
    """Return the writer of a small cohort of real films, sides as the table says."""
    import csv

    rows = list(csv.DictReader((real_data / "mammography/labels.csv").read_text().splitlines()))
    films = [row for row in rows if row["kind"] == "whole"][::9]

    def write(folder: Path) -> Path:
        folder.mkdir()
        lines = ["file,person,label,probe"]
        for row in films:
            lines.append(f"{row['file']},{row['patient_or_source']},x,{row['side_by_number']}")
        (folder / "t.csv").write_text("\n".join(lines))
        (folder / "whole").symlink_to((real_data / "mammography/whole").resolve())
        config = PicturesConfig(table="t.csv", labels=("x",), modality="MG", show="object")
        return adopt_pictures(folder, folder / "cohort", config, workers=1)

    return write


def test_real_films_of_both_sides_have_the_chest_wall_at_the_left(
    write_films: Callable[[Path], Path], tmp_path: Path
) -> None:
    root = write_films(tmp_path / "films")
    plain, mirrored = (
        prepare_planes(root, tmp_path / mirror, PlanesConfig(rows=32, columns=32, mirror=mirror),
                       PARTITION)
        for mirror in ("none", "left")
    )  # fmt: skip
    scans = open_cohort(plain).scans
    is_left = np.array(["probe_l" in scan.flags for scan in scans])
    bright = [
        (v[..., :10, 0].mean(axis=(1, 2)) > v[..., -10:, 0].mean(axis=(1, 2)))
        for v in (open_volumes(open_cohort(plain)), open_volumes(open_cohort(mirrored)))
    ]
    assert abs(np.corrcoef(bright[0], is_left)[0, 1]) > 0.8
    assert bright[1].mean() > 0.95


def test_what_is_no_cohort_of_pictures_is_refused(slices: Path, tmp_path: Path) -> None:
    prepared = prepare(slices, tmp_path / "p", rows=16, columns=16)
    with pytest.raises(InputError, match="prepared already"):
        prepare(prepared, tmp_path / "q")
    with pytest.raises(InputError, match="no finished rarescan folder"):
        prepare(tmp_path, tmp_path / "q")
    with pytest.raises(InputError, match="No visit"):
        prepare(slices, tmp_path / "q", planes=("oblique",))


@pytest.mark.long
@pytest.mark.parametrize("name", ["echo", "mri2d"])
def test_the_presets_prepare_the_pictures_that_they_are_made_for(
    name: str, real_data: Path, tmp_path: Path
) -> None:
    from rarescan.configs.schema import load_config
    from rarescan.flows import verbs

    config = load_config(name, ["workers=1"])
    source = real_data / Path(config.source.path).name
    verbs.ingest(config, source, tmp_path / "cohort")
    verbs.prepare(config, tmp_path / "cohort", tmp_path / "prepared")
    cohort = open_cohort(tmp_path / "prepared")
    volumes = open_volumes(cohort)
    assert read_about(tmp_path / "cohort")["codes"] == {}
    assert {s.target for s in cohort.scans} == set(config.pictures.labels)
    assert {config.question.positive, config.question.negative} == {*cohort.diagnoses()}
    # Where the fan or the brain is not, there is nothing.
    share = float((volumes[::7] > 0).mean())
    assert 0.3 < share < 0.7
    expected = {"echo": (20, 240, 1), "mri2d": (196, 196, 3)}[name]
    assert (len(cohort.partition), len(volumes), volumes.shape[3]) == expected
