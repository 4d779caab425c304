"""Which network a checkpoint belongs to, read from JSON or YAML without running any of it.

`read_definition` is the way in. A definition names one class of an allow-list and its constructor
arguments, in the form that MONAI bundles use (`_target_` and the arguments beside it). MONAI's own
reader evaluates every `$...` and calls every `_target_`; here `@name` may point to a plain value
of the same file, and anything else that is not plain is refused.
"""

import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from rarescan.errors import InputError, SettingError, nearest

_NETS = "monai.networks.nets"
_MAISI = "monai.apps.generation.maisi.networks"
MODULES = {
    "AutoencoderKL": _NETS,
    "DiffusionModelUNet": _NETS,
    "VQVAE": _NETS,
    "AutoencoderKlMaisi": f"{_MAISI}.autoencoderkl_maisi",
    "DiffusionModelUNetMaisi": f"{_MAISI}.diffusion_model_unet_maisi",
}
"""Class -> module: the only things that a definition may name."""
_OLD = "generative.networks.nets"
_RENAMED = {"num_channels": "channels", "use_checkpointing": "use_checkpoint"}
_COMMENT = "_desc_"
_DEEPEST = 20
_LARGEST_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One network: what it is and what it is built with."""

    name: str
    """A key of `MODULES`."""
    arguments: dict[str, Any]
    """Plain values, under the names of MONAI core."""

    def build(self, device: str = "cpu") -> nn.Module:
        """Return the network with fresh weights; on the device `meta` it takes no memory.

        Raises
        ------
        InputError
            MONAI has no such argument, or does not accept its value.
        """
        kind = getattr(importlib.import_module(MODULES[self.name]), self.name)
        known = list(inspect.signature(kind).parameters)
        for word in self.arguments:
            if word not in known:
                raise InputError(
                    f"{self.name} has no argument '{word}'.", remedy=nearest(word, known)
                )
        try:
            with torch.device(device):
                network: nn.Module = kind(**{k: _tuples(v) for k, v in self.arguments.items()})
        except Exception as error:  # networks check their arguments in many ways
            raise InputError(
                f"MONAI cannot build {self.name} with these arguments ({error}).",
                remedy="Correct the network's definition.",
            ) from None
        return network


def read_definition(path: Path, part: str = "") -> Definition:
    """Return the definition of a network that stands in a JSON or YAML file.

    Parameters
    ----------
    path : Path
        The definition itself (`{"_target_": "AutoencoderKL", "spatial_dims": 3, ...}`), or a
        bundle's configuration, of which the keys at the top are looked through.
    part : str
        Which key holds it, for example `autoencoder_def`; not needed where only one does.

    Returns
    -------
    Definition
        Old names of arguments (`num_channels`, `use_checkpointing`) are replaced.

    Raises
    ------
    InputError
        The file is no JSON or YAML, or the definition holds an expression, a reference to
        something that is not plain, or a class that is not in the list.
    SettingError
        `part` is missing where it is needed, or names nothing.
    """
    content = _read(path)
    found = {"": content} if "_target_" in content else _networks(content)
    if part:
        if part not in found:
            raise SettingError(
                f"'{part}' is no network of {path.name}.", remedy=nearest(part, list(found))
            )
    elif len(found) > 1:
        raise SettingError(
            f"{path.name} defines several networks.",
            remedy=f"Choose one with --part: {', '.join(found)}.",
        )
    elif not found:
        raise InputError(
            f"{path.name} defines no network that can be taken over.",
            remedy=f'Write {{"_target_": CLASS, ...}} with one of: {", ".join(MODULES)}.',
        )
    chosen = found[part or next(iter(found))]
    name = _class(chosen["_target_"])
    values = {
        str(k): _plain(v, content, str(k), 0)
        for k, v in chosen.items()
        if k not in ("_target_", _COMMENT)
    }
    return Definition(name=name, arguments=_core_names(name, values))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise ValueError("too large")
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        content = None
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path.name} is no JSON or YAML file with a network's definition.",
            remedy='Write {"_target_": "AutoencoderKL", "spatial_dims": 3, ...} into it.',
        )
    return content


def _networks(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return key -> definition of the networks at the top of a configuration."""
    return {
        str(key): value
        for key, value in content.items()
        if isinstance(value, Mapping)
        and str(value.get("_target_", "")).rpartition(".")[2] in MODULES
    }


def _class(target: Any) -> str:
    place, _, name = str(target).rpartition(".")
    homes = (_OLD, _NETS, MODULES.get(name, ""))
    if name in MODULES and (not place or any(f"{place}.".startswith(f"{h}.") for h in homes)):
        return name
    raise InputError(
        f"'{target}' is no network that can be taken over; it was not imported.",
        remedy=f"Only these can: {', '.join(MODULES)}.",
    )


def _plain(value: Any, content: Mapping[str, Any], where: str, depth: int) -> Any:
    """Return a value with its references followed; refuse what would run."""
    if depth > _DEEPEST:
        raise _not_plain(where, "refers to itself or is nested too deeply")
    if isinstance(value, str) and value[:1] in ("$", "%"):
        raise _not_plain(where, f"is an expression ({value[:40]}), and those are never executed")
    if isinstance(value, str) and value.startswith("@"):
        return _plain(_referred(value, content, where), content, where, depth + 1)
    if isinstance(value, Mapping):
        if any(str(key).startswith("_") for key in value):
            raise _not_plain(where, "asks for something to be called")
        return {str(k): _plain(v, content, f"{where}.{k}", depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, content, where, depth + 1) for v in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise _not_plain(where, "is no number, text or list")


def _referred(reference: str, content: Mapping[str, Any], where: str) -> Any:
    found: Any = content
    for step in reference[1:].replace("#", "::").split("::"):
        if not isinstance(found, Mapping) or step not in found:
            raise _not_plain(where, f"refers to {reference}, which is not in the file")
        found = found[step]
    return found


def _not_plain(where: str, why: str) -> InputError:
    return InputError(
        f"The argument '{where}' of the network {why}.",
        remedy="Write the definition with plain values into a file of its own and name it with "
        "--network.",
    )


def _tuples(value: Any) -> Any:
    """Return a value with its lists as tuples, which all networks take."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _core_names(name: str, values: dict[str, Any]) -> dict[str, Any]:
    kind = getattr(importlib.import_module(MODULES[name]), name)
    known = inspect.signature(kind).parameters
    return {
        _RENAMED[key] if key not in known and _RENAMED.get(key) in known else key: value
        for key, value in values.items()
    }
