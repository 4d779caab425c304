"""One input with its right output beside every saved classifier, checked when it is opened.

`write_golden` and `check_golden` are the way in; `invent_golden` makes the pair. A classifier
that is served in training mode, behind another preparation or with other weights raises no error
by itself and answers wrongly; here it is refused. What the reader would get wrong: the golden
input is invented. A person's scan never travels with a model.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from scipy.ndimage import gaussian_filter

from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError
from rarescan.files import read_json, sha256_file, write_atomic, write_json
from rarescan.seeds import generator

Run = Callable[[FloatArray], FloatArray]
"""Stored images, shape (n, ...), values 0 to 1 -> probabilities, shape (n, classes)."""

PAIR = "golden.safetensors"
SETTINGS = "golden.json"
TOLERANCE = 1e-4
_CANDIDATES = 24


def invent_images(shape: tuple[int, ...], n: int, seed: int = 0) -> FloatArray:
    """Return invented images of a shape: clouds of several sizes and contrasts, nobody's.

    Parameters
    ----------
    shape : tuple of int
        Of one image: (x, y, z) or (rows, columns, planes).
    n : int
        How many.
    seed : int
        One seed gives one set of images; a longer set begins with the shorter one.

    Returns
    -------
    float32 array, shape (n, *shape)
        Values 0 to 1, of which each image has several.
    """
    images = [_cloud(shape, generator(seed, "golden", i)) for i in range(n)]
    return np.stack(images).astype(np.float32)


def _cloud(shape: tuple[int, ...], random: np.random.Generator) -> FloatArray:
    edge = max(min(size for size in shape if size > 1), 2) if max(shape) > 1 else 2
    width = edge * random.uniform(0.02, 0.25)
    # Planes of one person are pictures of their own: nothing is smoothed across them.
    widths = [width if size > 4 else 0.0 for size in shape]
    cloud = gaussian_filter(random.normal(size=shape), widths)
    cloud = (cloud - cloud.mean()) / (cloud.std() + 1e-9)
    values = random.uniform(0.2, 0.6) + random.uniform(0.05, 0.3) * cloud
    clipped: FloatArray = np.clip(values, 0, 1).astype(np.float32)
    return clipped


def invent_golden(
    folder: Path, run: Run, shape: tuple[int, ...], *, n: int = 4, tolerance: float = TOLERANCE
) -> None:
    """Write the pair for `run`: the invented images on which it is least sure.

    A sure output hardly moves when the input or the weights do, and would let a change pass.
    """
    images = invent_images(shape, _CANDIDATES)
    probabilities = run(images)
    surest_last = np.argsort(probabilities.max(axis=1), kind="stable")[:n]
    chosen = images[np.sort(surest_last)]
    write_golden(folder, chosen, run(chosen), tolerance=tolerance)


def write_golden(
    folder: Path, images: FloatArray, probabilities: FloatArray, *, tolerance: float = TOLERANCE
) -> None:
    """Write `golden.safetensors` and `golden.json` into a folder.

    Parameters
    ----------
    folder : Path
        That of the saved classifier.
    images : float32 array, shape (n, ...)
        Invented images (`invent_images`) as stored: 0 to 1. Never scans of persons.
    probabilities : float32 array, shape (n, classes)
        What the classifier makes of them.
    tolerance : float
        Largest difference of a probability that `check_golden` allows.

    Raises
    ------
    ValueError
        The outputs are no probabilities, or not one row an image.
    """
    require_probabilities(probabilities)
    if len(images) != len(probabilities) or not len(images):
        raise ValueError(f"{len(images)} golden images have {len(probabilities)} outputs")
    pair = {
        "images": np.ascontiguousarray(images, dtype=np.float32),
        "probabilities": np.ascontiguousarray(probabilities, dtype=np.float32),
    }
    write_atomic(folder / PAIR, safetensors.numpy.save(pair))
    write_json(
        folder / SETTINGS, {"sha256": sha256_file(folder / PAIR), "tolerance": float(tolerance)}
    )


def check_golden(folder: Path, run: Run) -> float:
    """Return how far `run` is from the pair in a folder; raise where that is too far.

    Raises
    ------
    InputError
        The pair is missing or damaged, or the output differs by more than the pair's tolerance.
    """
    images, expected, tolerance = _read(folder)
    found = np.asarray(run(images))
    if found.shape != expected.shape:
        raise _refused(
            folder, f"it gives {found.shape[-1]} outputs an image instead of {expected.shape[-1]}"
        )
    difference = float(np.abs(found - expected).max())
    if not difference <= tolerance:
        raise _refused(
            folder,
            f"a probability differs by {difference:.2g} from the one stored with it "
            f"(allowed: {tolerance:g})",
        )
    return difference


def _read(folder: Path) -> tuple[FloatArray, FloatArray, float]:
    try:
        settings = read_json(folder / SETTINGS)
        if sha256_file(folder / PAIR) != settings["sha256"]:
            raise _refused(folder, "its golden pair is damaged")
        pair = safetensors.numpy.load_file(folder / PAIR)
        return pair["images"], pair["probabilities"], float(settings["tolerance"])
    except FileNotFoundError:
        raise _refused(folder, "its golden pair is missing") from None
    except (ValueError, KeyError, TypeError, SafetensorError):
        raise _refused(folder, "its golden pair is damaged") from None


def require_probabilities(values: FloatArray) -> None:
    """Raise unless every row holds the probabilities of the classes of one image.

    Logarithms of probabilities, logits, and labels in the place of probabilities are refused:
    every figure can be computed from them, and each would be wrong.

    Raises
    ------
    ValueError
        The values are no float array (n, classes), leave 0 to 1, or a row does not sum to 1.
    """
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{values.dtype} values of shape {values.shape} are no probabilities")
    if not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 1.001:
        raise ValueError("probabilities lie between 0 and 1")
    if np.abs(values.sum(axis=1) - 1).max(initial=0) > 1e-3:
        raise ValueError("the probabilities of an image sum to 1")


def _refused(folder: Path, why: str) -> InputError:
    return InputError(
        f"The classifier in {folder.name} is not the one that was saved: {why}.",
        remedy="Save it again from its training (repeat that command with --overwrite), with the "
        "versions of the packages that stand in its recipe.",
    )
