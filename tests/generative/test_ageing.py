"""Ageing against effects that are known."""

import numpy as np
import pytest
from scipy import ndimage

from rarescan.cohort.contracts import FloatArray
from rarescan.cohort.template import load_template
from rarescan.errors import InputError
from rarescan.generative.ageing import Ageing, fit_ageing
from rarescan.seeds import generator

N = 60
AGES = generator(1, "ages").uniform(45, 80, N)
BASE = (load_template(8).t1 * 0.8).astype(np.float32)
BRAIN = BASE > 0.1


def person(i: int, change: FloatArray, *, smooth: float = 0.6) -> FloatArray:
    noise = ndimage.gaussian_filter(generator(2, "person", i).normal(size=BASE.shape), smooth)
    volume = BASE + change + 0.03 * noise / noise.std()
    return np.where(BRAIN, np.clip(volume, 0.01, 1), 0).astype(np.float32)


def mean_change(ageing: Ageing, years: float) -> FloatArray:
    brain = np.where(BRAIN, BASE, 0)[None]
    return (ageing.apply(brain, [years]) - brain)[0]


def alike(found: FloatArray, truth: FloatArray) -> tuple[float, float]:
    """Return correlation and slope inside the brain."""
    a, b = found[BRAIN], truth[BRAIN]
    return float(np.corrcoef(a, b)[0, 1]), float(a @ b / (b @ b))


def test_what_a_year_does_to_a_tissue_is_found_again() -> None:
    in_front = np.linspace(0, 1, BASE.shape[1])[None, :, None]
    grey = np.exp(-(((BASE - 0.5) / 0.15) ** 2))
    year = (-0.004 * in_front * grey).astype(np.float32)
    found = fit_ageing(lambda i: person(i, (AGES[i] - 60) * year), AGES, ["control"] * N)
    correlation, slope = alike(mean_change(found, 10), 10 * year)
    assert correlation > 0.8
    assert slope == pytest.approx(1, abs=0.25)


def test_what_moves_is_found_to_move() -> None:
    def moved(mm: float) -> FloatArray:
        return ndimage.shift(BASE, (0, mm / 8, 0), order=1, mode="nearest") - BASE

    found = fit_ageing(lambda i: person(i, moved((AGES[i] - 62) * 0.15)), AGES, ["control"] * N)
    correlation, slope = alike(mean_change(found, 10), moved(1.5))
    assert correlation > 0.65
    # The ridge takes what is uncertain for less than it is, never for more.
    assert 0.4 < slope < 1.1
    # Forward along y is a look-up from behind.
    assert np.median(found.effect[4][4:-4, 5:-5, 4:-4]) < 0


def test_ageing_adds_no_disease_where_all_patients_are_old() -> None:
    year = np.zeros_like(BASE)
    year[:, 14:] = -0.003
    disease = np.zeros_like(BASE)
    disease[:, :8] = -0.15
    ill = AGES > 70
    found = fit_ageing(
        lambda i: person(i, (AGES[i] - 60) * year + ill[i] * disease),
        AGES,
        ["patient" if sick else "control" for sick in ill],
    )
    change = mean_change(found, 20)
    assert change[:, 16:][BRAIN[:, 16:]].mean() < -0.03
    assert abs(change[:, :6][BRAIN[:, :6]].mean()) < 0.01


def test_no_years_change_nothing_and_there_and_back_is_nearly_the_same() -> None:
    year = (-0.004 * (BASE > 0.3)).astype(np.float32)
    found = fit_ageing(lambda i: person(i, (AGES[i] - 60) * year), AGES, ["control"] * N)
    scans = np.stack([person(i, np.zeros_like(BASE)) for i in range(3)])
    assert (found.apply(scans, [0, 0, 0]) == scans).all()
    older = found.apply(scans, [10, 10, 10])
    assert ((older > 0) == (scans > 0)).all()
    assert np.abs(found.apply(older, [-10] * 3) - scans).mean() < 0.2 * np.abs(older - scans).mean()


@pytest.mark.parametrize("ages", [np.full(40, 60.0), np.linspace(40, 80, 12)])
def test_what_shows_no_effect_of_age_is_refused(ages: FloatArray) -> None:
    with pytest.raises(InputError, match="do not show what a year does"):
        fit_ageing(lambda i: BASE, ages, ["control"] * len(ages))
