"""What training minimises."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from rarescan.classifiers.contract import BINARY, Labels
from rarescan.classifiers.losses import loss_of, mixed, targets_of
from rarescan.classifiers.spec import ClassifierConfig

CPU = torch.device("cpu")
THREE = Labels(names=("a", "b", "c"))


@pytest.mark.parametrize("n", [1, 7, 32])
def test_a_constant_half_costs_the_logarithm_of_2_whatever_the_batch(n: int) -> None:
    """T30: a sum of batch means over the rows was 32 times too small."""
    targets = targets_of([i % 2 for i in range(n)], BINARY, CPU)
    assert loss_of(torch.zeros(n), targets).item() == pytest.approx(0.6931, abs=1e-4)
    three = targets_of([i % 3 for i in range(n)], THREE, CPU)
    assert loss_of(torch.zeros(n, 3), three).item() == pytest.approx(math.log(3), abs=1e-5)


def test_one_hot_targets_cost_what_class_numbers_cost() -> None:
    logits, classes = torch.randn(9, 3), [0, 1, 2] * 3
    expected = functional.cross_entropy(logits, torch.tensor(classes))
    torch.testing.assert_close(loss_of(logits, targets_of(classes, THREE, CPU)), expected)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
@pytest.mark.parametrize("shape", [(2, 16, 12), (1, 8, 10, 6)])
def test_a_target_has_the_share_that_the_image_has(mix: str, shape: tuple[int, ...]) -> None:
    """Scans of class 1 are white and of class 0 black, so a mixed one's mean is its target."""
    labels = [0, 1] * 6
    images = torch.tensor(labels, dtype=torch.float32).reshape(-1, *[1] * len(shape))
    images = images.expand(-1, *shape).clone()
    config = ClassifierConfig(mix=mix, mix_alpha=1.0)  # type: ignore[arg-type]
    for step in range(8):
        out, targets = mixed(images, targets_of(labels, BINARY, CPU), config, step)
        torch.testing.assert_close(out.flatten(1).mean(1), targets, atol=1e-5, rtol=1e-5)
        assert out.shape == images.shape


def test_mixing_depends_on_seed_and_step_alone_and_none_leaves_every_bit() -> None:
    images, targets = torch.rand(6, 1, 8, 8), targets_of([0, 1] * 3, BINARY, CPU)
    config = ClassifierConfig(mix="cutmix", mix_alpha=1.0)
    first = mixed(images, targets, config, 3)[0]
    assert torch.equal(mixed(images, targets, config, 3)[0], first)
    assert not torch.equal(mixed(images, targets, config, 4)[0], first)
    plain = replace(config, mix="none")
    assert mixed(images, targets, plain, 3)[0] is images


def test_a_weight_counts_patients_so_many_times() -> None:
    random = torch.Generator().manual_seed(0)
    logits, classes = torch.randn(12, generator=random), [1, 0, 0] * 4
    repeated = [i for i, label in enumerate(classes) for _ in range(1 + label)]
    several = targets_of([classes[i] for i in repeated], BINARY, CPU)
    expected = loss_of(logits[repeated], several) * len(repeated) / len(classes)
    torch.testing.assert_close(loss_of(logits, targets_of(classes, BINARY, CPU), 2.0), expected)
