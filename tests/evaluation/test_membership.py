"""Membership inference: it finds who was copied, and keeps its level where nobody was."""

import numpy as np
import pytest

from rarescan.evaluation.membership import attack, black_box, membership_gate, white_box


def rows(n: int, random: np.random.Generator, d: int = 16) -> np.ndarray:
    return random.normal(size=(n, d)) / np.sqrt(np.arange(1, d + 1))


def test_smaller_losses_of_training_persons_are_an_area_above_one_half():
    found = attack("loss", np.array([1.0, 2.0, 5.0]), np.array([3.0, 4.0]))
    # 4 of the 6 pairs have the smaller loss in training.
    assert found["auc"] == pytest.approx(4 / 6)
    assert (found["n_training"], found["n_validation"]) == (3, 2)
    assert attack("loss", np.zeros(5), np.ones(5))["auc"] == 1
    assert attack("loss", np.ones(5), np.ones(5))["auc"] == 0.5


def test_independent_batches_are_accused_at_the_level_that_was_chosen():
    random = np.random.default_rng(1)
    p, covered = [], 0
    for seed in range(60):
        found = black_box(rows(80, random), rows(40, random), rows(30, random), seed=seed)
        p.append(found["permutation_p"])
        covered += found["low"] <= 0.5 <= found["high"]
    assert np.sum(np.array(p) < 0.05) <= 8  # 3 expected; 8 is 3 SE above
    assert 0.35 < np.mean(p) < 0.65
    assert covered >= 52


def test_a_batch_of_near_copies_tells_who_was_in_training():
    random = np.random.default_rng(2)
    training, others = rows(40, random), rows(40, random)
    batch = training + 0.1 * rows(40, random)
    found = black_box(batch, training, others, seed=0)
    assert found["low"] > 0.9
    assert found["permutation_p"] == 1 / 1000
    gate = membership_gate(found)
    assert gate.outcome == "insufficient"
    assert "are told from others by their distance" in gate.reason


def test_the_gate_passes_with_many_persons_and_never_with_few():
    random = np.random.default_rng(3)
    batch = rows(200, random)
    many = black_box(batch, rows(250, random), rows(250, random), seed=0)
    assert membership_gate(many).outcome == "pass"
    few = black_box(batch, rows(40, random), rows(20, random), seed=0)
    gate = membership_gate(few)
    assert (gate.outcome, gate.limit) == ("insufficient", 0.65)
    assert "40 training, 20 validation" in gate.reason


def test_the_same_seed_gives_the_same_p():
    random = np.random.default_rng(4)
    sets = rows(30, random), rows(20, random), rows(25, random)
    assert black_box(*sets, seed=5) == black_box(*sets, seed=5)


def test_each_loss_is_an_attack_and_losses_without_strangers_are_none():
    losses = {
        "network": {"train": [0.1, 0.2], "validation": [0.3, 0.4]},
        "likelihood": {"train": [0.1, 0.2], "validation": []},
    }
    assert [(one["attack"], one["auc"]) for one in white_box(losses)] == [("network", 1.0)]
    assert white_box({}) == []
