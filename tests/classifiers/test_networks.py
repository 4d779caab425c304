"""Heads, backbones and weights that a network starts from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.special import expit

from rarescan.classifiers.contract import BINARY, Labels
from rarescan.classifiers.networks import BackboneNetwork, OrdinalHead, build_network
from rarescan.classifiers.spec import (
    ClassifierConfig,
    ClassifyConfig,
    require_used,
    require_used_keys,
)
from rarescan.errors import SettingError
from rarescan.files import sha256_file

GRADES = Labels(names=("0", "1", "2", "3"), scheme="ordinal")
THREE = Labels(names=("a", "b", "c"))


def test_the_ordinal_head_is_the_proportional_odds_model() -> None:
    """McCullagh 1980: P(grade <= j) = sigmoid(c_j - g)."""
    head = OrdinalHead(1, 4)
    with torch.no_grad():
        head.line.weight.fill_(1.0)
        head.line.bias.fill_(0.0)
        head.first.fill_(-1.0)
        head.gaps.copy_(torch.log(torch.expm1(torch.tensor([1.5, 0.5]))))
    line = np.array([-3.0, 0.0, 2.5])
    shares = head(torch.tensor(line, dtype=torch.float32)[:, None]).softmax(1).detach().numpy()
    below = expit(np.array([-1.0, 0.5, 1.0]) - line[:, None])
    expected = np.diff(np.hstack([np.zeros((3, 1)), below, np.ones((3, 1))]), axis=1)
    np.testing.assert_allclose(shares, expected, atol=1e-6)


def test_grades_are_never_out_of_order_however_far_the_cuts_are_pushed() -> None:
    head = OrdinalHead(2, 4)
    with torch.no_grad():
        head.gaps.copy_(torch.tensor([-20.0, 3.0]))
    logits = head(torch.randn(50, 2) * 30)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(50), atol=1e-4, rtol=0)


@pytest.mark.parametrize("labels", [BINARY, THREE, GRADES])
@pytest.mark.parametrize(
    ("network", "shape", "planes"), [("resnet10", (32, 24), 3), ("small", (20, 16), 1)]
)
def test_a_network_has_one_logit_for_two_classes_and_one_each_for_more(
    labels: Labels, network: str, shape: tuple[int, ...], planes: int
) -> None:
    config = ClassifierConfig(network=network)  # type: ignore[arg-type]
    built = build_network(shape, config, labels, n_channels=planes).eval()
    images = torch.zeros(2, planes, *shape)
    assert built(images).shape == ((2,) if labels.binary else (2, len(labels.names)))
    torch.testing.assert_close(built(images), built.logits(built.features(images)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("network", "n_features"),
    [
        ("resnet18", 512),
        ("resnet50", 2048),
        ("densenet121", 1024),
        ("efficientnet-b0", 1280),
    ],
)
@pytest.mark.parametrize("shape", [(64, 48), (32, 32, 32)])
def test_every_backbone_reads_pictures_and_volumes(
    network: str, n_features: int, shape: tuple[int, ...]
) -> None:
    config = ClassifierConfig(network=network)  # type: ignore[arg-type]
    built = build_network(shape, config, THREE, n_channels=1).eval()
    images = torch.zeros(2, 1, *shape)
    assert built.features(images).shape == (2, n_features)
    assert built(images).shape == (2, 3)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a three-channel ResNet-10 with torchvision's names, last layer included."""
    torch.manual_seed(3)
    config = ClassifierConfig(network="resnet10")
    body = build_network((32, 32), config, THREE, n_channels=3).get_submodule("body")
    state = {**body.state_dict(), "fc.weight": torch.zeros(1000, 512)}
    path: Path = tmp_path_factory.mktemp("weights") / "resnet10.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def _config(path: Path) -> ClassifierConfig:
    return ClassifierConfig(network="resnet10", weights=str(path), weights_sha256=sha256_file(path))


def test_weights_by_path_are_taken_and_a_grey_picture_gets_the_answer_of_a_grey_colour_picture(
    stored: Path,
) -> None:
    colour = build_network((32, 32), _config(stored), THREE, n_channels=3).eval()
    grey = build_network((32, 32), _config(stored), THREE, n_channels=1).eval()
    given = safetensors.torch.load_file(stored)["layer1.0.conv1.weight"]
    torch.testing.assert_close(grey.get_parameter("body.layer1.0.conv1.weight").data, given)
    picture = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(
        grey.features(picture), colour.features(picture.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4
    )


def test_weights_of_another_file_or_network_or_pickle_are_refused(
    stored: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match="SHA-256"):
        build_network((32, 32), replace(_config(stored), weights_sha256="0"), THREE, n_channels=1)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.zeros(4, 4)}, other)
    with pytest.raises(SettingError, match="fit 0% of resnet10"):
        build_network((32, 32), _config(other), THREE, n_channels=1)
    evil = tmp_path / "evil.pt"
    torch.save({"state_dict": BackboneNetwork}, evil)
    with pytest.raises(SettingError, match="without pickle"):
        build_network((32, 32), _config(evil), THREE, n_channels=1)
    with pytest.raises(SettingError, match="no file"):
        build_network((32, 32), replace(_config(stored), weights="gone.pt"), THREE, n_channels=1)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (ClassifierConfig(network="resnet10", channels=(4,)), "channels"),
        (ClassifierConfig(weights="w.safetensors", weights_sha256="0"), "weights"),
        (ClassifierConfig(network="resnet10", weights_sha256="0"), "weights_sha256"),
        (ClassifierConfig(network="resnet10", weights="w.pt"), "weights"),
        (ClassifierConfig(mix_alpha=1.0), "mix_alpha"),
    ],
)
def test_a_key_that_does_nothing_is_an_error(config: ClassifierConfig, key: str) -> None:
    with pytest.raises(SettingError, match=f"classifier.{key}"):
        require_used(config)
    require_used(ClassifierConfig(mix="mixup", mix_alpha=1.0))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"passes": 5}, "passes"),
        ({"uncertainty": "none", "abstain_above": 0.2}, "abstain_above"),
        ({"leaky": True, "group": "source"}, "group"),
        ({"uncertainty": "views"}, "uncertainty: views"),
        ({"scheme": "ordinal", "classes": ("a", "b")}, "scheme"),
        ({"views": 2, "network": ClassifierConfig(augmentation=0)}, "views"),
        ({"uncertainty": "dropout", "network": ClassifierConfig(dropout=0)}, "dropout"),
    ],
)
def test_keys_of_classify_that_do_nothing_are_errors(changes: dict[str, object], key: str) -> None:
    with pytest.raises(SettingError, match=key):
        require_used_keys(ClassifyConfig(**changes))  # type: ignore[arg-type]
