"""Distances for anyone's data: arrays, tensors, feature sets, feature files, folders of images.

`from rarescan.evaluation import fid, kid, mmd, prdc, inception_score, copy_test, compare`. Each
returns a `Score` (prdc one for each of its four): a number with n, interval and method. `real`
comes first everywhere. Sides are one row a person; see `sources` for what they may be.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from rarescan.cohort.contracts import FloatArray, Score
from rarescan.errors import InputError, SettingError, nearest
from rarescan.evaluation import conventions, metrics, table
from rarescan.evaluation.conventions import SPLITS, Convention, Subsets
from rarescan.evaluation.features import Extractor
from rarescan.evaluation.intervals import clopper_pearson
from rarescan.evaluation.sources import Source, require_one_kind, rows_of

Array = npt.NDArray[np.float64]

_EDGE_NEIGHBOURS = 3
"""torch-fidelity's number of neighbours."""


def fid(
    real: Source,
    synthetic: Source,
    *,
    convention: Convention = "rarescan",
    extractor: Extractor | None = None,
    seed: int = 0,
) -> Score:
    """Return the Fréchet distance of Gaussians fitted to both sides.

    Parameters
    ----------
    real, synthetic : array or tensor (n, d) and (m, d), FeatureSet, feature file or folder
        Three persons at least on each side.
    convention : str
        "rarescan" draws n = m persons where the sides differ, because FID grows as persons get
        fewer; every other name takes all rows of both. Covariances have divisor n - 1 in all.
    extractor : Extractor, optional
        Looks at images of folders.
    seed : int
        Draws of equal size.

    Returns
    -------
    Score
        Its interval is for the expectation at this n, not for infinitely many persons.

    Raises
    ------
    InputError
        The sides cannot be compared; the message says what to change.
    """
    x, y, about = _sides(real, synthetic, extractor)
    if min(len(x), len(y)) < 3:
        raise InputError("The interval of a FID needs three persons a side.", remedy="Add persons.")
    _require_known(convention)
    if convention == "rarescan":
        return replace(
            table.fid_rows(x, y, n_features=x.shape[1], seed=seed)["fid"], extractor=about
        )
    raw, _ = metrics.fid_jackknife(x, y)
    return raw.score(
        "fid",
        n_real=len(x),
        n_synthetic=len(y),
        sufficient=min(len(x), len(y)) >= table.FEWEST_FOR_FID,
        method=f"raw, all rows, as {convention}; interval for the expectation at these n",
        extractor=about,
    )


def kid(
    real: Source,
    synthetic: Source,
    *,
    convention: Convention = "rarescan",
    subsets: Subsets | None = None,
    extractor: Extractor | None = None,
) -> Score:
    """Return the kernel inception distance, kernel (x.y/d + 1)^3.

    Parameters
    ----------
    real, synthetic, extractor
        As in `fid`; two persons at least on each side.
    convention : str
        "rarescan" takes the whole sets and has an interval; "torchmetrics", "torch-fidelity" and
        "clean-fid" average random subsets, drawn as the package draws them, and have none.
    subsets : Subsets, optional
        How many subsets of which size from which seed; the packages' 100 of 1000 by default.
    """
    x, y, about = _sides(real, synthetic, extractor)
    _require_known(convention)
    if convention in ("rarescan", "prdc"):
        return replace(table.kid_row(x, y), extractor=about)
    drawn = subsets or Subsets()
    value, sd = conventions.kid(x, y, convention, drawn)
    return Score(
        name="kid",
        value=value,
        n_real=len(x),
        n_synthetic=len(y),
        sufficient=False,
        method=f"mean of {drawn.number} random subsets as {convention}; their SD is {sd:.6g}, "
        "which is no standard error",
        extractor=about,
    )


def mmd(
    real: Source,
    synthetic: Source,
    *,
    sigma2: float | None = None,
    extractor: Extractor | None = None,
) -> Score:
    """Return the unbiased squared MMD with an RBF kernel exp(-|x - y|^2 / (2 sigma2)).

    Parameters
    ----------
    real, synthetic, extractor
        As in `fid`; two persons at least on each side.
    sigma2 : float, optional
        Median squared distance of real pairs over 4 by default. Freeze it
        (`metrics.frozen_bandwidth`) where several candidates are compared with one reference.
    """
    x, y, about = _sides(real, synthetic, extractor)
    sigma2 = metrics.frozen_bandwidth(x) if sigma2 is None else sigma2
    return replace(table.mmd_row(x, y, sigma2=sigma2), extractor=about)


def prdc(
    real: Source,
    synthetic: Source,
    *,
    neighbours: int | None = None,
    convention: Convention = "rarescan",
    extractor: Extractor | None = None,
    seed: int = 0,
) -> dict[str, Score]:
    """Return precision, recall, density and coverage of balls around k nearest neighbours.

    Parameters
    ----------
    real, synthetic, extractor
        As in `fid`; 2 (neighbours + 1) persons at least, for the half samples of the interval.
    neighbours : int, optional
        5 by default, 3 for "torch-fidelity".
    convention : str
        "rarescan" and "prdc" agree: a ball holds what is nearer than its radius. "torch-fidelity"
        counts its edge too, and has neither density nor coverage nor interval.
    seed : int
        Half samples of the interval.
    """
    x, y, about = _sides(real, synthetic, extractor)
    _require_known(convention)
    edge = convention == "torch-fidelity"
    k = neighbours or (_EDGE_NEIGHBOURS if edge else metrics.NEIGHBOURS)
    if min(len(x), len(y)) < (k + 1 if edge else 2 * (k + 1)):
        raise InputError(
            f"{min(len(x), len(y))} persons are too few for {k} neighbours.",
            remedy="Pass a smaller `neighbours`, or add persons.",
        )
    if not edge:
        rows = table.prdc_rows(x, y, neighbours=k, seed=seed)
        return {name: replace(row, extractor=about) for name, row in rows.items()}
    return {
        name: Score(
            name=name,
            value=value,
            better="higher",
            n_real=len(x),
            n_synthetic=len(y),
            sufficient=min(len(x), len(y)) >= table.FEWEST_FOR_NEIGHBOURS,
            method=f"k = {k}, edges count, as torch-fidelity; no interval",
            extractor=about,
        )
        for name, value in conventions.precision_recall(x, y, k).items()
    }


def inception_score(
    outputs: Source,
    *,
    logits: bool = False,
    splits: int | None = None,
    convention: Convention = "rarescan",
    seed: int = 2020,
) -> Score:
    """Return exp of the mean divergence of class probabilities from their mean.

    Parameters
    ----------
    outputs : array or tensor, shape (n, classes)
        Class probabilities, rows adding up to one, or logits.
    logits : bool
        Whether `outputs` are logits (natural logarithms up to a constant).
    splits : int, optional
        1 by default; 10 for "torchmetrics" and "torch-fidelity", which also shuffle by `seed`.
    """
    _require_known(convention)
    raw = rows_of(outputs).values
    p: Array = softmax(raw, axis=1) if logits and raw.ndim == 2 else raw
    _require_probabilities(p)
    others = convention in ("torchmetrics", "torch-fidelity")
    number = splits or (SPLITS if others else 1)
    if number > len(p):
        raise InputError(
            f"{len(p)} rows cannot be split into {number}.", remedy="Pass fewer `splits`."
        )
    if others:
        value, sd = conventions.inception_score(p, convention, splits=number, seed=seed)
    else:
        value, sd = metrics.inception_score(p, splits=number)
    about = f"; {number} splits as {convention}, SD {sd:.6g}" if number > 1 else ""
    return replace(table.inception_score_row(p, f"from class probabilities{about}"), value=value)


def _require_probabilities(p: Array) -> None:
    if p.ndim != 2 or not len(p):
        raise InputError("Class probabilities need two axes.", remedy="Give shape (n, classes).")
    if p.shape[1] < 2:
        raise InputError(
            "There is one class only, so that every inception score is 1.",
            remedy="Use a classifier with two classes or more.",
        )
    if not np.isfinite(p).all() or p.min() < 0 or np.abs(p.sum(axis=1) - 1).max() > 1e-4:
        raise InputError(
            "Rows are no class probabilities: they must be finite, not negative, and add up to 1.",
            remedy="Pass `logits=True` where they are logits.",
        )


def copy_test(
    training: FloatArray | Path,
    synthetic: FloatArray | Path,
    held_out: FloatArray | Path,
    *,
    spacing_mm: float,
    persons: Sequence[str] | None = None,
    seed: int = 0,
) -> Score:
    """Return the share of synthetic volumes that repeat the anatomy of a training person.

    Parameters
    ----------
    training, synthetic, held_out : float32 arrays (n, x, y, z), 0 to 1, 0 outside the brain
        On one grid, or folders of such volumes. Held-out persons set the scale: whatever they
        resemble, they are no copies. None of them may have trained the generator.
    spacing_mm : float
        Edge of a voxel.
    persons : sequence of str, optional
        Whose volume each training volume is; one person each by default.
    seed : int
        Planted copies, by which the test proves that it would find copies.

    Returns
    -------
    Score
        With the exact (Clopper-Pearson) interval of the share; not `sufficient` where held-out
        persons are too few or planted copies are missed, and `method` says which.
    """
    from rarescan.evaluation.canaries import plant
    from rarescan.evaluation.copies import Assay, coarse_voxel_mm, coarsen
    from rarescan.evaluation.privacy import calibrate, judge_copies
    from rarescan.evaluation.spec import EvaluateConfig

    settings = EvaluateConfig()
    train, made, apart = (
        coarsen(_volumes(one), spacing_mm) for one in (training, synthetic, held_out)
    )
    if len({v.shape[1:] for v in (train, made, apart)}) > 1:
        raise InputError(
            "Training, synthetic and held-out volumes have different shapes.",
            remedy="Bring all of them to one grid.",
        )
    names = [f"{i:06}" for i in range(len(train))] if persons is None else list(persons)
    assay = Assay.of(
        train,
        names,
        voxel_mm=coarse_voxel_mm(spacing_mm),
        shift_mm=settings.copy_shift_mm,
    )
    planted = plant(train[: settings.canary_persons], shift_voxels=assay.shift_voxels, seed=seed)
    scale = calibrate(assay.match(apart), {kind: assay.match(v) for kind, v in planted.items()})
    gate, found = judge_copies(
        assay.match(made), scale, assay.person_ids, fewest_persons=settings.fewest_persons
    )
    low, high = clopper_pearson(found["flagged"], found["n"])
    return Score(
        name="copies",
        value=found["flagged"] / found["n"],
        low=low,
        high=high,
        n_real=len(assay.person_ids),
        n_synthetic=len(made),
        sufficient=gate.outcome != "insufficient",
        method=gate.reason,
        extractor="image search",
    )


def _volumes(source: FloatArray | Path | Any) -> FloatArray:
    volumes: FloatArray
    if isinstance(source, str | Path):
        from rarescan.evaluation.pictures import read_images

        volumes = np.stack([image.values for image in read_images(Path(source))])
    else:
        tensor = source.detach().cpu() if hasattr(source, "detach") else source
        volumes = np.asarray(tensor, np.float32)
    if volumes.ndim != 4:
        raise InputError(
            f"The search for copies needs volumes (n, x, y, z), not {volumes.ndim} axes.",
            remedy="Give 3D volumes; 2D pictures cannot be searched.",
        )
    return volumes


def _sides(
    real: Source, synthetic: Source, extractor: Extractor | None
) -> tuple[Array, Array, str]:
    """Return both sides as float64 rows, and the name of their extractor."""
    a = rows_of(real, extractor, name="real")
    b = rows_of(synthetic, extractor, name="synthetic", like=a.kind)
    about = require_one_kind(a, b)
    x, y = metrics.require_comparable(a.values, b.values)
    return x, y, about


def _require_known(convention: str) -> None:
    if convention not in get_args(Convention):
        raise SettingError(
            f"There is no convention '{convention}'.",
            remedy=nearest(convention, list(get_args(Convention))),
        )
