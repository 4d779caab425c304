"""A modality of one's own: one file and one YAML, through ingest, prepare and classify."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rarescan.classifiers import tables
from rarescan.classifiers.modalities import MODALITIES, find_modality, modality_of
from rarescan.classifiers.package import open_package
from rarescan.classifiers.planes import PICTURES
from rarescan.cohort.store import open_cohort
from rarescan.configs.schema import load_config
from rarescan.errors import SettingError
from rarescan.files import read_json
from rarescan.flows import verbs

MODULE = '''"""Stripes: up and down, or from left to right."""

import torch

from rarescan.classifiers.contract import ImageNetwork, Labels, Modality, Shape
from rarescan.classifiers.networks import build_network
from rarescan.classifiers.spec import ClassifierConfig


def build(shape: Shape, config: ClassifierConfig, labels: Labels) -> ImageNetwork:
    """Return an untrained network."""
    return build_network(shape[:2], config, labels, n_channels=1)


def prepare(pictures: torch.Tensor) -> torch.Tensor:
    """Return the network's input."""
    return pictures.permute(0, 3, 1, 2) * 4 - 1


def augment(
    pictures: torch.Tensor, strength: float, random: torch.Generator
) -> torch.Tensor:
    """Return pictures that are brighter or darker; stripes must not be turned."""
    gain = 1 + 0.1 * strength * torch.randn(len(pictures), 1, 1, 1, generator=random)
    return (pictures * gain).clamp(0, 1)


MODALITY = Modality(name="stripes", build=build, prepare=prepare, augment=augment)
'''

YAML = """
source: {kind: pictures}
pictures: {table: table.csv, labels: [lying, standing], modality: STRIPES, licence: CC0}
planes: {rows: 16, columns: 16, crop: none}
partition: {fewest_validation: 0}
workers: 1
classify:
  modality: own_stripes
  folds: 2
  repeats: 1
  uncertainty: none
  network: {channels: [4, 8], steps: 40, learning_rate: 0.003}
"""


def _draw(folder: Path) -> None:
    folder.mkdir()
    rows = [("file", "person", "label")]
    for person in range(24):
        random = np.random.default_rng(person)
        stripes = np.tile([60, 60, 200, 200], 8) + random.integers(-20, 20, (32, 32))
        standing = person % 2
        picture = stripes if standing else stripes.T
        name = f"{person:02d}.png"
        Image.fromarray(picture.astype(np.uint8)).save(folder / name)
        rows.append((name, f"P{person:02d}", ("lying", "standing")[standing]))
    with (folder / "table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


@pytest.mark.long
def test_one_file_and_one_yaml_are_a_modality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len((MODULE + YAML).splitlines()) <= 80
    monkeypatch.setattr(tables, "N_TREES", 5)
    (tmp_path / "own_stripes.py").write_text(MODULE)
    (tmp_path / "stripes.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(tmp_path)
    _draw(tmp_path / "source")
    config = load_config(tmp_path / "stripes.yaml")
    cohort = verbs.ingest(config, tmp_path / "source", tmp_path / "cohort")
    prepared = verbs.prepare(config, cohort, tmp_path / "prepared")
    folder = verbs.classify(config, prepared, tmp_path / "classifiers")
    result = read_json(folder / "classification.json")
    assert result["modality"] == "own_stripes"
    found = {model: row["person"]["balanced_accuracy"] for model, row in result["models"].items()}
    assert found["network"]["value"] > 0.9
    assert found["majority"]["value"] < 0.6
    assert (folder / "classifiers.html").stat().st_size > 1000
    assert open_package(folder / "model", "cpu").modality.name == "own_stripes"
    # Repeating the step finds its folder.
    before = (folder / "predictions.parquet").stat().st_mtime_ns
    verbs.classify(config, prepared, folder)
    assert (folder / "predictions.parquet").stat().st_mtime_ns == before


def test_a_name_that_is_no_modality_says_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match="Did you mean 'ultrasound'"):
        find_modality("ultrasond")
    with pytest.raises(SettingError, match="PYTHONPATH"):
        find_modality("nowhere.at_all")
    (tmp_path / "empty_modality.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingError, match="has no MODALITY"):
        find_modality("empty_modality")


def test_the_modality_is_that_of_the_scans(pictures: Path, prepared: Path) -> None:
    assert modality_of(open_cohort(pictures)) is MODALITIES["ultrasound"]
    assert modality_of(open_cohort(prepared)) is MODALITIES["mri"]
    assert modality_of(open_cohort(pictures), "mri2d") is MODALITIES["mri2d"]
    cohort = open_cohort(pictures)
    other = replace(cohort, scans=tuple(replace(s, modality="OT") for s in cohort.scans))
    assert modality_of(other) is PICTURES
