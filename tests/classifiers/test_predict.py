"""What a trained network says, and how far its answers spread."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rarescan.classifiers import train
from rarescan.classifiers.examples import Examples, class_pools
from rarescan.classifiers.folds import examples_of
from rarescan.classifiers.network import TrainedNetwork, load_network
from rarescan.classifiers.predict import predict, spread
from rarescan.classifiers.spec import ClassifierConfig, ClassifyConfig
from rarescan.classifiers.splits import label_table
from rarescan.classifiers.ultrasound import MODALITY
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError

CONFIG = ClassifyConfig(uncertainty="dropout", passes=4, views=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples(pictures: Path) -> Examples:
    cohort = open_cohort(pictures)
    table = label_table(cohort, CONFIG, MODALITY)
    return examples_of(cohort, table, np.arange(len(table.scans)))


@pytest.fixture(scope="module")
def trained(examples: Examples) -> TrainedNetwork:
    config = ClassifierConfig(steps=15, channels=(4, 8))
    pools = class_pools(examples, config.batch_size, 3)
    found = train.fit(examples, pools, config, modality=MODALITY, device=CPU)[0]
    return replace(found, temperature=1.5)


def _ids(n: int) -> list[str]:
    return [f"S{i}" for i in range(n)]


@pytest.mark.parametrize("uncertainty", ["dropout", "views"])
def test_a_scans_draws_belong_to_its_id_and_to_nothing_beside_it(
    uncertainty: str, trained: TrainedNetwork, examples: Examples
) -> None:
    images, ids = examples.read(range(20)), _ids(20)
    config = replace(CONFIG, uncertainty=uncertainty)  # type: ignore[arg-type]
    both = predict(trained, images, ids, config)
    alone = predict(trained, images[17:18], ids[17:18], config)
    assert alone.probabilities.tobytes() == both.probabilities[17:18].tobytes()
    assert both.uncertainty is not None
    assert alone.uncertainty is not None
    assert alone.uncertainty.tobytes() == both.uncertainty[17:18].tobytes()
    assert (both.uncertainty > 0).all()
    assert both.uncertainty.max() <= 0.5
    np.testing.assert_allclose(both.probabilities.sum(1), 1, atol=1e-5)


def test_without_views_and_passes_the_network_speaks_alone(
    trained: TrainedNetwork, examples: Examples
) -> None:
    images = examples.read(range(5))
    said = predict(trained, images, _ids(5), ClassifyConfig())
    assert said.uncertainty is None
    assert said.probabilities.tobytes() == trained.probabilities(images).tobytes()


def test_the_spread_is_that_of_the_chosen_class() -> None:
    draws = np.array([[[0.9, 0.1]], [[0.5, 0.5]]], np.float32)
    assert spread(draws) == pytest.approx([0.2])


def test_a_network_in_training_mode_answers_as_in_use(
    trained: TrainedNetwork, examples: Examples
) -> None:
    """T33: batch norm of a single image, measured 0.664 -> 0.415."""
    image = examples.read([7])
    before = trained.probabilities(image)
    trained.network.train()
    assert trained.probabilities(image).tobytes() == before.tobytes()


def test_images_that_were_not_prepared_are_refused(
    trained: TrainedNetwork, examples: Examples
) -> None:
    """T34: 0 to 255 instead of 0 to 1 gave chance and no error."""
    for faulty in (examples.read([0]) * 255, examples.read([0]) - 1, examples.read([0]) * np.nan):
        with pytest.raises(InputError, match="between 0 and 1"):
            trained.probabilities(faulty)


def test_save_load_predict_gives_the_same_bytes_for_three_classes(
    trained: TrainedNetwork, examples: Examples, tmp_path: Path
) -> None:
    """T31: another number of channels, a path without a slash, a missing transform."""
    trained.save(tmp_path)
    opened = load_network(tmp_path, "cpu")
    assert opened.labels == trained.labels
    assert opened.modality is MODALITY
    images = examples.read(range(6))
    assert opened.probabilities(images).tobytes() == trained.probabilities(images).tobytes()


def test_patience_keeps_the_best_look_and_stops(
    examples: Examples, make_examples: Callable[..., Examples]
) -> None:
    config = ClassifierConfig(steps=60, channels=(4, 8), learning_rate=0.05, patience=2)
    pools = class_pools(examples, config.batch_size, 3)
    found, looks = train.fit(
        examples, pools, config, modality=MODALITY, device=CPU, watched=examples
    )
    losses = [look.watched_loss for look in looks]
    assert all(loss is not None for loss in losses)
    best = int(np.argmin(np.array(losses, dtype=np.float64)))
    assert len(looks) == min(20, best + 1 + config.patience)
    assert train._loss_of_persons(found, examples) == pytest.approx(losses[best], rel=1e-5)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixing_and_half_precision_train_too(mix: str, examples: Examples) -> None:
    config = ClassifierConfig(steps=10, channels=(4, 8), mix=mix, mixed_precision=True)  # type: ignore[arg-type]
    pools = class_pools(examples, config.batch_size, 3)
    found, looks = train.fit(examples, pools, config, modality=MODALITY, device=CPU)
    again = train.fit(examples, pools, config, modality=MODALITY, device=CPU)[0]
    images = examples.read(range(4))
    assert np.isfinite(looks[-1].train_loss)
    assert found.probabilities(images).tobytes() == again.probabilities(images).tobytes()


def test_batches_give_every_class_its_share(examples: Examples) -> None:
    for pools in (class_pools(examples, 16, 3), class_pools(examples.take(range(60)), 16, 3)):
        drawn = [p for pool in pools for step in range(6) for p in pool.at(1, step)]
        shares = np.bincount([examples.labels[p] for p in drawn], minlength=3) / len(drawn)
        np.testing.assert_allclose(shares, [6 / 16, 5 / 16, 5 / 16])
