import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import rankdata

from rarescan.classifiers.baseline import smooth
from rarescan.classifiers.examples import Examples
from rarescan.classifiers.informed import averaged, believed, fit_informed
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import GridMismatchError, InputError

SHAPE = (8, 9, 8)


def _images(n: int, seed: int) -> FloatArray:
    noise = np.random.default_rng(seed).normal(0.5, 0.1, (n, *SHAPE))
    return noise.astype(np.float32)


def _pattern() -> FloatArray:
    found = np.zeros(SHAPE, np.float32)
    found[2:4, 2:5, 2:5] = -1
    return found


def _people(images: FloatArray, n_patients: int) -> Examples:
    n = len(images)
    return Examples(
        sources=(images,),
        rows=tuple((0, i) for i in range(n)),
        labels=tuple(int(i < n_patients) for i in range(n)),
        person_ids=tuple(f"P{i}" for i in range(n)),
    )


def _auc(scores: FloatArray, ill: int) -> float:
    ranks = rankdata(scores)
    return float((ranks[:ill].sum() - ill * (ill + 1) / 2) / (ill * (len(scores) - ill)))


def test_the_right_map_ranks_unseen_persons_better_than_none_and_a_wrong_one() -> None:
    training, test = _images(46, 0), _images(200, 1)
    training[:6] += 0.03 * _pattern()
    test[:100] += 0.03 * _pattern()
    people = _people(training, 6)
    right, wrong, none = (
        _auc(fit_informed(people, p, 8.0).score(test), 100)
        for p in (_pattern(), np.roll(_pattern(), 4, 0), np.zeros(SHAPE, np.float32))
    )
    assert right > max(wrong, none) + 0.05


def test_half_way_between_the_groups_the_score_is_one_half() -> None:
    training = _images(46, 0)
    training[:6] += 0.1 * _pattern()
    model = fit_informed(_people(training, 6), _pattern(), 8.0)
    flat = np.stack([smooth(image, 8.0) for image in training])
    controls = flat[6:].mean(0).ravel()
    at_controls = float(model.weights.ravel().astype(float) @ controls) + model.intercept
    away = np.sqrt(-2 * at_controls)
    # Fisher's log-likelihood ratio is -d^2/2 at the controls' mean, d the groups' distance.
    assert at_controls < 0
    assert model.score(training[6:]).mean() == pytest.approx(expit(-(away**2) / 2), abs=0.1)


def test_a_map_that_explains_the_patients_is_believed_and_noise_is_not() -> None:
    random = np.random.default_rng(3)
    expected = random.normal(size=40)
    patients = 0.7 * expected + random.normal(0, 1, (12, 40))
    found = believed(patients, expected)
    mean = patients.mean(0)
    assert np.linalg.norm(found - 0.7 * expected) < 0.5 * np.linalg.norm(mean - 0.7 * expected)


def test_patients_who_differ_in_another_way_than_the_map_are_believed_instead() -> None:
    expected, own = np.eye(2)
    patients = 9 * own + np.random.default_rng(0).normal(0, 0.1, (12, 2))
    np.testing.assert_allclose(believed(patients, expected), patients.mean(0), atol=0.05)
    # The opposite of the map is no reason to believe the map.
    assert believed(-patients[:, ::-1], expected)[0] < 0


def test_the_average_is_in_units_of_the_training_controls() -> None:
    first, second = np.array([-1.0, 1.0]), np.array([10.0, 30.0, 20.0])
    controls = [expit(first).astype(np.float32), expit(second / 10).astype(np.float32)]
    scores = [expit(np.array([2.0])).astype(np.float32), expit(np.array([3.0])).astype(np.float32)]
    expected = ((2 - 0) / 1 + (3 - 2) / np.std([1, 2, 3])) / 2
    assert averaged(scores, controls)[0] == pytest.approx(expected, rel=1e-3)


def test_another_grid_and_a_missing_class_are_refused() -> None:
    people = _people(_images(10, 0), 4)
    with pytest.raises(GridMismatchError):
        fit_informed(people, np.zeros((4, 4, 4), np.float32), 8.0)
    with pytest.raises(InputError, match="two patients"):
        fit_informed(_people(_images(10, 0), 1), _pattern(), 8.0)
