from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.cohort.contracts import Cohort, Condition, FeatureSet, Scan, brain_grid, plane_grid
from rarescan.cohort.store import (
    create_volumes,
    open_cohort,
    open_volumes,
    read_about,
    read_events,
    read_metadata,
    require_same_grid,
    write_cohort,
    write_events,
    write_metadata,
)
from rarescan.errors import GridMismatchError, InputError
from rarescan.files import Recipe, run_step

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)
CONDITIONS = st.builds(
    Condition,
    diagnosis=NAMES,
    age_years=st.none() | st.floats(0, 120),
    sex=st.sampled_from([None, "F", "M"]),
    site=st.none() | NAMES,
    severity=st.none() | st.floats(0, 1),
)
SCANS = st.builds(
    Scan,
    scan_id=NAMES,
    person_id=NAMES,
    condition=CONDITIONS,
    target=st.none() | NAMES,
    flags=st.lists(NAMES, max_size=3).map(tuple),
    origin=st.sampled_from(["real", "synthetic", "phantom"]),
)


def write(root: Path, scans: list[Scan], spacing_mm: float = 8) -> Cohort:
    grid = brain_grid(spacing_mm)

    def build(work: Path) -> None:
        volumes = create_volumes(work, len(scans), grid)
        volumes[:] = np.arange(len(scans))[:, None, None, None]
        about = {"rejects": {"GD": 2}}
        write_cohort(work, scans=scans, grid=grid, partition={"a": "test"}, about=about)
        write_events(work, [{"stack_id": "s", "code": "GD", "action": "drop", "n_files": 3}])

    run_step(root, Recipe(step="prepare", schema=1, config={"n": spacing_mm}), build)
    return open_cohort(root)


@settings(max_examples=25, deadline=None)
@given(st.lists(SCANS, max_size=4))
def test_scans_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, scans: list[Scan]
) -> None:
    root = tmp_path_factory.mktemp("cohort") / "c"
    assert write(root, scans).scans == tuple(scans)


def test_volumes_events_and_notes_come_back_in_order(tmp_path: Path) -> None:
    one = Scan(scan_id="1", person_id="a", condition=Condition(diagnosis="control"))
    cohort = write(tmp_path / "c", [one, replace(one, scan_id="2", person_id="b")])
    volumes = open_volumes(cohort)
    assert volumes.shape == (2, 20, 24, 20)
    assert volumes[1].max() == 1
    assert not volumes.flags.writeable
    assert cohort.indices("test") == [0]
    assert cohort.indices() == [0, 1]
    assert read_about(cohort.root)["rejects"] == {"GD": 2}
    assert read_events(cohort.root)[0]["n_files"] == 3


def test_the_brain_box_has_the_corner_and_sizes_of_the_design() -> None:
    grid = brain_grid(4)
    assert grid.shape == (40, 48, 40)
    assert grid.matrix()[:3, 3].tolist() == [-78.0, -110.0, -74.0]
    with pytest.raises(ValueError, match="does not divide"):
        brain_grid(3)


def test_rows_written_before_a_kill_are_kept(tmp_path: Path) -> None:
    first = create_volumes(tmp_path, 2, brain_grid(8))
    first[0] = 0.5
    first.flush()
    again = create_volumes(tmp_path, 2, brain_grid(8))
    assert again[0].min() == 0.5


def test_two_grids_are_told_apart_in_words() -> None:
    with pytest.raises(GridMismatchError, match=r"the model lies on .* of 4 mm, .* of 8 mm"):
        require_same_grid(brain_grid(4), brain_grid(8), ("the model", "the cohort"))


def test_a_folder_without_volumes_says_what_to_run(tmp_path: Path) -> None:
    def build(work: Path) -> None:
        write_cohort(work, scans=[], grid=None, partition={})

    run_step(tmp_path / "native", Recipe(step="ingest", schema=1), build)
    with pytest.raises(InputError, match="rarescan prepare"):
        open_volumes(open_cohort(tmp_path / "native"))
    run_step(tmp_path / "model", Recipe(step="train", schema=1), lambda work: None)
    with pytest.raises(InputError, match="holds no cohort"):
        open_cohort(tmp_path / "model")


def test_a_person_has_exactly_one_feature_row() -> None:
    with pytest.raises(ValueError, match="more than one"):
        FeatureSet(values=np.zeros((2, 3), np.float32), person_ids=("a", "a"), extractor="x")
    with pytest.raises(ValueError, match="one row each"):
        FeatureSet(values=np.zeros((2, 3), np.float32), person_ids=("a",), extractor="x")


def test_pictures_lie_on_a_grid_of_planes_and_are_no_brain() -> None:
    grid = plane_grid(64, 48, 3, spacing_mm=0.5)
    assert grid.shape == (64, 48, 3)
    assert not grid.is_brain
    assert np.allclose(grid.matrix(), np.diag([0.5, 0.5, 0.5, 1]))
    assert np.allclose(plane_grid(8, 8).matrix(), np.eye(4))
    assert all(brain_grid(mm).is_brain for mm in (1, 2, 4, 8))


def test_what_is_known_of_an_acquisition_comes_back_row_by_row(tmp_path: Path) -> None:
    rows = [{"width": 640, "source": "S1"}, {"width": 320, "source": None}]
    assert read_metadata(tmp_path) == []
    write_metadata(tmp_path, rows)
    assert read_metadata(tmp_path) == rows
