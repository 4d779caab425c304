"""What is drawn from volumes: spectra follow known signals, nearest persons are the nearest."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rarescan.evaluation import gallery
from rarescan.evaluation.collect import collect
from rarescan.evaluation.features import load_features, save_features

SHAPE = (32, 32, 32)


def _wave(cycles: float) -> np.ndarray:
    return np.sin(2 * np.pi * cycles * np.arange(32))[:, None, None] * np.ones(SHAPE)


@pytest.mark.parametrize("cycles", [0.125, 0.25, 0.375])
def test_a_wave_has_its_power_at_its_own_frequency(cycles: float) -> None:
    frequency, decibel = gallery.radial_power(_wave(cycles), np.ones(SHAPE))
    assert abs(frequency[decibel.argmax()] - cycles) < np.diff(frequency)[0]
    assert frequency[0] > 0
    assert frequency[-1] < 0.5


def test_white_noise_has_the_same_power_at_every_frequency() -> None:
    noise = np.random.default_rng(0).normal(size=SHAPE)
    _, decibel = gallery.radial_power(noise, np.ones(SHAPE))
    # Parseval: a voxel of unit variance gives n voxels of power at each frequency. The first
    # band has a handful of frequencies, and one is lost with the mean.
    assert 10 ** (decibel[1:] / 10) == pytest.approx(np.prod(SHAPE), rel=0.2)


def test_brighter_volumes_have_the_same_shape_of_spectrum() -> None:
    noise = np.random.default_rng(1).normal(size=SHAPE)
    one, ten = (gallery.radial_power(k * noise, np.ones(SHAPE))[1] for k in (1, 10))
    assert ten - one == pytest.approx(20)


def test_a_synthetic_person_stands_above_the_training_person_that_it_resembles(
    make_run: Callable[..., Path],
) -> None:
    run = make_run(until="select", n_persons=20)
    content = collect(run)
    folder = run / "evaluation" / "features"
    train = load_features(folder / "domain-train" / "train.npz")
    sets = gallery._features(run, content["extractor"], "vae")
    far = 100 * np.arange(len(train.values), dtype=np.float32)[:, None] + train.values * 0
    save_features(folder, "train", _with(train, far))
    # Each synthetic person is put beside one training person, in reversed order.
    beside = far[::-1][: len(sets["synthetic"].values)] + 1
    save_features(folder, "vae", _with(sets["synthetic"], beside))
    nearest = gallery._nearest(gallery._features(run, content["extractor"], "vae"))
    expected = train.person_ids[::-1][: len(nearest)]
    assert tuple(nearest.values()) == expected


def _with(features, values):
    from dataclasses import replace

    return replace(features, values=values)


def test_without_features_there_is_neither_map_nor_neighbour(make_run: Callable[..., Path]) -> None:
    run = make_run(until="select", n_persons=20)
    (run / "evaluation" / "features" / "domain-train" / "train.npz").unlink()
    drawn = gallery.pictures(run, collect(run))
    assert drawn["map"] is None
    assert all(entry["nearest"] is None for entry in drawn["champion"])
    assert drawn["spectra"]
