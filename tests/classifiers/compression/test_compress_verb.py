"""`rarescan compress` takes the network of a partition, and no other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rarescan.classifiers import train
from rarescan.classifiers.compression.export import load_onnx
from rarescan.classifiers.examples import class_pools
from rarescan.classifiers.folds import examples_of
from rarescan.classifiers.package import write_package
from rarescan.classifiers.planes import PICTURES
from rarescan.classifiers.spec import ClassifierConfig, ClassifyConfig, CompressConfig
from rarescan.classifiers.splits import label_table
from rarescan.cohort.store import open_cohort
from rarescan.configs.schema import RunConfig
from rarescan.errors import InputError
from rarescan.files import Recipe, read_json, require_recipe, run_step
from rarescan.flows.compress import compress

CONFIG = RunConfig(
    name="test", compress=CompressConfig(formats=("fp16", "int8_static"), repeats=5), device="cpu"
)


def _classified(prepared: Path, folder: Path) -> Path:
    """Write what `rarescan classify` leaves: a network of the partition and one of a fold."""
    cohort = open_cohort(prepared)
    table = label_table(cohort, ClassifyConfig(), PICTURES)
    own = [i for i, p in enumerate(table.person_ids) if cohort.partition[p] == "train"]
    examples = examples_of(cohort, table, own)  # type: ignore[arg-type]
    config = ClassifierConfig(channels=(4, 8), steps=40)

    def build(work: Path) -> None:
        trained, _ = train.fit(
            examples,
            class_pools(examples, 16, 3),
            config,
            modality=PICTURES,
            device=torch.device("cpu"),
        )
        for place in (work / "model", work / "folds" / "0-0" / "network"):
            write_package(place, trained, unit="frame", persons=examples.person_ids)

    recipe = Recipe(step="classify", schema=1, inputs={"prepared": require_recipe(prepared).id})
    return run_step(folder, recipe, build)


@pytest.fixture(scope="module")
def classified(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _classified(pictures, tmp_path_factory.mktemp("classified") / "classifiers")


def test_a_network_of_one_fold_is_refused(classified: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one fold"):
        compress(CONFIG, classified / "folds" / "0-0" / "network", pictures, tmp_path / "out")


def test_a_network_of_another_cohort_is_refused(
    classified: Path, make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_pictures(tmp_path / "other", {"covid": 6, "pneumonia": 6, "regular": 6}, seed=5)
    with pytest.raises(InputError, match="not trained on"):
        compress(CONFIG, classified / "model", other, tmp_path / "out")


@pytest.mark.parametrize("place", ["nothing", "."])
def test_a_folder_without_a_network_is_refused(
    place: str, classified: Path, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no network"):
        compress(CONFIG, classified / place, pictures, tmp_path / "out")
    with pytest.raises(InputError, match="no folder"):
        compress(CONFIG, tmp_path / place, pictures, tmp_path / "out")


@pytest.mark.long
def test_the_verb_writes_a_model_that_opens_and_repeats_nothing(
    classified: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = compress(CONFIG, classified / "model", pictures, tmp_path / "out")
    content = read_json(folder / "compress.json")
    assert content["persons"].keys() == {"covid", "pneumonia", "regular"}
    assert load_onnx(folder / "model").classes == ("covid", "pneumonia", "regular")
    before = (folder / "compress.json").stat().st_mtime_ns
    compress(CONFIG, classified / "model", pictures, tmp_path / "out")
    assert (folder / "compress.json").stat().st_mtime_ns == before
    stricter = replace(CONFIG, compress=replace(CONFIG.compress, most_loss=0.0))
    with pytest.raises(Exception, match=r"compress\.most_loss"):
        compress(stricter, classified / "model", pictures, tmp_path / "out")
