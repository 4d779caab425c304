"""Site swap against brains whose look at both sites is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from rarescan.cohort.contracts import FloatArray
from rarescan.cohort.template import load_template
from rarescan.errors import InputError
from rarescan.generative.acquisition import Acquisition
from rarescan.generative.swap import fit_look
from rarescan.seeds import generator

SPACING_MM = 8.0
ONE = (0.50, 0.68, 0.20)
OTHER = (0.58, 0.66, 0.36)
"""Brightness of grey matter, white matter and fluid at two sites."""


def shares(person: int) -> FloatArray:
    """Return a person's tissues: the template's, with folds of their own."""
    template = load_template(SPACING_MM)
    maps = np.stack([template.gm, template.wm, template.csf])
    random = generator(3, "person", person)
    own = ndimage.gaussian_filter(random.normal(size=maps.shape), (0, 1.2, 1.2, 1.2))
    mixed = (maps + 1e-3) * np.exp(1.5 * own / own.std())
    return np.where(maps.sum(0) > 0.5, mixed / mixed.sum(0), 0).astype(np.float32)


def scans(persons: range, site: tuple[float, ...], noise: float = 0.0) -> FloatArray:
    seen = []
    for person in persons:
        tissues = shares(person)
        clean = np.tensordot(site, tissues, 1)
        noisy = clean + noise * generator(5, "noise", person).normal(size=clean.shape)
        seen.append(np.where(tissues.sum(0) > 0, np.clip(noisy, 0.01, 1), 0))
    return np.stack(seen).astype(np.float32)


def wrong(one: FloatArray, other: FloatArray) -> float:
    return float(np.sqrt(np.mean((one - other)[other > 0] ** 2)))


A, B = range(12), range(100, 140)
NEW = range(200, 206)


@pytest.mark.parametrize(("source", "target"), [(ONE, OTHER), (OTHER, ONE)])
def test_a_scan_is_shown_as_the_other_site_would_have(
    source: tuple[float, ...], target: tuple[float, ...]
) -> None:
    look = fit_look(scans(A, source), scans(B, target))
    given, truth = scans(NEW, source), scans(NEW, target)
    swapped = look.apply(given, range(6))
    assert wrong(swapped, truth) < 0.35 * wrong(given, truth)
    # What a tone curve could do at best, had it seen the truth.
    order = np.argsort(given[truth > 0])
    curve = ndimage.uniform_filter1d(truth[truth > 0][order], 301)
    best_curve = np.sqrt(np.mean((curve - truth[truth > 0][order]) ** 2))
    assert wrong(swapped.mean(0), truth.mean(0)) < best_curve


def test_what_changes_at_a_tissues_places_is_followed_where_no_curve_could() -> None:
    fluid = load_template(SPACING_MM).csf

    def wetter(given: FloatArray) -> FloatArray:
        changed: FloatArray = np.where(given > 0, np.clip(given + 0.12 * fluid, 0, 1), 0)
        return changed

    look = fit_look(scans(A, ONE), wetter(scans(B, ONE)))
    given = scans(NEW, ONE)
    curve = replace(look, tissues=((0.0, 0.0, 0.0),) * len(look.tissues))
    errors = [
        wrong(each.apply(given, range(6)).mean(0), wetter(given).mean(0)) for each in (look, curve)
    ]
    assert errors[0] < 0.7 * errors[1]


def test_a_site_looks_like_itself() -> None:
    given = scans(NEW, ONE)
    swapped = fit_look(scans(A, ONE), scans(B, ONE)).apply(given, range(6))
    assert wrong(swapped, given) < 0.012


def test_the_brain_keeps_its_place_and_its_range() -> None:
    given = scans(NEW, ONE)
    swapped = fit_look(scans(A, ONE, 0.02), scans(B, OTHER, 0.05)).apply(given, range(6))
    assert ((swapped > 0) == (given > 0)).all()
    assert swapped.dtype == np.float32
    assert swapped.max() <= 1


def test_what_a_person_has_more_than_others_stays_in_the_other_sites_contrast() -> None:
    look = fit_look(scans(A, ONE), scans(B, OTHER))
    given = scans(NEW, ONE)
    brighter = np.clip(given + 0.03 * (given > 0), 0, 1)
    usual, seen = look.apply(given, range(6)), look.toned(brighter)
    contrast = (OTHER[1] - OTHER[2]) / (ONE[1] - ONE[2])
    assert (seen - usual)[given > 0].mean() == pytest.approx(0.03 * contrast, rel=0.2)


def test_missing_noise_is_added_and_only_there() -> None:
    look = fit_look(scans(A, ONE, 0.02), scans(B, ONE, 0.06))
    assert look.acquisition.noise == pytest.approx((0.06**2 - 0.02**2) ** 0.5, rel=0.25)
    back = fit_look(scans(B, ONE, 0.06), scans(A, ONE, 0.02))
    assert back.acquisition == Acquisition()


def test_noise_depends_on_the_seed_alone() -> None:
    look = fit_look(scans(A, ONE, 0.02), scans(B, ONE, 0.06))
    given = scans(NEW, ONE)
    together = look.apply(given, range(6))
    assert (look.apply(given[2:3], [2])[0] == together[2]).all()
    assert not (look.apply(given[2:3], [3])[0] == together[2]).all()


def test_too_few_scans_are_refused() -> None:
    with pytest.raises(InputError, match="4 scans"):
        fit_look(scans(range(4), ONE), scans(B, OTHER))
