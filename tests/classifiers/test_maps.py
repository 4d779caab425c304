"""The gallery of maps beside a tested classifier."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rarescan.classifiers import maps
from rarescan.classifiers.contract import ImageNetwork, Labels
from rarescan.classifiers.explain import Explanation, explain
from rarescan.classifiers.network import TrainedNetwork, load_network
from rarescan.classifiers.planes import PICTURES
from rarescan.classifiers.spec import ClassifierConfig, ClassifyConfig
from rarescan.classifiers.splits import draw_folds, label_table
from rarescan.cohort.store import open_cohort

CLASSES = ("covid", "pneumonia", "regular")
CONFIG = ClassifyConfig(modality="pictures", folds=2, repeats=1, classes=CLASSES)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return what a test by folds leaves: a network a fold, here untrained."""
    for fold in range(2):
        torch.manual_seed(fold)
        config = ClassifierConfig(channels=(4, 8))
        labels = Labels(names=CLASSES)
        TrainedNetwork(
            network=PICTURES.build((16, 16, 1), config, labels),
            modality=PICTURES,
            config=config,
            shape=(16, 16, 1),
            device=torch.device("cpu"),
            labels=labels,
        ).save(tmp_path / "folds" / f"0-{fold}" / "network")
    return tmp_path


def test_every_class_is_shown_alike_and_each_scan_by_a_network_that_never_saw_its_person(
    work: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = open_cohort(pictures)
    table = label_table(cohort, CONFIG, PICTURES)
    folds = draw_folds(table, CONFIG, 0)
    seen: list[tuple[bytes, np.ndarray]] = []

    def watched(networks: list[TrainedNetwork], images: np.ndarray, *, label: int) -> Explanation:
        weights = next(iter(networks[0].network.parameters())).detach().numpy().tobytes()
        seen.extend((weights, image) for image in images)
        return replace(explain(networks, images, label=label), likeness=0.0)

    monkeypatch.setattr(maps, "explain", watched)
    written = maps.write_maps(work, pictures, CONFIG, device="cpu")
    clips = 3 * 2  # the first person's clip of every class, two frames each, as a film
    assert len(seen) == 12 + clips
    films = [path for path in written if path.suffix == ".mp4"]
    assert films
    for name in CLASSES:
        assert sum(path.stem.split("_")[1] == name for path in written) <= 4 + 1
        assert sum(path.stem.split("_")[1] == name for path in films) <= 1
    volumes = np.load(pictures / "rarescan" / "volumes.npy")
    for weights, image in seen:
        row = next(i for i, v in enumerate(volumes) if np.array_equal(v, image))
        fold = next(f for f in (0, 1) if table.rows.index(row) in folds[f].test.tolist())
        own = maps.load_network(work / "folds" / f"0-{fold}" / "network", "cpu")
        assert next(iter(own.network.parameters())).detach().numpy().tobytes() == weights


def test_maps_that_do_not_depend_on_what_was_learned_are_left_out(
    work: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "explain", lambda *a, **k: replace(explain(*a, **k), likeness=0.9))
    assert maps.write_maps(work, pictures, CONFIG, device="cpu") == []
    assert not (work / "maps").exists()


def test_a_network_without_feature_maps_has_no_gallery_and_no_error(
    work: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flat(ImageNetwork):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

        def logits(self, features: torch.Tensor) -> torch.Tensor:
            return features[:, :3]

    def flat(folder: Path, device: str) -> TrainedNetwork:
        return replace(load_network(folder, "cpu"), network=Flat())

    monkeypatch.setattr(maps, "load_network", flat)
    assert maps.write_maps(work, pictures, CONFIG, device="cpu") == []


def test_nothing_trained_gives_no_map(pictures: Path, tmp_path: Path) -> None:
    assert maps.write_maps(tmp_path, pictures, CONFIG) == []
