"""Which form of a classifier is chosen, and what is written of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny_onnx
import torch

from rarescan.classifiers import train
from rarescan.classifiers.compression import compress, quantise, runtime
from rarescan.classifiers.compression.export import load_onnx
from rarescan.classifiers.compression.forms import Form, Persons
from rarescan.classifiers.contract import Labels
from rarescan.classifiers.examples import Examples, class_pools
from rarescan.classifiers.network import TrainedNetwork
from rarescan.classifiers.planes import PICTURES
from rarescan.classifiers.spec import ClassifierConfig, CompressConfig
from rarescan.errors import InputError

LABELS = Labels(names=tiny_onnx.CLASSES)
SHAPE = tiny_onnx.SHAPE
QUICK = CompressConfig(repeats=5, calibration_scans=16, retrain_steps=10)


def _person_scans(part: str, n_persons: int, scans_each: int = 4) -> Examples:
    """Return scans whose brightest row is their class, with a private texture."""
    random = np.random.default_rng(len(part) * 1000 + n_persons)
    n = n_persons * scans_each
    labels = tuple((i // scans_each) % 3 for i in range(n))
    images = 0.3 * random.random((n, *SHAPE), dtype=np.float32)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 3] += 0.4
    return Examples(
        sources=(images,),
        rows=tuple((0, i) for i in range(n)),
        labels=labels,
        person_ids=tuple(f"{part}{i // scans_each}" for i in range(n)),
        classes=LABELS,
    )


@pytest.fixture(scope="module")
def persons() -> Persons:
    return Persons(
        train=_person_scans("train", 12),
        validation=_person_scans("validation", 18),
        test=_person_scans("test", 18),
    )


@pytest.fixture(scope="module")
def trained(persons: Persons) -> TrainedNetwork:
    config = ClassifierConfig(channels=(4, 8), steps=60, batch_size=12)
    pools = class_pools(persons.train, 12, 3)
    found, _ = train.fit(
        persons.train, pools, config, modality=PICTURES, device=torch.device("cpu")
    )
    return found


def _says(images: np.ndarray, wrong: Callable[[np.ndarray], bool]) -> np.ndarray:
    """Return the class that an image shows, or the next one where `wrong` says so."""
    said = np.full((len(images), 3), 0.05, np.float32)
    for row, image in enumerate(images):
        label = int(image.mean((1, 2)).reshape(3, 4).mean(1).argmax())
        said[row, (label + wrong(image)) % 3] = 0.9
    return said


def _never(_image: np.ndarray) -> bool:
    return False


def _often(image: np.ndarray) -> bool:
    return int(image[0, 0, 0] * 1e6) % 4 == 0


def _rarely(image: np.ndarray) -> bool:
    return int(image[0, 0, 0] * 1e6) % 400 == 0


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return the function that says which forms there are: name -> (bytes, when it is wrong)."""

    def make(kinds: dict[str, tuple[int, object]], original: object = _never) -> None:
        path = tiny_onnx.write(tmp_path / "any.onnx")
        forms = [Form(name="torch_fp32", run=partial(_says, wrong=original), n_bytes=1000)]  # type: ignore[arg-type]
        forms += [
            Form(name=name, run=partial(_says, wrong=wrong), n_bytes=size, path=path)  # type: ignore[arg-type]
            for name, (size, wrong) in {"onnx_fp32": (1000, _never), **kinds}.items()
        ]
        monkeypatch.setattr(compress, "make_forms", lambda *_: forms)
        monkeypatch.setattr(runtime, "peak_memory_mb", lambda *_: 50.0)

    return make


def test_the_smallest_form_that_says_the_same_is_chosen_and_written(
    made: Callable[..., None], trained: TrainedNetwork, persons: Persons, tmp_path: Path
) -> None:
    made({"fp16": (500, _never), "int8_static": (250, _never), "magnitude": (100, _often)})
    found = compress.compress(tmp_path / "out", trained, persons, QUICK)
    assert (found["chosen"], found["written"]) == ("int8_static", "int8_static")
    assert found["confirmation"]["outcome"] == "pass"
    reasons = {row["form"]: row["reason"] for row in found["rows"]}
    assert "balanced accuracy" in reasons["magnitude"]
    assert not reasons["int8_static"]
    assert load_onnx(tmp_path / "out" / "model").about["form"] == "int8_static"


def test_t35_a_form_that_fell_to_chance_is_never_chosen(
    made: Callable[..., None], trained: TrainedNetwork, persons: Persons, tmp_path: Path
) -> None:
    made({"int8_static": (250, lambda _image: True)})
    found = compress.compress(tmp_path / "out", trained, persons, QUICK)
    assert found["written"] == "onnx_fp32"
    assert found["rows"][2]["balanced_accuracy"]["value"] < 0.1


def test_what_does_not_hold_on_test_persons_is_not_written(
    made: Callable[..., None], trained: TrainedNetwork, persons: Persons, tmp_path: Path
) -> None:
    darker = replace(persons.test, sources=(persons.test.sources[0] * np.float32(0.9),))
    bright = float(np.max(darker.sources[0]))
    made({"int8_static": (250, lambda image: bool(image.max() <= bright))})
    brighter = np.clip(persons.validation.sources[0] + np.float32(0.2), 0, 1)
    validation = replace(persons.validation, sources=(brighter,))
    chosen = Persons(train=persons.train, validation=validation, test=darker)
    found = compress.compress(tmp_path / "out", trained, chosen, QUICK)
    assert found["chosen"] == "int8_static"
    assert (found["confirmation"]["outcome"], found["written"]) == ("fail", "onnx_fp32")
    assert load_onnx(tmp_path / "out" / "model").about["form"] == "onnx_fp32"
    assert "onnx_fp32 is written" in found["table"]


def test_the_same_size_goes_to_the_quicker_form(
    made: Callable[..., None], trained: TrainedNetwork, persons: Persons, tmp_path: Path
) -> None:
    def slow(image: np.ndarray) -> bool:
        np.linalg.svd(np.ones((60, 60)))
        return False

    made({"int8_dynamic": (249, slow), "int8_static": (250, _never)})
    assert compress.compress(tmp_path / "o", trained, persons, QUICK)["chosen"] == "int8_static"


def test_labels_that_change_too_often_are_a_reason_even_without_a_loss(
    made: Callable[..., None], trained: TrainedNetwork, persons: Persons, tmp_path: Path
) -> None:
    made({"int8_static": (250, _never)}, original=_often)
    row = compress.compress(tmp_path / "out", trained, persons, QUICK)["rows"][2]
    assert row["loss"]["value"] < 0
    assert row["agreement"] < 0.9
    assert "agrees" in row["reason"]


def test_a_form_within_a_twentieth_of_the_smallest_size_may_be_quicker_and_then_is_chosen() -> None:
    rows = [
        {"form": "a", "bytes": 1000, "milliseconds": {"1": 3.0}, "reason": ""},
        {"form": "b", "bytes": 1050, "milliseconds": {"1": 2.0}, "reason": ""},
        {"form": "c", "bytes": 1060, "milliseconds": {"1": 1.0}, "reason": ""},
        {"form": "d", "bytes": 10, "milliseconds": {"1": 0.1}, "reason": "loses more"},
    ]
    assert compress._smallest(rows) == "b"
    assert compress._smallest(rows[:1] + rows[2:]) == "a"
    assert compress._smallest(rows[3:]) == "onnx_fp32"


def test_int8_that_is_not_faster_is_told_where_its_time_goes(tmp_path: Path) -> None:
    plain = tiny_onnx.write(tmp_path / "plain.onnx")
    small = quantise.write_dynamic(plain, tmp_path / "small.onnx")
    forms = [
        Form(name=name, run=_says, n_bytes=1, path=path)
        for name, path in (("onnx_fp32", plain), ("int8_dynamic", small), ("fp16", plain))
    ]
    rows = [{"form": form.name, "times_faster": {"1": 0.7}} for form in forms]
    image = np.full((1, *SHAPE), 0.5, np.float32)
    (why,) = compress._why_slow(forms, rows, image)
    assert why.startswith("int8_dynamic is not faster")
    assert "VNNI" in why
    assert compress._why_slow(forms, [{**r, "times_faster": {"1": 1.3}} for r in rows], image) == []


def test_the_profile_tells_products_from_the_rest(tmp_path: Path) -> None:
    plain = tiny_onnx.write(tmp_path / "m.onnx").read_bytes()
    products, rest = runtime.product_milliseconds(plain, np.full((1, *SHAPE), 0.5, np.float32))
    assert products > 0
    assert rest > 0


def test_a_table_tells_persons_formats_and_the_cpu(
    made: Callable[..., None], trained: TrainedNetwork, persons: Persons, tmp_path: Path
) -> None:
    made({"int8_static": (250, _rarely)})
    found = compress.compress(tmp_path / "out", trained, persons, QUICK)
    text = found["table"]
    assert "72 scans of validation persons (6 a, 6 b, 6 c)" in text
    assert "Chosen: " in text
    assert json.loads((tmp_path / "out" / "compress.json").read_text()) == json.loads(
        json.dumps(found)
    )


def test_a_person_in_two_parts_is_refused(persons: Persons) -> None:
    with pytest.raises(ValueError, match="two parts"):
        Persons(train=persons.train, validation=persons.train, test=persons.test)


def test_one_class_alone_cannot_judge(
    trained: TrainedNetwork, persons: Persons, tmp_path: Path
) -> None:
    one = persons.validation.take([i for i, c in enumerate(persons.validation.labels) if c == 0])
    with pytest.raises(InputError, match="fewer than two"):
        compress.compress(tmp_path, trained, replace(persons, validation=one), QUICK)


def test_the_models_take_turns() -> None:
    order: list[str] = []
    runs = {name: (lambda _images, name=name: order.append(name)) for name in "abc"}
    taken = runtime.latencies(runs, np.zeros((16, 2)), repeats=6)
    assert "".join(order[6:24]) == "abc" * 6
    assert [len(taken["b"][batch]) for batch in (1, 16)] == [6, 5]


def test_a_ratio_of_calls_made_side_by_side_ignores_a_busy_moment() -> None:
    busy = [1, 1, 1, 1, 30, 30, 30, 30, 30]
    before = [runtime.Taken(9 * b, 4.0 * b) for b in busy]
    after = [runtime.Taken(70, 2.0 * b) for b in busy]
    assert runtime.ratio(before, after) == 2


def test_peak_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    own = psutil.Process().memory_info().rss / 1e6
    # ONNX Runtime and numpy alone; this process holds torch and much else.
    assert 20 < runtime.peak_memory_mb(path, SHAPE) < 150 < own


@pytest.mark.long
def test_a_trained_network_becomes_every_form(
    trained: TrainedNetwork, persons: Persons, tmp_path: Path
) -> None:
    found = compress.compress(tmp_path, trained, persons, QUICK)
    rows = {row["form"]: row for row in found["rows"]}
    assert set(rows) >= {"onnx_fp32", "fp16", "int8_static", "int8_dynamic", "magnitude"}
    assert rows["onnx_fp32"]["agreement"] == 1
    assert rows["onnx_fp32"]["balanced_accuracy"]["value"] > 0.9
    assert rows["int8_static"]["agreement"] >= 0.95
    assert rows["magnitude"]["zeros"] == pytest.approx(0.5, abs=0.02)
    assert rows["fp16"]["bytes"] < rows["onnx_fp32"]["bytes"]
    opened = load_onnx(tmp_path / "model")
    images = persons.test.read()
    said = opened.probabilities(images).argmax(1)
    assert (said == trained.probabilities(images).argmax(1)).mean() >= 0.98
    again = compress.compress(tmp_path, trained, persons, QUICK)
    assert [r["loss"] for r in again["rows"]] == [r["loss"] for r in found["rows"]]
