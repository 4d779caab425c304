"""Half precision in training: where it pays, and only inside the networks.

`choose` says which precision a run gets, `HalfPrecision` makes a model's networks compute in
bfloat16 for a while. The Gaussian floor, the losses and the weights stay float32: a whitened mean
that is rounded to three digits would be learned and then missing from the samples. On a CPU the
choice depends on the machine's type and, where it has the instructions, on the time that a step
takes; it is part of the checkpoint, so a run keeps it.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import nn

from rarescan.errors import MissingExtraError
from rarescan.generative.spec import Precision

Chosen = Literal["fp32", "bf16"]
_LARGEST_SHARE = 0.8
"""Of a step's time in float32. A smaller gain would be found one day and not the next."""
_TIMED_STEPS = 2


def choose(
    asked: Precision, device: torch.device, model: nn.Module, step: Callable[[], None]
) -> Chosen:
    """Return the precision of a run.

    Parameters
    ----------
    asked : str
        `auto`: bf16 on a GPU that has it; on a CPU only for convolutions, where it has the
        instructions, and two timed steps take at most 0.8 of the time.
    device : torch.device
        Where the model runs.
    model : nn.Module
        On that device. Neither its weights nor its gradients are changed.
    step : callable
        Computes a step's losses and gradients.

    Raises
    ------
    MissingExtraError
        bf16 was asked for on a GPU without it.
    """
    if asked == "fp32":
        return "fp32"
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
        if asked == "bf16" and not able:
            raise MissingExtraError(
                "precision is bf16, and this GPU has no bfloat16.",
                remedy="Set precision to auto or fp32, or use a GPU of 2020 or later.",
            )
        return "bf16" if able else "fp32"
    if asked == "bf16":
        return "bf16"
    return "bf16" if _may_pay_on_cpu(model) and _pays(model, device, step) else "fp32"


def _may_pay_on_cpu(model: nn.Module) -> bool:
    has_convolutions = any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
    return has_convolutions and cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Return whether this machine's CPU multiplies in bfloat16."""
    found: bool = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return found


def _pays(model: nn.Module, device: torch.device, step: Callable[[], None]) -> bool:
    plain = _seconds(step)
    with HalfPrecision(model, device):
        half = _seconds(step)
    model.zero_grad(set_to_none=True)
    return half <= _LARGEST_SHARE * plain


def _seconds(step: Callable[[], None]) -> float:
    step()
    taken = []
    for _ in range(_TIMED_STEPS):
        start = time.process_time()
        step()
        taken.append(time.process_time() - start)
    return min(taken)


class HalfPrecision:
    """While it is entered, the networks of a model compute in bfloat16.

    Autocast begins where a network is called and ends where it returns, so that what a prior
    computes around its networks keeps its precision.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = model, device
        self._handles: list[Any] = []
        self._depth = 0
        self._region: torch.autocast | None = None

    def __enter__(self) -> Self:
        for module in self._model.modules():
            if module is not self._model:
                self._handles += [
                    module.register_forward_pre_hook(self._begin),
                    module.register_forward_hook(self._end, always_call=True),
                ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, *_: Any) -> None:
        if self._depth == 0:
            self._region = torch.autocast(self._device.type, dtype=torch.bfloat16)
            self._region.__enter__()  # type: ignore[no-untyped-call]
        self._depth += 1

    def _end(self, _module: nn.Module, _values: Any, output: Any) -> Any:
        self._depth -= 1
        if self._depth or self._region is None:
            return None
        self._region.__exit__(None, None, None)
        # Losses are computed from it, and would have three digits.
        return output.float() if isinstance(output, torch.Tensor) else None
