"""A batch as another scanner would have seen it says so, and is drawn and checked as any other."""

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from rarescan.cohort.partition import PartitionConfig
from rarescan.cohort.store import VOLUMES, tables
from rarescan.configs.schema import RunConfig, parse_config
from rarescan.files import require_recipe, sha256_file
from rarescan.flows import batch
from rarescan.generative.acquisition import Acquisition, rerender
from rarescan.generative.families import train_generator
from rarescan.generative.spec import GeneratorSpec
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import write_prepared
from rarescan.registry.store import ModelVersion
from rarescan.seeds import derive

pytestmark = pytest.mark.long
SETTINGS: dict[str, Any] = {
    "name": "test",
    "workers": 1,
    "device": "cpu",
    "generate": {"n": 4, "seed": 7},
    "evaluate": {"canary_persons": 4},
}
BLURRED = {"how": "set", "blur_mm": 10.0, "noise": 0.02, "contrast": [0.3, 0.55]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    population = PhantomConfig(patients=16, controls=24, seed=2)
    root = tmp_path_factory.mktemp("batch") / "prepared"
    return write_prepared(root, population, spacing_mm=8.0, partition=PartitionConfig())


@pytest.fixture(scope="module")
def model(prepared: Path) -> Path:
    spec = GeneratorSpec(family="gaussian")
    return train_generator(prepared, prepared.parent / "model", spec, device="cpu")


@pytest.fixture
def champion(prepared: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the registry hold one version: the model."""
    version = ModelVersion(
        model_uri="models:/test/1", version="1", family="gaussian",
        model_sha256=sha256_file(model / "weights.safetensors"), permitted_use="release",
        prepared_id=require_recipe(prepared).id, decision_id="d1",
    )  # fmt: skip

    class OneVersion:
        def champion(self) -> ModelVersion:
            return version

        def download(self, wanted: ModelVersion, folder: Path) -> Path:
            return Path(shutil.copytree(model, folder))

    monkeypatch.setattr("rarescan.registry.store.connect", lambda *_: OneVersion())


def config(**acquisition: Any) -> RunConfig:
    return parse_config({**SETTINGS, "generate": {**SETTINGS["generate"], **acquisition}})


@pytest.mark.usefixtures("champion")
def test_a_batch_seen_by_another_scanner_is_the_plain_one_seen_anew(
    prepared: Path, tmp_path: Path
) -> None:
    plain = batch.generate(config(), prepared, tmp_path / "plain")
    other = batch.generate(config(acquisition=BLURRED), prepared, tmp_path / "other")
    how = Acquisition(contrast=(0.3, 0.55), blur_mm=10.0, noise=0.02)
    seeds = [derive(7, i, "acquisition") for i in range(4)]
    expected = rerender(np.load(tables(plain) / VOLUMES), [how] * 4, seeds)
    np.testing.assert_array_equal(np.load(tables(other) / VOLUMES), expected)

    sidecars = sorted(other.glob("sub-*/anat/*.json"))
    assert len(sidecars) == 4
    for index, beside in enumerate(sidecars):
        said = json.loads(beside.read_text())
        assert said["Acquisition"] == {
            "contrast": [0.3, 0.55], "blur_mm": 10.0, "noise": 0.02, "bias": 0.0,
        }  # fmt: skip
        image = nibabel.load(beside.with_suffix(".nii.gz")).get_fdata()
        np.testing.assert_allclose(image, expected[index], atol=2e-5)
    told = json.loads((other / "batch.json").read_text())
    assert told["acquisition"]["how"] == "set"
    assert told["copies"] == json.loads((plain / "batch.json").read_text())["copies"]
    assert "10.0 mm" in (other / "DATASHEET.md").read_text()
    assert not list(other.rglob(".drawn"))

    assert "acquisition" not in json.loads((plain / "batch.json").read_text())
    assert "acquisition" not in require_recipe(plain).config["generate"]
    assert "None after generation" in (plain / "DATASHEET.md").read_text()
    assert not any("Acquisition" in p.read_text() for p in plain.glob("sub-*/anat/*.json"))


@pytest.mark.usefixtures("champion")
def test_a_killed_batch_goes_on_to_the_same_bytes(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(acquisition={"how": "free"})
    whole = batch.generate(asked, prepared, tmp_path / "whole")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch, "_note_acquisitions", killed)
        with pytest.raises(KeyboardInterrupt):
            batch.generate(asked, prepared, tmp_path / "again")
    again = batch.generate(asked, prepared, tmp_path / "again")
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert files
    for path in files:
        assert (again / path).read_bytes() == (whole / path).read_bytes(), path
