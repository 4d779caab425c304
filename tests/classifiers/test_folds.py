"""The honest estimate: everybody tested once a repeat, resumable, the same bytes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from rarescan.classifiers import folds, tables
from rarescan.classifiers.spec import ClassifierConfig, ClassifyConfig
from rarescan.cohort.contracts import Scan
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError, SettingError
from rarescan.files import read_json

QUICK = ClassifyConfig(
    folds=2, repeats=2, network=ClassifierConfig(steps=40, channels=(4, 8), seed=1)
)
MODELS = {"network", "majority", "metadata", "source", "thumbnail_lr", "thumbnail_rf", "nearest"}


@pytest.fixture(scope="module", autouse=True)
def small_forests() -> Iterator[None]:
    """Take 5 trees instead of 200: what is tested here is the way, not the forest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "N_TREES", 5)
        yield


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work: Path = tmp_path_factory.mktemp("folds")
    folds.run_folds(work, pictures, QUICK, workers=1, device="cpu")
    return work


def _table(work: Path) -> pd.DataFrame:
    return pd.read_parquet(work / folds.PREDICTIONS)


def _balanced_accuracy(rows: pd.DataFrame) -> float:
    answers = np.stack(rows.probabilities.to_list()).argmax(1)
    return float(balanced_accuracy_score(rows.truth, answers))


def test_every_scan_is_predicted_once_a_repeat_by_the_network_and_every_baseline(
    finished: Path, pictures: Path
) -> None:
    table = _table(finished)
    scans = {scan.scan_id: scan for scan in open_cohort(pictures).scans}
    assert set(table.model) == MODELS
    for _, rows in table.groupby(["model", "repeat"]):
        assert sorted(rows.scan_id) == sorted(scans)
    for row in table.itertuples():
        scan = scans[str(row.scan_id)]
        assert row.item_id == scan.session
        assert row.person_id == scan.person_id
        assert row.source == scan.site
        assert ("covid", "pneumonia", "regular")[int(str(row.truth))] == scan.target


def test_probabilities_are_probabilities_for_every_model(finished: Path) -> None:
    """T44: no log-probabilities, no logits; rows sum to 1."""
    values = np.stack(_table(finished).probabilities.to_list())
    np.testing.assert_allclose(values.sum(1), 1, atol=1e-5)
    assert values.min() >= 0


def test_a_planted_difference_is_found_by_the_network_and_not_by_what_sees_no_image(
    finished: Path,
) -> None:
    found = {m: _balanced_accuracy(rows) for m, rows in _table(finished).groupby("model")}
    assert found["network"] > 0.85
    assert found["majority"] == pytest.approx(1 / 3, abs=0.01)
    assert found["metadata"] < 0.5
    assert found["source"] < 0.5


def test_no_person_is_trained_on_and_tested(finished: Path) -> None:
    """T1: a fold's persons are whole persons."""
    for _, rows in _table(finished).groupby("repeat"):
        assert rows.groupby("person_id").fold.nunique().max() == 1


def test_uncertainty_is_the_spread_over_the_repeats(finished: Path) -> None:
    network = _table(finished).query("model == 'network'").sort_values(["repeat", "scan_id"])
    draws = np.stack(network.probabilities.to_list()).reshape(2, -1, 3)
    chosen = draws.mean(0).argmax(1)
    spread = np.abs(draws[0] - draws[1])[np.arange(len(chosen)), chosen] / 2
    np.testing.assert_allclose(network.uncertainty[: len(chosen)], spread, atol=1e-6)
    assert not network.abstained.any()
    assert _table(finished).query("model != 'network'").uncertainty.isna().all()


def test_the_facts_count_persons_and_tell_how_each_fold_was_calibrated(finished: Path) -> None:
    """T48, T49: counts of every class beside every figure; T4: class by source, fold by fold."""
    about = read_json(finished / folds.ABOUT)
    assert about["classes"] == ["covid", "pneumonia", "regular"]
    assert about["persons"] == {"covid": 12, "pneumonia": 12, "regular": 12}
    assert about["scans"]["covid"] == 24
    assert about["insufficient"] == ""
    assert about["aggregation"]["k"] == 3
    # Two frames a clip: the three surest are all of them.
    assert about["aggregation"]["top"] == about["aggregation"]["mean"]
    assert not about["leaky"]
    assert len(about["temperature"]) == len(about["ece_before"]) == len(about["ece_after"]) == 4
    assert len(about["folds"]) == 4
    assert sum(n for c in about["folds"][0]["class_by_source"].values() for n in c.values()) == 18


def test_the_model_opens_and_says_what_it_said(finished: Path, pictures: Path) -> None:
    from rarescan.classifiers.package import open_package
    from rarescan.cohort.store import open_volumes

    trained = open_package(finished / folds.MODEL, "cpu")
    volumes = open_volumes(open_cohort(pictures))
    shares = trained.probabilities(volumes[:5])
    # T33: beside others, alone and twice, the same answer to the bit.
    assert trained.probabilities(volumes[3:4]).tobytes() == shares[3:4].tobytes()
    package = read_json(finished / folds.MODEL / "package.json")
    assert package["classes"] == ["covid", "pneumonia", "regular"]
    cohort = open_cohort(pictures)
    fitted = [p for p, part in cohort.partition.items() if part != "test"]
    assert package["n_persons"] == len(fitted)


@pytest.mark.long
def test_a_killed_run_goes_on_and_ends_the_same(
    pictures: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    fits = dict(folds._FIT)

    def counted(unit: Any, *rest: Any) -> Any:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(unit)
        return fits[unit.kind](unit, *rest)

    for kind in fits:
        monkeypatch.setitem(folds._FIT, kind, counted)
    with pytest.raises(KeyboardInterrupt):
        folds.run_folds(tmp_path, pictures, QUICK, workers=1, device="cpu")
    assert not (tmp_path / folds.PREDICTIONS).exists()
    monkeypatch.undo()
    folds.run_folds(tmp_path, pictures, QUICK, workers=1, device="cpu")
    for name in (folds.PREDICTIONS, folds.ABOUT, "model/weights.safetensors"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_too_few_persons_of_a_class_give_no_figure(
    make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_pictures(tmp_path / "few", {"0": 8, "1": 7, "2": 8, "3": 4}, partition=False)
    config = replace(QUICK, scheme="ordinal", classes=("0", "1", "2", "3"), fewest_persons=5)
    about = folds.run_folds(tmp_path / "work", root, config, workers=1, device="cpu")
    assert about["insufficient"] == (
        "Insufficient: 4 persons show '3', and 5 are needed for 2 folds."
    )
    assert len(_table(tmp_path / "work")) == 0
    assert about["persons"]["3"] == 4


def test_synthetic_scans_are_refused(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    """T28: a generator has seen persons whom these folds test."""

    def synthetic(scan: Scan) -> Scan:
        return replace(scan, origin="synthetic") if scan.person_id == "P000" else scan

    root = make_pictures(tmp_path / "s", {"a": 6, "b": 6}, partition=False, change=synthetic)
    with pytest.raises(InputError, match="synthetic"):
        folds.run_folds(tmp_path / "work", root, QUICK, workers=1, device="cpu")


def test_a_key_without_effect_ends_before_training(pictures: Path, tmp_path: Path) -> None:
    config = replace(QUICK, network=replace(QUICK.network, network="resnet10"))
    with pytest.raises(SettingError, match=r"classify\.network\.channels"):
        folds.run_folds(tmp_path, pictures, config, workers=1, device="cpu")
    assert not list(tmp_path.iterdir())


def test_without_a_partition_there_are_figures_and_no_model(
    make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_pictures(tmp_path / "p", {"a": 6, "b": 6}, partition=False, frames=1)
    config = replace(QUICK, repeats=1, network=replace(QUICK.network, steps=10))
    about = folds.run_folds(tmp_path / "work", root, config, workers=1, device="cpu")
    assert about["model"] is None
    table = _table(tmp_path / "work")
    assert table.uncertainty.isna().all()
    assert set(map(len, table.probabilities)) == {2}


def test_a_person_who_shows_both_classes_is_watched_as_one_of_each(
    make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    def two_views(scan: Scan) -> Scan:
        return replace(scan, target="a4c" if scan.scan_id.endswith("0") else "a2c")

    root = make_pictures(tmp_path / "v", {"x": 9}, change=two_views, frames=2)
    config = replace(QUICK, repeats=1, network=replace(QUICK.network, steps=10))
    about = folds.run_folds(tmp_path / "work", root, config, workers=1, device="cpu")
    assert about["persons"] == {"a2c": 9, "a4c": 9}
    assert all(look["watched_auc"] is not None for c in about["curves"] for look in c["curve"])


@pytest.mark.long
def test_the_number_of_workers_changes_no_byte(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "N_TREES", 200)  # as in the workers, whom no patch reaches
    for workers in (1, 2):
        config = replace(QUICK, repeats=1)
        work = tmp_path / str(workers)
        folds.run_folds(work, pictures, config, workers=workers, device="cpu")
    for name in (folds.PREDICTIONS, folds.ABOUT, "model/weights.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
