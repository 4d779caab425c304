"""Tensors of files from elsewhere; nothing in such a file is executed.

`read_tensors` is the way in. Safetensors can hold nothing else; of torch's own format only what
`weights_only` lets through is read, and what would need more is refused.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rarescan.errors import InputError


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Return a checkpoint's tensors by name.

    Parameters
    ----------
    path : Path
        `.safetensors`, or torch's format: a state dict, or one set of weights among plain values.
    prefix : str
        Return only the names that start so, without that start (safetensors only).

    Raises
    ------
    InputError
        The file is damaged, holds code, more than one set of weights, or values that are no
        numbers.
    """
    if path.suffix == ".safetensors":
        tensors = under(read_safetensors(path), prefix)
    else:
        tensors = _state_dict(_checkpoint(path))
    if all(name.startswith("module.") for name in tensors):
        tensors = under(tensors, "module.")
    if not all(torch.isfinite(v).all() for v in tensors.values() if v.is_floating_point()):
        raise InputError(
            f"{path.name} has weights that are no numbers.",
            remedy="Take an earlier checkpoint of that training.",
        )
    return tensors


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start so, without that start."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError):
        raise InputError(
            f"{path.name} is damaged or no safetensors file.", remedy="Get the file again."
        ) from None


def _checkpoint(path: Path) -> Any:
    try:
        # Torch warns of old formats and TorchScript before it refuses them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise InputError(
            f"{path.name} holds more than tensors and plain values; nothing of it was executed.",
            remedy="Ask its author for safetensors or a plain state_dict. Never load such a file "
            "by other means unless you would run a program from the same source.",
        ) from None
    except Exception:  # a foreign file may fail with any exception
        raise InputError(
            f"{path.name} is damaged or no checkpoint of torch.", remedy="Get the file again."
        ) from None


def _state_dict(loaded: Any) -> dict[str, Tensor]:
    """Return the one set of tensors of a checkpoint, which may lie one level deeper."""
    if not isinstance(loaded, Mapping):
        loaded = {}
    sets = {str(k): v for k, v in {"": loaded, **loaded}.items() if _is_state_dict(v)}
    if len(sets) == 1:
        return dict(next(iter(sets.values())))
    named = f" ({', '.join(sets)})" if sets else ""
    raise InputError(
        f"The checkpoint holds {len(sets)} sets of weights{named} instead of one.",
        remedy="Save the one that is meant alone, best as safetensors.",
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )
