"""Baselines that know little."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from rarescan.classifiers import tables
from rarescan.classifiers.tables import BASELINES, Seen, fit_baseline, metadata_columns, thumbnails
from rarescan.cohort.contracts import Condition, Scan

N = 120
FIT, TEST = np.arange(80), np.arange(80, N)


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "N_TREES", 30)


def _seen(truth: np.ndarray, **changes: Any) -> Seen:
    """Return what says nothing of the truth, but for the changes."""
    random = np.random.default_rng(0)
    values: dict[str, Any] = {
        "thumbnails": random.normal(size=(N, 20)).astype(np.float32),
        "metadata": random.normal(size=(N, 2)),
        "sources": tuple(f"H{i % 4}" for i in range(N)),
    }
    return Seen(**values | changes)


def _truth(k: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, k, N)


def _predict(name: str, seen: Seen, truth: np.ndarray, k: int = 2) -> np.ndarray:
    return fit_baseline(name, seen, truth, (FIT, TEST), n_classes=k, seed=3)


def test_a_class_that_is_its_source_is_found_by_the_source_alone() -> None:
    """T5: measured on lung ultrasound, 0.761 from the source id alone."""
    truth = _truth()
    seen = _seen(truth, sources=tuple(f"H{t}" for t in truth))
    answers = {name: _predict(name, seen, truth).argmax(1) for name in BASELINES}
    assert balanced_accuracy_score(truth[TEST], answers["source"]) == 1
    assert balanced_accuracy_score(truth[TEST], answers["thumbnail_lr"]) < 0.7


def test_a_crop_whose_size_gives_the_label_away_is_found_by_the_metadata() -> None:
    """T27: lesion crops scaled to the lesion, AUC 0.992 from the side of the crop alone."""
    truth = _truth()
    random = np.random.default_rng(2)
    side = np.where(truth == 1, random.normal(90, 20, N), 200.0)
    seen = _seen(truth, metadata=np.stack([side, random.normal(size=N)], 1))
    assert roc_auc_score(truth[TEST], _predict("metadata", seen, truth)[:, 1]) > 0.95
    blind = _predict("metadata", _seen(truth), truth)[:, 1]
    assert abs(roc_auc_score(truth[TEST], blind) - 0.5) < 0.25


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_gives_probabilities_and_is_the_same_twice(name: str) -> None:
    truth = _truth(3)
    shares = _predict(name, _seen(truth), truth, 3)
    assert shares.shape == (40, 3)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    assert _predict(name, _seen(truth), truth, 3).tobytes() == shares.tobytes()


@pytest.mark.parametrize("name", list(BASELINES))
def test_no_baseline_looks_at_the_truth_of_those_it_predicts(name: str) -> None:
    """T8: what is tested is never fitted on."""
    truth = _truth()
    other = np.concatenate([truth[FIT], 1 - truth[TEST]])
    assert (
        _predict(name, _seen(truth), other).tobytes()
        == _predict(name, _seen(truth), truth).tobytes()
    )


def test_the_nearest_answers_as_scikit_learn_does() -> None:
    truth = _truth(3)
    seen = _seen(truth)
    model = KNeighborsClassifier(1).fit(seen.thumbnails[FIT], truth[FIT])
    expected = model.predict(seen.thumbnails[TEST])
    np.testing.assert_array_equal(_predict("nearest", seen, truth, 3).argmax(1), expected)


def test_the_majority_is_the_share_of_the_classes() -> None:
    truth = np.array([0] * 60 + [1] * 60)
    shares = _predict("majority", _seen(truth), truth)
    np.testing.assert_allclose(shares, np.tile([0.75, 0.25], (40, 1)))


def test_a_class_that_was_not_fitted_has_no_share() -> None:
    truth = np.array([0, 1] * 40 + [2] * 40)
    for name in BASELINES:
        assert (_predict(name, _seen(truth), truth, 3)[:, 2] == 0).all()


def test_baselines_with_nothing_to_look_at_are_left_out() -> None:
    seen = _seen(_truth(), metadata=np.empty((N, 0)), sources=("H",) * N)
    assert seen.names() == ["majority", "thumbnail_lr", "thumbnail_rf", "nearest"]


def test_a_thumbnail_is_the_area_average_of_every_plane() -> None:
    volumes = np.random.default_rng(0).random((5, 64, 96, 3)).astype(np.float32)
    found = thumbnails(volumes, [3, 1])
    blocks = volumes[[3, 1]].reshape(2, 32, 2, 32, 3, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, blocks.reshape(2, -1), atol=1e-5)
    assert thumbnails(volumes[:, :8, :8], [0]).shape == (1, 8 * 8 * 3)
    assert thumbnails(np.zeros((2, 20, 24, 20), np.float32), [0, 1]).shape == (2, 1000)


def test_metadata_are_numbers_of_acquisition_and_what_is_known_of_the_person() -> None:
    scan = Scan(scan_id="a", person_id="p", condition=Condition(diagnosis="x", age_years=70.0))
    other = replace(scan, scan_id="b", condition=Condition(diagnosis="x", sex="F"))
    rows = [
        {"scan_id": "a", "width": 640, "fps": None, "source": "S1", "nothing": None},
        {"scan_id": "b", "width": 320, "fps": 25.0, "source": "S2", "nothing": None},
    ]
    names, values = metadata_columns([scan, other], rows)
    assert names == ["age_years", "female", "width", "fps"]
    np.testing.assert_array_equal(values, [[70, np.nan, 640, np.nan], [np.nan, 1, 320, 25]])
    plain = replace(scan, condition=Condition(diagnosis="x"))
    assert metadata_columns([plain], [])[1].shape == (1, 0)
