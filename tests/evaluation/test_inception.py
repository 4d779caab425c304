"""Inception-v3 for FID: its graph by published counts, its resize by hand, weights by hash."""

import hashlib

import numpy as np
import pytest
import torch

from rarescan.cohort.contracts import brain_grid
from rarescan.cohort.store import create_volumes
from rarescan.errors import InputError, SettingError
from rarescan.evaluation import evaluate
from rarescan.evaluation.images import ImageSet
from rarescan.evaluation.inception import (
    Inception,
    load_inception,
    resize_like_tensorflow1,
    slice_features,
)
from rarescan.evaluation.spec import EvaluateConfig


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Inception().eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """Return files as torch-fidelity and as pytorch-fid write them (without step counters)."""
    folder = tmp_path_factory.mktemp("weights")
    state = network.state_dict()
    torch.save(state, folder / "with.pth")
    torch.save({k: v for k, v in state.items() if "tracked" not in k}, folder / "without.pth")
    return folder


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_graph_has_the_published_number_of_parameters(network):
    # torchvision documents 27,161,264 for its network: less the auxiliary head (3,326,696) and
    # the 1000-class head (2,049,000) the same trunk remains.
    head = sum(p.numel() for p in network.fc.parameters())
    total = sum(p.numel() for p in network.parameters())
    assert total - head == 27_161_264 - 3_326_696 - 2_049_000
    assert head == 2048 * 1008 + 1008
    names = set(network.state_dict())
    assert {
        "Conv2d_1a_3x3.conv.weight", "Conv2d_4a_3x3.bn.running_var", "Mixed_5b.branch5x5_2.bn.bias",
        "Mixed_6a.branch3x3dbl_3.conv.weight", "Mixed_6e.branch7x7dbl_5.conv.weight",
        "Mixed_7a.branch7x7x3_4.bn.weight", "Mixed_7b.branch3x3dbl_3b.conv.weight",
        "Mixed_7c.branch3x3_2a.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.bias",
    } <= names  # fmt: skip
    assert sum(name.endswith("conv.weight") for name in names) == 94


def test_features_and_logits_have_the_shapes_of_tf_fid(network):
    with torch.no_grad():
        features, logits = network(torch.zeros(1, 3, 299, 299))
    assert features.shape == (1, 2048)
    assert logits.shape == (1, 1008)
    assert torch.allclose(logits, features @ network.fc.weight.detach().T)


def test_resizing_takes_pixel_corners_not_centres():
    image = torch.tensor([[0.0, 10.0], [20.0, 30.0]])[None, None]
    expected = torch.tensor(
        [[0, 5, 10, 10], [10, 15, 20, 20], [20, 25, 30, 30], [20, 25, 30, 30]], dtype=torch.float
    )
    assert torch.equal(resize_like_tensorflow1(image, 4)[0, 0], expected)
    assert torch.equal(resize_like_tensorflow1(image, 1)[0, 0], torch.tensor([[0.0]]))
    assert torch.equal(resize_like_tensorflow1(image, 2), image)


@pytest.mark.parametrize("name", ["with.pth", "without.pth"])
def test_both_published_kinds_of_file_give_the_same_features(network, weights, name):
    path = weights / name
    loaded = load_inception(path, digest(path).upper())
    volume = np.random.default_rng(0).random((1, 20, 24, 20), dtype=np.float32)
    found = slice_features(loaded, volume)
    assert found.shape == (1, 2048)
    assert found == pytest.approx(slice_features(network, volume))


def test_weights_are_refused_without_file_or_with_another_hash_or_content(weights, tmp_path):
    path = weights / "with.pth"
    with pytest.raises(SettingError, match="missing"):
        load_inception(tmp_path / "none.pth", "")
    with pytest.raises(SettingError, match="SHA-256"):
        load_inception(path, "0" * 64)
    other = tmp_path / "other.pth"
    torch.save({"layer": torch.zeros(2)}, other)
    with pytest.raises(InputError, match="no TF-FID"):
        load_inception(other, digest(other))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="no TF-FID"):
        load_inception(broken, digest(broken))


def test_features_are_averaged_by_person_and_not_computed_twice(network, weights, tmp_path):
    volumes = np.random.default_rng(1).random((3, 20, 24, 20), dtype=np.float32)
    create_volumes(tmp_path, 3, brain_grid(8))[:] = volumes
    one = ImageSet(
        name="train",
        root=tmp_path,
        rows=(0, 2),
        persons=("A", "A"),
        diagnoses=("control",) * 2,
        ages=(50.0,) * 2,
    )
    path = weights / "with.pth"
    config = EvaluateConfig(inception_weights=str(path), inception_sha256=digest(path))
    found = evaluate._inception_features(tmp_path / "features", {"train": one}, config)["train"]
    expected = slice_features(network, volumes[[0, 2]]).mean(axis=0)
    assert found.person_ids == ("A",)
    assert found.values[0] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    missing = EvaluateConfig(inception_weights="gone.pth", inception_sha256=digest(path))
    again = evaluate._inception_features(tmp_path / "features", {"train": one}, missing)["train"]
    assert (again.values == found.values).all()
