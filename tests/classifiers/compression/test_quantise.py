"""Smaller numbers in an ONNX file, and what may calibrate them."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.classifiers.compression import quantise
from rarescan.classifiers.compression.export import OnnxClassifier
from rarescan.classifiers.compression.quantise import Calibration, calibration_of
from rarescan.classifiers.examples import Examples
from rarescan.classifiers.golden import invent_images
from rarescan.errors import InputError

SHAPE = tiny_onnx.SHAPE


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_onnx.write(tmp_path_factory.mktemp("onnx") / "plain.onnx")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return invent_images(SHAPE, 120, seed=5)


def _answers(path: Path, images: np.ndarray) -> np.ndarray:
    found = OnnxClassifier(model=path.read_bytes(), shape=SHAPE, classes=tiny_onnx.CLASSES)
    return found.probabilities(images)


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    return float((one.argmax(1) == other.argmax(1)).mean())


def test_the_images_ask_for_every_class(plain: Path, images: np.ndarray) -> None:
    # Else the tests below could not tell a good file from a bad one.
    assert np.bincount(_answers(plain, images).argmax(1), minlength=3).max() < 100


def test_static_int8_keeps_the_labels(plain: Path, images: np.ndarray, tmp_path: Path) -> None:
    path = quantise.write_static(plain, tmp_path / "s.onnx", Calibration(images=images[:40]))
    found = _answers(path, images[40:])
    assert _agreement(found, _answers(plain, images[40:])) >= 0.95
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_t35_static_int8_on_blank_frames_would_not(
    plain: Path, images: np.ndarray, tmp_path: Path
) -> None:
    blank = object.__new__(Calibration)
    object.__setattr__(blank, "images", np.zeros((8, *SHAPE), np.float32))
    path = quantise.write_static(plain, tmp_path / "s.onnx", blank)
    assert _agreement(_answers(path, images), _answers(plain, images)) < 0.8


@pytest.mark.parametrize(
    ("write", "least", "tolerance"),
    [(quantise.write_dynamic, 0.95, 0.25), (quantise.write_half, 0.99, 5e-3)],
)
def test_other_formats_keep_the_labels(
    write: object, least: float, tolerance: float, plain: Path, images: np.ndarray, tmp_path: Path
) -> None:
    found = _answers(write(plain, tmp_path / "x.onnx"), images)  # type: ignore[operator]
    expected = _answers(plain, images)
    assert _agreement(found, expected) >= least
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_dynamic_int8_answers_alike_whatever_is_asked_beside_it(
    plain: Path, images: np.ndarray, tmp_path: Path
) -> None:
    path = quantise.write_dynamic(plain, tmp_path / "d.onnx")
    alone = _answers(path, images[3:4])
    bright = np.ones_like(images[:1])
    assert _answers(path, np.concatenate([images[3:4], bright]))[0].tobytes() == alone.tobytes()


def test_converting_leaves_the_loggers_as_they_were(
    plain: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    quantise.write_static(plain, tmp_path / "s.onnx", Calibration(images=images[:9]))
    assert logging.root.handlers == []
    assert logging.root.isEnabledFor(logging.WARNING)


def test_weights_keep_seven_bits_where_sums_of_products_overflow(
    plain: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    from onnx import numpy_helper

    largest = {}
    for vnni in (False, True):
        monkeypatch.setattr(quantise, "multiplies_int8", lambda vnni=vnni: vnni)
        path = quantise.write_static(plain, tmp_path / "s.onnx", Calibration(images=images[:9]))
        weights = [numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer]
        largest[vnni] = max(int(np.abs(w.astype(int)).max()) for w in weights if w.dtype == np.int8)
    assert largest == {False: 64, True: 127}


def _blank(n: int) -> np.ndarray:
    return np.full((n, *SHAPE), 0.4, np.float32)


@pytest.mark.parametrize(
    ("images", "why"),
    [
        pytest.param(_blank(32), "blank", id="blank frames"),
        pytest.param(np.zeros((0, *SHAPE), np.float32), "0 scans", id="none"),
        pytest.param(invent_images(SHAPE, 7), "7 scans", id="few"),
        pytest.param(np.repeat(invent_images(SHAPE, 1), 32, 0), "repeat", id="one scan repeated"),
        pytest.param(invent_images(SHAPE, 16) * 255, "0 to 1", id="not prepared"),
        pytest.param(
            np.concatenate([invent_images(SHAPE, 16), _blank(4)]), "blank", id="partly blank"
        ),
    ],
)
def test_t35_nothing_else_than_scans_can_calibrate(images: np.ndarray, why: str) -> None:
    with pytest.raises(InputError, match=why):
        Calibration(images=images)


def _examples(scans_each: list[int]) -> Examples:
    n = sum(scans_each)
    return Examples(
        sources=(invent_images(SHAPE, n),),
        rows=tuple((0, i) for i in range(n)),
        labels=tuple(0 for _ in range(n)),
        person_ids=tuple(f"P{p}" for p, own in enumerate(scans_each) for _ in range(own)),
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=8, max_size=12), st.integers(8, 30))
def test_every_person_calibrates_as_often_as_possible(scans_each: list[int], n: int) -> None:
    examples = _examples(scans_each)
    chosen = calibration_of(examples, n).images
    images = examples.read()
    owners = [
        examples.person_ids[int(np.flatnonzero((images == c).all(axis=(1, 2, 3)))[0])]
        for c in chosen
    ]
    assert len(chosen) == min(n, sum(scans_each))
    counts = [owners.count(f"P{p}") for p in range(len(scans_each))]
    assert all(
        count >= min(own, max(counts) - 1) for count, own in zip(counts, scans_each, strict=True)
    )


def test_blank_scans_of_a_cohort_are_left_out() -> None:
    examples = _examples([1] * 20)
    source = examples.sources[0].copy()
    source[::2] = 0
    found = calibration_of(Examples(**{**vars(examples), "sources": (source,)}), 20)
    assert len(found.images) == 10
    assert (found.images.reshape(10, -1).std(axis=1) > 0.01).all()


def test_no_validation_person_is_an_error_with_a_remedy() -> None:
    with pytest.raises(InputError, match="no validation persons"):
        calibration_of(_examples([2]).take([]), 16)


def test_the_cpus_instructions_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"avx2": True, "avx512_vnni": True, "amx_int8": False, "architecture": "x86_64"}
    monkeypatch.setattr(quantise.torch.cpu, "get_capabilities", lambda: known)
    assert quantise.cpu_has("avx2", "amx_int8", "unheard_of") == ["avx2"]
    assert quantise.multiplies_int8()
    assert not quantise.multiplies_bf16()
