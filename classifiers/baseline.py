"""The field's linear model: smooth, principal components, logistic regression.

`fit_linear` is the way in. Every step of it is linear, so the fitted model is one weight a voxel
and an intercept, which is what is kept. A network that does not beat it is not worth its steps.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from scipy.ndimage import gaussian_filter
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from rarescan.classifiers.contract import Shape, require_shape
from rarescan.classifiers.examples import Examples
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError
from rarescan.files import read_json, write_atomic, write_json

WEIGHTS = "weights.safetensors"
SETTINGS = "linear.json"
FWHM_MM = 12.0
MOST_COMPONENTS = 60
INVERSE_PENALTY = 0.3
_PICTURE_FWHM = 1 / 32
_SD_PER_FWHM = 1 / (2 * np.sqrt(2 * np.log(2)))


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """One weight a voxel of the smoothed image, and an intercept."""

    weights: FloatArray
    """Shape (x, y, z)."""
    intercept: float
    spacing_mm: float | None
    """Edge of a voxel; None for pictures."""

    @property
    def shape(self) -> Shape:
        """Shape of one image."""
        return self.weights.shape

    def score(self, images: FloatArray) -> FloatArray:
        """Return the probability of the positive diagnosis, float32, shape (n,)."""
        require_shape(images, self.shape)
        weights = self.weights.astype(np.float64)
        logits = [np.vdot(weights, smooth(image, self.spacing_mm)) for image in images]
        probabilities: FloatArray = expit(np.array(logits) + self.intercept).astype(np.float32)
        return probabilities

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` and `linear.json` into a folder."""
        write_atomic(folder / WEIGHTS, safetensors.numpy.save({"weights": self.weights}))
        write_json(folder / SETTINGS, {"intercept": self.intercept, "spacing_mm": self.spacing_mm})


def load_linear(folder: Path) -> LinearModel:
    """Open what `LinearModel.save` wrote."""
    settings = read_json(folder / SETTINGS)
    return LinearModel(
        weights=safetensors.numpy.load_file(folder / WEIGHTS)["weights"],
        intercept=settings["intercept"],
        spacing_mm=settings["spacing_mm"],
    )


def fit_linear(examples: Examples, spacing_mm: float | None) -> LinearModel:
    """Fit the linear model on labelled scans.

    Gaussian of 12 mm FWHM (a picture's planes one by one, 1/32 of their edges); principal
    components (60 at most) by full decomposition; scores over the standard deviation of the
    first; logistic regression with C = 0.3 and balanced classes.
    Nothing is drawn at random.

    Parameters
    ----------
    examples : Examples
        Training scans; both labels must occur.
    spacing_mm : float or None
        Edge of one voxel; None for pictures, shape (rows, columns, planes).

    Raises
    ------
    InputError
        Only one label occurs.
    """
    if len(set(examples.labels)) < 2:
        raise InputError(
            "The linear baseline cannot learn from one class.",
            remedy="Name two diagnoses of this cohort in `question`.",
        )
    images = np.stack([smooth(image, spacing_mm) for image in examples.read()])
    flat = images.reshape(len(images), -1)
    components = PCA(min(MOST_COMPONENTS, len(flat) - 1), svd_solver="full")
    codes = components.fit_transform(flat)
    scale = float(codes[:, 0].std()) or 1.0
    model = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=5000)
    model.fit(codes / scale, examples.labels)
    weights = (model.coef_[0] / scale) @ components.components_
    return LinearModel(
        weights=weights.astype(np.float32).reshape(images.shape[1:]),
        intercept=float(model.intercept_[0] - weights @ components.mean_),
        spacing_mm=spacing_mm,
    )


def smooth(image: FloatArray, spacing_mm: float | None) -> FloatArray:
    """Return one image after a Gaussian of 12 mm FWHM; a picture's planes, of 1/32 of the edges."""
    if spacing_mm is None:
        rows, columns, _ = image.shape
        sd: float | tuple[float, ...] = (
            rows * _PICTURE_FWHM * _SD_PER_FWHM,
            columns * _PICTURE_FWHM * _SD_PER_FWHM,
            0.0,
        )
    else:
        sd = FWHM_MM * _SD_PER_FWHM / spacing_mm
    blurred: FloatArray = gaussian_filter(image, sd, truncate=3)
    return blurred
