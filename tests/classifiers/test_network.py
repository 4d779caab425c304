"""A trained network on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rarescan.classifiers import train
from rarescan.classifiers.examples import Examples, balanced_pools
from rarescan.classifiers.mri import MRI, prepare
from rarescan.classifiers.network import TrainedNetwork, load_network
from rarescan.classifiers.networks import FlatNetwork
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.cohort.contracts import brain_grid
from rarescan.errors import InputError


@pytest.fixture(scope="module")
def trained(make_examples: Callable[..., Examples]) -> TrainedNetwork:
    examples = make_examples(16, seed=1)
    config = ClassifierConfig(steps=10, channels=(4, 8))
    pools = balanced_pools(examples, config.batch_size)
    return train.fit(examples, pools, config, modality=MRI, device=torch.device("cpu"))[0]


@pytest.mark.parametrize(("spacing_mm", "n_blocks"), [(8, 3), (4, 4), (2, 5), (1, 6)])
def test_the_depth_follows_the_grid(spacing_mm: float, n_blocks: int) -> None:
    network = FlatNetwork(brain_grid(spacing_mm).shape, ClassifierConfig())
    assert len(network.blocks) == n_blocks
    assert network.last.in_features == 32 * 3 * 3 * 3


def test_the_6_mm_network_is_the_measured_one() -> None:
    network = FlatNetwork((27, 32, 27), ClassifierConfig())
    # 19.7 thousand parameters: the benchmark that the settings come from.
    assert round(sum(p.numel() for p in network.parameters()) / 1000, 1) == 19.7


@pytest.mark.parametrize("shape", [(27, 32, 27), (5, 9, 7), (3, 3, 3), (20, 24, 20)])
def test_any_shape_gets_a_head_that_fits(shape: tuple[int, ...]) -> None:
    network = FlatNetwork(shape, ClassifierConfig(channels=(2, 3))).eval()
    assert network(torch.zeros(2, 1, *shape)).shape == (2,)


def test_features_are_what_the_logit_is_made_of(trained: TrainedNetwork) -> None:
    images = np.random.default_rng(0).random((5, 20, 24, 20)).astype(np.float32)
    features, scores = trained.features_and_scores(images)
    last = trained.network.get_submodule("last")
    logits = features @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-5)


def test_background_and_brain_map_to_fixed_inputs() -> None:
    values = torch.tensor([[[[0.0, 0.375, 0.625, 1.0]]]])
    torch.testing.assert_close(prepare(values).flatten(), torch.tensor([-1.2, 0.0, 0.8, 2.0]))
    assert prepare(values).shape == (1, 1, 1, 1, 4)


def test_settings_come_back_as_they_were(trained: TrainedNetwork, tmp_path: Path) -> None:
    trained.save(tmp_path)
    assert load_network(tmp_path, "cpu").config == trained.config


def test_a_changed_byte_of_the_weights_is_found(trained: TrainedNetwork, tmp_path: Path) -> None:
    trained.save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        load_network(tmp_path)


@pytest.mark.parametrize("missing", ["weights.safetensors", "network.json"])
def test_a_missing_file_is_named_a_missing_network(
    missing: str, trained: TrainedNetwork, tmp_path: Path
) -> None:
    trained.save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(InputError, match="missing"):
        load_network(tmp_path)


@pytest.mark.parametrize("damage", ["{", "{}", json.dumps({"weights_sha256": None})])
def test_damaged_settings_are_an_error_with_a_remedy(
    damage: str, trained: TrainedNetwork, tmp_path: Path
) -> None:
    trained.save(tmp_path)
    (tmp_path / "network.json").write_text(damage)
    with pytest.raises(InputError, match="--overwrite"):
        load_network(tmp_path)
