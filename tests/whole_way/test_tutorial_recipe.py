"""The rival of the benchmark is MONAI's tutorial, and nothing of ours makes it worse."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")
# MONAI is imported for it alone.
pytestmark = pytest.mark.long
PLACE = Path(__file__).parents[2] / "benchmarks" / "generative" / "tutorial.py"


@pytest.fixture(scope="module")
def tutorial() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorial_recipe", PLACE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tutorial_recipe"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("edges", [(5, 6, 5), (10, 12, 10), (15, 18, 15), (8, 8, 8)])
def test_latents_come_back_from_the_padding_where_they_were(
    tutorial: ModuleType, edges: tuple[int, int, int]
) -> None:
    codes = torch.rand(2, 3, *edges)

    padded = tutorial._padded(codes)

    assert all(edge % 4 == 0 for edge in padded.shape[2:])
    assert torch.equal(tutorial._cropped(padded, edges), codes)


def test_monais_own_padding_moves_odd_latents_which_is_why_it_is_not_used() -> None:
    from monai.transforms import CenterSpatialCrop, SpatialPad

    code = torch.rand(3, 5, 5, 5)

    again = CenterSpatialCrop([5, 5, 5])(SpatialPad([8, 8, 8])(code))

    torch.testing.assert_close(torch.as_tensor(again)[:, :4, :4, :4], code[:, 1:, 1:, 1:])


def test_images_that_monai_would_crop_in_silence_are_refused(tutorial: ModuleType) -> None:
    with pytest.raises(ValueError, match="does not divide by 4"):
        tutorial.with_channel(torch.zeros(1, 20, 24, 18), tutorial.Sizes())


def test_the_tutorials_own_sizes_are_among_those_that_are_searched(tutorial: ModuleType) -> None:
    own = tutorial.Sizes(channels=(32, 64, 64), rate=1e-4)

    assert own in tutorial.AUTOENCODERS
    assert own.rate in tutorial.RATES
    assert sum(p.numel() for p in tutorial.autoencoder(own).parameters()) == 2_299_208
