"""Networks of others: known answers through files as they are published, and what is refused."""

import hashlib
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import resnet
from PIL import Image
from torch import nn

from rarescan.cohort.contracts import brain_grid
from rarescan.cohort.store import create_volumes
from rarescan.configs.schema import parse_config
from rarescan.errors import InputError, MissingExtraError, RarescanError, SettingError
from rarescan.evaluation import compare, people
from rarescan.evaluation.comparison import named_extractor
from rarescan.evaluation.external import open_extractor, planes
from rarescan.evaluation.images import ImageSet
from rarescan.evaluation.spec import EvaluateConfig, ExtractorConfig

SHAPE = (20, 24, 20)


def config(path: Path, kind: str, *, name: str = "theirs", sha256: str = "") -> ExtractorConfig:
    digest = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
    return ExtractorConfig(name=name, kind=kind, path=str(path), sha256=digest)


def traced(network: nn.Module, example: torch.Tensor, path: Path) -> Path:
    """Write a network as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network.eval(), example), path)
    return path


class Linear(nn.Module):
    """Mean, and twice the mean of the first row: an answer that can be computed by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.mean(), 2 * x.flatten(2)[:, :, : x.shape[-1]].mean()])[None]


class Whole(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


@pytest.fixture
def linear_3d(tmp_path):
    return config(traced(Linear(), torch.zeros(1, 1, 4, 5, 6), tmp_path / "l.pt"), "torchscript-3d")


@pytest.fixture
def linear_2d(tmp_path):
    return config(traced(Linear(), torch.zeros(1, 1, 5, 6), tmp_path / "m.pt"), "torchscript-2d")


def volume(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE, dtype=np.float32)


def test_a_3d_network_sees_the_whole_volume(linear_3d):
    extractor, image = open_extractor(linear_3d), volume()
    expected = [image.mean(), 2 * image[0, 0].mean()]
    assert extractor.embed(image) == pytest.approx(expected, rel=1e-5)
    assert (extractor.name, extractor.weights_sha256) == ("theirs", linear_3d.sha256)


def test_a_2d_network_sees_three_middle_slices_or_an_upright_picture(linear_2d):
    extractor, image = open_extractor(linear_2d), volume()
    slices = image[10], image[:, 12], image[:, :, 10]
    expected = [
        np.mean([s.mean() for s in slices]),
        np.mean([2 * s[0].mean() for s in slices]),
    ]
    assert extractor.embed(image) == pytest.approx(expected, rel=1e-5)
    picture = np.zeros((16, 20), np.float32)
    picture[:, 0] = 1  # the uppermost row of the picture, whose first axis is x
    assert extractor.embed(picture) == pytest.approx([1 / 20, 2])
    assert planes(picture)[0].shape == (20, 16)


def test_scans_are_averaged_by_person_and_kept_by_content(linear_3d, tmp_path):
    volumes = np.stack([volume(i) for i in range(3)])
    create_volumes(tmp_path / "set", 3, brain_grid(8))[:] = volumes

    def look(folders, persons=("A", "A")):
        images = ImageSet(
            name="train",
            root=tmp_path / "set",
            rows=(0, 2),
            persons=persons,
            diagnoses=("control",) * 2,
            ages=(50.0,) * 2,
        )
        return people.features_of(
            people.LookTask(images=images, extractor=linear_3d, folders=folders)
        )

    first = look((tmp_path / "old",))
    assert first.person_ids == ("A",)
    assert first.values[0, 0] == pytest.approx(volumes[[0, 2]].mean(axis=(1, 2, 3)).mean())
    Path(linear_3d.path).unlink()
    people._opened.cache_clear()
    assert (look((tmp_path / "new", tmp_path / "old")).values == first.values).all()
    assert (tmp_path / "new" / "theirs" / "train.npz").is_file()
    with pytest.raises(SettingError, match="missing"):
        look((tmp_path / "old",), persons=("A", "B"))
    create_volumes(tmp_path / "set", 3, brain_grid(8))[2] = 0
    with pytest.raises(SettingError, match="missing"):
        look((tmp_path / "old",))


def test_medicalnet_files_give_the_features_of_their_network(tmp_path):
    torch.manual_seed(0)
    network = resnet.resnet10(
        n_input_channels=1,
        conv1_t_stride=2,
        feed_forward=False,
        shortcut_type="B",
        bias_downsample=False,
    )
    published = {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}
    torch.save(published, tmp_path / "resnet_10_23dataset.pth")
    image = volume()
    image[:4] = 0  # outside the brain
    inside = image > 0
    scaled = np.where(inside, (image - image[inside].mean()) / image[inside].std(), 0)
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(scaled.astype(np.float32))[None, None])[0]
    medicalnet = config(tmp_path / "resnet_10_23dataset.pth", "medicalnet-10")
    extractor = open_extractor(medicalnet)
    assert extractor.embed(image) == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)
    assert extractor.embed(image).shape == (512,)
    assert np.isfinite(extractor.embed(np.zeros(SHAPE, np.float32))).all()
    with pytest.raises(InputError, match="looks at volumes, and these are 2D pictures"):
        extractor.embed(np.zeros((16, 20), np.float32))
    with pytest.raises(InputError, match=r"another network \(first missing: layer1.1"):
        open_extractor(config(tmp_path / "resnet_10_23dataset.pth", "medicalnet-18"))


@pytest.mark.parametrize(
    ("depth", "millions", "shortcut"), [(10, 14.4, "B"), (18, 33.0, "A"), (50, 46.2, "B")]
)
def test_medicalnets_have_their_published_sizes(depth, millions, shortcut):
    from rarescan.evaluation import external

    with torch.device("meta"):
        network = external._resnet(depth, bias=shortcut == "A", n_input_channels=1)()
    count = sum(p.numel() for p in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_radimagenet_files_give_the_features_of_their_network(tmp_path):
    torch.manual_seed(0)
    network = resnet.resnet50(
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
    )
    # torchvision documents 25,557,032 parameters, of which the head has 2,049,000.
    assert sum(p.numel() for p in network.parameters()) == 25_557_032 - 2_049_000
    numbers = {"conv1": "0", "bn1": "1"} | {f"layer{i}": str(i + 3) for i in range(1, 5)}
    published = {
        ".".join(["backbone", numbers[name.split(".")[0]], *name.split(".")[1:]]): value
        for name, value in network.state_dict().items()
    }
    assert {"backbone.0.weight", "backbone.4.0.conv1.weight"} <= published.keys()
    torch.save(published, tmp_path / "ResNet50.pt")
    picture = np.full((30, 30), 0.75, np.float32)
    with torch.inference_mode():
        expected = network.eval()(torch.full((1, 3, 224, 224), 0.5))[0]
    extractor = open_extractor(config(tmp_path / "ResNet50.pt", "radimagenet-resnet50"))
    assert extractor.embed(picture) == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)
    with pytest.raises(InputError, match="another network"):
        open_extractor(config(tmp_path / "ResNet50.pt", "radimagenet-inception"))


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["medicalnet-10", "inception", "torchscript-3d"])
def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(tmp_path, kind):
    torch.save({"state_dict": {"conv1.weight": Evil(tmp_path / "ran")}}, tmp_path / "evil.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    for name in ("evil.pth", "plain.pkl"):
        with pytest.raises(InputError, match=r"no checkpoint of plain|no TorchScript") as caught:
            open_extractor(config(tmp_path / name, kind))
        assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_files_are_refused_by_hash_absence_and_content(linear_3d, tmp_path):
    path = Path(linear_3d.path)
    with pytest.raises(SettingError, match="SHA-256") as caught:
        open_extractor(config(path, "torchscript-3d", sha256="0" * 64))
    assert linear_3d.sha256 in str(caught.value)
    with pytest.raises(SettingError, match="is missing"):
        open_extractor(config(tmp_path / "gone", "torchscript-3d", sha256="0" * 64))
    with pytest.raises(InputError, match="no checkpoint of plain tensors"):
        open_extractor(config(path, "medicalnet-10"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="no checkpoint of plain tensors"):
        open_extractor(config(tmp_path / "list.pth", "medicalnet-10"))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="no TorchScript"):
        open_extractor(config(path, "torchscript-3d"))


def test_what_a_network_cannot_do_is_told_with_a_remedy(tmp_path):
    whole = config(traced(Whole(), torch.zeros(1, 1, 5, 6), tmp_path / "w.pt"), "torchscript-2d")
    with pytest.raises(InputError, match="480, 400, 480 features for planes"):
        open_extractor(whole).embed(volume())
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(30, 2))
    path = traced(fixed, torch.zeros(1, 1, 5, 6), tmp_path / "f.pt")
    with pytest.raises(InputError, match=r"fails on an image of the shape \(1, 1, 20, 16\)"):
        open_extractor(config(path, "torchscript-2d")).embed(np.zeros((16, 20), np.float32))
    with pytest.raises(InputError, match="no finite numbers"):
        open_extractor(whole).embed(np.full((16, 20), np.nan, np.float32))


def test_a_network_of_the_settings_compares_folders_and_never_mixes(linear_2d, tmp_path):
    random = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(6):
            pixels = random.integers(0, 256, (20, 16), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    found = compare(
        tmp_path / "a", tmp_path / "b", extractor=named_extractor("theirs", [linear_2d])
    )
    assert found.extractor == "theirs"
    assert found.scores["mmd"].n_real == 6
    with pytest.raises(SettingError, match=r"no extractor 'their'\. Did you mean 'theirs'"):
        named_extractor("their", [linear_2d])


def test_settings_refuse_names_that_cannot_be_used():
    entry = {"name": "a", "kind": "inception", "path": "x", "sha256": "0" * 64}
    read = parse_config({"evaluate": {"extractors": [entry]}}).evaluate
    assert read == EvaluateConfig(extractors=(ExtractorConfig(**entry),))
    for wrong in (
        [entry, entry],
        [entry | {"name": "../a"}],
        [entry | {"name": "regions"}],
        [entry | {"kind": "resnet"}],
        [entry | {"sha256": "0"}],
    ):
        with pytest.raises(SettingError, match="evaluate"):
            parse_config({"evaluate": {"extractors": wrong}})


def test_onnx_needs_its_extra(tmp_path, monkeypatch):
    (tmp_path / "x.onnx").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"rarescan\[onnx\]"):
        open_extractor(config(tmp_path / "x.onnx", "onnx-2d"))


def test_an_onnx_file_gives_what_its_graph_says(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    value = onnx.helper.make_tensor_value_info
    shape = [1, 1, "rows", "columns"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)],
        "mean",
        [value("x", onnx.TensorProto.FLOAT, shape)],
        [value("y", onnx.TensorProto.FLOAT, [])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "m.onnx")
    extractor = open_extractor(config(tmp_path / "m.onnx", "onnx-2d"))
    assert extractor.embed(volume()[0]) == pytest.approx([volume()[0].mean()])
    with pytest.raises(InputError, match="fails on an image"):
        open_extractor(config(tmp_path / "m.onnx", "onnx-3d")).embed(volume())
    (tmp_path / "broken.onnx").write_bytes(b"x")
    with pytest.raises(RarescanError, match="no ONNX network"):
        open_extractor(config(tmp_path / "broken.onnx", "onnx-2d"))
