"""A detector that has learned normal persons only."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from rarescan.classifiers import anomaly
from rarescan.classifiers.anomaly import (
    error_of,
    of_normal_persons,
    run_anomaly,
    two_classes,
)
from rarescan.classifiers.spec import AnomalyConfig, ClassifierConfig, ClassifyConfig
from rarescan.cohort.contracts import Scan
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.configs.schema import RunConfig
from rarescan.errors import InputError, SettingError
from rarescan.flows.anomaly import anomaly as anomaly_verb
from rarescan.flows.anomaly import learn_codec

CLASSIFY = ClassifyConfig(classes=("well", "ill"), folds=3, network=ClassifierConfig(seed=2))
WELL = AnomalyConfig(normal="well")


@pytest.fixture(scope="module")
def cohort(make_pictures: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("anomaly") / "p", {"well": 40, "ill": 12})


class Mean:
    """Gives back the mean of what it has learned, and remembers whom it has seen."""

    def __init__(self) -> None:
        self.learned: list[np.ndarray] = []

    def __call__(
        self, images: np.ndarray, folder: Path, seed: int
    ) -> Callable[[np.ndarray], np.ndarray]:
        self.learned.append(images)
        mean = images.mean(0)
        return lambda some: np.broadcast_to(mean, some.shape)


def _found(work: Path) -> dict[str, list[dict[str, object]]]:
    rows = pq.read_table(work / "predictions.parquet").to_pylist()
    return {m: [r for r in rows if r["model"] == m] for m in {row["model"] for row in rows}}


def test_what_was_never_learned_stands_out_and_baselines_stand_beside_it(
    cohort: Path, tmp_path: Path
) -> None:
    about = run_anomaly(tmp_path, cohort, CLASSIFY, WELL, learn=Mean(), workers=1)
    rows = _found(tmp_path)
    assert set(rows) == {"network", "components_of_thumbnails", "brightness"}
    assert {len(own) for own in rows.values()} == {len(open_cohort(cohort).scans)}
    truth = [row["truth"] for row in rows["network"]]
    abnormal = [row["probabilities"][1] for row in rows["network"]]  # type: ignore[index]
    assert roc_auc_score(truth, abnormal) > 0.95
    assert about["classes"] == ["normal", "abnormal"]
    assert about["persons"] == {"normal": 40, "abnormal": 12}
    assert len(about["thresholds"]) == 3
    assert len(list((tmp_path / "maps").glob("*.png"))) == 6


def test_only_normal_training_persons_are_learned(cohort: Path, tmp_path: Path) -> None:
    learn = Mean()
    run_anomaly(tmp_path, cohort, CLASSIFY, WELL, learn=learn, workers=1)
    opened = open_cohort(cohort)
    volumes = open_volumes(opened)
    place = {volumes[row].tobytes(): scan for row, scan in enumerate(opened.scans)}
    rows = _found(tmp_path)["network"]
    for fold, images in enumerate(learn.learned):
        seen = {place[image.tobytes()].person_id for image in images}
        assert {place[image.tobytes()].target for image in images} == {"well"}
        assert not seen & {row["person_id"] for row in rows if row["fold"] == fold}


def test_nobody_abnormal_moves_the_threshold(
    cohort: Path, tmp_path: Path, make_pictures: Callable[..., Path]
) -> None:
    """The same persons with a stronger disease: normal scores and thresholds stay as they are."""
    first = run_anomaly(tmp_path / "a", cohort, CLASSIFY, WELL, learn=Mean(), workers=1)
    random = np.random.default_rng(0)
    worse = make_pictures(tmp_path / "worse", {"well": 40, "ill": 12})
    opened = open_cohort(worse)
    path = next(worse.glob("rarescan/volumes.npy"))
    volumes = np.load(path)
    for row, scan in enumerate(opened.scans):
        if scan.target == "ill":
            volumes[row] = random.random(volumes[row].shape)
    np.save(path, volumes)
    second = run_anomaly(tmp_path / "b", worse, CLASSIFY, WELL, learn=Mean(), workers=1)
    assert first["thresholds"] == second["thresholds"]


def test_a_person_with_one_abnormal_scan_is_learned_in_none(
    make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    def one_ill_breast(scan: Scan) -> Scan:
        return replace(scan, target="ill" if scan.scan_id == "S003-0" else scan.target)

    root = make_pictures(tmp_path / "p", {"well": 20, "ill": 12}, change=one_ill_breast)
    table = two_classes(open_cohort(root), CLASSIFY, WELL)
    kept = of_normal_persons(table, np.arange(len(table.scans)))
    assert "P003" not in {table.person_ids[p] for p in kept}
    assert len(kept) == 38


def test_errors_count_where_there_is_something() -> None:
    images, again = np.zeros((2, 4, 4, 1)), np.ones((2, 4, 4, 1))
    images[0, :2] = 0.5
    np.testing.assert_allclose(error_of(images, again), [0.5, 0.0])


def test_a_score_at_the_threshold_is_even_odds() -> None:
    shares = anomaly._shares(np.array([0.0, 0.2, 0.6]), 0.2)
    np.testing.assert_allclose(shares, [[1, 0], [0.5, 0.5], [0.25, 0.75]])


def test_finished_folds_are_kept(cohort: Path, tmp_path: Path) -> None:
    run_anomaly(tmp_path, cohort, CLASSIFY, WELL, learn=Mean(), workers=1)
    before = (tmp_path / "predictions.parquet").read_bytes()
    again = Mean()
    run_anomaly(tmp_path, cohort, CLASSIFY, WELL, learn=again, workers=1)
    assert again.learned == []
    assert (tmp_path / "predictions.parquet").read_bytes() == before


def test_an_unknown_normal_label_is_named(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"'wel'.*Did you mean 'well'"):
        run_anomaly(tmp_path, cohort, CLASSIFY, AnomalyConfig(normal="wel"), learn=Mean())


def test_too_few_normal_persons_are_an_error_or_an_answer(
    cohort: Path, tmp_path: Path, make_pictures: Callable[..., Path]
) -> None:
    table = two_classes(open_cohort(cohort), CLASSIFY, WELL)
    with pytest.raises(InputError, match="7 scans of persons who are normal"):
        of_normal_persons(table, np.arange(7))
    few = make_pictures(tmp_path / "p", {"well": 20, "ill": 3}, partition=False)
    about = run_anomaly(tmp_path / "out", few, CLASSIFY, WELL, learn=Mean(), workers=1)
    assert "3 persons show 'abnormal'" in about["insufficient"]
    assert _found(tmp_path / "out") == {}


def test_what_was_learned_is_given_back_and_what_was_not_is_not(tmp_path: Path) -> None:
    """Two pictures that a straight line joins: everything on it comes back, nothing else does."""
    random = np.random.default_rng(0)
    one, other = 0.2 + 0.6 * random.random((2, 16, 8, 2), dtype=np.float32)
    learned = np.stack([one + t * (other - one) for t in np.linspace(0, 1, 9, dtype=np.float32)])
    give = learn_codec(learned, tmp_path, 1, settings=AnomalyConfig(), device="cpu")
    between = 0.3 * one + 0.7 * other
    new = random.random((16, 8, 2), dtype=np.float32)
    again = give(np.stack([between, new]))
    assert np.abs(again[0] - between).max() < 2e-3
    assert np.abs(again[1] - new).mean() > 0.1


def test_a_size_without_an_autoencoder_is_refused(cohort: Path, tmp_path: Path) -> None:
    config = AnomalyConfig(normal="well", width=32)
    with pytest.raises(SettingError, match=r"anomaly\.width"):
        run_anomaly(tmp_path, cohort, CLASSIFY, config, learn=Mean())


@pytest.mark.long
@pytest.mark.parametrize("planes", [1, 2])
def test_the_autoencoder_gives_back_pictures_plane_by_plane(planes: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((8, 16, 16, planes), dtype=np.float32)
    small = AnomalyConfig(codec="kl", steps=2, width=8, depth=2, latent_channels=2)
    give = learn_codec(images, tmp_path / "a", 1, settings=small, device="cpu")
    again = give(images[:3])
    assert again.shape == (3, 16, 16, planes)
    assert again.min() >= 0
    assert again.max() <= 1
    np.testing.assert_array_equal(again[1:2], give(images[1:2]))
    twice = learn_codec(images, tmp_path / "b", 1, settings=small, device="cpu")
    np.testing.assert_array_equal(again, twice(images[:3]))


def test_the_verb_writes_a_page_with_its_verdict_and_the_baselines(
    cohort: Path, tmp_path: Path
) -> None:
    config = RunConfig(classify=CLASSIFY, anomaly=WELL, device="cpu", workers=1)
    folder = anomaly_verb(config, cohort, tmp_path / "out")
    page = (folder / "classifiers.html").read_text()
    assert "components of thumbnails" in page
    assert "data:image/webp" in page
    assert not list(folder.glob("folds/*/codec"))
