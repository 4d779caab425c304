"""A classifier's figures: known answers, what must be refused, a verdict that dares to say no."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from classifier_table import CLASSES, about, table
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torchmetrics.functional import classification as tm

from rarescan.errors import InputError
from rarescan.evaluation.classification import half_width, summarise
from rarescan.evaluation.confusion import quadratic_kappa
from rarescan.evaluation.predictions import Predictions
from rarescan.evaluation.scored import (
    Scored,
    draw_weights,
    macro_auc,
    measure,
)


def drawn(n: int = 200, k: int = 3, seed: int = 0, repeats: int = 1) -> Scored:
    random = np.random.default_rng(seed)
    truth = np.arange(n) % k
    logits = random.normal(0, 1, (repeats, n, k)) + 1.2 * np.eye(k)[truth]
    values = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return Scored.of([f"u{i:04d}" for i in range(n)], truth, values)


def plain(units: Scored, **more: Any) -> dict[str, Any]:
    figures = measure(units, np.ones((1, units.n_persons)), **more)
    return {name: figure.mean[0] for name, figure in figures.items()}


def put(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_every_figure_is_that_of_torchmetrics(k: int) -> None:
    units = drawn(k=k)
    ours = plain(units)
    p, t = torch.from_numpy(units.probabilities[0]), torch.from_numpy(units.truth)
    known = {
        "accuracy": tm.multiclass_accuracy(p, t, k, average="micro"),
        "balanced_accuracy": tm.multiclass_accuracy(p, t, k, average="macro"),
        "macro_auc": tm.multiclass_auroc(p, t, k, average="macro"),
        "ece": tm.multiclass_calibration_error(p, t, k, n_bins=15, norm="l1"),
        "recall": tm.multiclass_recall(p, t, k, average=None),
        "precision": tm.multiclass_precision(p, t, k, average=None),
        "f1": tm.multiclass_f1_score(p, t, k, average=None),
        "specificity": tm.multiclass_specificity(p, t, k, average=None),
    }
    for name, value in known.items():
        np.testing.assert_allclose(ours[name], value.numpy(), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("k", [2, 4])
def test_brier_matthews_and_kappa_are_those_of_scikit_learn(k: int) -> None:
    units = drawn(k=k)
    ours = plain(units, ordinal=True)
    called = units.probabilities[0].argmax(axis=1)
    brier = metrics.brier_score_loss(
        units.truth,
        units.probabilities[0] if k > 2 else units.probabilities[0, :, 1],
        labels=list(range(k)),
    )
    assert ours["brier"] == pytest.approx(brier)
    kappa = metrics.cohen_kappa_score(units.truth, called, weights="quadratic")
    assert ours["kappa"] == pytest.approx(kappa)
    for label in range(k):
        mcc = metrics.matthews_corrcoef(units.truth == label, called == label)
        assert ours["mcc"][label] == pytest.approx(mcc)


def test_kappa_by_hand() -> None:
    # 4 right, 2 off by one: observed cost 2, expected cost by hand 48/6 = 8 of rows (2, 2, 2).
    table_ = np.array([[2.0, 0, 0], [1, 1, 0], [0, 1, 1]])
    rows, columns = table_.sum(axis=1), table_.sum(axis=0)
    cost = np.array([[0, 1, 4], [1, 0, 1], [4, 1, 0]])
    assert quadratic_kappa(table_) == pytest.approx(
        1 - 2 / ((np.outer(rows, columns) * cost).sum() / 6)
    )


@pytest.mark.parametrize("units_each", [1, 4])
def test_a_weighted_area_is_that_of_the_repeated_persons(units_each: int) -> None:
    plain_units = drawn(n=60)
    units = Scored.of(
        plain_units.ids,
        plain_units.truth,
        plain_units.probabilities,
        persons=[f"p{i // units_each:02d}" for i in range(60)],
    )
    weights = draw_weights(units, seed=3, repeats=4)
    _, ours = macro_auc(units, weights)
    for row, value in zip(weights.astype(int), ours, strict=True):
        again = np.repeat(np.arange(60), row[units.person])
        known = metrics.roc_auc_score(
            units.truth[again], units.probabilities[0][again], multi_class="ovr"
        )
        assert value == pytest.approx(known, abs=1e-9)
    assert len({tuple(row) for row in weights.tolist()}) == 5


def test_ties_count_one_half_in_the_area() -> None:
    p = np.array([[0.6, 0.4], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    truth = [0, 1, 1, 0]
    each, _ = macro_auc(Scored.of(list("abcd"), truth, p), np.ones((1, 4)))
    assert each[0] == pytest.approx(metrics.roc_auc_score(truth, p[:, 1])) == 0.875


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 3))
def test_figures_do_not_depend_on_the_order_of_rows(seed: int, k: int, repeats: int) -> None:
    units = drawn(n=30, k=k, seed=seed, repeats=repeats)
    order = np.random.default_rng(seed).permutation(30)
    turned = Scored.of(
        [units.ids[i] for i in order],
        units.truth[order],
        units.probabilities[:, order],
        persons=[units.ids[i] for i in order],
    )
    for name, value in plain(units).items():
        np.testing.assert_allclose(plain(turned)[name], value, atol=1e-9, err_msg=name)


def test_resamples_keep_every_persons_classes_and_count() -> None:
    units = drawn(n=31)
    weights = draw_weights(units, seed=0, repeats=50)
    assert (weights[0] == 1).all()
    for label in range(3):
        mine = weights[:, units.person[units.truth == label]]
        assert (mine.sum(axis=1) == mine.shape[1]).all()


def test_the_interval_of_the_calibration_error_holds_its_value() -> None:
    units = drawn(n=90)
    score = measure(units, draw_weights(units, seed=0, repeats=400))["ece"].score(30)
    assert 0 <= score["low"] < score["value"] < score["high"]


def test_the_interval_of_accuracy_by_class_covers_what_it_says() -> None:
    covered = 0
    for world in range(100):
        random = np.random.default_rng(world)
        truth = np.arange(60) % 2
        right = random.random(60) < 0.75
        p = np.where(right[:, None], np.eye(2)[truth], np.eye(2)[1 - truth]) * 0.9 + 0.05
        units = Scored.of([f"u{i}" for i in range(60)], truth, p)
        found = measure(units, draw_weights(units, seed=world, repeats=300))["balanced_accuracy"]
        score = found.score(30)
        covered += score["low"] <= 0.75 <= score["high"]
    assert covered >= 88


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.array([0, 1, 1, 0]), "labels"),
        (np.array([[0, 1], [1, 0], [1, 0], [0, 1]]), "labels"),
        (np.log(np.full((4, 2), 0.5)), "logarithms"),
        (np.full((4, 2), 0.4), "sum to 1"),
        (np.full((3, 2), 0.5), "one list"),
        (np.full((4, 2), np.nan), "not finite"),
        (np.full((4, 1), 1.0), "none of the classes"),
    ],
)
def test_what_is_no_probability_is_refused(values: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        Scored.of(list("abcd"), [0, 1, 0, 1], values)


def test_an_id_twice_is_refused() -> None:
    with pytest.raises(InputError, match="one list"):
        Scored.of(list("aab"), [0, 1, 0], np.full((3, 2), 0.5))


def test_an_area_under_hard_labels_is_refused() -> None:
    units = Scored.of(list("abcd"), [0, 1, 0, 1], np.eye(2)[[0, 1, 1, 1]])
    with pytest.raises(InputError, match="labels"):
        macro_auc(units, np.ones((1, 4)))
    assert "macro_auc" not in plain(units)


def test_an_area_of_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="one class"):
        macro_auc(Scored.of(list("ab"), [1, 1], np.full((2, 2), 0.5)), np.ones((1, 2)))


def test_a_perfect_figure_of_few_persons_does_not_look_certain() -> None:
    units = Scored.of(list("abcdef"), [0, 0, 0, 1, 1, 1], np.eye(2)[[0, 0, 0, 1, 1, 1]] * 0.8 + 0.1)
    found = measure(units, draw_weights(units, seed=0, repeats=100))["balanced_accuracy"]
    assert found.score(3) == {
        "value": 1.0,
        "low": pytest.approx(0.292, abs=1e-3),
        "high": 1.0,
        "sd": None,
    }
    assert found.score(1)["low"] is None


def test_nine_persons_leave_a_sensitivity_about_a_quarter_wide() -> None:
    assert half_width(9) == pytest.approx(0.27, abs=0.03)
    assert half_width(900) < 0.03


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return summarise(table(), about())


def test_scans_are_averaged_to_items_and_items_to_persons(summary: dict[str, Any]) -> None:
    assert {unit: n["units"] for unit, n in summary["n"].items()} == {
        "scan": 294,
        "item": 98,
        "person": 49,
    }
    assert all(n["persons"] == 49 for n in summary["n"].values())
    rows = Predictions.read(table(), CLASSES)
    found = rows.levels("network")
    first = rows.person == "P000"
    by_item = [
        rows.probabilities["network"][:, first & (rows.item == f"P000 C000{i}")].mean(axis=1)
        for i in (0, 1)
    ]
    np.testing.assert_allclose(
        found["person"].probabilities[:, 0], np.mean(by_item, axis=0), atol=1e-6
    )


def test_more_frames_of_the_same_persons_do_not_narrow_the_interval() -> None:
    rows = table({"network": 1.0}, frames=1, repeats=1)
    copies = [
        put(rows, "scan_id", pa.array([f"{name}-{copy}" for name in rows["scan_id"].to_pylist()]))
        for copy in range(8)
    ]
    few, many = (
        summarise(each, about())["models"]["network"]["scan"]["balanced_accuracy"]
        for each in (rows, pa.concat_tables(copies))
    )
    assert many == few


def test_a_network_that_beats_every_baseline_is_said_to(summary: dict[str, Any]) -> None:
    assert summary["verdict"]["code"] == "beats"
    for found in summary["differences"].values():
        assert found["item"]["balanced_accuracy"]["low"] > 0


def test_a_network_that_does_not_is_said_so_first_with_persons_and_interval() -> None:
    verdict = summarise(table({"network": 0.8, "thumbnail_rf": 0.8}), about())["verdict"]
    assert verdict["code"] == "does_not_beat"
    assert "does not beat" in verdict["sentence"]
    assert "49 persons" in verdict["evidence"][0]
    assert " to " in verdict["evidence"][1]
    assert "9 persons of covid" in verdict["notes"][0]


def test_a_network_worse_than_a_forest_is_called_worse() -> None:
    found = summarise(table({"network": 0.2, "thumbnail_rf": 3.0, "source": 0.0}), about())
    assert found["verdict"]["code"] == "worse"
    assert found["differences"]["thumbnail_rf"]["item"]["balanced_accuracy"]["high"] < 0


def test_one_person_of_a_class_is_too_few_to_say_anything() -> None:
    found = summarise(table(persons=(20, 20, 1)), about())
    assert found["verdict"]["code"] == "insufficient"
    assert found["models"]["network"]["item"]["balanced_accuracy"]["low"] is None


def test_no_labels_give_the_reason_and_no_figure() -> None:
    empty = table(persons=(2, 2, 2)).slice(0, 0)
    found = summarise(empty, about(insufficient="4 persons have grade 3."))
    assert found["verdict"]["evidence"] == ["4 persons have grade 3."]
    assert "models" not in found


def test_a_person_in_two_folds_is_refused_unless_the_leak_is_asked_for() -> None:
    rows = table({"network": 1.0})
    folds = rows["fold"].to_pylist()
    spoilt = put(rows, "fold", pa.array([(folds[0] + 1) % 5, *folds[1:]], pa.int16()))
    with pytest.raises(InputError, match="two folds"):
        summarise(spoilt, about())
    found = summarise(spoilt, about(leaky=True))
    assert found["verdict"]["code"] == "leaky"
    assert "not valid" in found["verdict"]["sentence"]


def test_models_judged_on_other_scans_are_refused() -> None:
    rows = table()
    keep = pa.array([i != 5 for i in range(len(rows))])
    with pytest.raises(InputError, match="other scans"):
        summarise(rows.filter(keep), about())


def test_predictions_without_the_network_are_refused() -> None:
    with pytest.raises(InputError, match="network"):
        summarise(table({"majority": 0.0}), about())


def test_an_item_with_two_labels_is_refused() -> None:
    rows = table({"network": 1.0}, repeats=1)
    truth = rows["truth"].to_pylist()
    spoilt = put(rows, "truth", pa.array([2, *truth[1:]], pa.int16()))
    with pytest.raises(InputError, match="two labels"):
        summarise(spoilt, about())


def test_a_person_of_two_classes_counts_in_items_only() -> None:
    rows = table({"network": 1.0}, repeats=1)
    ids, truth = rows["scan_id"].to_pylist(), rows["truth"].to_pylist()
    second = [2 if name.startswith("P000-1") else t for name, t in zip(ids, truth, strict=True)]
    found = summarise(put(rows, "truth", pa.array(second, pa.int16())), about())
    assert (found["n"]["item"]["units"], found["n"]["person"]["units"]) == (98, 48)
    assert found["n_persons"] == 49


def test_figures_inside_a_source_leave_out_classes_that_it_has_not(summary: dict[str, Any]) -> None:
    assert set(summary["within_source"]) == {"S0", "S1", "S2"}
    inside = summary["within_source"]["S0"]
    assert set(inside["n"]["classes"]) == {"regular", "pneumonia"}
    assert inside["models"]["majority"]["balanced_accuracy"]["value"] == pytest.approx(0.5)
    assert summary["sources"]["covid"] == {"S9": {"persons": 9, "items": 18}}


def test_one_source_alone_has_no_inside() -> None:
    rows = table({"network": 1.0}, repeats=1)
    alone = put(rows, "source", pa.array([""] * len(rows)))
    assert summarise(alone, about())["within_source"] == {}


def test_answering_only_the_surest_items_is_more_often_right(summary: dict[str, Any]) -> None:
    curve = {
        one["coverage"]: one["balanced_accuracy"]["value"] for one in summary["abstention"]["curve"]
    }
    assert curve[1.0] == summary["models"]["network"]["item"]["balanced_accuracy"]["value"]
    assert curve[0.5] > curve[1.0]
    assert 0 < summary["abstention"]["abstained"] < 0.5


def test_dividing_by_the_temperature_is_undone_for_the_bins_before(summary: dict[str, Any]) -> None:
    def of(side: str) -> float:
        bins = summary["reliability"][side]
        return sum(b["share"] * b["confidence"] for b in bins)

    assert of("before") > of("after") + 0.03
    assert sum(b["share"] for b in summary["reliability"]["before"]) == pytest.approx(1)
    assert summarise(table(), about(temperature=None))["reliability"]["before"] is None


def test_the_first_splits_curve_is_that_of_scikit_learn(summary: dict[str, Any]) -> None:
    units = Predictions.read(table(), CLASSES).levels("network")["item"]
    curve = summary["roc"]["covid"]
    area = np.trapezoid(curve["tpr"], curve["fpr"])
    assert area == pytest.approx(
        metrics.roc_auc_score(units.truth == 2, units.probabilities[0, :, 2])
    )


def test_the_same_table_gives_the_same_summary_whatever_the_order_of_rows() -> None:
    rows = table(repeats=1)
    turned = rows.take(np.random.default_rng(0).permutation(len(rows)))
    assert summarise(turned, about()) == summarise(rows, about())
