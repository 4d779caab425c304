"""Known answers: generative flows of Gaussian and two-point data have closed forms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rarescan.cohort.contracts import Condition
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.diffusion import (
    Diffusion,
    gaussian_velocity,
    midpoint,
    mixture_velocity,
)
from rarescan.generative.floor import Floor
from rarescan.generative.gaussian import Gaussian
from rarescan.generative.spec import GeneratorSpec


def exact_velocity(s: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Data N(0, s^2): E[x_0 - e | x_t = x]."""
    return lambda x, t: ((1 - t) * s**2 - t) / ((1 - t) ** 2 * s**2 + t**2) * x


def kept_spread(s: float, steps: int) -> float:
    """The solver is linear in x, so that noise 1 gives the ratio without sampling."""
    one = torch.ones(1, dtype=torch.float64)
    return midpoint(exact_velocity(s), one, steps).item() / s


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (5, [0.882004, 0.996030, 0.998213, 0.998902, 0.998213]),
        (10, [0.987651, 0.999392, 0.999769, 0.999861, 0.999769]),
        (15, [0.996587, 0.999816, 0.999931, 0.999959, 0.999931]),
    ],
)
def test_midpoint_keeps_the_known_share_of_the_spread(steps: int, expected: list[float]) -> None:
    got = [kept_spread(s, steps) for s in (0.1, 0.3, 0.5, 1, 2)]
    assert got == pytest.approx(expected, abs=1e-6)


def test_the_midpoint_error_falls_eightfold_when_steps_double() -> None:
    errors = [1 - kept_spread(0.5, steps) for steps in (20, 40)]
    assert errors[0] / errors[1] == pytest.approx(8.0, abs=0.1)


def test_euler_as_in_the_literature_loses_what_it_is_known_to_lose() -> None:
    x, t = 1.0, 1.0
    for _ in range(10):
        v = exact_velocity(0.5)(torch.tensor([x]).double(), torch.tensor([t]).double()).item()
        x, t = x + v / 10, t - 1 / 10
    assert x / 0.5 == pytest.approx(0.861565, abs=1e-6)


def test_two_point_data_end_at_the_two_points() -> None:
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        data = torch.tanh((1 - t) * x / t**2)
        return data - (x - (1 - t) * data) / t

    noise = torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = midpoint(velocity, noise, 10)
    assert ((ends.abs() - 1).abs() < 0.1).all()
    assert (ends > 0).double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_gaussian_velocity_is_the_closed_form_and_finite_at_both_ends() -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    t = torch.full((7,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(
        gaussian_velocity(x, t, torch.zeros_like(x)), exact_velocity(1.0)(x, t[:, None])
    )
    mean = torch.full_like(x, 2.0)
    torch.testing.assert_close(gaussian_velocity(x, t * 0, mean), x)
    torch.testing.assert_close(gaussian_velocity(x, t * 0 + 1, mean), mean - x)


def test_the_mixture_velocity_is_the_integral_over_data() -> None:
    means, t, x = (-1.5, 2.0), 0.6, 0.4
    data = np.linspace(-12, 12, 200_001)
    prior = sum(np.exp(-((data - m) ** 2) / 2) for m in means)
    weight = prior * np.exp(-(((x - (1 - t) * data) / t) ** 2) / 2)
    expected = (weight * (data - (x - (1 - t) * data) / t)).sum() / weight.sum()
    got = mixture_velocity(
        torch.tensor([[x]]).double(),
        torch.tensor([t]).double(),
        torch.tensor(means).double().view(2, 1, 1),
    )
    assert got.item() == pytest.approx(expected, rel=1e-6)


def priors(**changes: object) -> tuple[Diffusion, Gaussian, Tensor]:
    random = torch.Generator().manual_seed(1)
    conditions = [Condition(diagnosis="ab"[i % 2]) for i in range(40)]
    encoder = ConditionEncoder.fit(conditions, ())
    encoded = encoder.encode(conditions)
    codes = torch.randn(40, 10, generator=random) + 3 * encoded[:, :1]
    floor = Floor.fit(codes, encoded, 2)
    spec = GeneratorSpec(components=6, width=16, **changes)  # type: ignore[arg-type]
    return Diffusion(spec, floor, encoder), Gaussian(spec, floor, encoder), encoded


def noise(n: int) -> Tensor:
    return torch.randn(n, 10, generator=torch.Generator().manual_seed(2))


def test_an_untrained_network_samples_the_gaussian_floor() -> None:
    flow, floor, encoded = priors(guidance=1.0)
    with torch.no_grad():
        got, wanted = flow.sample(encoded, noise(40)), floor.sample(encoded, noise(40))
    # The solver itself keeps 0.99986 of the spread at 10 steps.
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def perturbed(flow: Diffusion) -> Diffusion:
    with torch.no_grad():
        for parameter in flow.network.parameters():
            parameter += 0.5 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(3)
            )
    return flow


def test_guidance_1_is_the_conditional_bit_for_bit() -> None:
    flow, _, encoded = priors(guidance=1.0)
    perturbed(flow)
    x, t = noise(40), torch.full((40,), 0.4)
    with torch.no_grad():
        guided = flow.guided_velocity(x, t, encoded, 1.0)
        assert torch.equal(guided, flow.velocity(x, t, encoded))
        assert not torch.equal(guided, flow.guided_velocity(x, t, encoded, 1.5))


def test_guidance_moves_the_classes_apart_and_keeps_the_spread() -> None:
    ends = {}
    for guidance in (1.0, 2.0):
        flow, _, encoded = priors(guidance=guidance)
        with torch.no_grad():
            ends[guidance] = flow.sample(encoded.repeat(50, 1), noise(2000))
    apart = {g: (x[::2].mean(0) - x[1::2].mean(0)).norm().item() for g, x in ends.items()}
    assert apart[2.0] > 1.05 * apart[1.0]
    assert ends[2.0][::2].var(0).mean().item() == pytest.approx(1, abs=0.15)


def test_a_network_that_is_worse_than_the_floor_is_left_out() -> None:
    flow, floor, encoded = priors(guidance=1.0)
    perturbed(flow)
    random = torch.Generator().manual_seed(9)
    people = flow.floor.mean(encoded) + torch.randn(40, 10, generator=random)
    verdict = flow.judge(people, encoded)
    assert verdict["network_kept"] is False
    assert verdict["flow_loss"] > verdict["floor_flow_loss"]
    with torch.no_grad():
        got = flow.sample(encoded, noise(40))
        torch.testing.assert_close(got, floor.sample(encoded, noise(40)), rtol=1e-3, atol=1e-3)


def test_without_validation_persons_the_floor_is_shipped() -> None:
    flow, _, encoded = priors()
    verdict = flow.judge(noise(0), encoded[:0])
    assert verdict["network_kept"] is False
    assert math.isnan(verdict.get("flow_loss", math.nan))


def test_a_network_that_knows_more_than_the_floor_is_kept() -> None:
    flow, _, encoded = priors(guidance=1.0)
    # Persons with half the floor's spread: the best velocity is no longer the floor's.
    codes = flow.floor.mean(encoded) + 0.5 * noise(40)
    optimiser = torch.optim.Adam(flow.network.parameters(), 3e-3)
    for step in range(150):
        random = torch.Generator().manual_seed(step)
        times = torch.rand(40, generator=random)
        error = flow._error(codes, torch.randn(40, 10, generator=random), times, encoded).mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    assert flow.judge(codes, encoded)["network_kept"] is True
