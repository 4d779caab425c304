"""The network that judges generators."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rarescan.classifiers.domain import DomainNetwork, open_network, train_network
from rarescan.classifiers.examples import labelled
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.cohort.contracts import Question
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.errors import GridMismatchError, InputError
from rarescan.files import read_json

CONFIG = ClassifierConfig(steps=60, seed=4)


@pytest.fixture(scope="module")
def folder(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("network")
    return train_network(prepared, work, CONFIG, Question(), device="cpu")


@pytest.fixture(scope="module")
def judge(folder: Path) -> DomainNetwork:
    return open_network(folder, device="cpu")


def test_features_are_few_and_probabilities_add_up(judge: DomainNetwork, prepared: Path) -> None:
    features, probabilities = judge.embed(open_volumes(open_cohort(prepared)))
    assert features.shape == (60, 64)
    assert features.dtype == probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)


def test_the_second_probability_is_the_positive_diagnosis(
    judge: DomainNetwork, prepared: Path
) -> None:
    persons = labelled(open_cohort(prepared), Question(), "validation", "test")
    assert roc_auc_score(persons.labels, judge.embed(persons.read())[1][:, 1]) > 0.9


def test_a_row_depends_on_its_own_volume_alone(judge: DomainNetwork, prepared: Path) -> None:
    volumes = open_volumes(open_cohort(prepared))
    features, probabilities = judge.embed(volumes)
    alone = judge.embed(volumes[37:38])
    assert alone[0].tobytes() == features[37:38].tobytes()
    assert alone[1].tobytes() == probabilities[37:38].tobytes()


def test_the_projection_keeps_distances(judge: DomainNetwork, prepared: Path) -> None:
    volumes = open_volumes(open_cohort(prepared))
    full, _ = judge.trained.features_and_scores(volumes)
    few, _ = judge.embed(volumes)
    pairs = np.triu_indices(len(volumes), 1)
    before = np.linalg.norm(full[:, None] - full, axis=-1)[pairs]
    after = np.linalg.norm(few[:, None] - few, axis=-1)[pairs]
    # 64 dimensions: the relative error of one distance has a standard deviation of 1/sqrt(128).
    assert np.mean(after / before) == pytest.approx(1, abs=0.1)
    assert np.std(after / before) < 0.15


def test_few_features_are_left_as_they_are(prepared: Path, tmp_path: Path) -> None:
    small = replace(CONFIG, steps=10, channels=(2,))
    train_network(prepared, tmp_path, small, Question(), device="cpu")
    opened = open_network(tmp_path, device="cpu")
    volumes = open_volumes(open_cohort(prepared))[:3]
    np.testing.assert_array_equal(
        opened.embed(volumes)[0], opened.trained.features_and_scores(volumes)[0]
    )


def test_training_twice_gives_the_same_weights_from_training_persons_only(
    folder: Path, prepared: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(prepared, changed)
    rows = open_cohort(changed).indices("validation", "test")
    volumes = np.load(changed / "rarescan" / "volumes.npy", mmap_mode="r+")
    volumes[rows] = 1 - volumes[rows]
    volumes.flush()
    again = train_network(changed, tmp_path / "network", CONFIG, Question(), device="cpu")
    first, second = (p / "weights.safetensors" for p in (folder, again))
    assert first.read_bytes() == second.read_bytes()
    assert open_network(again).weights_sha256 == open_network(folder).weights_sha256


def test_the_curve_watches_validation_persons(folder: Path) -> None:
    training = read_json(folder / "training.json")
    assert training["curve"][-1]["step"] == CONFIG.steps
    assert 0 <= training["curve"][-1]["watched_auc"] <= 1
    assert training["question"] == {"positive": "bvFTD", "negative": "control"}


def test_another_grid_is_refused(judge: DomainNetwork) -> None:
    with pytest.raises(GridMismatchError):
        judge.embed(np.zeros((2, 40, 48, 40), np.float32))


def test_a_diagnosis_that_nobody_has_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one class"):
        train_network(prepared, tmp_path, CONFIG, Question(positive="AD"), device="cpu")
    assert not list(tmp_path.iterdir())


def test_the_judge_of_pictures_reads_pictures(pictures: Path, tmp_path: Path) -> None:
    question = Question(positive="covid", negative="regular")
    config = ClassifierConfig(steps=40, channels=(4, 8), seed=4)
    opened = open_network(
        train_network(pictures, tmp_path, config, question, device="cpu"), device="cpu"
    )
    persons = labelled(open_cohort(pictures), question, "validation", "test")
    assert roc_auc_score(persons.labels, opened.embed(persons.read())[1][:, 1]) > 0.9
