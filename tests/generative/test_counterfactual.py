from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from rarescan.cohort.contracts import Cohort, Condition
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.errors import InputError
from rarescan.generative.counterfactual import (
    _penalty,
    _Sums,
    agreement,
    asked_condition,
    changed,
    moved_code,
)
from rarescan.generative.diffusion import Diffusion
from rarescan.generative.families import load_generator
from rarescan.generative.model import TrainedGenerator

Trained = Callable[[str, str], Path]
DIAGNOSES = ("control", "bvFTD")


@pytest.fixture(scope="module")
def opened(cohort: Path) -> Cohort:
    return open_cohort(cohort)


@pytest.fixture(scope="module")
def gaussian(trained: Trained) -> TrainedGenerator:
    return cast(TrainedGenerator, load_generator(trained("gaussian", "pca")))


@pytest.fixture(scope="module")
def where(opened: Cohort, gaussian: TrainedGenerator) -> np.ndarray:
    return agreement(opened, gaussian.prior.encoder, DIAGNOSES)


def held_out_control(cohort: Cohort) -> int:
    rows = cohort.indices("test")
    return next(row for row in rows if cohort.scans[row].condition.diagnosis == "control")


def conditions(cohort: Cohort, row: int) -> tuple[Condition, Condition]:
    own = cohort.scans[row].condition
    return own, replace(own, diagnosis="bvFTD")


def test_severity_0_gives_the_scan_back_voxel_for_voxel(
    opened: Cohort, gaussian: TrainedGenerator, where: np.ndarray
) -> None:
    row = held_out_control(opened)
    volume = open_volumes(opened)[row]
    same = changed(gaussian, volume, conditions(opened, row), strength=0.0, where=where)
    np.testing.assert_array_equal(same, volume)


def test_a_control_gets_the_larger_ventricle_of_patients_and_keeps_the_rest(
    opened: Cohort, gaussian: TrainedGenerator, where: np.ndarray
) -> None:
    row = held_out_control(opened)
    volume = open_volumes(opened)[row]
    sick = changed(gaussian, volume, conditions(opened, row), strength=1.0, where=where)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in volume.shape), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    # Heads of the fixture have a hole of radius 0.2, patients one of 0.32.
    shell, rest = (radius > 0.2) & (radius < 0.32), (radius > 0.5) & (volume > 0)
    assert (sick - volume)[shell].mean() < -0.1
    assert np.abs(sick - volume)[rest].mean() < 0.2 * np.abs(sick - volume)[shell].mean()


def test_persons_with_labels_at_random_agree_on_next_to_nothing(
    make_cohort: Callable[..., Path], gaussian: TrainedGenerator, where: np.ndarray
) -> None:
    def shuffle(scans: list, volumes: list, parts: dict) -> None:
        order = np.random.default_rng(3).permutation(len(scans))
        for k, (i, scan) in enumerate(zip(order, list(scans), strict=True)):
            diagnosis = "bvFTD" if i < 15 else "control"
            scans[k] = replace(scan, condition=replace(scan.condition, diagnosis=diagnosis))

    mixed = open_cohort(make_cohort(edit=shuffle))
    brain = open_volumes(mixed)[0] > 0
    by_chance = agreement(mixed, gaussian.prior.encoder, DIAGNOSES)[0][brain].mean()
    assert by_chance < 0.1 < where[0][brain].mean()


def test_a_network_that_was_left_out_moves_a_code_as_the_means_do(
    trained: Trained, gaussian: TrainedGenerator
) -> None:
    diffusion = cast(TrainedGenerator, load_generator(trained("diffusion", "pca")))
    prior = cast(Diffusion, diffusion.prior)
    own, asked = (prior.encoder.encode([Condition(diagnosis=d)]) for d in DIAGNOSES)
    code = torch.randn(1, *prior.floor.code_shape, generator=torch.Generator().manual_seed(0))
    prior.network_kept = False
    expected = moved_code(prior, code, own, asked)
    torch.testing.assert_close(
        expected,
        code + prior.floor.code_mean(asked) - prior.floor.code_mean(own),
        atol=1e-4,
        rtol=0,
    )
    # With a network of zeros the flow to noise and back is the Gaussian's, up to the solver.
    prior.network_kept = True
    torch.nn.init.zeros_(list(prior.network.parameters())[-1])
    torch.nn.init.zeros_(list(prior.network.parameters())[-2])
    prior.spec = replace(prior.spec, solver_steps=40)
    along_the_flow = moved_code(prior, code, own, asked)
    error = (along_the_flow - expected).norm() / (expected - code).norm()
    assert error < 0.01


def test_the_scans_own_diagnosis_and_an_unknown_one_are_refused(
    gaussian: TrainedGenerator,
) -> None:
    encoder = gaussian.prior.encoder
    own = Condition(diagnosis="control", age_years=60.0)
    with pytest.raises(InputError, match="already"):
        asked_condition(encoder, own, "control")
    with pytest.raises(InputError, match="No training person has the diagnosis 'AD'"):
        asked_condition(encoder, own, "AD")


def test_three_patients_cannot_say_where_a_disease_acts(
    make_cohort: Callable[..., Path], gaussian: TrainedGenerator
) -> None:
    few = open_cohort(make_cohort(n_patients=5))
    with pytest.raises(InputError, match="cannot say where it acts"):
        agreement(few, gaussian.prior.encoder, DIAGNOSES)


def test_nothing_changes_where_nothing_is_believed(
    opened: Cohort, gaussian: TrainedGenerator, where: np.ndarray
) -> None:
    row = held_out_control(opened)
    volume = open_volumes(opened)[row]
    none = np.zeros_like(where)
    same = changed(gaussian, volume, conditions(opened, row), strength=1.0, where=none)
    np.testing.assert_array_equal(same, volume)


def test_an_effect_that_is_everywhere_alike_is_not_shrunk_away() -> None:
    random = np.random.default_rng(0)
    # Twice its standard error everywhere: a penalty of 6 would take all of it.
    shift = 2 * np.sqrt(2 / 40)
    groups = [shift * k + random.normal(size=(40, 2, 10, 10, 10)) for k in (0, 1)]
    sums = [[_Sums(10, g[k::4].sum(0), (g[k::4] ** 2).sum(0)) for k in range(4)] for g in groups]
    assert _penalty(sums, 2.0) <= 2
