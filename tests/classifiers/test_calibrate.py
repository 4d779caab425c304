"""One temperature, and how far probabilities are from what happens."""

import numpy as np
import pytest

from rarescan.classifiers.calibrate import calibration_error, fit_temperature
from rarescan.classifiers.network import probabilities_of


def _sure(factor: float, n: int = 2000, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are too sure by a factor, and classes drawn from the true ones."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(n, k)).astype(np.float32) * 2
    shares = probabilities_of(logits)
    truth = np.array([random.choice(k, p=row / row.sum()) for row in shares.astype(np.float64)])
    return (logits * factor).astype(np.float32), truth.astype(np.int64)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_factor_by_which_logits_are_too_large(factor: float) -> None:
    logits, truth = _sure(factor)
    persons = [str(i) for i in range(len(truth))]
    assert fit_temperature(logits, truth, persons) == pytest.approx(factor, rel=0.15)


def test_two_classes_have_the_same_temperature_as_one_logit_or_two() -> None:
    logits, truth = _sure(2.5, k=2)
    persons = [str(i) for i in range(len(truth))]
    one = fit_temperature(logits[:, 1] - logits[:, 0], truth, persons)
    assert one == pytest.approx(fit_temperature(logits, truth, persons), rel=1e-3)


def test_a_person_with_many_scans_weighs_as_much_as_one_with_few() -> None:
    logits, truth = _sure(2.0, n=60)
    persons = [str(i) for i in range(60)]
    often = fit_temperature(
        np.concatenate([logits, *[logits[:1]] * 50]),
        np.concatenate([truth, *[truth[:1]] * 50]),
        persons + ["0"] * 50,
    )
    assert often == pytest.approx(fit_temperature(logits, truth, persons), rel=1e-3)


def test_calibration_lowers_the_error_of_what_was_too_sure() -> None:
    logits, truth = _sure(4.0)
    temperature = fit_temperature(logits, truth, [str(i) for i in range(len(truth))])
    before = calibration_error(probabilities_of(logits), truth)
    after = calibration_error(probabilities_of(logits, temperature), truth)
    assert before > 0.1
    assert after < 0.03


def test_nothing_to_fit_gives_1() -> None:
    assert fit_temperature(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), []) == 1.0
    assert fit_temperature(np.ones((3, 2), np.float32), np.zeros(3, np.int64), list("abc")) == 1.0


def test_probabilities_do_not_depend_on_how_many_are_asked_for() -> None:
    logits = np.random.default_rng(1).normal(size=(37, 3)).astype(np.float32)
    together = probabilities_of(logits, 1.7)
    for i in (0, 15, 16, 36):
        assert probabilities_of(logits[i : i + 1], 1.7).tobytes() == together[i : i + 1].tobytes()
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-6)
    assert probabilities_of(np.zeros((0, 3), np.float32)).shape == (0, 3)
    assert probabilities_of(np.zeros(0, np.float32)).shape == (0, 2)
