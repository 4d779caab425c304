"""The training loop: pure in its seed, equal in its steps, blind to what it must not see."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from rarescan.classifiers import train
from rarescan.classifiers.examples import Examples, Pool, balanced_pools, plain_pools
from rarescan.classifiers.mri import MRI
from rarescan.classifiers.network import TrainedNetwork
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.classifiers.train import Look

CPU = torch.device("cpu")


def _fit(
    examples: Examples,
    config: ClassifierConfig,
    pools: tuple[Pool, ...] | None = None,
    watched: Examples | None = None,
) -> tuple[TrainedNetwork, list[Look]]:
    pools = pools or balanced_pools(examples, config.batch_size)
    return train.fit(examples, pools, config, modality=MRI, device=CPU, watched=watched)


def _weights(trained: TrainedNetwork) -> bytes:
    state = trained.network.state_dict()
    return b"".join(state[name].contiguous().numpy().tobytes() for name in sorted(state))


@pytest.fixture(scope="module")
def examples(make_examples: Callable[..., Examples]) -> Examples:
    return make_examples(16, seed=1)


SHORT = ClassifierConfig(steps=10, seed=1)


def test_weights_depend_on_the_seed_alone(examples: Examples) -> None:
    torch.manual_seed(1)
    first = _weights(_fit(examples, SHORT)[0])
    torch.manual_seed(2)
    assert _weights(_fit(examples, SHORT)[0]) == first
    assert _weights(_fit(examples, replace(SHORT, seed=2))[0]) != first


def test_the_callers_random_state_is_left_alone(examples: Examples) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    _fit(examples, SHORT)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_number_of_threads_changes_no_bit(examples: Examples) -> None:
    one = _weights(_fit(examples, SHORT)[0])
    torch.set_num_threads(2)
    two = _weights(_fit(examples, SHORT)[0])
    torch.set_num_threads(1)
    assert one == two


def test_what_is_watched_never_touches_the_weights(
    examples: Examples, make_examples: Callable[..., Examples]
) -> None:
    alone = _weights(_fit(examples, SHORT)[0])
    watched = make_examples(6, seed=9)
    assert _weights(_fit(examples, SHORT, watched=watched)[0]) == alone
    other = replace(watched, labels=(1, 1, 0, 1, 0, 0))
    assert _weights(_fit(examples, SHORT, watched=other)[0]) == alone


def test_every_fit_takes_the_steps_that_were_asked_for(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    step = train._step

    def counted(*arguments: object) -> float:
        batches.append(len(arguments[2]))  # type: ignore[arg-type]
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "_step", counted)
    for pools in (plain_pools(examples, 16), balanced_pools(examples, 16)):
        _fit(examples, SHORT, pools)
        assert batches == [16] * 10
        batches.clear()


def test_two_arms_start_from_the_same_weights(examples: Examples) -> None:
    frozen = replace(SHORT, learning_rate=1e-12)
    plain = _fit(examples, frozen, plain_pools(examples, 16))[0]
    balanced = _fit(examples, frozen)[0]
    for name, value in plain.network.named_parameters():
        torch.testing.assert_close(value, balanced.network.get_parameter(name), atol=1e-9, rtol=0)


def test_looks_are_even_end_with_the_last_step_and_measure_persons(
    examples: Examples, make_examples: Callable[..., Examples]
) -> None:
    watched = make_examples(20, seed=8)
    trained, looks = _fit(examples, replace(SHORT, steps=19), watched=watched)
    assert [look.step for look in looks] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 19]
    scores = trained.score(watched.read())
    assert looks[-1].watched_auc == pytest.approx(roc_auc_score(watched.labels, scores))


def test_one_watched_class_gives_no_auc(
    examples: Examples, make_examples: Callable[..., Examples]
) -> None:
    watched = make_examples(6, seed=8).take(range(6), label=1)
    looks = _fit(examples, SHORT, watched=watched)[1]
    assert all(look.watched_auc is None for look in looks)
    assert all(row["watched_auc"] is None for row in train.as_rows(looks))


def test_training_lowers_the_loss(examples: Examples, quick: ClassifierConfig) -> None:
    looks = _fit(examples, quick)[1]
    assert looks[-1].train_loss < 0.7 * looks[0].train_loss
