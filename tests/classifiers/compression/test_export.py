"""A classifier as ONNX gives what torch gives.

Torch's exporter takes seconds to be imported, so what needs it is `long`; the rest uses a file
that was written without it.
"""

import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx
import torch
from scipy.special import expit
from torch import nn

from rarescan.classifiers.compression.export import (
    OnnxClassifier,
    Whole,
    as_probabilities,
    load_onnx,
    write_onnx,
)
from rarescan.classifiers.contract import Labels
from rarescan.classifiers.golden import invent_images
from rarescan.classifiers.networks import FlatNetwork, build_network
from rarescan.classifiers.planes import prepare
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.errors import GridMismatchError, InputError, MissingExtraError
from rarescan.files import sha256_file

LABELS = Labels(names=("covid", "pneumonia", "regular"))
SHAPE = tiny_onnx.SHAPE


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> OnnxClassifier:
    path = tiny_onnx.write(tmp_path_factory.mktemp("onnx") / "model.onnx")
    return OnnxClassifier(
        model=path.read_bytes(), shape=SHAPE, classes=LABELS.names, about={"unit": "frame"}
    )


def _flat(n_classes: int) -> FlatNetwork:
    torch.manual_seed(1)
    labels = Labels(names=tuple("abcd"[:n_classes]))
    network = FlatNetwork((16, 20), ClassifierConfig(channels=(4, 8)), labels)
    for _ in range(3):
        network(prepare(torch.rand(8, 16, 20, 1)))
    return network


def _resnet(n_classes: int) -> torch.nn.Module:
    torch.manual_seed(1)
    config = ClassifierConfig(network="resnet10")
    labels = Labels(names=tuple("abcd"[:n_classes]))
    return build_network((32, 32), config, labels, n_channels=3)


@pytest.mark.long
@pytest.mark.parametrize(
    ("build", "shape", "n_classes"),
    [(_flat, (16, 20, 1), 3), (_flat, (16, 20, 1), 2), (_resnet, (32, 32, 3), 4)],
)
def test_t31_t33_saved_loaded_and_exported_it_gives_torchs_probabilities(
    build: Callable[[int], torch.nn.Module], shape: tuple[int, ...], n_classes: int, tmp_path: Path
) -> None:
    whole = Whole(build(n_classes).train(), prepare)
    path = write_onnx(tmp_path / "m.onnx", whole, shape)
    names = tuple("abcd"[:n_classes])
    OnnxClassifier(model=path.read_bytes(), shape=shape, classes=names).save(tmp_path / "saved")
    images = invent_images(shape, 5, seed=3)
    opened = load_onnx(tmp_path / "saved")
    np.testing.assert_allclose(opened.probabilities(images), whole.run(images), atol=1e-5)


def test_what_is_saved_comes_back(classifier: OnnxClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    opened = load_onnx(tmp_path)
    images = invent_images(SHAPE, 3)
    assert opened.probabilities(images).tobytes() == classifier.probabilities(images).tobytes()
    assert (opened.classes, opened.shape, opened.about) == (LABELS.names, SHAPE, {"unit": "frame"})


def test_t33_an_answer_does_not_depend_on_what_is_asked_beside_it(
    classifier: OnnxClassifier,
) -> None:
    images = invent_images(SHAPE, 6)
    together = classifier.probabilities(images)
    for i in (0, 5):
        assert classifier.probabilities(images[i : i + 1]).tobytes() == together[i].tobytes()


def test_t44_the_outputs_of_an_image_sum_to_one(classifier: OnnxClassifier) -> None:
    found = classifier.probabilities(invent_images(SHAPE, 8))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert np.unique(found.argmax(axis=1)).size > 1


def test_t34_an_image_that_was_not_prepared_is_refused(classifier: OnnxClassifier) -> None:
    with pytest.raises(InputError, match="0 to 1"):
        classifier.probabilities(invent_images(SHAPE, 1) * 255)


def test_another_shape_is_refused(classifier: OnnxClassifier) -> None:
    with pytest.raises(GridMismatchError, match="20 x 12 x 1"):
        classifier.probabilities(np.zeros((1, 20, 12, 1), np.float32))


def test_no_image_gives_no_answer(classifier: OnnxClassifier) -> None:
    assert classifier.probabilities(np.zeros((0, *SHAPE), np.float32)).shape == (0, 3)


def test_one_logit_is_the_log_odds_of_the_second_of_two_classes() -> None:
    logits = np.array([-3.0, 0.0, 0.5], np.float32)
    found = as_probabilities(torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(found[:, 1], expit(logits), rtol=1e-6)


def test_the_score_is_the_probability_of_the_last_class(classifier: OnnxClassifier) -> None:
    images = invent_images(SHAPE, 3)
    np.testing.assert_array_equal(classifier.score(images), classifier.probabilities(images)[:, 2])


@pytest.mark.long
def test_a_preparation_that_mixes_the_images_of_a_batch_is_refused(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((1, 2, 3))

    whole = Whole(Mean(), lambda images: 20 * (images - images.mean()))
    with pytest.raises(InputError, match="random"):
        write_onnx(tmp_path / "m.onnx", whole, SHAPE)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "golden.safetensors"])
def test_a_missing_file_is_an_error_with_a_remedy(
    name: str, classifier: OnnxClassifier, tmp_path: Path
) -> None:
    classifier.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match="missing"):
        load_onnx(tmp_path)


def test_a_changed_byte_is_found(classifier: OnnxClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    data = bytearray((tmp_path / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        load_onnx(tmp_path)


def test_t42_a_pickle_in_the_place_of_the_model_is_not_executed(
    classifier: OnnxClassifier, tmp_path: Path
) -> None:
    folder = tmp_path / '"; touch x"'

    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return (tmp_path / "executed").touch, ()

    replace(classifier).save(folder)
    (folder / "model.onnx").write_bytes(pickle.dumps(Touch()))
    settings = (folder / "model.json").read_text()
    old = settings.split('"sha256": "')[1][:64]
    settings = settings.replace(old, sha256_file(folder / "model.onnx"))
    (folder / "model.json").write_text(settings)
    with pytest.raises(InputError, match="damaged"):
        load_onnx(folder)
    assert not (tmp_path / "executed").exists()
    assert not Path("x").exists()


def test_t34_a_model_with_another_preparation_is_refused(
    classifier: OnnxClassifier, tmp_path: Path
) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(classifier.model)
    for weight in model.graph.initializer:
        if not weight.dims and numpy_helper.to_array(weight) == np.float32(0.25):
            weight.CopyFrom(numpy_helper.from_array(np.float32(0.5), weight.name))
    classifier.save(tmp_path)
    golden = (tmp_path / "golden.safetensors").read_bytes(), (tmp_path / "golden.json").read_bytes()
    replace(classifier, model=model.SerializeToString()).save(tmp_path)
    (tmp_path / "golden.safetensors").write_bytes(golden[0])
    (tmp_path / "golden.json").write_bytes(golden[1])
    with pytest.raises(InputError, match="differs"):
        load_onnx(tmp_path)


@pytest.mark.parametrize("package", ["onnxruntime", "onnx", "onnxscript"])
def test_a_missing_package_is_an_error_that_names_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"rarescan\[onnx\]"):
        write_onnx(tmp_path / "m.onnx", Whole(torch.nn.Flatten(), prepare), SHAPE)
