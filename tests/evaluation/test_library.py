"""The public functions: what they take, what they return, what they refuse."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from rarescan.cohort.contracts import FeatureSet, Score
from rarescan.errors import InputError
from rarescan.evaluation import copy_test, fid, inception_score, kid, metrics, mmd, prdc


def draw(n: int, seed: int, *, shift: float = 0.0, d: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def features(rows: np.ndarray, extractor: str = "ours", weights: str = "") -> FeatureSet:
    return FeatureSet(
        values=rows.astype(np.float32),
        person_ids=tuple(str(i) for i in range(len(rows))),
        extractor=extractor,
        weights_sha256=weights,
    )


def as_tensor(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows).requires_grad_()


@pytest.mark.parametrize("distance", [fid, kid, mmd])
def test_arrays_tensors_and_feature_sets_give_the_same_score(distance):
    x, y = (draw(30, i).astype(np.float32) for i in (1, 2))
    score = distance(x, y)
    assert isinstance(score, Score)
    assert score.low < score.value < score.high
    assert distance(as_tensor(x), as_tensor(y)) == score
    named = distance(features(x), features(y))
    assert (named.value, named.extractor) == (score.value, "ours")


def test_scores_carry_what_is_needed_to_read_them():
    x, y = draw(30, 1), draw(50, 2, shift=0.3)
    assert (mmd(x, y).n_real, mmd(x, y).n_synthetic, mmd(x, y).sufficient) == (30, 50, True)
    assert mmd(x, y).value == metrics.mmd(x, y).value
    assert kid(x, y).value == metrics.kid(x, y).value
    assert not kid(x, y).sufficient
    equal, whole = fid(x, y), fid(x, y, convention="torchmetrics")
    assert (equal.n_synthetic, whole.n_synthetic) == (30, 50)
    assert whole.value == metrics.fid(x, y)
    found = prdc(x, y)
    assert list(found) == ["precision", "recall", "density", "coverage"]
    assert found["recall"].value == metrics.prdc(x, y)["recall"]
    assert found["recall"].low <= found["recall"].value <= found["recall"].high <= 1


def test_inception_score_of_confident_and_of_ignorant_classifiers():
    assert inception_score(np.eye(4)).value == pytest.approx(4)
    assert inception_score(np.full((9, 3), 1 / 3)).value == pytest.approx(1)
    logits = draw(20, 3, d=5)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    score = inception_score(logits, logits=True)
    assert score.value == pytest.approx(inception_score(p).value)
    assert (score.better, score.sufficient) == ("neither", False)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fid(draw(5, 0), features(draw(1, 0))), "1 person"),
        (lambda: fid(draw(2, 0), draw(5, 0)), "three persons"),
        (lambda: kid(draw(5, 0) * np.nan, draw(5, 0)), "NaN"),
        (lambda: mmd(np.ones((5, 3)), draw(5, 0, d=3)), "same features"),
        (lambda: mmd(draw(5, 0), draw(5, 0, d=3)), "8 columns"),
        (lambda: mmd(np.zeros(()), draw(5, 0)), "axes"),
        (lambda: mmd(np.array([["a"]]), draw(5, 0)), "no real numbers"),
        (lambda: mmd(draw(5, 0).astype(complex), draw(5, 0)), "no real numbers"),
        (lambda: mmd(features(draw(5, 0)), features(draw(5, 1), "other")), "different extractors"),
        (lambda: mmd(features(draw(5, 0)), features(draw(5, 1), weights="ff")), "or weights"),
        (lambda: prdc(draw(9, 0), draw(50, 0)), "too few for 5 neighbours"),
        (lambda: inception_score(np.ones((5, 1))), "one class only"),
        (lambda: inception_score(draw(5, 0)), "logits=True"),
        (lambda: inception_score(np.eye(3), splits=4), "cannot be split"),
        (lambda: inception_score(np.eye(3)[0]), "two axes"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_a_remedy(call, words):
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert caught.value.remedy.endswith(".")


def blobs(n: int, seed: int) -> np.ndarray:
    """Return volumes with folds of their own in one outline."""
    inside = np.linalg.norm(np.indices((12, 12, 12)) - 5.5, axis=0) < 5.5
    noise = np.random.default_rng(seed).normal(size=(n, 12, 12, 12))
    folds = ndimage.gaussian_filter(noise, (0, 0.7, 0.7, 0.7))
    return (np.clip(0.5 + 0.3 * folds, 0.02, 1) * inside).astype(np.float32)


def test_copies_among_honest_volumes_are_counted(tmp_path):
    train, apart, honest = blobs(30, 1), blobs(20, 2), blobs(4, 3)
    made = np.concatenate([honest, train[:2]])
    for index, volume in enumerate(made):
        nib.Nifti1Image(volume, np.eye(4)).to_filename(tmp_path / f"{index}.nii")
    score = copy_test(as_tensor(train), tmp_path, apart, spacing_mm=8.0)
    assert score.value == pytest.approx(2 / 6)
    assert score.low < 2 / 6 < score.high
    assert (score.n_real, score.n_synthetic) == (30, 6)
    with pytest.raises(InputError, match="different shapes"):
        copy_test(train, made[:, 1:], apart, spacing_mm=8.0)
    with pytest.raises(InputError, match="not 3 axes"):
        copy_test(train[0], made, apart, spacing_mm=8.0)


def test_settings_are_read_without_anything_heavy():
    code = (
        "import sys, rarescan.evaluation as e, rarescan.evaluation.spec\n"
        "assert not {'scipy', 'torch', 'pandas'} & set(sys.modules)\n"
        "try: e.nothing\n"
        "except AttributeError: pass\n"
        "else: raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
