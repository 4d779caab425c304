"""The forms that a classifier can take: 32-bit ONNX, half precision, int8, pruned.

`make_forms` is the way in. Each form is a file and a function from stored images to
probabilities; what it is worth is measured in `compress`.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rarescan.classifiers import train
from rarescan.classifiers.compression import quantise, runtime
from rarescan.classifiers.compression.export import Whole, as_probabilities, write_onnx
from rarescan.classifiers.compression.prune import Pattern, prune, zero_share
from rarescan.classifiers.contract import ImageNetwork
from rarescan.classifiers.examples import Examples, class_pools
from rarescan.classifiers.network import TrainedNetwork
from rarescan.classifiers.spec import CompressConfig
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError
from rarescan.progress import track

ORIGINAL, PLAIN = "torch_fp32", "onnx_fp32"
_SLOWER_STEPS = 0.1
"""Learning rate after pruning, as a share of the network's own."""


@dataclass(frozen=True, kw_only=True)
class Persons:
    """The labelled scans that compression needs, by part; no person is in two of them."""

    train: Examples
    """For training on after pruning."""
    validation: Examples
    """Calibrate int8 and choose."""
    test: Examples
    """Confirm the choice, once."""

    def __post_init__(self) -> None:
        parts = [set(p.person_ids) for p in (self.train, self.validation, self.test)]
        if parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2]:
            raise ValueError("a person is in two parts")


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of the classifier."""

    name: str
    run: Callable[[FloatArray], FloatArray]
    """Any number of images at a time -> probabilities."""
    n_bytes: int
    path: Path | None = None
    """Its ONNX file; None where it is torch's."""
    zeros: float = 0.0


def whole_of(trained: TrainedNetwork, network: nn.Module | None = None) -> Whole:
    """Return a trained network with its preparation and temperature, on the CPU."""
    module = deepcopy(network or trained.network).cpu()
    finish = partial(_calibrated, temperature=trained.temperature)
    return Whole(module, trained.modality.prepare, finish)


def _calibrated(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return as_probabilities(logits / temperature)


def make_forms(
    folder: Path, trained: TrainedNetwork, persons: Persons, config: CompressConfig
) -> list[Form]:
    """Return the original, its 32-bit ONNX file, and the forms that the settings name.

    Parameters
    ----------
    folder : Path
        Gets `<form>.onnx`; files that are there already are taken as they are.
    trained : TrainedNetwork
        The original, which is left as it is.
    persons : Persons
        Training persons retrain what is pruned; validation persons calibrate int8.
    config : CompressConfig
    """
    whole = whole_of(trained)
    plain = folder / f"{PLAIN}.onnx"
    if not plain.exists():
        write_onnx(plain, whole, trained.shape)
    forms = [
        Form(name=ORIGINAL, run=_torch_run(whole), n_bytes=_weight_bytes(whole)),
        _onnx_form(PLAIN, plain),
    ]
    makers: Mapping[str, Callable[[Path], object]] = {
        "fp16": lambda path: quantise.write_half(plain, path),
        "int8_dynamic": lambda path: quantise.write_dynamic(plain, path),
        "int8_static": lambda path: quantise.write_static(
            plain,
            path,
            quantise.calibration_of(persons.validation, config.calibration_scans, config.seed),
        ),
        "magnitude": lambda path: _write_pruned(path, "magnitude", trained, persons, config),
        "two_of_four": lambda path: _write_pruned(path, "two_of_four", trained, persons, config),
    }
    for name in track(config.formats, "make smaller forms"):
        if name == "bf16":
            forms += _bf16(whole)
            continue
        path = folder / f"{name}.onnx"
        if not path.exists():
            makers[name](path)
        forms.append(_onnx_form(name, path))
    return forms


def _onnx_form(name: str, path: Path) -> Form:
    import onnx

    model = onnx.load(path)
    weights = [onnx.numpy_helper.to_array(w) for w in model.graph.initializer if len(w.dims) > 1]
    zeros = sum(int((w == 0).sum()) for w in weights) / max(sum(w.size for w in weights), 1)
    data = path.read_bytes()
    session = runtime.open_session(data)
    return Form(
        name=name,
        run=partial(runtime.run_session, session),
        n_bytes=len(data),
        path=path,
        zeros=zeros if name in ("magnitude", "two_of_four") else 0.0,
    )


def _torch_run(whole: Whole, dtype: torch.dtype = torch.float32) -> Callable[..., FloatArray]:
    whole.eval()

    def run(images: FloatArray) -> FloatArray:
        mixed = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
        with torch.inference_mode(), mixed:
            found: FloatArray = whole(torch.from_numpy(np.ascontiguousarray(images))).float()
        return found.numpy()  # type: ignore[attr-defined,no-any-return]

    return run


def _weight_bytes(module: nn.Module, bytes_each: int = 4) -> int:
    n_numbers: int = sum(value.numel() for value in module.state_dict().values())
    return bytes_each * n_numbers


def _bf16(whole: Whole) -> list[Form]:
    """Return the form in bfloat16, where this CPU computes in it; else nothing is gained."""
    if not quantise.multiplies_bf16():
        return []
    run = _torch_run(whole, torch.bfloat16)
    return [Form(name="bf16", run=run, n_bytes=_weight_bytes(whole, 2))]


def _write_pruned(
    path: Path,
    pattern: Pattern,
    trained: TrainedNetwork,
    persons: Persons,
    config: CompressConfig,
) -> None:
    again = partial(_train_on, trained=trained, persons=persons, config=config)
    pruned = prune(trained.network, pattern, again, share=config.pruned_share)
    write_onnx(path, whole_of(trained, pruned), trained.shape)
    if zero_share(pruned) < 0.5 * config.pruned_share:
        path.unlink()
        raise InputError(
            "Hardly any layer of this network can be pruned 2 of 4.",
            remedy="Leave two_of_four out of compress.formats.",
        )


def _train_on(
    masked: nn.Module, trained: TrainedNetwork, persons: Persons, config: CompressConfig
) -> nn.Module:
    """Train a pruned network with the room's one loop: it starts from it instead of anew."""
    if not isinstance(masked, ImageNetwork):
        raise TypeError("only networks of this room are trained")
    start = replace(trained.modality, build=lambda *_: masked)
    settings = replace(
        trained.config,
        steps=config.retrain_steps,
        patience=0,
        learning_rate=trained.config.learning_rate * _SLOWER_STEPS,
    )
    pools = class_pools(persons.train, settings.batch_size, len(trained.labels.names))
    found, _ = train.fit(persons.train, pools, settings, modality=start, device=trained.device)
    return found.network
