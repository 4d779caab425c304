from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.cohort.contracts import brain_grid
from rarescan.errors import InputError, SettingError
from rarescan.generative import codecs
from rarescan.generative.anatomy import brain_mask, to_image
from rarescan.generative.codecs import HaarCodec, PcaCodec, fit_codec, haar_kernel, restore_codec
from rarescan.generative.spec import GeneratorSpec

SHAPE = (20, 24, 20)


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 2, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_haar_bands_are_orthonormal() -> None:
    flat = haar_kernel().flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(8))


@pytest.mark.parametrize("levels", [1, 2])
def test_haar_is_exact_and_keeps_energy(levels: int) -> None:
    codec, x = HaarCodec(SHAPE, levels), images(3)
    code = codec.encode(x)
    assert tuple(code.shape[1:]) == codec.code_shape
    assert (codec.decode(code) - x).abs().max() < 3e-6
    assert code.square().sum() / x.square().sum() == pytest.approx(1, abs=1e-5)


def test_haar_of_a_constant_is_all_in_the_lowest_band() -> None:
    code = HaarCodec(SHAPE, 2).encode(torch.ones(1, 2, *SHAPE))
    torch.testing.assert_close(code[0, [0, 64]], torch.full((2, 5, 6, 5), 8.0))
    assert code[0, 1:64].abs().max() < 1e-5


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 9), st.integers(0, 1000))
def test_pca_is_exact_on_the_persons_it_was_fitted_to(n: int, seed: int) -> None:
    x = images(n, seed)
    codec = PcaCodec.fit(x)
    assert codec.code_shape == (n - 1,)
    assert (codec.decode(codec.encode(x)) - x).abs().max() < 2e-3


def test_pca_codes_of_training_persons_are_uncorrelated_with_falling_variance() -> None:
    codes = PcaCodec.fit(images(12)).encode(images(12))
    covariance = codes.T @ codes / 11
    spread = covariance.diagonal()
    assert (spread[:-1] >= spread[1:] * 0.999).all()
    assert (covariance - spread.diag()).abs().max() < 1e-3 * spread.max()


def test_pca_keeps_distances_between_training_persons() -> None:
    x = images(6)
    codes = PcaCodec.fit(x).encode(x)
    torch.testing.assert_close(
        torch.cdist(codes, codes), torch.cdist(x.flatten(1), x.flatten(1)), rtol=1e-3, atol=0.05
    )


@pytest.mark.parametrize("name", ["pca", "haar"])
def test_a_restored_codec_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    spec = GeneratorSpec(codec=name)  # type: ignore[arg-type]
    codec = fit_codec(images(5), spec, folder=tmp_path, device=torch.device("cpu"))
    again = restore_codec(spec, brain_grid(8), codec.state())
    code = codec.encode(images(5))
    assert again.code_shape == codec.code_shape
    assert torch.equal(again.encode(images(5)), code)
    assert torch.equal(again.decode(code), codec.decode(code))


def test_on_fine_grids_the_distance_is_kept_at_half_the_resolution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codecs, "_FINE_GRID", 1)
    shape = (40, 48, 40)
    axes = (torch.linspace(-1, 1, n) for n in shape)
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    volume = torch.where(x**2 + y**2 / 0.8 + z**2 < 0.7, 0.5 + 0.3 * x, 0.0).numpy()
    image = torch.from_numpy(to_image(volume))[None]
    codec = HaarCodec(shape, 2)
    code = codec.encode(image)
    assert tuple(code.shape[1:]) == codec.code_shape == (72, 10, 12, 10)
    again = codec.decode(code)
    assert (again[:, 0] - image[:, 0]).abs().max() < 3e-6
    # The distance to half a voxel at its kinks; at the edge, which is what counts, better.
    near = image[:, 1].abs() < 1 / 8
    assert 8 * (again - image)[:, 1][near].abs().mean() < 0.03
    here, there = (brain_mask(v[0, 1].numpy()) for v in (image, again))
    assert 2 * (here & there).sum() / (here.sum() + there.sum()) > 0.985
    assert abs(there.sum() / here.sum() - 1) < 0.005


def test_a_grid_that_cannot_be_halved_names_the_way_out() -> None:
    with pytest.raises(SettingError, match=r"20 x 22 x 20 .* 2 times.* levels to 1"):
        HaarCodec((20, 22, 20), 2)


def test_equal_scans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="same image"):
        fit_codec(
            images(1).repeat(3, 1, 1, 1, 1),
            GeneratorSpec(),
            folder=tmp_path,
            device=torch.device("cpu"),
        )
