"""What each family promises about the distribution of its codes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rarescan.cohort.contracts import Condition
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Batch, Prior
from rarescan.generative.families import FAMILIES
from rarescan.generative.floor import Floor
from rarescan.generative.spec import GeneratorSpec
from rarescan.generative.train import Plan, TrainingData, fit

N, SIZE = 60, 14
SPEC = GeneratorSpec(components=10, width=32, latent=4, steps=120, batch_size=32)
CONDITIONS = [Condition(diagnosis="patient" if i < 20 else "control") for i in range(N)]


def people() -> tuple[Tensor, Tensor, Floor, ConditionEncoder]:
    encoder = ConditionEncoder.fit(CONDITIONS, ())
    encoded = encoder.encode(CONDITIONS)
    mixing = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    codes = torch.randn(N, SIZE, generator=torch.Generator().manual_seed(2)) @ mixing
    codes[:20] += 4
    return codes, encoded, Floor.fit(codes, encoded, 2), encoder


def prior(family: str, **changes: object) -> tuple[Prior, Tensor, Tensor]:
    codes, encoded, floor, encoder = people()
    spec = replace(SPEC, family=family, **changes)  # type: ignore[arg-type]
    return FAMILIES[spec.family](spec, floor, encoder), floor.whiten(codes), encoded


def trained(family: str, folder: Path) -> tuple[Prior, Tensor, Tensor]:
    model, codes, encoded = prior(family)
    data = TrainingData(values=codes, encoded=encoded, classes=encoded[:, :2].argmax(1))
    plan = Plan(
        steps=SPEC.steps, batch_size=SPEC.batch_size, learning_rate=SPEC.learning_rate,
        ema_decay=0.99, checkpoint_every=1000, seed=0,
    )  # fmt: skip
    fit(model, data, plan, folder=folder, device=torch.device("cpu"), what="train")
    model.close(codes, encoded)
    return model, codes, encoded


def draw(model: Prior, encoded: Tensor, n: int) -> Tensor:
    random = torch.Generator().manual_seed(5)
    rows = encoded.repeat(n // len(encoded) + 1, 1)[:n]
    with torch.no_grad():
        return model.sample(rows, torch.randn(n, model.noise_size, generator=random))


def test_gaussian_samples_have_the_mean_and_covariance_of_the_floor() -> None:
    model, _, encoded = prior("gaussian")
    codes = model.floor.unwhiten(draw(model, encoded[:1], 40_000))
    root = model.floor.unwhiten(torch.eye(SIZE))
    scale = (root.T @ root).diagonal().mean()
    torch.testing.assert_close(torch.cov(codes.T), root.T @ root, rtol=0, atol=0.03 * scale.item())
    torch.testing.assert_close(
        codes.mean(0), model.floor.code_mean(encoded[:1])[0], rtol=0, atol=0.1
    )


@pytest.mark.parametrize("family", ["gan", "vae"])
def test_an_untrained_network_is_the_gaussian(family: str) -> None:
    model, _, encoded = prior(family)
    codes = draw(model, encoded[:1], 20_000) - model.floor.mean(encoded[:1])
    torch.testing.assert_close(codes.var(0), torch.ones(SIZE), rtol=0, atol=0.05)
    assert codes.mean(0).abs().max() < 0.03


def test_the_spread_of_a_vae_is_that_of_the_training_persons(tmp_path: Path) -> None:
    model, codes, encoded = trained("vae", tmp_path)
    deviation = codes - model.floor.mean(encoded)
    wanted = deviation[:, :10].square().mean(0)
    drawn = draw(model, encoded, 12_000)
    got = (drawn - model.floor.mean(encoded).repeat(200, 1))[:, :10].square().mean(0)
    assert (got / wanted).log().mean().exp().item() == pytest.approx(1, abs=0.06)
    assert (got / wanted).min() > 0.8


def test_a_trained_gan_keeps_the_spread(tmp_path: Path) -> None:
    model, codes, encoded = trained("gan", tmp_path)
    deviation = draw(model, encoded, 6000) - model.floor.mean(encoded).repeat(100, 1)
    ratio = deviation.var(0).mean() / (codes - model.floor.mean(encoded)).var(0).mean()
    assert 0.75 < ratio.item() < 1.35


def test_the_energy_distance_of_a_gan_grows_when_its_samples_are_moved() -> None:
    model, codes, encoded = prior("gan")
    with torch.no_grad():
        near = model.held_out_loss(codes, encoded)
        far = model.held_out_loss(codes + 2, encoded)
    assert near == pytest.approx(0, abs=0.15)
    assert far is not None
    assert far > 1


def nearest(some: Tensor, others: Tensor) -> Tensor:
    return (some[:, None] - others[None]).norm(dim=2).min(1).values


def test_transfer_gives_a_donor_the_asked_diagnosis_and_nothing_else() -> None:
    model, codes, encoded = prior("transfer")
    model.close(codes, encoded)
    controls = codes[20:]
    asked = torch.cat([encoded[:1], encoded[-1:]]).repeat(50, 1)
    drawn = draw(model, asked, 100)
    as_control = drawn[1::2]
    assert nearest(as_control, controls).max() < 1e-3
    effect = model.floor.mean(encoded[:1]) - model.floor.mean(encoded[-1:])
    moved = drawn[::2]
    along = torch.nn.functional.normalize(effect, dim=1)
    across = moved - (moved @ along.T) * along
    donors = controls - (controls @ along.T) * along
    assert nearest(across, donors).max() < 1e-3
    gap = (moved.mean(0) - as_control.mean(0)) @ along[0]
    assert gap.item() == pytest.approx(effect.norm().item(), rel=0.5)


def test_severity_varies_where_the_patients_do_beyond_the_controls() -> None:
    model, codes, encoded = prior("transfer")
    effect = model.floor.mean(encoded[:1]) - model.floor.mean(encoded[-1:])
    even = (codes - model.floor.mean(encoded)) * 0.5
    stretched = even.clone()
    stretched[:20] += torch.linspace(-1, 1, 20)[:, None] * effect
    sd = []
    for deviation in (even, stretched):
        model.close(deviation + model.floor.mean(encoded), encoded)
        sd.append(model.severity_sd[1].item())
    assert sd[0] < 0.3
    assert sd[1] == pytest.approx(torch.linspace(-1, 1, 20).std().item(), abs=0.2)


@pytest.mark.parametrize("shape", [(14,), (8, 4, 4, 4)])
@pytest.mark.parametrize("family", ["gan", "vae", "diffusion"])
def test_a_loss_draws_from_its_batch_only_and_is_the_same_every_time(
    family: str, shape: tuple[int, ...]
) -> None:
    encoder = ConditionEncoder.fit(CONDITIONS, ())
    encoded = encoder.encode(CONDITIONS)
    codes = torch.randn(N, *shape, generator=torch.Generator().manual_seed(3))
    spec = replace(SPEC, family=family, width=8, depth=1)  # type: ignore[arg-type]
    model = FAMILIES[spec.family](spec, Floor.fit(codes, encoded, 2), encoder).train()
    before = torch.get_rng_state()

    def losses() -> list[Tensor]:
        noise = [torch.Generator().manual_seed(step) for step in range(len(model.players()))]
        batches = [
            Batch(step=8, n_steps=9, values=codes[:4], encoded=encoded[:4], noise=random)
            for random in noise
        ]
        return [player.loss(b) for player, b in zip(model.players(), batches, strict=True)]

    assert losses() == losses()
    assert torch.equal(torch.get_rng_state(), before)
