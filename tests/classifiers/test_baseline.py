"""The linear baseline against the pipeline that it stands for."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from rarescan.classifiers import baseline
from rarescan.classifiers.examples import Examples


@pytest.mark.parametrize("n", [20, 90])
def test_scores_are_those_of_the_stepwise_pipeline(
    n: int, make_examples: Callable[..., Examples]
) -> None:
    train, new = make_examples(n, seed=1), make_examples(30, seed=2)
    sd_voxels = 12 / 2.3548 / 8

    def normalised(images: np.ndarray) -> np.ndarray:
        # As the reference does it: intensity normalised first, then smoothed.
        values = (images.astype(np.float64) * 1.6 - 0.6) / 0.5
        return np.stack([gaussian_filter(v, sd_voxels, truncate=3).ravel() for v in values])

    components = PCA(min(60, n - 1), svd_solver="full").fit(normalised(train.read()))
    codes = components.transform(normalised(train.read()))
    model = LogisticRegression(C=0.3, class_weight="balanced", max_iter=5000)
    model.fit(codes / codes[:, 0].std(), train.labels)
    expected = model.predict_proba(
        components.transform(normalised(new.read())) / codes[:, 0].std()
    )[:, 1]

    fitted = baseline.fit_linear(train, 8.0)
    np.testing.assert_allclose(fitted.score(new.read()), expected, atol=2e-3)


def test_smoothing_has_the_width_it_says() -> None:
    point = np.zeros((61, 61, 61), np.float32)
    point[30, 30, 30] = 1
    profile = baseline.smooth(point, 1.0)[:, 30, 30]
    assert profile[36] / profile[30] == pytest.approx(0.5, abs=0.01)


def test_a_person_counts_by_class_not_by_number(make_examples: Callable[..., Examples]) -> None:
    """Controls seen three times each weigh no more than once."""
    examples = make_examples(20, seed=1)
    controls = [i for i, label in enumerate(examples.labels) if label == 0]
    many = examples.joined(examples.take(controls)).joined(examples.take(controls))
    new = make_examples(20, seed=2).read()
    scores = baseline.fit_linear(many, 8.0).score(new)
    assert scores.mean() == pytest.approx(
        baseline.fit_linear(examples, 8.0).score(new).mean(), abs=0.1
    )
