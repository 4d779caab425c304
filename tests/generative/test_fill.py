"""Batches that fill empty cells: who is in them, what they hold, what they never read."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarescan.cohort.contracts import plane_grid
from rarescan.cohort.store import VOLUMES, open_cohort, open_volumes, tables
from rarescan.errors import InputError, SettingError
from rarescan.generative.counterfactual import NEAR_COPY
from rarescan.generative.fill import fill_scans, write_filled
from rarescan.generative.spec import FillConfig

SITE, AGE = FillConfig(what="site"), FillConfig(what="age")


def with_sites(scans: list[Any], volumes: list[Any], parts: dict[str, str]) -> None:
    """Give every scan its site, by which the second one is brighter inside."""
    for i, scan in enumerate(scans):
        site = "S1" if i % 2 else "S2"
        condition = replace(scan.condition, site=site)
        scans[i] = replace(scan, condition=condition, site=site)
        if site == "S2":
            volumes[i] = np.where(volumes[i] > 0, np.clip(0.2 + 0.7 * volumes[i], 0, 1), 0)


@pytest.fixture(scope="module")
def two_sites(make_cohort: Callable[..., Path]) -> Path:
    return make_cohort(edit=with_sites)


@pytest.fixture(scope="module")
def filled(two_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    root = tmp_path_factory.mktemp("filled")
    return lambda config: write_filled(open_cohort(two_sites), root / config.what, config, 3)


def test_every_training_person_is_shown_once_at_the_other_site(
    two_sites: Path, filled: Callable[[Any], Path]
) -> None:
    cohort, batch = open_cohort(two_sites), open_cohort(filled(SITE))
    train = [cohort.scans[i].condition for i in cohort.indices("train")]
    other = {"S1": "S2", "S2": "S1"}
    asked = Counter(replace(c, site=other[str(c.site)]) for c in train)
    assert Counter(scan.condition for scan in batch.scans) == asked
    assert all(scan.site == scan.condition.site for scan in batch.scans)


def test_the_sites_are_told_apart_no_more_by_brightness(
    two_sites: Path, filled: Callable[[Any], Path]
) -> None:
    cohort, batch = open_cohort(two_sites), open_cohort(filled(SITE))

    def brightness(of: Any, site: str, *parts: Any) -> float:
        rows = [i for i in of.indices(*parts) if of.scans[i].site == site]
        chosen = open_volumes(of)[rows]
        return float(np.median(chosen[chosen > 0]))

    real = {site: brightness(cohort, site, "train") for site in ("S1", "S2")}
    assert abs(real["S2"] - real["S1"]) > 0.01
    for site in real:
        assert brightness(batch, site) == pytest.approx(real[site], abs=0.01)


def test_every_training_person_gets_an_age_of_the_other_half(
    two_sites: Path, filled: Callable[[Any], Path]
) -> None:
    cohort, batch = open_cohort(two_sites), open_cohort(filled(AGE))
    train = [cohort.scans[i].condition for i in cohort.indices("train")]
    ages = [c.age_years or 0 for c in train]
    middle = np.median(ages)
    asked = [scan.condition.age_years or 0 for scan in batch.scans]
    assert [(age > middle) for age in asked] == [not (age > middle) for age in ages]
    assert set(asked) <= set(ages)
    kept = [replace(scan.condition, age_years=None) for scan in batch.scans]
    assert kept == [replace(c, age_years=None) for c in train]
    made, given = open_volumes(batch), open_volumes(cohort)[cohort.indices("train")]
    assert ((made > 0) == (given > 0)).all()
    assert (np.abs(made - given).max(axis=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("config", [SITE, AGE])
def test_every_scan_says_what_it_is(filled: Callable[[Any], Path], config: FillConfig) -> None:
    for i, scan in enumerate(open_cohort(filled(config)).scans):
        assert scan.person_id == f"SYN{i + 1:06d}"
        assert scan.flags == (NEAR_COPY,)
        assert scan.origin == "synthetic"


@pytest.mark.parametrize("config", [SITE, AGE])
def test_only_training_persons_are_read(
    make_cohort: Callable[..., Path],
    filled: Callable[[Any], Path],
    tmp_path: Path,
    config: FillConfig,
) -> None:
    def spoil(scans: list[Any], volumes: list[Any], parts: dict[str, str]) -> None:
        with_sites(scans, volumes, parts)
        for i, scan in enumerate(scans):
            if parts[scan.person_id] != "train":
                volumes[i] = np.full_like(volumes[i], np.nan)
                condition = replace(scan.condition, age_years=99.0, site="S3")
                scans[i] = replace(scan, condition=condition, site="S3")

    again = write_filled(open_cohort(make_cohort(edit=spoil)), tmp_path / "again", config, 3)
    assert stored(again) == stored(filled(config))


def stored(root: Path) -> bytes:
    return (tables(root) / VOLUMES).read_bytes()


def test_the_bytes_do_not_depend_on_the_blocks(
    two_sites: Path,
    filled: Callable[[Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rarescan.generative.code_store.BLOCK_BYTES", 2**17)
    scans = fill_scans(open_cohort(two_sites), tmp_path, AGE, 3)
    assert stored(tmp_path) == stored(filled(AGE))
    assert tuple(scans) == open_cohort(filled(AGE)).scans


def test_another_seed_gives_other_ages(two_sites: Path, tmp_path: Path) -> None:
    cohort = open_cohort(two_sites)
    one, other = (fill_scans(cohort, tmp_path / str(seed), AGE, seed) for seed in (1, 2))
    assert [s.condition.age_years for s in one] != [s.condition.age_years for s in other]


def test_one_site_cannot_be_filled(make_cohort: Callable[..., Path], tmp_path: Path) -> None:
    def one_site(scans: list[Any], volumes: list[Any], parts: dict[str, str]) -> None:
        scans[:] = [replace(scan, site="S1") for scan in scans]

    with pytest.raises(InputError, match="No two sites"):
        write_filled(open_cohort(make_cohort(edit=one_site)), tmp_path / "x", SITE, 1)


def test_without_ages_nobody_gets_older(make_cohort: Callable[..., Path], tmp_path: Path) -> None:
    def ageless(scans: list[Any], volumes: list[Any], parts: dict[str, str]) -> None:
        scans[:] = [
            replace(scan, condition=replace(scan.condition, age_years=None)) for scan in scans
        ]

    with pytest.raises(InputError, match="0 training persons"):
        write_filled(open_cohort(make_cohort(edit=ageless)), tmp_path / "x", AGE, 1)


def test_pictures_and_no_wish_are_refused(
    make_cohort: Callable[..., Path], two_sites: Path, tmp_path: Path
) -> None:
    pictures = replace(open_cohort(two_sites), grid=plane_grid(20, 24, 20))
    for cohort, config in ((pictures, SITE), (open_cohort(two_sites), FillConfig())):
        with pytest.raises(SettingError, match="Only brains"):
            write_filled(cohort, tmp_path / "x", config, 1)
