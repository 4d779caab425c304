"""Whether an imported network is the function that it was: its output against a stored one.

`require_parity` is the way in. Names and shapes cannot tell: the wrong kind of attention fits them
and changes the output by up to 44 %.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rarescan.errors import InputError
from rarescan.generative.tensors import read_safetensors, under
from rarescan.threads import one_thread

PARITY_LIMIT = 1e-4
"""Relative L2 error; float32 on another machine stays below 1e-5, wrong attention above 2e-3."""


def require_parity(name: str, network: nn.Module, pair: Path) -> dict[str, float]:
    """Return each output's relative L2 error against the original's; raise above the limit.

    Parameters
    ----------
    name : str
        The network's class.
    network : nn.Module
        In evaluation mode.
    pair : Path
        As `import_weights` takes it.
    """
    stored = read_safetensors(pair)
    inputs = under(stored, "input.")
    wanted = {k: v for k, v in under(stored, "output.").items() if v.any()}
    try:
        with one_thread(), torch.no_grad():
            given = _OUTPUTS[name](network, inputs)
        errors = {key: _relative_error(given[key], value) for key, value in wanted.items()}
    except (KeyError, TypeError, RuntimeError, ValueError):
        errors = {}
    if not errors:
        raise InputError(
            f"The pair {pair.name} does not belong to a {name}, or proves nothing.",
            remedy="It needs input.<argument> and output.<name> of the original network, of the "
            "shapes that it takes and gives, not all zero.",
        )
    worst = max(errors, key=lambda key: errors[key])
    if not errors[worst] <= PARITY_LIMIT:
        raise InputError(
            f"The imported network is another function: its {worst} differs from the original's "
            f"by {errors[worst]:.2g} (limit {PARITY_LIMIT:g}).",
            remedy="Check the network's arguments; make the pair on the CPU, in float32 and in "
            "evaluation mode, with exactly these weights.",
        )
    return errors


def _autoencoder_outputs(network: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    mean, sigma = network.encode(inputs["x"])
    return {"mean": mean, "sigma": sigma, "reconstruction": network.decode(mean)}


def _unet_outputs(network: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"output": network(**inputs)}


def _vqvae_outputs(network: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"reconstruction": network(inputs["x"])[0]}


_OUTPUTS: Mapping[str, Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "AutoencoderKL": _autoencoder_outputs,
    "AutoencoderKlMaisi": _autoencoder_outputs,
    "DiffusionModelUNet": _unet_outputs,
    "DiffusionModelUNetMaisi": _unet_outputs,
    "VQVAE": _vqvae_outputs,
}


def _relative_error(given: Tensor, wanted: Tensor) -> float:
    if given.shape != wanted.shape:
        raise ValueError("another shape")
    difference = (given.double() - wanted.double()).norm() / wanted.double().norm()
    return float(difference)
