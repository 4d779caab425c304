"""One suite for everything that is trained: a new classifier is one more row of `KINDS`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from rarescan.classifiers import baseline, network, train
from rarescan.classifiers.contract import Classifier, choose_device, group_means, person_means
from rarescan.classifiers.examples import Examples, balanced_pools
from rarescan.classifiers.mri import MRI
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.errors import GridMismatchError, InputError, MissingExtraError
from rarescan.threads import one_thread


def _fit_network(examples: Examples, seed: int) -> Classifier:
    config = ClassifierConfig(steps=60, seed=seed)
    pools = balanced_pools(examples, config.batch_size)
    return train.fit(examples, pools, config, modality=MRI, device=torch.device("cpu"))[0]


def _fit_linear(examples: Examples, seed: int) -> Classifier:
    return baseline.fit_linear(examples, 8.0)


KINDS = {
    "network": (_fit_network, lambda folder: network.load_network(folder, "cpu")),
    "linear": (_fit_linear, baseline.load_linear),
}
kinds = pytest.mark.parametrize("kind", list(KINDS))


@pytest.fixture(scope="module")
def trained(make_examples: Callable[..., Examples]) -> dict[str, Classifier]:
    examples = make_examples(40, seed=1)
    return {kind: fit(examples, 5) for kind, (fit, _) in KINDS.items()}


@pytest.fixture(scope="module")
def held_out(make_examples: Callable[..., Examples]) -> Examples:
    return make_examples(80, seed=2)


@kinds
def test_a_saved_classifier_scores_the_same_bytes(
    kind: str, trained: dict[str, Classifier], held_out: Examples, tmp_path: Path
) -> None:
    before = trained[kind].score(held_out.read())
    trained[kind].save(tmp_path)
    opened = KINDS[kind][1](tmp_path)
    assert opened.score(held_out.read()).tobytes() == before.tobytes()
    assert opened.shape == trained[kind].shape


@kinds
def test_one_seed_gives_one_set_of_weights(
    kind: str,
    trained: dict[str, Classifier],
    make_examples: Callable[..., Examples],
    tmp_path: Path,
) -> None:
    again = KINDS[kind][0](make_examples(40, seed=1), 5)
    trained[kind].save(tmp_path / "a")
    again.save(tmp_path / "b")
    first, second = (tmp_path / n / "weights.safetensors" for n in "ab")
    assert first.read_bytes() == second.read_bytes()


@kinds
def test_every_image_gets_one_probability(
    kind: str, trained: dict[str, Classifier], held_out: Examples
) -> None:
    scores = trained[kind].score(held_out.read())
    assert scores.shape == (80,)
    assert scores.dtype == np.float32
    assert scores.min() >= 0
    assert scores.max() <= 1


@kinds
def test_a_score_does_not_depend_on_what_is_scored_beside_it(
    kind: str, trained: dict[str, Classifier], held_out: Examples
) -> None:
    images = held_out.read()
    together = trained[kind].score(images)
    for i in (0, 17, 79):
        assert trained[kind].score(images[i : i + 1]).tobytes() == together[i : i + 1].tobytes()


@kinds
def test_another_grid_is_refused(kind: str, trained: dict[str, Classifier]) -> None:
    with pytest.raises(GridMismatchError, match=r"40 x 48 x 40.*20 x 24 x 20"):
        trained[kind].score(np.zeros((1, 40, 48, 40), np.float32))


@kinds
def test_no_image_gives_no_score(kind: str, trained: dict[str, Classifier]) -> None:
    assert trained[kind].score(np.zeros((0, 20, 24, 20), np.float32)).shape == (0,)


@kinds
def test_a_planted_difference_is_found_on_new_persons(
    kind: str, trained: dict[str, Classifier], held_out: Examples
) -> None:
    assert roc_auc_score(held_out.labels, trained[kind].score(held_out.read())) > 0.9


@kinds
def test_shuffled_labels_teach_nothing_about_new_persons(
    kind: str, make_examples: Callable[..., Examples], held_out: Examples
) -> None:
    examples = make_examples(40, seed=1)
    shuffled = tuple(np.random.default_rng(4).permutation(examples.labels).tolist())
    fitted = KINDS[kind][0](replace(examples, labels=shuffled), 5)
    # 40 + 40 persons: 0.065 is one standard deviation of a chance AUC.
    assert abs(roc_auc_score(held_out.labels, fitted.score(held_out.read())) - 0.5) < 0.2


@kinds
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_is_refused(
    kind: str, label: int, make_examples: Callable[..., Examples]
) -> None:
    examples = make_examples(8, seed=1)
    one_class = examples.take(range(8), label=label)
    with pytest.raises(InputError, match="one class"):
        KINDS[kind][0](one_class, 5)


def test_a_person_scores_the_mean_over_the_scans() -> None:
    scores = np.array([0.2, 0.9, 0.4], np.float32)
    assert person_means(["b", "a", "b"], scores) == pytest.approx({"b": 0.3, "a": 0.9})


def test_the_top_scans_of_a_clip_show_what_most_frames_do_not() -> None:
    frames = np.array([[0.9, 0.1]] * 8 + [[0.1, 0.9]] * 2 + [[0.8, 0.2]], np.float32)
    clips = ["a"] * 10 + ["b"]
    names, means = group_means(clips, frames)
    assert names == ["a", "b"]
    np.testing.assert_allclose(means, [[0.74, 0.26], [0.8, 0.2]], atol=1e-6)
    top = group_means(clips, frames, top=2)[1]
    np.testing.assert_allclose(top, [[0.5, 0.5], [0.8, 0.2]], atol=1e-6)
    assert group_means([], np.empty((0, 2), np.float32))[1].shape == (0, 2)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1, width=32)), min_size=1))
def test_a_person_never_scores_beyond_that_persons_scans(scans: list[tuple[str, float]]) -> None:
    persons, scores = zip(*scans, strict=True)
    for person, mean in person_means(persons, np.array(scores, np.float32)).items():
        own = [score for p, score in scans if p == person]
        assert min(own) - 1e-6 <= mean <= max(own) + 1e-6


def test_a_missing_gpu_is_an_error_that_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(MissingExtraError, match="auto"):
        choose_device("cuda")


def test_the_number_of_threads_is_put_back() -> None:
    torch.set_num_threads(2)
    with one_thread():
        inside = torch.get_num_threads()
    after = torch.get_num_threads()
    torch.set_num_threads(1)
    assert (inside, after) == (1, 2)
