from pathlib import Path
from typing import Any

import pytest
import torch
import training_line
from torch import Tensor, nn

from rarescan.generative import precision
from rarescan.generative.precision import HalfPrecision, choose
from rarescan.generative.spec import Precision

CPU = torch.device("cpu")


class Prior(nn.Module):
    """A network with a matrix product beside it, as priors have with their floor."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.SiLU(), nn.Conv3d(2, 1, 1))
        self.register_buffer("slopes", torch.randn(5, 5))
        self.kinds: list[torch.dtype] = []
        self.network[1].register_forward_hook(lambda _m, _i, out: self.kinds.append(out.dtype))

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images)
        beside = torch.ones(2, 5) @ self.slopes
        self.kinds += [found.dtype, beside.dtype]
        return found


def test_only_networks_are_halved_and_only_while_asked() -> None:
    model, images = Prior(), torch.randn(1, 1, 4, 4, 4)
    with HalfPrecision(model, CPU):
        model(images).square().mean().backward()
    model(images)
    half, full = torch.bfloat16, torch.float32
    # Inside the network, what comes out of it, and beside it.
    assert model.kinds == [half, full, full, full, full, full]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_network_that_fails_leaves_no_half_precision_behind() -> None:
    model = Prior()
    with HalfPrecision(model, CPU):
        with pytest.raises(RuntimeError):
            model(torch.randn(1, 3, 4, 4, 4))
        assert not torch.is_autocast_enabled("cpu")
        model(torch.randn(1, 1, 4, 4, 4))
    assert not torch.is_autocast_enabled("cpu")
    assert model.kinds[0] == torch.bfloat16


@pytest.mark.parametrize(
    ("asked", "able", "share", "expected"),
    [
        ("fp32", True, 0.1, "fp32"),
        ("bf16", False, 9.0, "bf16"),
        ("auto", False, 0.1, "fp32"),
        ("auto", True, 0.5, "bf16"),
        ("auto", True, 0.9, "fp32"),
    ],
)
def test_on_a_cpu_auto_means_instructions_and_a_measured_gain(
    monkeypatch: pytest.MonkeyPatch, asked: Precision, able: bool, share: float, expected: str
) -> None:
    model = Prior()
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: able)
    now = [0.0]

    def step() -> None:
        loss = model(torch.randn(1, 1, 4, 4, 4)).float().mean()
        loss.backward()
        now[0] += share if model.kinds[-3] == torch.bfloat16 else 1.0

    monkeypatch.setattr(precision.time, "process_time", lambda: now[0])
    assert choose(asked, CPU, model, step) == expected
    assert all(p.grad is None for p in model.parameters())


def test_on_a_cpu_a_network_without_convolutions_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    assert choose("auto", CPU, nn.Sequential(nn.Linear(2, 2)), lambda: None) == "fp32"


class HalfLine(training_line.Line):
    """A line whose product is made by a module."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(**changes)
        self.product = nn.Linear(3, 1, bias=False)

    def players(self) -> list[Any]:
        first = super().players()[0]
        return [type(first)(name="line", parameters=list(self.parameters()), loss=self.loss)]

    def loss(self, batch: Any) -> Tensor:
        return super().loss(batch) + self.product(batch.values).float().square().mean()


def test_a_run_keeps_its_precision_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halves(yes: bool) -> None:
        monkeypatch.setattr(
            "rarescan.generative.train.choose", lambda *_: "bf16" if yes else "fp32"
        )

    def train(name: str, **changes: Any) -> tuple[Tensor, Any]:
        torch.manual_seed(0)
        model, record = training_line.train_line(tmp_path / name, HalfLine(**changes))
        return model.product.weight.detach(), record  # type: ignore[attr-defined]

    halves(True)
    whole, record = train("whole")
    with pytest.raises(SystemExit):
        train("parts", stop_at=25)
    halves(False)
    resumed, resumed_record = train("parts")
    single, _ = train("single")
    assert record.precision == resumed_record.precision == "bf16"
    assert torch.equal(resumed, whole)
    assert not torch.equal(single, whole)
