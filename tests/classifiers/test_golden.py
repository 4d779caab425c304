"""The pair that proves that a classifier still answers as it did."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from torch import nn

from rarescan.classifiers.compression.export import Whole
from rarescan.classifiers.golden import (
    check_golden,
    invent_golden,
    invent_images,
    require_probabilities,
    write_golden,
)
from rarescan.errors import InputError
from rarescan.files import sha256_file

SHAPE = (16, 16, 1)


def _prepare(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures.permute(0, 3, 1, 2) - 0.25) / 0.25


@pytest.fixture
def whole() -> Whole:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 3)
    )
    with torch.no_grad():
        layers[1].running_mean.uniform_(-0.5, 0.5)
        layers[1].running_var.uniform_(0.5, 3)
    return Whole(layers, _prepare)


@pytest.fixture
def saved(tmp_path: Path, whole: Whole) -> Path:
    invent_golden(tmp_path, whole.run, SHAPE)
    return tmp_path


def test_the_saved_classifier_passes(saved: Path, whole: Whole) -> None:
    assert check_golden(saved, whole.run) == 0


def test_t33_a_network_in_training_mode_is_refused(saved: Path, whole: Whole) -> None:
    def in_training_mode(images: np.ndarray) -> np.ndarray:
        whole.train()
        with torch.no_grad():
            return whole(torch.from_numpy(images)).numpy()

    with pytest.raises(InputError, match="differs"):
        check_golden(saved, in_training_mode)


@pytest.mark.parametrize(
    "served",
    [lambda x: x.permute(0, 3, 1, 2), lambda x: _prepare(x * 255), lambda x: _prepare(x).flip(2)],
    ids=["not normalised", "0 to 255", "upside down"],
)
def test_t34_another_preparation_is_refused(
    served: Callable[[torch.Tensor], torch.Tensor], saved: Path, whole: Whole
) -> None:
    with pytest.raises(InputError, match="differs"):
        check_golden(saved, Whole(whole.network, served).run)


def test_a_weight_that_changed_by_a_hundredth_is_found(saved: Path, whole: Whole) -> None:
    with torch.no_grad():
        next(whole.network.parameters()).mul_(1.01)
    with pytest.raises(InputError, match="differs"):
        check_golden(saved, whole.run)


def test_a_difference_within_the_stored_tolerance_passes(tmp_path: Path, whole: Whole) -> None:
    images = invent_images(SHAPE, 2)
    write_golden(tmp_path, images, whole.run(images), tolerance=0.1)
    assert 0 < check_golden(tmp_path, lambda x: whole.run(x) + np.float32(0.01)) < 0.1


def test_not_a_number_is_a_difference(saved: Path, whole: Whole) -> None:
    with pytest.raises(InputError, match="differs"):
        check_golden(saved, lambda x: whole.run(x) * np.nan)


def test_another_number_of_classes_is_refused(saved: Path, whole: Whole) -> None:
    with pytest.raises(InputError, match="2 outputs an image instead of 3"):
        check_golden(saved, lambda x: whole.run(x)[:, :2])


@pytest.mark.parametrize("name", ["golden.safetensors", "golden.json"])
def test_a_missing_file_is_named(name: str, saved: Path, whole: Whole) -> None:
    (saved / name).unlink()
    with pytest.raises(InputError, match="missing"):
        check_golden(saved, whole.run)


def test_a_changed_byte_of_the_pair_is_found(saved: Path, whole: Whole) -> None:
    data = bytearray((saved / "golden.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "golden.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        check_golden(saved, whole.run)


def test_t42_a_pickle_in_the_place_of_the_pair_is_not_executed(saved: Path, whole: Whole) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return (saved / "executed").touch, ()

    (saved / "golden.safetensors").write_bytes(pickle.dumps(Touch()))
    sealed = {"sha256": sha256_file(saved / "golden.safetensors"), "tolerance": 1e-4}
    (saved / "golden.json").write_text(json.dumps(sealed))
    with pytest.raises(InputError, match="damaged"):
        check_golden(saved, whole.run)
    assert not (saved / "executed").exists()


def test_the_pair_holds_invented_images_on_which_the_classifier_is_unsure(
    saved: Path, whole: Whole
) -> None:
    seen: list[np.ndarray] = []
    check_golden(saved, lambda x: (seen.append(x), whole.run(x))[1])
    candidates = invent_images(SHAPE, 24)
    assert all(any(np.array_equal(image, c) for c in candidates) for image in seen[0])
    surest = whole.run(candidates).max(axis=1)
    assert whole.run(seen[0]).max() <= np.sort(surest)[3] + 1e-6


@pytest.mark.parametrize("shape", [(20, 24, 20), (48, 64, 1), (32, 32, 3), (5, 1, 2)])
def test_invented_images_are_stored_values_with_contrast(shape: tuple[int, ...]) -> None:
    images = invent_images(shape, 5)
    assert images.shape == (5, *shape)
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images.reshape(5, -1).std(axis=1) > 0.02).all()
    np.testing.assert_array_equal(images[:3], invent_images(shape, 3))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.log([[0.2, 0.8]]).astype(np.float32), id="T44 log-softmax"),
        pytest.param(np.array([[2.0, -1.0]], np.float32), id="T44 logits"),
        pytest.param(np.array([[0.6, 0.6]], np.float32), id="sigmoids"),
        pytest.param(np.array([0, 1, 1]), id="T37 labels"),
        pytest.param(np.array([[0, 1], [1, 0]]), id="T37 one-hot labels"),
        pytest.param(np.array([[np.nan, 1.0]], np.float32), id="not a number"),
    ],
)
def test_what_is_no_probability_is_refused(values: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        write_golden(tmp_path, np.zeros((len(values), 2, 2, 1), np.float32), values)


@given(st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1))
def test_t44_a_softmax_of_any_logits_is_accepted(logits: list[list[float]]) -> None:
    require_probabilities(softmax(np.array(logits, np.float32), axis=1))
