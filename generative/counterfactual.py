"""A real scan, changed as another diagnosis would have it: same person, other condition.

`changed` and `agreement` are the ways in. The scan's code moves from its own condition's mean to
the asked one's (a diffusion network that was kept: along its flow to noise and back); what that
does to the decoded image is added to the image itself, so that nothing of the person is lost in
the code. Tens of patients give an effect with noise all over the brain; `agreement` says, by
cross-fitting over the training persons, where they agree on it, and the rest stays as it is.

The result is a near copy of a real person by construction: it is never released.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from rarescan.cohort.contracts import Cohort, Condition, FloatArray
from rarescan.errors import InputError
from rarescan.generative.anatomy import to_image, to_volume
from rarescan.generative.code_store import People, people_of
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Prior
from rarescan.generative.diffusion import Diffusion, midpoint
from rarescan.generative.model import TrainedGenerator
from rarescan.threads import one_thread

Array = npt.NDArray[np.float64]

NEAR_COPY = "near_copy"
"""Flag of a scan that is a real person's, changed."""
_FOLDS = 4
_SMOOTH_MM = 12.0
_PENALTIES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""How many times the noise is taken off the squared effect; the data choose among them."""
_PERSONS_AT_A_TIME = 16


def changed(
    generator: TrainedGenerator,
    volume: FloatArray,
    conditions: tuple[Condition, Condition],
    *,
    strength: float,
    where: FloatArray,
) -> FloatArray:
    """Return a scan as it would be under another condition.

    Parameters
    ----------
    generator : TrainedGenerator
        Of any family; its floor's means, or a kept diffusion network's flow, say what changes.
    volume : float32 array, shape (x, y, z)
        A prepared scan on the generator's grid: 0 to 1, 0 outside the brain.
    conditions : tuple of Condition
        The scan's own condition, and the one that is asked for.
    strength : float
        0 leaves the scan as it is, 1 makes the whole difference between the conditions.
    where : float32 array, shape (2, x, y, z), 0 to 1
        From `agreement`: which share of the difference is believed, by channel and voxel.

    Returns
    -------
    float32 array, shape (x, y, z)
        0 to 1, 0 outside the brain.

    Raises
    ------
    InputError
        A condition that the training persons did not have.
    """
    image = to_image(volume)
    own, asked = (generator.prior.encoder.encode([condition]) for condition in conditions)
    with one_thread(), torch.no_grad():
        code = generator.codec.encode(torch.from_numpy(image)[None])
        moved = moved_code(generator.prior, code, own, asked)
        difference = (generator.codec.decode(moved) - generator.codec.decode(code))[0].numpy()
    return to_volume(image + strength * where * difference)


def moved_code(prior: Prior, code: Tensor, own: Tensor, asked: Tensor) -> Tensor:
    """Return codes, shape (n, *code_shape), moved from encoded conditions to asked ones."""
    whitened = prior.floor.whiten(code)
    if isinstance(prior, Diffusion) and prior.network_kept:
        there = midpoint(
            lambda x, left: -prior.velocity(x, 1 - left, own), whitened, prior.spec.solver_steps
        )
        back = midpoint(lambda x, t: prior.velocity(x, t, asked), there, prior.spec.solver_steps)
        return code + prior.floor.unwhiten(back - whitened)
    return code + prior.floor.unwhiten(prior.floor.mean(asked) - prior.floor.mean(own))


def asked_condition(encoder: ConditionEncoder, own: Condition, diagnosis: str) -> Condition:
    """Return the condition of the same person with another diagnosis; severity is open.

    Raises
    ------
    InputError
        The diagnosis is the person's own, or none that a training person had.
    """
    if diagnosis == own.diagnosis:
        raise InputError(
            f"The scan's diagnosis is '{diagnosis}' already, so nothing would change.",
            remedy=f"Ask for another with --diagnosis: {', '.join(encoder.diagnoses)}.",
        )
    return encoder.served(replace(own, diagnosis=diagnosis, severity=None))


def agreement(cohort: Cohort, encoder: ConditionEncoder, diagnoses: tuple[str, str]) -> FloatArray:
    """Return where training persons agree on what tells two diagnoses apart.

    The weight of a voxel is max(0, 1 - k s^2 / e^2): e the difference between the diagnoses'
    mean images, s its standard error, squares smoothed over 12 mm (James and Stein's shrinkage,
    made local). The penalty k is the largest whose error in predicting the difference of persons
    who were left out, a quarter at a time, is within one standard error of the smallest.

    Parameters
    ----------
    cohort : Cohort
        Prepared, with a partition; training persons only are read, in small parts.
    encoder : ConditionEncoder
        Of the generator.
    diagnoses : tuple of str
        The two.

    Returns
    -------
    float32 array, shape (2, x, y, z), 0 to 1
        For both channels of `anatomy.to_image`.

    Raises
    ------
    InputError
        Fewer than 4 training persons of one of them.
    """
    people = people_of(cohort, "train", encoder)
    own = [encoder.diagnoses.index(name) for name in diagnoses]
    classes = people.encoded[:, : len(encoder.diagnoses)].argmax(1)
    groups = [np.flatnonzero(classes.numpy() == number) for number in own]
    for name, group in zip(diagnoses, groups, strict=True):
        if len(group) < _FOLDS:
            raise InputError(
                f"{len(group)} training persons with '{name}' cannot say where it acts.",
                remedy=f"At least {_FOLDS} persons of both diagnoses are needed.",
            )
    sums = [[_Sums.of(people, group[k::_FOLDS]) for k in range(_FOLDS)] for group in groups]
    sigma = _SMOOTH_MM / 2.3548 / (cohort.grid.spacing_mm if cohort.grid else 1.0)
    penalty = _penalty(sums, sigma)
    return _weights(*_effect(sums), sigma, penalty).astype(np.float32)


class _Sums:
    """Count, sum and sum of squares of some persons' images."""

    def __init__(self, n: int, total: Array, squares: Array) -> None:
        self.n, self.total, self.squares = n, total, squares

    @classmethod
    def of(cls, people: People, rows: npt.NDArray[np.intp]) -> "_Sums":
        total, squares = np.zeros(people.image_shape), np.zeros(people.image_shape)
        for start in range(0, len(rows), _PERSONS_AT_A_TIME):
            for image in people.images_of(rows[start : start + _PERSONS_AT_A_TIME].tolist()):
                values = image.numpy()
                total += values
                squares += values**2
        return cls(len(rows), total, squares)

    @classmethod
    def joined(cls, parts: "list[_Sums]") -> "_Sums":
        return cls(
            sum(p.n for p in parts),
            np.sum([p.total for p in parts], axis=0),
            np.sum([p.squares for p in parts], axis=0),
        )

    @property
    def scatter(self) -> Array:
        """Sum of squared distances from the mean."""
        return np.maximum(self.squares - self.total**2 / self.n, 0)


def _effect(sums: list[list[_Sums]]) -> tuple[Array, Array]:
    """Return the difference of the means of two groups and its squared standard error."""
    one, other = (_Sums.joined(parts) for parts in sums)
    variance = (one.scatter + other.scatter) / (one.n + other.n - 2)
    return _difference([one, other]), variance * (1 / one.n + 1 / other.n)


def _difference(groups: list[_Sums]) -> Array:
    one, other = groups
    return np.asarray(other.total / other.n - one.total / one.n)


def _weights(effect: Array, squared_error: Array, sigma: float, penalty: float) -> Array:
    signal, noise = (
        np.stack([ndimage.gaussian_filter(channel, sigma, truncate=3) for channel in values])
        for values in (effect**2, squared_error)
    )
    return np.asarray(np.clip(1 - penalty * noise / np.maximum(signal, 1e-12), 0, 1))


def _penalty(sums: list[list[_Sums]], sigma: float) -> float:
    """Return the largest penalty whose cross-fitted error is as good as the best one's."""
    errors = np.zeros((_FOLDS, len(_PENALTIES)))
    for fold in range(_FOLDS):
        kept = [[p for k, p in enumerate(parts) if k != fold] for parts in sums]
        effect, squared_error = _effect(kept)
        left_out = _difference([parts[fold] for parts in sums])
        for column, penalty in enumerate(_PENALTIES):
            predicted = _weights(effect, squared_error, sigma, penalty) * effect
            errors[fold, column] = ((predicted - left_out) ** 2).sum()
    best = int(errors.mean(0).argmin())
    worse = errors - errors[:, best : best + 1]
    allowed = worse.mean(0) <= worse.std(0, ddof=1) / np.sqrt(_FOLDS)
    return _PENALTIES[int(np.flatnonzero(allowed).max())]
