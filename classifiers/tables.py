"""Baselines that know little: what a network must beat on the same folds.

`BASELINES` are the way in. `majority` knows how often classes are; `metadata` how the scan was
acquired; `source` where it comes from; the others see a thumbnail of 32 pixels an edge. What the
reader would get wrong: a network below `metadata` or `source` has learned the hospital.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances
from sklearn.pipeline import make_pipeline
from torch.nn import functional

from rarescan.cohort.contracts import FloatArray, Scan

EDGE = 32
MOST_COMPONENTS = 40
N_TREES = 200
_CHUNK = 64
_MOST_PLANES = 4
_VOLUME_EDGE = 10
_IDS = ("scan_id", "person_id", "session")
Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What baselines see of every scan, arrays in one order."""

    thumbnails: FloatArray
    """Shape (scans, pixels)."""
    metadata: Array
    """Shape (scans, columns); NaN where unknown; no column where nothing is known."""
    sources: tuple[str, ...]

    def names(self) -> list[str]:
        """Return the baselines that can be fitted: those that have something to look at."""
        blind = {
            "metadata": not self.metadata.shape[1],
            "source": len(set(self.sources)) < 2,
        }
        return [name for name in BASELINES if not blind.get(name, False)]


def thumbnails(volumes: FloatArray, rows: Sequence[int]) -> FloatArray:
    """Return scans as thumbnails by area averages, flattened, float32, shape (n, pixels).

    Parameters
    ----------
    volumes : float32 array, shape (scans, a, b, c)
        Pictures (rows, columns, planes) become 32 x 32 a plane, volumes 10 x 10 x 10.
    rows : sequence of int
        Which scans, in this order.
    """
    parts = []
    for start in range(0, len(rows), _CHUNK):
        images = torch.from_numpy(np.stack([volumes[row] for row in rows[start : start + _CHUNK]]))
        if images.shape[3] > _MOST_PLANES:
            small = functional.adaptive_avg_pool3d(images[:, None], _VOLUME_EDGE)
        else:
            edges = (min(EDGE, images.shape[1]), min(EDGE, images.shape[2]))
            small = functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2), edges)
        parts.append(small.flatten(1).numpy())
    return np.concatenate(parts)


def metadata_columns(
    scans: Sequence[Scan], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], Array]:
    """Return the numbers that are known of scans without looking at the image.

    Parameters
    ----------
    scans : sequence of Scan
        Age and sex of the condition count where they are known.
    rows : sequence of mapping
        What `cohort.store.read_metadata` gives for these scans, in the same order; may be empty.

    Returns
    -------
    names : list of str
    values : float64 array, shape (scans, columns)
    """
    known: dict[str, list[Any]] = {
        "age_years": [s.condition.age_years for s in scans],
        "female": [None if s.condition.sex is None else s.condition.sex == "F" for s in scans],
    }
    for name in rows[0] if rows else ():
        if name not in _IDS:
            known[name] = [row[name] for row in rows]
    numbers = {
        name: [np.nan if v is None else float(v) for v in values]
        for name, values in known.items()
        if all(v is None or isinstance(v, int | float) for v in values)
        and any(v is not None for v in values)
    }
    names = list(numbers)
    columns = [numbers[name] for name in names]
    return names, np.array(columns, dtype=np.float64).T.reshape(len(scans), len(names))


def fit_baseline(
    name: str,
    seen: Seen,
    truth: Ints,
    parts: tuple[Ints, Ints],
    *,
    n_classes: int,
    seed: int,
) -> FloatArray:
    """Fit one baseline on the first part and return its probabilities for the second.

    Parameters
    ----------
    name : str
        A key of `BASELINES`.
    seen : Seen
    truth : int array, shape (scans,)
        Only the first part's values are looked at.
    parts : two int arrays
        Positions to fit on, positions to predict.
    n_classes : int
    seed : int
        0 to 2**32 - 1.

    Returns
    -------
    float32 array, shape (predicted, n_classes)
        Rows sum to 1; a class that was not fitted has 0.
    """
    fit, predict = parts
    found, classes = BASELINES[name](seen, truth[fit], fit, predict, seed)
    probabilities = np.zeros((len(predict), n_classes))
    probabilities[:, classes] = found
    return probabilities.astype(np.float32)


def _majority(_seen: Seen, truth: Ints, _fit: Ints, predict: Ints, _seed: int) -> Any:
    classes, counts = np.unique(truth, return_counts=True)
    return np.tile(counts / counts.sum(), (len(predict), 1)), classes


def _metadata(seen: Seen, truth: Ints, fit: Ints, predict: Ints, seed: int) -> Any:
    return _forest(seen.metadata, truth, fit, predict, seed)


def _source(seen: Seen, truth: Ints, fit: Ints, predict: Ints, _seed: int) -> Any:
    sources = np.array(seen.sources)
    known = np.unique(sources[fit])
    one_hot = (sources[:, None] == known).astype(np.float64)
    return _fitted(_logistic(), one_hot, truth, fit, predict)


def _linear(seen: Seen, truth: Ints, fit: Ints, predict: Ints, _seed: int) -> Any:
    most = min(MOST_COMPONENTS, len(fit) - 1, seen.thumbnails.shape[1])
    components = PCA(most, svd_solver="full")
    model = make_pipeline(components, _logistic())
    return _fitted(model, seen.thumbnails, truth, fit, predict)


def _forest_of_thumbnails(seen: Seen, truth: Ints, fit: Ints, predict: Ints, seed: int) -> Any:
    return _forest(seen.thumbnails, truth, fit, predict, seed)


def _forest(values: Any, truth: Ints, fit: Ints, predict: Ints, seed: int) -> Any:
    model = RandomForestClassifier(N_TREES, class_weight="balanced", random_state=seed, n_jobs=1)
    return _fitted(model, values, truth, fit, predict)


def _logistic() -> LogisticRegression:
    return LogisticRegression(class_weight="balanced", max_iter=5000)


def _fitted(model: Any, values: Any, truth: Ints, fit: Ints, predict: Ints) -> Any:
    model.fit(values[fit], truth)
    return model.predict_proba(values[predict]), model.classes_


def _nearest(seen: Seen, truth: Ints, fit: Ints, predict: Ints, _seed: int) -> Any:
    """Return a softmax of each class's distance, whose largest is the nearest neighbour's class."""
    classes = np.unique(truth)
    distances = pairwise_distances(seen.thumbnails[predict], seen.thumbnails[fit])
    nearest = np.stack([distances[:, truth == c].min(axis=1) for c in classes], axis=1)
    scale = float(np.median(nearest)) or 1.0
    shares = np.exp(-(nearest - nearest.min(axis=1, keepdims=True)) / (0.1 * scale))
    return shares / shares.sum(axis=1, keepdims=True), classes


BASELINES: Mapping[str, Callable[[Seen, Ints, Ints, Ints, int], Any]] = {
    "majority": _majority,
    "metadata": _metadata,
    "source": _source,
    "thumbnail_lr": _linear,
    "thumbnail_rf": _forest_of_thumbnails,
    "nearest": _nearest,
}
"""In the order of what they see."""
