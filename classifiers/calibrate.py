"""Probabilities that mean what they say: one temperature, fitted on validation persons.

`fit_temperature` is the way in. Dividing every logit by one number (Guo 2017, arXiv:1706.04599)
changes no answer, only how sure it sounds.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_calibration_error

from rarescan.cohort.contracts import FloatArray
from rarescan.threads import one_thread

_BINS = 10
_RANGE = (0.1, 20.0)
_STEPS = 50


def fit_temperature(
    logits: FloatArray, truth: npt.NDArray[np.int64], person_ids: Sequence[str]
) -> float:
    """Return the temperature with the smallest log-loss, every person weighing the same.

    Parameters
    ----------
    logits : float32 array, shape (n,) for two classes, else (n, k)
    truth : int array, shape (n,)
    person_ids : sequence of str
        Of each scan.

    Returns
    -------
    float
        0.1 to 20; 1 where there is nothing to fit (no scan, or one class).
    """
    if len(set(truth.tolist())) < 2:
        return 1.0
    values = torch.from_numpy(np.asarray(logits, dtype=np.float64))
    if values.ndim == 1:
        values = torch.stack((torch.zeros_like(values), values), 1)
    classes = torch.from_numpy(truth)
    scans = Counter(person_ids)
    weights = torch.tensor([1 / scans[person] for person in person_ids], dtype=torch.float64)
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        each = functional.cross_entropy(values / log_temperature.exp(), classes, reduction="none")
        total = (each * weights).sum() / weights.sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total.item()

    with one_thread():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = float(log_temperature.exp().item())
    return float(np.clip(found, *_RANGE)) if np.isfinite(found) else 1.0


def calibration_error(probabilities: FloatArray, truth: npt.NDArray[np.int64]) -> float:
    """Return the expected calibration error over scans, 0 to 1, in ten bins of confidence."""
    error = multiclass_calibration_error(
        torch.from_numpy(probabilities),
        torch.from_numpy(truth),
        num_classes=probabilities.shape[1],
        n_bins=_BINS,
    )
    return float(error)
