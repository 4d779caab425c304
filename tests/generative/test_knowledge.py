from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rarescan.cohort.contracts import Cohort, Condition, FloatArray, Question, Scan, brain_grid
from rarescan.cohort.store import (
    create_volumes,
    open_cohort,
    open_volumes,
    read_about,
    write_cohort,
)
from rarescan.errors import GateRefusedError, InputError
from rarescan.files import Recipe, run_step
from rarescan.generative.counterfactual import NEAR_COPY
from rarescan.generative.knowledge import write_knowledge
from rarescan.generative.pattern import directions, read_pattern, reduced
from rarescan.generative.spec import KnowledgeConfig
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import person_volumes

GRID = brain_grid(8)
N_PATIENTS, N_CONTROLS, N_TEST = 14, 40, 6
SEVERITY = 1.2


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pattern") / "pattern.csv"
    path.write_text("region,effect\nfrontal,-0.2\ninsula,-0.3\n")
    return path


@pytest.fixture(scope="module")
def healthy() -> FloatArray:
    n = N_PATIENTS + N_CONTROLS + N_TEST
    return person_volumes(PhantomConfig(preset="hard", patients=0, controls=n, seed=4), range(n), 8)


def _scan(row: int) -> Scan:
    patient = row < N_PATIENTS
    condition = Condition(
        diagnosis="bvFTD" if patient else "control",
        age_years=60.0 + row % 7,
        sex="F" if row % 2 else "M",
        site="AB"[row % 3 // 2],
    )
    return Scan(scan_id=f"P{row}_01", person_id=f"P{row}", condition=condition, site=condition.site)


def _cohort(folder: Path, volumes: FloatArray) -> Cohort:
    scans = [_scan(row) for row in range(len(volumes))]
    first_test = N_PATIENTS + N_CONTROLS
    parts = {s.person_id: "train" if i < first_test else "test" for i, s in enumerate(scans)}

    def build(work: Path) -> None:
        create_volumes(work, len(volumes), GRID)[:] = volumes
        write_cohort(work, scans=scans, grid=GRID, partition=parts)

    run_step(folder, Recipe(step="prepare", schema=1), build)
    return open_cohort(folder)


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory, healthy: FloatArray, pattern: Path
) -> Callable[..., Cohort]:
    """Return a maker of cohorts whose patients are controls with known amplitudes."""
    sides = directions(read_pattern(pattern, GRID), GRID, 0.0)

    def cohort(
        severity: float = SEVERITY, side: float = 0.0, test_volume: float | None = None
    ) -> Cohort:
        volumes = healthy.copy()
        random = np.random.default_rng(0)
        for row in range(N_PATIENTS):
            own = severity * (1 + 0.2 * random.standard_normal())
            volumes[row] = reduced(healthy[row], sides, (own + side, own - side))
        if test_volume is not None:
            volumes[N_PATIENTS + N_CONTROLS :] = test_volume
        return _cohort(tmp_path_factory.mktemp("cohort") / "prepared", volumes)

    return cohort


def test_the_batch_says_how_much_of_the_pattern_the_patients_have(
    make: Callable[..., Cohort], pattern: Path, tmp_path: Path
) -> None:
    config = KnowledgeConfig(pattern=str(pattern), persons=2)
    worse, milder = (
        read_about(write_knowledge(make(a, side), tmp_path / f"{a}", config, 1))
        for a, side in ((1.4, 0.4), (0.7, -0.4))
    )
    # The same persons, so that what is their own drops out; log-odds bend the rest a little.
    assert worse["severity"][0] - milder["severity"][0] == pytest.approx(0.7, rel=0.4)
    assert worse["z"] > 4
    # Shrunk by what chance does to the sides of fourteen persons.
    assert 0.3 < worse["severity"][1] - milder["severity"][1] < 1.2


def test_a_synthetic_patient_is_its_donor_with_less_tissue_where_the_pattern_is(
    make: Callable[..., Cohort], healthy: FloatArray, pattern: Path, tmp_path: Path
) -> None:
    config = KnowledgeConfig(pattern=str(pattern), persons=45)
    cohort = make()
    batch = open_cohort(write_knowledge(cohort, tmp_path / "batch", config, 1))
    volumes = open_volumes(batch)
    donors = healthy[N_PATIENTS : N_PATIENTS + N_CONTROLS]
    first, last = batch.scans[0], batch.scans[44]
    donor = cohort.scans[N_PATIENTS]
    assert first.condition == replace(donor.condition, diagnosis="bvFTD")
    assert last.condition.age_years == cohort.scans[N_PATIENTS + 4].condition.age_years
    assert {s.flags for s in batch.scans} == {(NEAR_COPY,)}
    assert {s.origin for s in batch.scans} == {"synthetic"}
    assert batch.recipe["inputs"]["prepared"] == cohort.cohort_id
    lost = (donors - volumes[:N_CONTROLS]).mean(0)
    expected = -read_pattern(pattern, GRID)
    inside = (donors > 0).all(0)
    assert lost[inside & (expected > 0.15)].mean() > 5 * lost[inside & (expected < 0.01)].mean() > 0
    assert ((volumes[:N_CONTROLS] > 0) == (donors > 0)).mean() > 0.999


def test_the_same_seed_gives_the_same_scan_however_many_and_whoever_is_tested(
    make: Callable[..., Cohort], pattern: Path, tmp_path: Path
) -> None:
    few, more = (KnowledgeConfig(pattern=str(pattern), persons=n) for n in (2, 4))
    hashes = [
        [scan.sha256 for scan in open_cohort(write_knowledge(cohort, folder, config, 1)).scans]
        for cohort, folder, config in (
            (make(), tmp_path / "a", few),
            (make(test_volume=1.0), tmp_path / "b", more),
        )
    ]
    assert hashes[0] == hashes[1][:2]
    assert len(set(hashes[1])) == 4
    other = open_cohort(write_knowledge(make(), tmp_path / "c", few, 2))
    assert not {scan.sha256 for scan in other.scans} & set(hashes[0])


def test_patients_who_do_not_show_the_pattern_are_no_ground_for_a_batch(
    make: Callable[..., Cohort], pattern: Path, tmp_path: Path
) -> None:
    config = KnowledgeConfig(pattern=str(pattern), persons=2)
    with pytest.raises(GateRefusedError, match="do not show the pattern"):
        write_knowledge(make(severity=-0.5), tmp_path / "batch", config, 1)


def test_a_cohort_without_brains_or_patients_is_refused(
    make: Callable[..., Cohort], pattern: Path, tmp_path: Path
) -> None:
    cohort = make()
    config = KnowledgeConfig(pattern=str(pattern))
    with pytest.raises(InputError, match="Only prepared brains"):
        write_knowledge(replace(cohort, grid=None), tmp_path / "batch", config, 1)
    nobody = replace(config, question=Question(positive="CBS"))
    with pytest.raises(InputError, match="0 training persons have the diagnosis 'CBS'"):
        write_knowledge(cohort, tmp_path / "batch", nobody, 1)
