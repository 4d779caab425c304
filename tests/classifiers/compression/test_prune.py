"""Zeros among the weights stay zeros."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from rarescan.classifiers.compression.prune import (
    Pattern,
    layers,
    magnitude_mask,
    prune,
    two_of_four_mask,
    zero_share,
)


def is_two_of_four(weight: torch.Tensor) -> bool:
    groups = weight.movedim(1, -1).unflatten(-1, (-1, 4))
    return bool(((groups == 0).sum(-1) >= 2).all())


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(),
        nn.Linear(8 * 16, 3),
    )  # fmt: skip


def _train_a_little(module: nn.Module) -> nn.Module:
    images, labels = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    for _ in range(3):
        module.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        with torch.no_grad():
            for weight in module.parameters():
                weight -= 0.05 * (weight.grad + 0.1 * weight)
    return module


def test_the_weights_nearest_to_zero_go() -> None:
    weight = torch.tensor([[0.5, -0.1, 3.0, -2.0], [0.2, 0.3, -0.05, 1.0]])
    expected = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 1]])
    assert torch.equal(magnitude_mask(weight, 0.5), expected)


def test_of_four_channels_the_two_largest_stay() -> None:
    weight = torch.tensor([[0.5, -0.1, 3.0, -2.0, 0.2, 0.3, -0.05, 1.0]])
    expected = torch.tensor([[0.0, 0, 1, 1, 0, 1, 0, 1]])
    assert torch.equal(two_of_four_mask(weight), expected)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, (3, 8, 2, 2), elements=st.floats(-1, 1, width=32)))
def test_two_of_every_four_input_channels_stay_whatever_the_weights(values: np.ndarray) -> None:
    weight = torch.from_numpy(values)
    mask = two_of_four_mask(weight)
    assert mask.reshape(3, 2, 4, 2, 2).sum(2).eq(2).all()
    assert is_two_of_four(weight * mask)
    assert (weight * mask).abs().sum() >= 0.5 * weight.abs().sum() - 1e-4


@pytest.mark.parametrize(("pattern", "share"), [("magnitude", 0.9), ("two_of_four", 0.5)])
def test_training_on_changes_weights_and_no_zero(
    pattern: Pattern, share: float, network: nn.Module
) -> None:
    zeros = {}

    def retrain(masked: nn.Module) -> nn.Module:
        zeros["before"] = zero_share(masked)
        return _train_a_little(masked)

    pruned = prune(network, pattern, retrain, share=share)
    assert zero_share(pruned) == pytest.approx(zeros["before"])
    for name, layer in layers(pruned, pattern):
        assert (layer.weight == 0).float().mean() == pytest.approx(share, abs=0.02)
        kept = layer.weight != 0
        assert (layer.weight[kept] != network.get_submodule(name).weight[kept]).all()
    assert set(pruned.state_dict()) == set(network.state_dict())


def test_a_first_layer_of_one_channel_is_left_whole_by_two_of_four(network: nn.Module) -> None:
    pruned = prune(network, "two_of_four", lambda masked: masked)
    assert (pruned[0].weight != 0).all()
    assert is_two_of_four(pruned[3].weight)
    assert is_two_of_four(pruned[5].weight)


def test_the_original_is_left_as_it_was(network: nn.Module) -> None:
    before = {k: v.clone() for k, v in network.state_dict().items()}
    prune(network, "magnitude", _train_a_little)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_retraining_that_forgot_the_zeros_is_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="zeros"):
        prune(network, "magnitude", lambda _: network)


def test_a_retrained_network_of_its_own_takes_the_zeros_over(network: nn.Module) -> None:
    def elsewhere(masked: nn.Module) -> nn.Module:
        from copy import deepcopy

        return _train_a_little(deepcopy(masked))

    assert zero_share(prune(network, "magnitude", elsewhere, share=0.8)) == pytest.approx(
        0.8, abs=0.01
    )
