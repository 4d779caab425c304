"""Harmonised cohorts: the sites' difference goes, everything else stays."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.errors import InputError
from rarescan.generative.harmonise import HARMONISED, write_harmonised


def with_sites(scans: list[Any], volumes: list[Any], parts: dict[str, str]) -> None:
    """Give every scan its site; the second one is brighter where it is dark."""
    for i, scan in enumerate(scans):
        site = "S2" if i % 2 else "S1"
        scans[i] = replace(scan, condition=replace(scan.condition, site=site), site=site)
        if site == "S2":
            volumes[i] = np.where(volumes[i] > 0, np.clip(0.2 + 0.7 * volumes[i], 0, 1), 0)


def brightness(of: Any, site: str) -> float:
    rows = [i for i in of.indices("test") if of.scans[i].site == site]
    chosen = open_volumes(of)[rows]
    return float(np.median(chosen[chosen > 0]))


def test_test_persons_of_both_sites_look_alike_and_one_site_is_left_as_it_is(
    make_cohort: Callable[..., Path], tmp_path: Path
) -> None:
    cohort = open_cohort(make_cohort(edit=with_sites))
    same = open_cohort(write_harmonised(cohort, tmp_path / "one"))
    assert abs(brightness(cohort, "S2") - brightness(cohort, "S1")) > 0.015
    assert brightness(same, "S2") == pytest.approx(brightness(same, "S1"), abs=0.008)
    assert same.partition == cohort.partition
    for i, (before, after) in enumerate(zip(cohort.scans, same.scans, strict=True)):
        stays = before.site == "S1"
        assert (after == before) is stays
        assert (open_volumes(same)[i] == open_volumes(cohort)[i]).all() == stays
        assert (HARMONISED in after.flags) is not stays
        assert after.condition == before.condition


def test_test_persons_teach_nothing(make_cohort: Callable[..., Path], tmp_path: Path) -> None:
    def spoil(scans: list[Any], volumes: list[Any], parts: dict[str, str]) -> None:
        with_sites(scans, volumes, parts)
        for i, scan in enumerate(scans):
            if parts[scan.person_id] != "train":
                volumes[i] = volumes[i] * 0.5

    results = []
    for number, edit in enumerate((with_sites, spoil)):
        cohort = open_cohort(make_cohort(edit=edit))
        same = open_cohort(write_harmonised(cohort, tmp_path / str(number)))
        results.append(open_volumes(same)[same.indices("train")])
    assert (results[0] == results[1]).all()


def test_a_scan_of_an_unknown_site_is_refused(
    make_cohort: Callable[..., Path], tmp_path: Path
) -> None:
    def stranger(scans: list[Any], volumes: list[Any], parts: dict[str, str]) -> None:
        with_sites(scans, volumes, parts)
        at = next(i for i, scan in enumerate(scans) if parts[scan.person_id] == "test")
        scans[at] = replace(scans[at], site="S9")

    with pytest.raises(InputError, match="1 scans are of sites"):
        write_harmonised(open_cohort(make_cohort(edit=stranger)), tmp_path / "x")
