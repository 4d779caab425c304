"""A classifier as one ONNX file, scored by ONNX Runtime on the CPU.

`write_onnx` makes the file, `OnnxClassifier` and `load_onnx` use it. The preparation and the last
step to probabilities lie inside the graph, so that nobody can serve the file behind another
preparation. What the reader would get wrong: images go through one by one. On a CPU a batch saves
nothing, and some int8 formats scale by whatever else is in the batch.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rarescan.classifiers.compression.runtime import open_session, require_runtime, run_session
from rarescan.classifiers.contract import Shape, require_shape
from rarescan.classifiers.golden import (
    TOLERANCE,
    check_golden,
    invent_golden,
    invent_images,
    require_probabilities,
)
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError, MissingExtraError
from rarescan.files import read_json, sha256_file, write_atomic, write_json
from rarescan.threads import one_thread

MODEL = "model.onnx"
SETTINGS = "model.json"
_LARGEST_DIFFERENCE = 1e-5
_OPSET = 20
_CHATTY = ("torch.onnx", "onnxscript", "onnx_ir")


class Whole(torch.nn.Module):
    """A network from the stored values of an image to the probabilities of its classes."""

    def __init__(
        self,
        network: torch.nn.Module,
        prepare: Callable[[torch.Tensor], torch.Tensor],
        finish: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network, self._prepare = network, prepare
        self._finish = finish or as_probabilities

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return probabilities, shape (n, classes), of stored images, shape (n, ...)."""
        return self._finish(self.network(self._prepare(images)))

    def run(self, images: FloatArray) -> FloatArray:
        """Return what `forward` gives in use: one thread, no dropout, image by image."""
        self.eval()
        with one_thread(), torch.inference_mode():
            rows = [self(torch.from_numpy(np.array(images[i : i + 1]))) for i in range(len(images))]
        return np.concatenate([row.numpy() for row in rows])


def as_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return probabilities, shape (n, classes), of one logit (n,) or of k logits (n, k)."""
    if logits.ndim == 1:
        logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
    return logits.softmax(dim=1)


def require_onnx() -> None:
    """Raise unless the packages of the extra `onnx` are installed."""
    require_runtime()
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"Writing ONNX files needs the package {error.name}.",
            remedy="Install it: pip install 'rarescan[onnx]'.",
        ) from None


def write_onnx(path: Path, whole: Whole, shape: Shape) -> Path:
    """Write a network as ONNX, any number of images at a time, and prove that it is the same.

    Parameters
    ----------
    path : Path
        The file.
    whole : Whole
        Preparation, network and probabilities; it is exported as it is in use, whatever mode it
        was left in.
    shape : tuple of int
        Of one stored image.

    Returns
    -------
    Path
        `path`. ONNX Runtime gives torch's probabilities to 1e-5 on invented images, one or
        three at a time.

    Raises
    ------
    InputError
        The network cannot be expressed in ONNX, or gives something else there.
    MissingExtraError
        The extra `onnx` is not installed.
    """
    require_onnx()
    whole.eval()
    write_atomic(path, _exported(whole, shape))
    images = invent_images(shape, 3)
    with one_thread(), torch.inference_mode():
        expected = whole(torch.from_numpy(images)).numpy()
    session = open_session(path.read_bytes())
    together = run_session(session, images)
    alone = np.concatenate([run_session(session, images[i : i + 1]) for i in range(3)])
    difference = max(float(np.abs(found - expected).max()) for found in (together, alone))
    if not difference <= _LARGEST_DIFFERENCE:
        path.unlink()
        raise InputError(
            f"ONNX Runtime gives other probabilities than torch (by {difference:.2g}).",
            remedy="Something in the modality's preparation or network is random, or depends on "
            "the other images of a batch: take it out.",
        )
    return path


def _exported(whole: Whole, shape: Shape) -> bytes:
    example = torch.from_numpy(invent_images(shape, 2))
    try:
        with _silent(), one_thread():
            program = torch.onnx.export(
                whole,
                (example,),
                dynamo=True,
                opset_version=_OPSET,
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("n", min=1, max=4096)},),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, torch.onnx.OnnxExporterError) as error:
        raise InputError(
            f"The network cannot be written as ONNX ({type(error).__name__}).",
            remedy="Use operations that the ONNX exporter of torch knows, and no branch that "
            "depends on an image's values.",
        ) from error
    proto: Any = program.model_proto  # type: ignore[union-attr]
    # The exporter notes shapes of weights too, which are wrong once a converter turns a weight.
    del proto.graph.value_info[:]
    data: bytes = proto.SerializeToString()
    return data


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's advice to its own authors away from users."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True, kw_only=True)
class OnnxClassifier:
    """A classifier in one ONNX file; it scores like the network that it was made from."""

    model: bytes = field(repr=False)
    """The file's content: stored images in, probabilities out."""
    shape: Shape
    classes: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    """What stands in `model.json` beside shape and classes: format, unit, lineage, figures."""
    tolerance: float = TOLERANCE
    """How far a probability may be from the golden one, on any machine."""

    @cached_property
    def _session(self) -> Any:
        return open_session(self.model)

    def probabilities(self, images: FloatArray) -> FloatArray:
        """Return the probabilities of stored images, float32, shape (n, classes).

        Raises
        ------
        GridMismatchError
            The images have another shape than those of the training.
        InputError
            The images are not stored values from 0 to 1.
        """
        require_shape(images, self.shape)
        if not len(images):
            return np.empty((0, len(self.classes)), np.float32)
        rows = [self._one(images[i : i + 1]) for i in range(len(images))]
        return np.concatenate(rows)

    def _one(self, image: FloatArray) -> FloatArray:
        if not (image.min() >= 0 and image.max() <= 1):
            raise InputError(
                "An image leaves the range 0 to 1 of stored values.",
                remedy="Score prepared images: run `rarescan prepare` on them first.",
            )
        return run_session(self._session, image)

    def score(self, images: FloatArray) -> FloatArray:
        """Return the probability of the last class, shape (n,): of two, the positive one."""
        return self.probabilities(images)[:, -1]

    def save(self, folder: Path) -> None:
        """Write `model.onnx`, `model.json` and the golden pair into a folder."""
        write_atomic(folder / MODEL, self.model)
        settings = {"shape": list(self.shape), "classes": list(self.classes)}
        sealed = {"sha256": sha256_file(folder / MODEL), "tolerance": self.tolerance}
        write_json(folder / SETTINGS, {**settings, **sealed, "about": dict(self.about)})
        invent_golden(folder, self.probabilities, self.shape, tolerance=self.tolerance)


def load_onnx(folder: Path) -> OnnxClassifier:
    """Open what `OnnxClassifier.save` wrote, and check its golden pair.

    Raises
    ------
    InputError
        A file is missing or damaged, or the classifier no longer answers as it did.
    MissingExtraError
        The extra `onnx` is not installed.
    """
    require_runtime()
    from onnxruntime.capi import (  # type: ignore[import-untyped]
        onnxruntime_pybind11_state as state,
    )

    broken = (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.InvalidArgument)
    try:
        settings = read_json(folder / SETTINGS)
        if sha256_file(folder / MODEL) != settings["sha256"]:
            raise _no_model(folder, "its file is damaged")
        found = OnnxClassifier(
            model=(folder / MODEL).read_bytes(),
            shape=tuple(settings["shape"]),
            classes=tuple(settings["classes"]),
            about=settings["about"],
            tolerance=settings["tolerance"],
        )
        check_golden(folder, found.probabilities)
    except FileNotFoundError:
        raise _no_model(folder, "a file is missing") from None
    except (ValueError, KeyError, TypeError, *broken):
        raise _no_model(folder, "its files are damaged") from None
    require_probabilities(found.probabilities(invent_images(found.shape, 1)))
    return found


def _no_model(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder.name} holds no usable ONNX classifier: {why}.",
        remedy="Write it again: repeat `rarescan compress` with --overwrite.",
    )
