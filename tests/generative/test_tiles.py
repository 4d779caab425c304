from typing import Any

import pytest
import torch
from torch import nn

from rarescan.generative.autoencoder import KlAutoencoder
from rarescan.generative.spec import GeneratorSpec
from rarescan.generative.tiles import can_be_cut, decode_in_slabs


def network(**changes: Any) -> Any:
    spec = GeneratorSpec(codec="kl", width=16, depth=3, latent_channels=3, **changes)
    model = KlAutoencoder(spec).network.eval()
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return model


@pytest.mark.parametrize("slab", [1, 3, 4, 100])
def test_slabs_give_the_image_that_the_whole_code_gives(slab: int) -> None:
    model = network()
    code = torch.randn(1, 3, 7, 6, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model.decode(code)
    parts = decode_in_slabs(model, code, slab=slab)
    assert parts.shape == whole.shape == (1, 2, 28, 24, 20)
    assert (parts - whole).abs().max() < 1e-4 * whole.abs().max()


def test_statistics_of_tiles_would_show_seams() -> None:
    model = network()
    code = torch.randn(1, 3, 8, 6, 5, generator=torch.Generator().manual_seed(1))
    code[:, :, :4] *= 3
    with torch.no_grad():
        whole = model.decode(code)
        halves = torch.cat(
            [model.decode(code[:, :, :6])[:, :, :16], model.decode(code[:, :, 2:])[:, :, 8:]], 2
        )
    assert (halves - whole).abs().max() > 0.01 * whole.abs().max()
    assert (decode_in_slabs(model, code, slab=3) - whole).abs().max() < 1e-4 * whole.abs().max()


def test_an_attention_layer_cannot_be_cut() -> None:
    from monai.networks.nets import AutoencoderKL

    with torch.device("meta"):
        attentive = AutoencoderKL(
            spatial_dims=3, channels=(8, 8), num_res_blocks=1, attention_levels=(False, True),
            norm_num_groups=8,
        )  # fmt: skip
    assert can_be_cut(network())
    assert not can_be_cut(attentive)
    assert not can_be_cut(nn.Linear(2, 2))
