"""Known acquisitions of phantoms are found again, and batches get what their settings say."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from rarescan.cohort.contracts import FloatArray, Scan
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError, SettingError
from rarescan.generative.acquisition import Acquisition, rerender
from rarescan.generative.scanners import (
    FREE,
    acquisitions_of,
    draw,
    measure,
    measured_range,
)
from rarescan.generative.spec import AcquisitionConfig
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import person_volumes

N = 16


@cache
def phantoms() -> FloatArray:
    return person_volumes(PhantomConfig(patients=0, controls=N), range(N), 4)


def table(volumes: FloatArray) -> np.ndarray:
    rows = [(*m.contrast, m.blur_mm2, m.noise2, m.bias2) for m in measure(volumes)]
    return np.array(rows)


@cache
def untouched() -> np.ndarray:
    return table(phantoms())


def found(acquisition: Acquisition) -> np.ndarray:
    """Return what every other phantom shows more than before, compared with the others."""
    volumes = phantoms().copy()
    half = len(volumes[::2])
    volumes[::2] = rerender(volumes[::2], [acquisition] * half, range(half))
    change = table(volumes) - untouched()
    more: np.ndarray = change[::2].mean(0) - change[1::2].mean(0)
    return more


@pytest.mark.long
def test_a_known_contrast_is_found_again() -> None:
    more = found(Acquisition(contrast=(0.32, 0.56)))
    assert more[0] == pytest.approx(0.07, abs=0.03)
    assert more[1] == pytest.approx(0.06, abs=0.02)


@pytest.mark.long
def test_a_known_blur_is_found_again() -> None:
    more = found(Acquisition(blur_mm=6))
    assert more[2] ** 0.5 == pytest.approx(6, rel=0.15)


@pytest.mark.long
def test_a_known_noise_is_found_again() -> None:
    more = found(Acquisition(noise=0.05))
    assert more[3] ** 0.5 == pytest.approx(0.05, rel=0.15)
    assert abs(more[2]) < 9


@pytest.mark.long
def test_a_known_shading_is_found_again() -> None:
    more = found(Acquisition(bias=0.2))
    assert more[4] ** 0.5 == pytest.approx(0.2, rel=0.25)


@pytest.mark.long
def test_the_range_grows_with_what_scans_show_and_with_the_factor() -> None:
    plain, wide = (measured_range(phantoms(), widen=w) for w in (1.0, 2.0))
    assert wide.blur_mm == pytest.approx(2 * plain.blur_mm)
    assert wide.noise == pytest.approx(2 * plain.noise)
    for side, sign in ((0, -1), (1, 1)):
        assert sign * (wide.contrast[1][side] - plain.contrast[1][side]) > 0
    noisy = phantoms().copy()
    noisy[:4] = rerender(noisy[:4], [Acquisition(noise=0.08)] * 4, range(4))
    assert measured_range(noisy).noise > plain.noise + 0.02


@pytest.mark.long
def test_too_few_scans_show_nothing() -> None:
    with pytest.raises(InputError, match="5 scans"):
        measure(phantoms()[:5])


def test_draws_fill_their_range_and_rise() -> None:
    drawn = [draw(FREE, seed) for seed in range(300)]
    for name in ("blur_mm", "noise", "bias"):
        values = np.array([getattr(one, name) for one in drawn])
        top = getattr(FREE, name)
        assert 0 <= values.min() < 0.02 * top
        assert 0.98 * top < values.max() <= top
        assert values.mean() == pytest.approx(top / 2, rel=0.08)
    assert all(0 < low < middle < 0.75 for low, middle in (one.contrast for one in drawn))


def test_none_asks_for_nothing(cohort: Path) -> None:
    assert acquisitions_of(AcquisitionConfig(), open_cohort(cohort), 5, 1) is None


def test_what_is_set_is_what_every_scan_gets(cohort: Path) -> None:
    config = AcquisitionConfig(how="set", contrast=(0.3, 0.55), blur_mm=3, noise=0.02, bias=0.1)
    applied = acquisitions_of(config, open_cohort(cohort), 3, 1)
    assert applied is not None
    wanted = Acquisition(contrast=(0.3, 0.55), blur_mm=3, noise=0.02, bias=0.1)
    assert applied.acquisitions == (wanted,) * 3
    assert {k: applied.about[k] for k in asdict(wanted)} == asdict(wanted)
    assert "3.0 mm" in applied.about["in_words"]


@pytest.mark.parametrize("how", [pytest.param("drawn", marks=pytest.mark.long), "free"])
def test_a_scan_gets_the_same_acquisition_in_any_batch_of_a_seed(how: str, cohort: Path) -> None:
    config = AcquisitionConfig(how=how)  # type: ignore[arg-type]
    few, many = (acquisitions_of(config, open_cohort(cohort), n, 4) for n in (2, 9))
    other = acquisitions_of(config, open_cohort(cohort), 2, 5)
    assert few is not None and many is not None and other is not None  # noqa: PT018
    assert many.acquisitions[:2] == few.acquisitions
    assert many.seeds[:2] == few.seeds
    assert other.acquisitions != few.acquisitions
    assert len(set(many.acquisitions)) == 9


@pytest.mark.long
def test_only_training_persons_say_what_is_drawn(
    cohort: Path, make_cohort: Callable[..., Path]
) -> None:
    def edit(scans: list[Scan], volumes: list[FloatArray], parts: dict[str, str]) -> None:
        for i, scan in enumerate(scans):
            if parts[scan.person_id] != "train":
                volumes[i] = np.sqrt(volumes[i])

    config = AcquisitionConfig(how="drawn")
    ranges = []
    for root in (cohort, make_cohort(edit=edit)):
        applied = acquisitions_of(config, open_cohort(root), 2, 1)
        assert applied is not None
        ranges.append(applied.about)
    assert ranges[0] == ranges[1]


def test_pictures_have_no_other_scanners(cohort: Path) -> None:
    pictures = replace(open_cohort(cohort), grid=None)
    with pytest.raises(SettingError, match="brains"):
        acquisitions_of(AcquisitionConfig(how="free"), pictures, 2, 1)
