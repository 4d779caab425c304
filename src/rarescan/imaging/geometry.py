"""What can be wrong with where the slices of a stack lie.

Each function looks at one stack and returns what it measured where it found a fault, and None
where all is well; `faults.RULES` says what follows. Slices are compared along the normal of
their plane, never by InstanceNumber or SliceLocation.
"""

from collections.abc import Sequence

import numpy as np

from rarescan.imaging.stacks import FloatVector, Stack, axes_of

Numbers = dict[str, float | str]
"""What was measured."""

_LEAST_EXTENT_MM = 140
_INTERPOLATED = 1.2
_LARGEST_SINE = 0.005
# Letters of PatientOrientation (DICOM PS3.3 C.7.6.1.1.1): axis of the patient (LPS), direction.
_LETTERS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "H": (2, 1), "F": (2, -1)}


def worst_skew(stack: Stack) -> float:
    """Return how far the worst orientation is from two unit vectors at a right angle."""
    return max(_skew(orientation) for orientation in {f.header.orientation for f in stack.files})


def _skew(orientation: Sequence[float] | None) -> float:
    if orientation is None:
        return np.inf
    row, column = np.reshape(np.array(orientation), (2, 3))
    lengths = [abs(float(np.linalg.norm(v)) - 1) for v in (row, column)]
    return max(*lengths, abs(float(row @ column)))


def mirrored(stack: Stack) -> bool:
    """Return whether the words for the image's directions contradict its orientation."""
    h = stack.first
    directions = np.reshape(np.array(h.orientation), (2, 3))
    for word, direction in zip(h.patient_orientation, directions, strict=False):
        if {*word} <= _LETTERS.keys():
            axis, sign = _LETTERS[word[0]]
            if sign * direction[axis] < -0.1:
                return True
    return False


def _gaps_mm(stack: Stack) -> FloatVector:
    return np.diff(stack.offsets_mm)


def repeated_place(stack: Stack) -> Numbers | None:
    """Find slices in one place."""
    n = int((_gaps_mm(stack) < 0.01).sum())
    return {"slices": n} if n else None


def shear(stack: Stack) -> Numbers | None:
    """Find slices that are shifted sideways, as a tilted gantry leaves them."""
    places = np.array([f.header.position_mm for f in stack.files])
    steps, normal = places - places[0], axes_of(stack.first)[2]
    sideways = np.linalg.norm(steps - np.outer(steps @ normal, normal), axis=1)
    sines = sideways[1:] / np.maximum(np.linalg.norm(steps[1:], axis=1), 1e-6)
    worst = float(sines.max(initial=0))
    return {"sine": round(worst, 4)} if worst > _LARGEST_SINE else None


def missing_slice(stack: Stack) -> Numbers | None:
    """Find distances that are whole multiples of the others."""
    gaps = _gaps_mm(stack)
    ratio = gaps / np.median(gaps)
    multiple = np.round(ratio)
    lost = (multiple >= 2) & (abs(ratio - multiple) < 0.05)
    regular = abs(ratio - 1) < 0.05
    if not lost.any() or not (lost | regular).all():
        return None
    return {"slices": int((multiple[lost] - 1).sum())}


def uneven(stack: Stack) -> Numbers | None:
    """Find distances that differ by more than 0.02 mm and 1 %."""
    gaps = _gaps_mm(stack)
    middle = float(np.median(gaps))
    worst = float(abs(gaps - middle).max(initial=0))
    return {"deviation_mm": round(worst, 4)} if worst > max(0.02, 0.01 * middle) else None


def lost_slices(stack: Stack, announced: int | None) -> Numbers | None:
    """Find slices lost at an end or at a regular stride, which leave the distances even.

    Parameters
    ----------
    stack : Stack
        The stack.
    announced : int or None
        Slices of a volume, as the scanner's maker writes it in private elements.
    """
    n, declared_mm = len(stack.files), stack.first.slice_spacing_mm
    if declared_mm and declared_mm < 0.9 * stack.step_mm:
        return {"declared_mm": declared_mm, "found_mm": round(stack.step_mm, 4)}
    if announced and announced > n:
        return {"expected": announced, "found": n}
    known = [k for f in stack.files if (k := f.header.instance_number) is not None]
    if not stack.whole_series or len(set(known)) < n:
        return None
    expected = max(max(known) - min(known) + 1, stack.first.images_in_acquisition or 0)
    return {"expected": expected, "found": n} if expected != n else None


def coverage(stack: Stack) -> Numbers | None:
    """Find stacks that are too thin, along any axis, to hold a whole head."""
    smallest = min(stack.extent_mm)
    return {"extent_mm": round(smallest, 1)} if smallest < _LEAST_EXTENT_MM else None


def interpolated(stack: Stack) -> Numbers | None:
    """Find voxels smaller than what was measured (zero filling, overlapping slices)."""
    acquired, stored = stack.first.acquired_mm, stack.voxel_mm
    if acquired is None or not stack.placed:
        return None
    factor = max(a / s for a, s in zip(acquired, stored, strict=True) if s > 0)
    return {"acquired_mm": round(max(acquired), 3)} if factor > _INTERPOLATED else None
