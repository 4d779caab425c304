from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from rarescan.errors import InputError
from rarescan.files import sha256_file
from rarescan.generative.contract import Prior
from rarescan.generative.families import FAMILIES, load_generator
from rarescan.generative.finetune import start_from
from rarescan.generative.model import WEIGHTS, TrainedGenerator, save_model

Trained = Callable[[str, str], Path]


def loaded(folder: Path) -> TrainedGenerator:
    return cast(TrainedGenerator, load_generator(folder))


def fresh(like: Prior, **changes: object) -> Prior:
    """Return an untrained prior with a floor of another cohort: twice as wide."""
    floor = type(like.floor)(
        like.floor.code_shape, like.floor.n_diagnoses, dict(like.floor.named_buffers())
    )
    floor.spread *= 2
    spec = replace(like.spec, seed=99, **changes)  # type: ignore[arg-type]
    return FAMILIES[spec.family](spec, floor, like.encoder)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_the_networks_begin_with_the_sources_weights_and_the_floor_stays(
    trained: Trained, family: str
) -> None:
    source = loaded(trained(family, "haar"))
    prior = fresh(source.prior)
    before = prior.floor.spread.clone()
    told = start_from(prior, trained(family, "haar"))
    own, other = dict(prior.named_parameters()), dict(source.prior.named_parameters())
    assert own.keys() == other.keys()
    for name, values in other.items():
        torch.testing.assert_close(own[name].data, values.data, atol=0, rtol=0)
    torch.testing.assert_close(prior.floor.spread, before, atol=0, rtol=0)
    assert told == sha256_file(trained(family, "haar") / WEIGHTS)


def test_a_kept_flow_gives_the_sources_correction_around_the_new_mean(
    trained: Trained, tmp_path: Path
) -> None:
    source = loaded(trained("diffusion", "haar"))
    source.prior.network_kept = True
    torch.nn.init.constant_(list(source.prior.parameters())[-1], 0.5)
    save_model(tmp_path, source.grid, source.codec, source.prior, {})
    prior = fresh(source.prior)
    start_from(prior, tmp_path)
    x = torch.randn(2, *prior.floor.code_shape, generator=torch.Generator().manual_seed(0))
    encoded, times = torch.zeros(2, prior.encoder.n_features), torch.tensor([0.2, 0.7])
    corrections = [p._correction(x, times, encoded) for p in (source.prior, prior)]  # type: ignore[operator]
    assert corrections[0].abs().max() > 0.1
    torch.testing.assert_close(corrections[0], corrections[1], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("family", "codec", "changes", "words"),
    [
        ("vae", "haar", {"family": "gan"}, "it is a vae, not a gan"),
        ("vae", "pca", {}, "mean something else"),
        ("vae", "haar", {"latent": 6}, "other shapes"),
        ("gaussian", "haar", {}, "no network"),
    ],
)
def test_a_generator_that_does_not_fit_is_refused_with_the_reason(
    trained: Trained, family: str, codec: str, changes: dict[str, object], words: str
) -> None:
    folder = trained(family, codec)
    prior = fresh(loaded(folder).prior, **changes)
    before = [p.clone() for p in prior.parameters()]
    with pytest.raises(InputError, match=words):
        start_from(prior, folder)
    for own, other in zip(prior.parameters(), before, strict=True):
        torch.testing.assert_close(own.data, other, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sites": ("S1", "S3")}, "sites differ"),
        ({"diagnoses": ("AD", "control")}, "diagnoses differ"),
        ({"age_years": None}, "conditioned on age"),
    ],
)
def test_other_conditions_are_refused(
    trained: Trained, changes: dict[str, object], words: str
) -> None:
    folder = trained("vae", "haar")
    prior = fresh(loaded(folder).prior)
    prior.encoder = replace(prior.encoder, **changes)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=words):
        start_from(prior, folder)


def test_a_source_whose_network_lost_to_the_gaussian_is_refused(
    trained: Trained, tmp_path: Path
) -> None:
    source = loaded(trained("vae", "haar"))
    source.prior.network_kept = False
    save_model(tmp_path, source.grid, source.codec, source.prior, {})
    with pytest.raises(InputError, match="left out"):
        start_from(fresh(source.prior), tmp_path)


def test_a_folder_without_a_generator_is_refused(trained: Trained, tmp_path: Path) -> None:
    prior = fresh(loaded(trained("vae", "haar")).prior)
    with pytest.raises(InputError, match="holds no generator"):
        start_from(prior, tmp_path)
