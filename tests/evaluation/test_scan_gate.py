"""The gate for single scans, on a cohort on disk."""

from dataclasses import asdict

import numpy as np
import pytest
from disguises import flipped, reintensified, shifted

from rarescan.cohort.contracts import Condition, Scan, brain_grid
from rarescan.cohort.store import create_volumes, write_cohort
from rarescan.errors import InputError
from rarescan.evaluation.scan_gate import copy_check
from rarescan.evaluation.spec import EvaluateConfig
from rarescan.files import Recipe, write_json

GRID = brain_grid(8)
CONFIG = EvaluateConfig(canary_persons=20)


def write_prepared(root, volumes, parts):
    names = [f"P{i:03d}" for i in range(len(volumes))]
    control = Condition(diagnosis="control")
    scans = [Scan(scan_id=n, person_id=n, origin="phantom", condition=control) for n in names]
    create_volumes(root, len(scans), GRID)[:] = volumes
    write_cohort(root, scans=scans, grid=GRID, partition=dict(zip(names, parts, strict=True)))
    recipe = Recipe(step="prepare", schema=1)
    write_json(root / "recipe.json", {"id": recipe.id, **asdict(recipe)})
    return root


@pytest.fixture(scope="module")
def training(brains):
    return brains(40, 1)


@pytest.fixture(scope="module")
def check(training, brains, tmp_path_factory):
    volumes = np.concatenate([training, brains(24, 2)])
    parts = ["train"] * 40 + ["validation"] * 24
    return copy_check(write_prepared(tmp_path_factory.mktemp("gate"), volumes, parts), CONFIG)


@pytest.mark.parametrize("disguise", [flipped, shifted, reintensified])
def test_disguised_copies_are_refused_and_strangers_are_not(disguise, check, training, brains):
    chance = np.random.default_rng(3)
    copies = np.stack([disguise(volume, 8.0, chance) for volume in training[20:40]])
    assert check(copies.astype(np.float32)).mean() >= 0.95
    assert not check(brains(30, 4)).any()


def test_a_scans_answer_does_not_depend_on_the_scans_beside_it(check, training, brains):
    mixed = np.concatenate([brains(5, 5), training[:5]])
    assert [bool(check(volume[None])[0]) for volume in mixed] == list(check(mixed))


def test_the_statement_counts_and_bounds(check):
    said = check.statement(200, 0)
    assert said["upper_bound"] == pytest.approx(1 - 0.05 ** (1 / 200))
    assert (said["drawn"], said["replaced"], said["n_validation"]) == (200, 0, 24)
    assert said["blind_to"] == []


def test_many_replaced_scans_are_too_many_and_a_few_may_be_chance(check):
    assert check.too_many(220, 20)
    assert not check.too_many(202, 2)
    assert not check.too_many(11, 1)


def test_a_cohort_without_strangers_cannot_calibrate(training, tmp_path):
    with pytest.raises(InputError, match="no validation persons"):
        copy_check(write_prepared(tmp_path, training[:4], ["train"] * 4), CONFIG)
