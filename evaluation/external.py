"""Networks of others as extractors: weights by path and SHA-256, no download, no pickle.

`open_extractor` is the way in. A 3D network sees the whole volume; a 2D network a picture as it
is, or the three middle slices of a volume, whose features are averaged (2.5D). What a reader
would get wrong: a name is no proof of what a file holds, so its hash must agree before anything
in it is read, and what is read are the very bytes that were hashed.
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch gives it)
from torch import Tensor, nn

from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError, MissingExtraError, SettingError
from rarescan.evaluation.features import Extractor
from rarescan.evaluation.inception import NUMBERED, Inception, as_tensorflow_saw
from rarescan.evaluation.spec import ExtractorConfig
from rarescan.threads import one_thread

_RADIMAGENET_SIZE = 224
_RESNET_NUMBERS = {"0": "conv1", "1": "bn1", **{str(i + 3): f"layer{i}" for i in range(1, 5)}}
"""Place in the published file of RadImageNet -> name in every ResNet."""
_HEADS = ("fc", "AuxLogits")
"""Layers of published files that name classes; features need none of them."""


@dataclass(frozen=True)
class _Eye:
    """A network and how an image is brought to it."""

    dimensions: int
    bring: Callable[[FloatArray], Tensor]
    """One volume (x, y, z) or plane (rows, columns), 0 to 1 -> the network's input, one item."""
    network: Callable[[Tensor], Tensor]


def open_extractor(config: ExtractorConfig) -> Extractor:
    """Return a network of others, ready to look at images.

    Parameters
    ----------
    config : ExtractorConfig
        Its kind, its file and the SHA-256 of that file:

        - `inception`: TF-FID Inception-v3 (2D), files of torch-fidelity or pytorch-fid; 2048
          features. Planes become 8-bit grey, as in every published FID.
        - `medicalnet-10`, `-18`, `-34`, `-50`: files of Tencent/MedicalNet (3D); 512 or 2048
          features. Voxels of the brain get mean 0 and SD 1, the rest 0; strides are MONAI's.
        - `radimagenet-resnet50`, `radimagenet-inception`: files of BMEII-AI/RadImageNet for
          PyTorch (2D), or any with torchvision's names; 2048 features. Planes are scaled to -1
          to 1 and 224 x 224 pixels, as in RadImageNet's own example.
        - `torchscript-2d`, `-3d`, `onnx-2d`, `-3d`: any network that takes float32, 0 to 1, of
          shape (1, 1, rows, columns) or (1, 1, x, y, z); what it returns first is flattened.

    Returns
    -------
    Extractor
        Features float32, shape (d,); the same bytes for the same image on one machine.

    Raises
    ------
    SettingError
        The file is missing or has another SHA-256.
    InputError
        The file holds no such network; later, an image that the network cannot look at.
    MissingExtraError
        ONNX without onnxruntime.
    """
    data = require_weights(config)
    family, _, variant = config.kind.partition("-")
    if family == "torchscript":
        eye = _Eye(int(variant[0]), _as_it_is, _torchscript(data, config))
    elif family == "onnx":
        eye = _Eye(int(variant[0]), _as_it_is, _onnx(data, config))
    else:
        eye = _published(data, config)
    return Extractor(
        name=config.name,
        embed=partial(_look, eye, config.name),
        weights_sha256=config.sha256.lower(),
    )


def require_weights(config: ExtractorConfig) -> bytes:
    """Return the bytes of an extractor's file; refuse a missing one or another hash.

    Raises
    ------
    SettingError
        As it says.
    """
    path = Path(config.path)
    if not path.is_file():
        raise SettingError(
            f"The file with the weights of the extractor '{config.name}' is missing.",
            remedy="Correct `path` of this entry of `evaluate.extractors`, or leave it out.",
        )
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != config.sha256.lower():
        raise SettingError(
            f"The weights of the extractor '{config.name}' have the SHA-256 {found}, not the one "
            "in the settings.",
            remedy="Fetch the file again, or correct `sha256` of this entry of "
            "`evaluate.extractors`.",
        )
    return data


def _look(eye: _Eye, name: str, image: FloatArray) -> npt.NDArray[np.float32]:
    """Return the features of one image, the mean over the planes that a 2D network sees."""
    if eye.dimensions == 3 and image.ndim != 3:
        raise InputError(
            f"The extractor '{name}' looks at volumes, and these are 2D pictures.",
            remedy="Use one that looks at pictures: inception, radimagenet-resnet50, "
            "radimagenet-inception, torchscript-2d, onnx-2d or pyramid.",
        )
    seen = [image] if eye.dimensions == 3 else planes(image)
    with one_thread(), torch.inference_mode():
        rows = [eye.network(eye.bring(part)).reshape(-1).float() for part in seen]
    if len({len(row) for row in rows}) > 1:
        raise InputError(
            f"The network of '{name}' returns {', '.join(str(len(r)) for r in rows)} features "
            "for planes of different sizes.",
            remedy="Export it with a pooling layer at its end.",
        )
    features: npt.NDArray[np.float32] = torch.stack(rows).mean(dim=0).numpy()
    return features


def planes(image: FloatArray) -> list[FloatArray]:
    """Return a picture (x, y) upright, or the three middle slices of a volume."""
    if image.ndim == 2:
        return [image.T]
    return [np.take(image, n // 2, axis) for axis, n in enumerate(image.shape)]


def _as_it_is(image: FloatArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None]


def _centred(plane: FloatArray) -> Tensor:
    """Return a plane as RadImageNet's networks were shown theirs: (v - 127.5) * 2 / 255."""
    size = (_RADIMAGENET_SIZE, _RADIMAGENET_SIZE)
    resized = F.interpolate(2 * _as_it_is(plane) - 1, size, mode="bilinear", align_corners=False)
    return resized.expand(1, 3, -1, -1)


def _standardised(volume: FloatArray) -> Tensor:
    """Return a volume with mean 0 and SD 1 in the brain; MedicalNet put noise outside, we zero."""
    inside = volume > 0
    values = volume[inside].astype(np.float64) if inside.any() else np.zeros(1)
    scaled = (volume - values.mean()) / max(float(values.std()), 1e-6)
    return _as_it_is(np.where(inside, scaled, 0))


def _published(data: bytes, config: ExtractorConfig) -> _Eye:
    """Return a network whose graph is known here, with the weights of a file."""
    family, _, variant = config.kind.partition("-")
    make: Callable[[], nn.Module]
    state = _state(data, config)
    if family == "inception":
        return _Eye(2, as_tensorflow_saw, _filled(Inception, state, config.name))
    if variant == "inception":
        make = partial(Inception, torchvision=True)
        return _Eye(2, _centred, _filled(make, _renamed(state, NUMBERED), config.name))
    if family == "radimagenet":
        make = _resnet(50, bias=False, spatial_dims=2, n_input_channels=3)
        return _Eye(2, _centred, _filled(make, _renamed(state, _RESNET_NUMBERS), config.name))
    make = _resnet(int(variant), bias=variant in ("18", "34"), n_input_channels=1)
    return _Eye(3, _standardised, _filled(make, state, config.name))


def _resnet(depth: int, *, bias: bool, **more: Any) -> Callable[[], nn.Module]:
    """Return the maker of MONAI's ResNet in the variant that published weights belong to."""
    from monai.networks.nets import resnet

    return partial(
        getattr(resnet, f"resnet{depth}"),
        conv1_t_stride=2,
        feed_forward=False,
        # Of shortcuts without weights (type A) MedicalNet has files for these two depths only.
        shortcut_type="A" if bias else "B",
        bias_downsample=bias,
        **more,
    )


def _state(data: bytes, config: ExtractorConfig) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, without the wrappers that files come in."""
    try:
        stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        named = stored.get("state_dict", stored)
        plain = {
            name.removeprefix("module.").removeprefix("backbone."): value.float()
            if value.is_floating_point()
            else value
            for name, value in named.items()
        }
    except Exception as error:  # damaged and hostile files fail in many ways
        raise InputError(
            f"The file of the extractor '{config.name}' is no checkpoint of plain tensors.",
            remedy="Nothing but tensors is read, because a pickle can run anything: fetch the "
            "published file again, or save the network's state_dict.",
        ) from error
    return {name: value for name, value in plain.items() if name.partition(".")[0] not in _HEADS}


def _renamed(state: Mapping[str, Tensor], numbers: Mapping[str, str]) -> dict[str, Tensor]:
    """Return weights under names where a file has numbers."""
    split = ((name.partition("."), value) for name, value in state.items())
    return {f"{numbers.get(place, place)}.{rest}": value for (place, _, rest), value in split}


def _filled(make: Callable[[], nn.Module], state: Mapping[str, Tensor], name: str) -> nn.Module:
    """Return a network with the weights of a file, all of them and no others."""
    with torch.device("meta"):  # no random start for values that are replaced at once
        network = make()
    try:
        network.load_state_dict(dict(state), assign=True)
    except RuntimeError as error:
        missing = sorted(set(network.state_dict()) - set(state))
        first = f" (first missing: {missing[0]})" if missing else ""
        raise InputError(
            f"The file of the extractor '{name}' holds the weights of another network{first}.",
            remedy="Correct its `kind`, or fetch the file that this kind is named after.",
        ) from error
    return network.eval().requires_grad_(False)


def _torchscript(data: bytes, config: ExtractorConfig) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            # torch recommends the successor of TorchScript at each use; files stay what they are.
            warnings.simplefilter("ignore", DeprecationWarning)
            load: Any = torch.jit.load
            network = load(io.BytesIO(data), map_location="cpu").eval()
    except Exception as error:  # damaged files fail in many ways
        raise InputError(
            f"The file of the extractor '{config.name}' is no TorchScript.",
            remedy="Write it with `torch.jit.save`, or correct its `kind`.",
        ) from error
    return partial(_foreign, network, config.name)


def _onnx(data: bytes, config: ExtractorConfig) -> Callable[[Tensor], Tensor]:
    try:
        onnxruntime: Any = import_module("onnxruntime")
    except ImportError:
        raise MissingExtraError(
            f"The extractor '{config.name}' is an ONNX file, and onnxruntime is not installed.",
            remedy="Run `pip install 'rarescan[onnx]'`, or export the network as TorchScript.",
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
        given = session.get_inputs()[0].name
    except Exception as error:  # onnxruntime's exceptions have no parent of their own
        raise InputError(
            f"The file of the extractor '{config.name}' is no ONNX network.",
            remedy="Export it into one file, weights inside, or correct its `kind`.",
        ) from error

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(np.array(session.run(None, {given: image.numpy()})[0]))

    return partial(_foreign, run, config.name)


def _foreign(network: Callable[[Tensor], Any], name: str, image: Tensor) -> Tensor:
    """Return what a network returns first, or say what it was given where it fails."""
    try:
        found = network(image)
    except Exception as error:  # a stranger's code
        raise InputError(
            f"The network of the extractor '{name}' fails on an image of the shape "
            f"{tuple(image.shape)}.",
            remedy="It must take float32 values from 0 to 1 of this shape (one image, one "
            "channel); resizing and scaling belong into its file.",
        ) from error
    first = found[0] if isinstance(found, tuple | list) else found
    if not isinstance(first, Tensor) or not torch.isfinite(first).all():
        raise InputError(
            f"The network of the extractor '{name}' returns no finite numbers.",
            remedy="It must return a tensor of features; look at its weights and its input.",
        )
    return first
