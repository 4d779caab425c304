"""Weights from elsewhere: monai-generative 0.2.3, MONAI core and bundles, and our own.

`import_weights` makes a step folder of them; `load_network` reads that. A checkpoint of
monai-generative has other names, and attention that MONAI core builds differently: its attention
has a projection that is never applied, which core's own converter copies into one that is. What
is not caught by names and shapes is caught by parity: the imported network must give the output
that the old one gave. No pickle is executed and no old package imported.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from rarescan.errors import InputError, SettingError
from rarescan.files import (
    Recipe,
    read_json,
    read_recipe,
    require_recipe,
    run_step,
    sha256_file,
    write_atomic,
    write_json,
)
from rarescan.generative.autoencoder import stored_arguments
from rarescan.generative.codecs import restore_codec
from rarescan.generative.definition import MODULES, Definition, read_definition
from rarescan.generative.model import SPEC, WEIGHTS, read_model
from rarescan.generative.networks import unet_arguments
from rarescan.generative.parity import require_parity
from rarescan.generative.tensors import read_tensors

STEP = "import-weights"
_SCHEMA = 1
_CONFIGS = [f"{name}.{suffix}" for name in ("inference", "train") for suffix in ("json", "yaml")]
_MODELS = ["model.safetensors", "model.pt", "model.pth"]
_UNUSED_PROJECTION = (".proj_attn.weight", ".proj_attn.bias")
_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class ForeignNetwork:
    """What was imported, as it stands in `spec.json`."""

    name: str
    """The class, a key of `definition.MODULES`."""
    arguments: dict[str, Any]
    origin: str
    """`monai-generative` (names were changed), `monai` or `rarescan`."""
    source_sha256: str
    weights_sha256: str
    parity: dict[str, float] | None
    """Output -> relative error against the given pair; None where no pair was given."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where the tensors lie and what they belong to."""

    weights: Path
    definition: Definition
    prefix: str = ""
    """What the names of its tensors start with, in a generator of ours."""


def import_weights(
    source: Path,
    folder: Path,
    *,
    network: Path | None = None,
    part: str = "",
    pair: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Take over a trained network, once, and check that it is the same function.

    Parameters
    ----------
    source : Path
        A checkpoint (`.safetensors`, or `.pt` with nothing but tensors and plain values), a MONAI
        bundle, or a folder of ours: a generator (its `kl` codec or its U-Net) or an import.
    folder : Path
        Gets `spec.json` and `weights.safetensors` (float32).
    network : Path, optional
        JSON or YAML with the network's class and arguments (see `definition.read_definition`);
        needed beside a checkpoint, and wins over a bundle's own.
    part : str
        Which network of the definitions; for a generator of ours `codec` or `network`.
    pair : Path, optional
        Safetensors with `input.<argument>` and `output.<name>` of the original network, in
        evaluation mode. Outputs: `mean`, `sigma`, `reconstruction` (of the mean) for
        autoencoders, `reconstruction` for a VQVAE, `output` for U-Nets.
    overwrite : bool
        Replace a folder that holds another result.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    InputError
        The checkpoint is damaged, holds code, or does not fit the network; or the network does
        not give the pair's output within `parity.PARITY_LIMIT`.
    SettingError
        The definition is missing, or several networks are to choose from.
    """
    found = _locate(source, network, part)
    hashes = {"weights": sha256_file(found.weights)}
    if pair is not None:
        hashes["pair"] = sha256_file(_existing(pair))
    recipe = Recipe(
        step=STEP, schema=_SCHEMA, config={**asdict(found.definition), "part": part}, inputs=hashes
    )

    def build(work: Path) -> None:
        tensors = read_tensors(found.weights, found.prefix)
        definition, renamed = _fitted(found.definition, tensors)
        built = _loaded(definition, renamed)
        parity = None if pair is None else require_parity(definition.name, built, pair)
        data = safetensors.torch.save({k: v.contiguous() for k, v in built.state_dict().items()})
        write_atomic(work / WEIGHTS, data)
        about = ForeignNetwork(
            **asdict(definition),
            origin=_origin(found, renamed is not tensors),
            source_sha256=hashes["weights"],
            weights_sha256=sha256_file(work / WEIGHTS),
            parity=parity,
        )
        write_json(work / SPEC, asdict(about))

    return run_step(folder, recipe, build, overwrite=overwrite)


def read_import(folder: Path) -> ForeignNetwork:
    """Return what `import_weights` noted of a network."""
    require_recipe(folder, STEP)
    try:
        about = ForeignNetwork(**read_json(folder / SPEC))
    except (OSError, TypeError, ValueError):
        about = None
    if about is None or about.name not in MODULES:
        raise InputError(
            f"{folder / SPEC} is damaged.",
            remedy="Import the weights again with `rarescan import-weights --overwrite`.",
        )
    return about


def load_network(folder: Path) -> nn.Module:
    """Return the network that `import_weights` wrote, on the CPU, in evaluation mode.

    Raises
    ------
    InputError
        The folder holds no import, or its weights are not the ones that were imported.
    """
    about = read_import(folder)
    if sha256_file(folder / WEIGHTS) != about.weights_sha256:
        raise InputError(
            f"The weights in {folder} are not the ones that were imported.",
            remedy="Import them again with `rarescan import-weights --overwrite`.",
        )
    definition = Definition(name=about.name, arguments=about.arguments)
    return _loaded(definition, safetensors.torch.load_file(folder / WEIGHTS))


def _locate(source: Path, network: Path | None, part: str) -> _Source:
    """Return the tensors' file and the network's definition."""
    if _existing(source).is_file():
        if network is None:
            raise SettingError(
                "A checkpoint does not say what network it belongs to.",
                remedy="Name a JSON or YAML file with its class and arguments with --network.",
            )
        return _Source(weights=source, definition=read_definition(_existing(network), part))
    recipe = read_recipe(source)
    if recipe is not None and recipe.step == STEP:
        about = read_import(source)
        definition = Definition(name=about.name, arguments=about.arguments)
        return _Source(weights=source / WEIGHTS, definition=definition)
    if recipe is not None:
        return _of_generator(source, part)
    config = network or _first(source / "configs", _CONFIGS)
    weights = _first(source / "models", _MODELS)
    if config is None or weights is None:
        raise InputError(
            f"{source} is no MONAI bundle (it needs configs/inference.json and models/model.pt), "
            "and was not written by rarescan.",
            remedy="Name the checkpoint itself, and its definition with --network.",
        )
    return _Source(weights=weights, definition=read_definition(config, part))


def _first(folder: Path, names: list[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"There is no {path}.", remedy="Correct the path.")
    return path


def _of_generator(folder: Path, part: str) -> _Source:
    """Return the kl codec or the U-Net of a generator of ours."""
    stored = read_model(folder)
    spec = stored.spec
    parts: dict[str, _Source] = {}
    if spec.codec == "kl":
        parts["codec"] = _Source(
            weights=folder / WEIGHTS,
            prefix="codec.network.",
            definition=Definition(
                name="AutoencoderKL", arguments=stored_arguments(stored.under("codec."))
            ),
        )
    if spec.codec != "pca" and spec.family in ("diffusion", "gan"):
        code_shape = restore_codec(spec, stored.grid, stored.under("codec.")).code_shape
        arguments = unet_arguments(spec, code_shape, stored.encoder.n_features)
        parts["network"] = _Source(
            weights=folder / WEIGHTS,
            prefix="prior.network.",
            definition=Definition(name="DiffusionModelUNet", arguments=arguments),
        )
    if part in parts or (not part and len(parts) == 1):
        return parts[part or next(iter(parts))]
    raise SettingError(
        f"This generator has {len(parts)} networks that can be taken over.",
        remedy=f"Choose one with --part: {', '.join(parts)}."
        if parts
        else "Name one with the codec haar or kl.",
    )


def _origin(found: _Source, renamed: bool) -> str:
    if renamed:
        return "monai-generative"
    ours = found.prefix or read_recipe(found.weights.parent) is not None
    return "rarescan" if ours else "monai"


def _fitted(
    definition: Definition, tensors: dict[str, Tensor]
) -> tuple[Definition, dict[str, Tensor]]:
    """Return definition and tensors that belong together, by name and shape.

    Tensors that have other names than the network get the definition by which core computes what
    monai-generative did, and core's names.
    """
    wanted = definition.build("meta").state_dict()
    if wanted.keys() != tensors.keys():
        definition = Definition(
            name=definition.name, arguments={**definition.arguments, **_old_attention(definition)}
        )
        wanted = definition.build("meta").state_dict()
        tensors = _core_named(tensors, wanted)
    strange = sorted(wanted.keys() ^ tensors.keys())
    strange += [k for k in wanted if k in tensors and wanted[k].shape != tensors[k].shape]
    if strange:
        shown = ", ".join(strange[:_MOST_NAMED])
        raise InputError(
            f"The weights do not fit {definition.name} with these arguments: {len(strange)} of "
            f"{len(wanted)} differ in name or shape ({shown}{', ...' * (len(strange) > 3)}).",
            remedy="Correct the arguments of the network: they must be those of the training.",
        )
    return definition, tensors


def _old_attention(definition: Definition) -> dict[str, Any]:
    """Return how core must build attention so that it computes what the old package did.

    Its self-attention never applied the projection at its end; its cross-attention did.
    """
    if definition.name == "AutoencoderKL":
        return {"include_fc": False, "use_combined_linear": False}
    if definition.name == "DiffusionModelUNet":
        crossed = bool(definition.arguments.get("with_conditioning", False))
        return {"include_fc": crossed, "use_combined_linear": False}
    return {}


def _core_named(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under core's names; what found no new name keeps the old one."""
    left = {k: v for k, v in tensors.items() if not k.endswith(_UNUSED_PROJECTION)}
    renamed = {}
    for name in wanted:
        olds = (
            name,
            name.replace(".attn.", "."),
            name.replace(".out_proj.", ".to_out.0."),
            name.replace(".postconv.", ".conv."),
        )
        old = next((old for old in olds if old in left), None)
        if old is not None:
            renamed[name] = left.pop(old)
    return {**renamed, **left}


def _loaded(definition: Definition, tensors: Mapping[str, Tensor]) -> nn.Module:
    network = definition.build()
    network.load_state_dict(dict(tensors))
    return network.eval().requires_grad_(False)
