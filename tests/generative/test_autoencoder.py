from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from monai.networks.nets import AutoencoderKL
from torch import Tensor

from rarescan.errors import SettingError
from rarescan.generative import autoencoder
from rarescan.generative.autoencoder import KlAutoencoder, KlCodec
from rarescan.generative.contract import Batch
from rarescan.generative.families import load_generator, train_generator
from rarescan.generative.foreign import import_weights
from rarescan.generative.memory import footprint
from rarescan.generative.spec import GeneratorSpec

SHAPE = (20, 24, 20)
SPEC = GeneratorSpec(
    codec="kl", width=8, depth=2, latent_channels=2, codec_steps=2, batch_size=2, seed=3
)


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 2, *SHAPE, generator=torch.Generator().manual_seed(0))


def batch(step: int, values: Tensor | None = None) -> Batch:
    return Batch(
        step=step,
        n_steps=100,
        values=images() if values is None else values,
        encoded=torch.zeros(2, 0),
        noise=torch.Generator("cpu").manual_seed(7),
    )


def gradients(model: KlAutoencoder, player: int, step: int) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    chosen = model.players()[player]
    chosen.loss(batch(step)).backward()
    return [p.grad for p in chosen.parameters if p.grad is not None]


def test_the_discriminator_joins_in_after_a_fifth_of_the_steps() -> None:
    model = KlAutoencoder(SPEC)
    assert not any(g.any() for g in gradients(model, 1, step=19))
    assert all(torch.isfinite(g).all() for g in gradients(model, 1, step=20))
    assert any(g.any() for g in gradients(model, 1, step=20))
    before, after = (model.loss(batch(step)).item() for step in (19, 20))
    assert after != before


def test_activations_computed_again_give_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = KlAutoencoder(SPEC)
    kept = gradients(model, 0, step=50)
    monkeypatch.setattr(autoencoder, "_RECOMPUTED_FROM", 1)
    again = gradients(model, 0, step=50)
    assert len(again) == len(kept) > 10
    for one, other in zip(kept, again, strict=True):
        torch.testing.assert_close(one, other)


def test_activations_computed_again_need_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(SPEC, width=32, depth=3, family="gaussian")
    kept = footprint(spec, (40, 48, 40), 8, 30)
    monkeypatch.setattr(autoencoder, "_RECOMPUTED_FROM", 1)
    assert footprint(spec, (40, 48, 40), 8, 30).training_bytes < 0.75 * kept.training_bytes


def test_cubes_lie_in_the_image_and_all_players_see_the_same() -> None:
    spec = replace(SPEC, codec_patch=16)
    places = torch.arange(20 * 24 * 20.0).view(1, 1, *SHAPE).expand(2, 2, *SHAPE)
    model = KlAutoencoder(spec)
    cubes, share = model._cut(batch(0, places))
    again, _ = model._cut(batch(0, places))
    assert torch.equal(cubes, again)
    assert cubes.shape == (2, 2, 16, 16, 16)
    assert share == pytest.approx(20 * 24 * 20 / 16**3)
    corner = int(cubes[0, 0, 0, 0, 0])
    x, y, z = corner // 480, corner // 20 % 24, corner % 20
    assert torch.equal(cubes[0], places[0, :, x : x + 16, y : y + 16, z : z + 16])
    assert not torch.equal(cubes[0], cubes[1])
    whole = KlAutoencoder(replace(SPEC, codec_patch=32))._cut(batch(0))
    assert torch.equal(whole[0], images())
    assert whole[1] == 1


def fitted(tmp_path: Path, spec: GeneratorSpec = SPEC) -> KlCodec:
    return KlCodec.fit(images(4), spec, folder=tmp_path / "c", device=torch.device("cpu"))


def test_codes_of_training_persons_are_standardised_channel_by_channel(tmp_path: Path) -> None:
    codec = fitted(tmp_path)
    codes = codec.encode(images(4))
    torch.testing.assert_close(codes.mean((0, 2, 3, 4)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        codes.std((0, 2, 3, 4), correction=0), torch.ones(2), atol=1e-3, rtol=0
    )


def test_a_fine_grid_is_decoded_in_slabs_to_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = fitted(tmp_path)
    codes = torch.randn(2, *codec.code_shape, generator=torch.Generator().manual_seed(2))
    whole = codec.decode(codes)
    monkeypatch.setattr(autoencoder, "_FINE_GRID", 1)
    cut: list[int] = []
    in_slabs = autoencoder.decode_in_slabs
    monkeypatch.setattr(
        autoencoder,
        "decode_in_slabs",
        lambda network, code: cut.append(1) or in_slabs(network, code, slab=3),
    )
    again = KlCodec.restore(SHAPE, codec.state()).decode(codes)
    assert len(cut) == 2
    assert (again - whole).abs().max() < 1e-4


OLD = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 1, "channels": [8, 16],
    "num_res_blocks": 1, "attention_levels": [False, True], "latent_channels": 3,
    "norm_num_groups": 4, "with_encoder_nonlocal_attn": True, "with_decoder_nonlocal_attn": False,
}  # fmt: skip


def imported(tmp_path: Path, **changes: Any) -> tuple[Path, Any]:
    arguments = {**OLD, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = AutoencoderKL(**arguments).eval()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "w.yaml").write_text(yaml.safe_dump({"_target_": "AutoencoderKL", **arguments}))
    folder = tmp_path / "imported"
    import_weights(tmp_path / "w.safetensors", folder, network=tmp_path / "w.yaml")
    return folder, network


def test_an_imported_autoencoder_of_one_channel_begins_as_what_it_was(tmp_path: Path) -> None:
    folder, old = imported(tmp_path)
    new = KlAutoencoder(replace(SPEC, codec_weights=str(folder))).network.eval()
    x = images()
    with torch.no_grad():
        mean = old.encode(x[:, :1])[0]
        torch.testing.assert_close(new.encode(x)[0], mean)
        made = new.decode(mean)
        torch.testing.assert_close(made[:, :1], old.decode(mean))
    assert not made[:, 1].any()


@pytest.mark.long
def test_a_generator_from_imported_weights_needs_them_no_more(
    tmp_path: Path, cohort: Path, quick: Callable[..., GeneratorSpec]
) -> None:
    folder, _ = imported(tmp_path)
    spec = quick(family="gaussian", codec="kl", codec_weights=str(folder))
    model = train_generator(cohort, tmp_path / "m", spec, device="cpu")
    folder.rename(tmp_path / "elsewhere")
    generator = load_generator(model)
    assert generator.codec.code_shape == (3, 10, 12, 10)  # type: ignore[attr-defined]
    texts = [path.read_text() for path in model.glob("*.json")]
    assert not any(str(tmp_path) in text for text in texts)
    again = import_weights(model, tmp_path / "again", part="codec")
    assert (again / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 3, "out_channels": 3}, "takes 3 channels and gives 3"),
        ({"spatial_dims": 2}, "three dimensions"),
    ],
)
def test_networks_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder, _ = imported(tmp_path, **changes)
    with pytest.raises(SettingError, match=message):
        KlAutoencoder(replace(SPEC, codec_weights=str(folder)))
