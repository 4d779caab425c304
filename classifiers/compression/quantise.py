"""Smaller numbers in an ONNX file: int8, static or dynamic, and half precision.

`write_static`, `write_dynamic` and `write_half` are the way in. Static int8 needs to know how
large values become inside the network; only scans of validation persons can tell, so it takes a
`Calibration`, which cannot be made of blank or repeated images. No figure is made here: every
format is judged on persons afterwards (`compress`).
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rarescan.classifiers.compression.export import require_onnx
from rarescan.classifiers.examples import Examples
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError
from rarescan.files import write_atomic
from rarescan.seeds import generator

_FEWEST = 8
_LEAST_CONTRAST = 0.01
"""Smallest standard deviation within an image that shows anything (stored values 0 to 1)."""
_MOST_BLANK = 0.1
_STATIC_OPERATORS = [
    *("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
]
"""Neither the preparation (Sub, Mul) nor the probabilities (Softmax), which keep 32 bits."""
INT8 = ("avx512_vnni", "avx_vnni", "amx_int8", "dot")
BF16 = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Scans that tell how large the values inside a network become.

    Raises
    ------
    InputError
        The scans are too few, blank, copies of one another, or leave 0 to 1: a network that is
        calibrated on a blank frame falls to chance without any warning.
    """

    images: FloatArray
    """Shape (n, ...), stored values 0 to 1."""

    def __post_init__(self) -> None:
        n_scans = len(self.images)
        if n_scans < _FEWEST:
            raise _not_usable(f"there are {n_scans} scans, and {_FEWEST} at least are needed")
        flat = self.images.reshape(n_scans, -1)
        if not (flat.min() >= 0 and flat.max() <= 1):
            raise _not_usable("values leave the range 0 to 1 of prepared scans")
        blank = (flat.std(axis=1) < _LEAST_CONTRAST).mean()
        if blank > _MOST_BLANK:
            raise _not_usable(f"{blank:.0%} of the scans are blank")
        if len(np.unique(flat, axis=0)) < _FEWEST:
            raise _not_usable("the scans repeat each other")


def _not_usable(why: str) -> InputError:
    return InputError(
        f"The network cannot be calibrated for int8: {why}.",
        remedy="Use a prepared cohort whose validation persons have scans, or leave int8_static "
        "out of compress.formats.",
    )


def calibration_of(validation: Examples, n_scans: int, seed: int = 0) -> Calibration:
    """Return scans of validation persons, each person as often as possible, blank ones left out.

    Parameters
    ----------
    validation : Examples
        Scans of the persons who stopped the training; test persons are never used.
    n_scans : int
        How many; all where there are fewer.
    seed : int
        Which scans of a person, and of whom where there are more persons than `n_scans`.
    """
    random = generator(seed, "calibration")
    turns = [list(random.permutation(scans)) for scans in validation.persons()]
    order = random.permutation(len(turns))
    longest = max((len(turn) for turn in turns), default=0)
    chosen = [turns[p][k] for k in range(longest) for p in order if k < len(turns[p])][:n_scans]
    if not chosen:
        raise _not_usable("there are no validation persons")
    images = validation.read([int(p) for p in chosen])
    shown = images.reshape(len(images), -1).std(axis=1) >= _LEAST_CONTRAST
    return Calibration(images=images[shown] if shown.sum() >= _FEWEST else images)


def cpu_has(*instructions: str) -> list[str]:
    """Return which of these instructions the CPU has, by torch's names."""
    found = torch.cpu.get_capabilities()
    return [name for name in instructions if found.get(name)]


def multiplies_int8() -> bool:
    """Tell whether this CPU adds products of 8-bit numbers in one instruction (VNNI or alike)."""
    return bool(cpu_has(*INT8))


def multiplies_bf16() -> bool:
    """Tell whether this CPU computes in bfloat16, so that it pays to store it."""
    return bool(cpu_has(*BF16))


def write_static(source: Path, target: Path, calibration: Calibration) -> Path:
    """Write an ONNX file with weights and values in 8 bits.

    Scales per output channel, ranges from the smallest and largest value of the calibration
    scans. Weights keep 7 bits where the CPU has no VNNI: two products of 8 bits overflow there.

    Parameters
    ----------
    source : Path
        What `export.write_onnx` wrote.
    target : Path
        The new file.
    calibration : Calibration
        Scans of validation persons.
    """
    require_onnx()
    from onnxruntime.quantization import (  # type: ignore[import-untyped]
        QuantFormat,
        QuantType,
        quantize_static,
    )

    convert = partial(
        quantize_static,
        calibration_data_reader=_reader(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=_STATIC_OPERATORS,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return _converted(source, target, convert)


def write_dynamic(source: Path, target: Path) -> Path:
    """Write an ONNX file with weights in 8 bits, whose values are scaled anew for each image."""
    require_onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _converted(source, target, partial(quantize_dynamic, weight_type=QuantType.QUInt8))


def write_half(source: Path, target: Path) -> Path:
    """Write an ONNX file with numbers of 16 bits; images and probabilities stay as they are.

    Most CPUs compute it in 32 bits and convert on the way: the file halves, time does not.
    """
    require_onnx()
    import onnx
    from onnxruntime.transformers.float16 import (  # type: ignore[import-untyped]
        convert_float_to_float16,
    )

    converted = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    write_atomic(target, converted.SerializeToString())
    return target


def _reader(calibration: Calibration) -> object:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands over one scan after the other."""

        left = iter(np.asarray(calibration.images[:, None], dtype=np.float32))

        def get_next(self) -> dict[str, FloatArray] | None:
            """Return the next scan, or None after the last."""
            image = next(self.left, None)
            return None if image is None else {"images": image}

    return Reader()


def _converted(source: Path, target: Path, convert: Callable[..., None]) -> Path:
    """Fold what can be folded (batch norm into convolutions), convert, and write it whole."""
    from onnxruntime.quantization.shape_inference import (  # type: ignore[import-untyped]
        quant_pre_process,
    )

    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, converted = Path(folder) / "plain.onnx", Path(folder) / "converted.onnx"
        # Symbolic shapes are for transformers; every edge of an image network is known.
        quant_pre_process(source, plain, skip_symbolic_shape=True)
        convert(plain, converted, per_channel=True, reduce_range=not multiplies_int8())
        write_atomic(target, converted.read_bytes())
    return target


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's remarks on the root logger away from users."""
    before = logging.root.manager.disable
    # A remark on a root logger without handlers installs one, and every later line comes twice.
    silent = logging.NullHandler()
    logging.root.addHandler(silent)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(silent)
