"""What a codec loses: losses for its training, a report on validation persons, and its gate.

`report` and `require_faithful` are the ways in. A codec that blurs the difference between
patients and controls, or whose images a classifier tells from originals, spoils every prior that
is trained on its codes, and no later check could say why.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional

from rarescan.cohort.contracts import FloatArray, Gate, Grid, Outcome
from rarescan.cohort.template import regions
from rarescan.errors import GateRefusedError
from rarescan.generative.anatomy import brain_mask, to_volume
from rarescan.generative.code_store import People
from rarescan.generative.contract import Codec
from rarescan.seeds import generator

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Values = list[Array]

_SCALES = (1, 2, 4)
_WINDOW = 7
_N_TEXTURES = 3
_LEAST_SLOPE = 0.75
"""Of regional effects in reconstructions on those in originals; the interval must reach it."""
_MOST_TOLD = 0.75
"""Area under the curve of telling reconstructions from originals; the interval must reach below."""
_FEWEST_PER_DIAGNOSIS = 8
_FEWEST_TOLD = 20
_FOLDS = 5
_REDRAWS = 500
_LEAST_EFFECT = 0.8
"""Of the originals' largest regional effect (Cohen's d): below it there is nothing to keep."""


def edge_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute difference of gradients at three scales (images (n, c, x, y, z))."""
    total = torch.zeros((), device=made.device)
    for scale in _SCALES:
        a, b = (functional.avg_pool3d(v, scale) if scale > 1 else v for v in (made, wanted))
        for axis in (2, 3, 4):
            total = total + functional.l1_loss(a.diff(dim=axis), b.diff(dim=axis))
    return total / (3 * len(_SCALES))


def similarity(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean structural similarity of the intensities, -1 to 1 (Wang et al. 2004).

    Means over cubes of 7 voxels, c1 = 0.01^2 and c2 = 0.03^2 for a range of 1.

    Parameters
    ----------
    made, wanted : tensor, shape (n, channels, x, y, z)
        The first channel is compared.
    """
    # Without the overall mean, which would cost half of the digits of the variances.
    centre = wanted[:, :1].mean().detach()
    a, b = made[:, :1] - centre, wanted[:, :1] - centre
    window = min(_WINDOW, *a.shape[2:])
    means = [functional.avg_pool3d(v, window, stride=1) for v in (a, b, a * a, b * b, a * b)]
    mean_a, mean_b, square_a, square_b, product = means
    var_a, var_b = square_a - mean_a**2, square_b - mean_b**2
    both = product - mean_a * mean_b
    mean_a, mean_b = mean_a + centre, mean_b + centre
    above = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    return (above / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))).mean()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a codec keeps of validation persons, whom it has not seen."""

    n_persons: int
    psnr_db: float | None
    """Mean over persons, of the intensities inside the brain, for a range of 1."""
    similarity: float | None
    """Mean structural similarity."""
    region_error: float | None
    """Mean absolute error of regional means, in standard deviations between persons."""
    brain_volume_error: float | None
    """Mean relative error of the brain's volume."""
    edge_dice: float | None
    """Mean overlap of the brain's masks."""
    gates: tuple[Gate, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def report(codec: Codec, people: People, grid: Grid, n_diagnoses: int) -> Report:
    """Return what a codec keeps of persons, and the gates' outcomes.

    Parameters
    ----------
    codec : Codec
        Fitted to other persons.
    people : People
        Validation persons.
    grid : Grid
        Theirs.
    n_diagnoses : int
        The first columns of the encoded conditions are the one-hot diagnosis.
    """
    values_of = _region_means(grid)
    figures, originals, copies = [], [], []
    for row in range(len(people)):
        image = people.images_of([row])
        with torch.no_grad():
            again = codec.decode(codec.encode(image))
        figures.append(_figures(image, again))
        originals.append(values_of(image))
        copies.append(values_of(again))
    # With nobody to look at, every figure is unknown and every gate insufficient.
    mean = np.mean(figures, axis=0) if figures else np.full(4, np.nan)
    diagnoses = people.encoded[:, :n_diagnoses].argmax(1).tolist()
    return Report(
        n_persons=len(people),
        psnr_db=_rounded(mean[0]),
        similarity=_rounded(mean[1]),
        region_error=_rounded(_region_error(originals, copies)),
        brain_volume_error=_rounded(mean[2]),
        edge_dice=_rounded(mean[3]),
        gates=_gates(originals, copies, diagnoses, n_diagnoses),
    )


def _region_error(originals: Values, copies: Values) -> float:
    if len(originals) < 2:
        return np.nan
    a, b = (np.stack(v)[:, :-_N_TEXTURES] for v in (originals, copies))
    return float((np.abs(b - a) / a.std(0, ddof=1).clip(1e-12)).mean())


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _figures(image: Tensor, again: Tensor) -> tuple[float, float, float, float]:
    """Return PSNR, similarity, relative error of the volume and Dice of the mask."""
    here, there = (brain_mask(v[0, 1].numpy()) for v in (image, again))
    error = float((again[0, 0] - image[0, 0])[torch.from_numpy(here)].square().mean())
    psnr = -10 * np.log10(max(error, 1e-12))
    volume = there.sum() / here.sum() - 1
    dice = 2 * (here & there).sum() / (here.sum() + there.sum())
    return float(psnr), float(similarity(again, image)), abs(float(volume)), float(dice)


def _region_means(grid: Grid) -> Callable[[Tensor], Array]:
    """Return a function that gives an image's regional means, and its roughness at 3 scales."""
    weights = [w / w.sum() for w in regions(grid).values()]

    def values(image: Tensor) -> Array:
        volume: FloatArray = to_volume(image[0].numpy())
        rough = []
        smooth = torch.from_numpy(volume)[None, None]
        for _ in range(_N_TEXTURES):
            steps = [smooth.diff(dim=axis).square().mean() for axis in (2, 3, 4)]
            rough.append(float(torch.stack(steps).mean().clamp_min(1e-12).log()))
            smooth = functional.avg_pool3d(smooth, 2)
        return np.array([*(float((volume * w).sum()) for w in weights), *rough])

    return values


def _gates(
    originals: Values, copies: Values, diagnoses: list[int], n_diagnoses: int
) -> tuple[Gate, Gate]:
    counts = [diagnoses.count(number) for number in range(n_diagnoses)]
    order = np.argsort(counts)
    slope = Gate(name="codec keeps the diagnosis", outcome="insufficient", limit=_LEAST_SLOPE)
    if len(counts) > 1 and counts[order[0]] >= _FEWEST_PER_DIAGNOSIS:
        a, b = (np.stack(v)[:, :-_N_TEXTURES] for v in (originals, copies))
        labels = np.array(diagnoses)
        slope = _slope_gate(a, b, labels == order[0], labels == order[-1])
    told = Gate(name="codec is not recognised", outcome="insufficient", limit=_MOST_TOLD)
    if len(originals) >= _FEWEST_TOLD:
        told = _told_gate(np.stack(originals), np.stack(copies))
    return slope, told


def _slope_gate(
    a: Array,
    b: Array,
    rare: npt.NDArray[np.bool_],
    common: npt.NDArray[np.bool_],
) -> Gate:
    """Compare regional effects (rare - common diagnosis), with an interval over persons."""

    def effects(values: Array, one: Rows, two: Rows) -> Array:
        spread = np.sqrt((a[one].var(0, ddof=1) + a[two].var(0, ddof=1)) / 2).clip(1e-12)
        found: Array = (values[one].mean(0) - values[two].mean(0)) / spread
        return found

    def slope(one: Rows, two: Rows) -> float:
        here, there = effects(a, one, two), effects(b, one, two)
        return float((here * there).sum() / (here * here).sum().clip(1e-12))

    groups = np.flatnonzero(rare), np.flatnonzero(common)
    random = generator(0, "codec", "effects")
    redrawn = [slope(*(random.choice(g, len(g)) for g in groups)) for _ in range(_REDRAWS)]
    low, high = np.quantile(redrawn, [0.025, 0.975])
    strongest = float(np.abs(effects(a, *groups)).max())
    outcome: Outcome = "fail" if high < _LEAST_SLOPE else "pass"
    if strongest < _LEAST_EFFECT:
        outcome = "insufficient"
    return Gate(
        name="codec keeps the diagnosis",
        outcome=outcome,
        statistic=round(slope(*groups), 4),
        limit=_LEAST_SLOPE,
        reason=f"slope {low:.2f} to {high:.2f}; strongest regional effect {strongest:.2f}",
    )


def _told_gate(a: Array, b: Array) -> Gate:
    """Try to tell reconstructions from originals; a person's two images are in one fold."""
    n = len(a)
    x, y = np.concatenate([a, b]), np.repeat([0, 1], n)
    scores = np.zeros(2 * n)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(np.zeros(n), np.zeros(n))
    for train, test in folds:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        model.fit(x[np.r_[train, train + n]], y[np.r_[train, train + n]])
        rows = np.r_[test, test + n]
        scores[rows] = model.decision_function(x[rows])
    # Wins of each reconstruction over each original; ties count half.
    difference = scores[n:, None] - scores[None, :n]
    wins = (difference > 0) + 0.5 * (difference == 0)
    random = generator(0, "codec", "told")
    drawn = [random.integers(n, size=n) for _ in range(_REDRAWS)]
    low, high = np.quantile([wins[np.ix_(r, r)].mean() for r in drawn], [0.025, 0.975])
    return Gate(
        name="codec is not recognised",
        outcome="fail" if low > _MOST_TOLD else "pass",
        statistic=round(float(wins.mean()), 4),
        limit=_MOST_TOLD,
        reason=f"area under the curve {low:.2f} to {high:.2f}",
    )


def require_faithful(told: Report) -> None:
    """Raise where a gate of the codec failed.

    Raises
    ------
    GateRefusedError
        With the figures, and what to set instead.
    """
    failed = [f"{gate.name}: {gate.reason}" for gate in told.gates if gate.outcome == "fail"]
    if failed:
        raise GateRefusedError(
            f"The trained kl codec loses too much of {told.n_persons} validation persons "
            f"({'; '.join(failed)}).",
            remedy="Set codec: haar, which is exact; or train the codec longer (codec_steps), with "
            "more channels, on more persons, or from imported weights.",
        )
