"""Inception-v3 in both variants: its graph by published counts, its resize by hand, its files."""

import hashlib

import numpy as np
import pytest
import torch

from rarescan.errors import InputError
from rarescan.evaluation.external import open_extractor
from rarescan.evaluation.inception import NUMBERED, Inception, resize_like_tensorflow1
from rarescan.evaluation.spec import ExtractorConfig


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Inception().eval()


@pytest.fixture(scope="module")
def published(network, tmp_path_factory):
    """Return the settings of files in the layouts of torch-fidelity and of RadImageNet."""
    folder = tmp_path_factory.mktemp("weights")
    state = network.state_dict()
    head = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(state | head, folder / "inception")
    places = {name: place for place, name in NUMBERED.items()}
    numbered = {
        f"backbone.{places[name.partition('.')[0]]}.{name.partition('.')[2]}": value
        for name, value in state.items()
        if "tracked" not in name
    }
    torch.save(numbered, folder / "radimagenet-inception")
    return {
        path.name: ExtractorConfig(
            name="inception",
            kind=path.name,
            path=str(path),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest().upper(),
        )
        for path in folder.iterdir()
    }


def test_the_graph_has_the_published_number_of_parameters(network):
    # torchvision documents 27,161,264 for its network: less the auxiliary head (3,326,696) and
    # the 1000-class head (2,049,000) the same trunk remains.
    total = sum(p.numel() for p in network.parameters())
    assert total == 27_161_264 - 3_326_696 - 2_049_000
    names = set(network.state_dict())
    assert {
        "Conv2d_1a_3x3.conv.weight", "Conv2d_4a_3x3.bn.running_var", "Mixed_5b.branch5x5_2.bn.bias",
        "Mixed_6a.branch3x3dbl_3.conv.weight", "Mixed_6e.branch7x7dbl_5.conv.weight",
        "Mixed_7a.branch7x7x3_4.bn.weight", "Mixed_7b.branch3x3dbl_3b.conv.weight",
        "Mixed_7c.branch3x3_2a.conv.weight", "Mixed_7c.branch_pool.conv.weight",
    } <= names  # fmt: skip
    assert sum(name.endswith("conv.weight") for name in names) == 94
    assert len(NUMBERED) == len(list(network.children()))


def test_resizing_takes_pixel_corners_not_centres():
    image = torch.tensor([[0.0, 10.0], [20.0, 30.0]])[None, None]
    expected = torch.tensor(
        [[0, 5, 10, 10], [10, 15, 20, 20], [20, 25, 30, 30], [20, 25, 30, 30]], dtype=torch.float
    )
    assert torch.equal(resize_like_tensorflow1(image, 4)[0, 0], expected)
    assert torch.equal(resize_like_tensorflow1(image, 1)[0, 0], torch.tensor([[0.0]]))
    assert torch.equal(resize_like_tensorflow1(image, 2), image)


def test_fid_is_computed_on_grey_bytes_scaled_as_tensorflow_did(network, published):
    picture = np.full((20, 24), 0.7012, np.float32)
    with torch.inference_mode():
        expected = network(torch.full((1, 3, 299, 299), (179 - 128) / 128))[0]
    found = open_extractor(published["inception"]).embed(picture)
    assert found.shape == (2048,)
    assert found == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)


def test_radimagenets_inception_is_torchvisions_and_not_the_one_of_fid(network, published):
    extractor = open_extractor(published["radimagenet-inception"])
    picture = np.full((20, 24), 0.75, np.float32)
    theirs = Inception(torchvision=True).eval()
    theirs.load_state_dict(network.state_dict())
    with torch.inference_mode():
        image = torch.full((1, 3, 224, 224), 0.5)
        expected, other = theirs(image)[0], network(image)[0]
    assert extractor.embed(picture) == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)
    assert not torch.allclose(expected, other, rtol=1e-2)


def test_a_file_of_another_layout_is_refused(published):
    wrong = ExtractorConfig(
        name="inception",
        kind="inception",
        path=published["radimagenet-inception"].path,
        sha256=published["radimagenet-inception"].sha256,
    )
    with pytest.raises(InputError, match=r"first missing: Conv2d_1a_3x3"):
        open_extractor(wrong)


@pytest.mark.parametrize(("torchvision", "corner"), [(False, 1.0), (True, 4 / 9)])
def test_only_torchvision_counts_padding_in_its_averages(torchvision, corner):
    with torch.device("meta"):
        block = Inception(torchvision=torchvision).Mixed_5b
    block = block.to_empty(device="cpu").eval()
    seen = []
    block.branch_pool.register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
    with torch.inference_mode():
        block(torch.ones(1, 192, 5, 5))
    assert seen[0][0, 0, 0, 0].item() == pytest.approx(corner)
    assert seen[0][0, 0, 2, 2].item() == pytest.approx(1)
