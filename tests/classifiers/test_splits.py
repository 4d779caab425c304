"""No leak between splits: grouped by person, and a leak would be found."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from rarescan.classifiers import splits
from rarescan.classifiers.contract import Labels
from rarescan.classifiers.planes import PICTURES
from rarescan.classifiers.spec import ClassifyConfig
from rarescan.classifiers.splits import Fold, LabelTable, draw_folds, label_table, straddlers
from rarescan.cohort.contracts import Condition, Scan
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError, SettingError

CONFIG = ClassifyConfig(folds=3)


def _table(
    persons: list[int], *, frames: int = 3, config: ClassifyConfig = CONFIG, **changes: object
) -> LabelTable:
    """Return a table with so many persons a class, each with several frames."""
    people = [c for c, n in enumerate(persons) for _ in range(n)]
    scans = tuple(
        Scan(
            scan_id=f"S{p}-{f}",
            person_id=f"P{p}",
            session=f"C{p}",
            site=f"H{p % 5}",
            target=str(c),
            condition=Condition(diagnosis=str(c)),
        )
        for p, c in enumerate(people)
        for f in range(frames)
    )
    return LabelTable(
        labels=Labels(names=tuple(map(str, range(len(persons))))),
        scans=scans,
        rows=tuple(range(len(scans))),
        truth=np.repeat(people, frames),
        groups=splits._groups(scans, config),
    )


@settings(deadline=None, max_examples=8)
@given(
    persons=st.lists(st.integers(9, 14), min_size=2, max_size=3),
    frames=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_nobody_stands_on_both_sides_and_everybody_is_tested_once(
    persons: list[int], frames: int, seed: int
) -> None:
    """T1, T9: frames and clips of one person stay together."""
    table = _table(persons, frames=frames)
    folds = draw_folds(table, CONFIG, seed)
    tested = np.sort(np.concatenate([fold.test for fold in folds]))
    np.testing.assert_array_equal(tested, np.arange(len(table.scans)))
    for fold in folds:
        sides = [
            {table.person_ids[p] for p in part} for part in (fold.train, fold.validation, fold.test)
        ]
        assert all(not one & other for one, other in combinations(sides, 2))
        assert sum(map(len, (fold.train, fold.validation, fold.test))) == len(table.scans)
        assert set(table.truth[fold.train]) == set(range(len(persons)))


def test_a_planted_leak_is_found() -> None:
    table = _table([9, 9])
    fold = draw_folds(table, CONFIG, 0)[0]
    assert straddlers(table, fold) == set()
    leaking = replace(fold, train=np.append(fold.train, fold.test[0]))
    assert straddlers(table, leaking) == {table.groups[fold.test[0]]}
    watched = replace(fold, validation=np.append(fold.validation, fold.train[0]))
    assert straddlers(table, watched) == {table.groups[fold.train[0]]}


def test_a_split_that_straddles_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    table = _table([9, 9])

    def by_scan(_table: object, positions: np.ndarray, n_parts: int, _seed: int) -> list[object]:
        parts = np.array_split(positions, n_parts)
        return [(np.setdiff1d(positions, part), part) for part in parts]

    monkeypatch.setattr(splits, "_divided", by_scan)
    with pytest.raises(RuntimeError, match="both sides"):
        draw_folds(replace(table, truth=np.arange(54) % 2), CONFIG, 0)


def test_two_runs_draw_the_same_folds_and_another_repeat_draws_others() -> None:
    """T3: seeded, and the number of splits is honoured."""
    table = _table([12, 12, 12])

    def drawn(config: ClassifyConfig, repeat: int) -> list[list[int]]:
        return [fold.test.tolist() for fold in draw_folds(table, config, repeat)]

    assert drawn(CONFIG, 0) == drawn(CONFIG, 0)
    assert drawn(CONFIG, 0) != drawn(CONFIG, 1)
    assert len(drawn(replace(CONFIG, folds=4), 0)) == 4


def test_folds_hold_every_class_and_not_one_source_each() -> None:
    """T4: consecutive fifths of sorted names put one source in a fold."""
    table = _table([20, 20])
    for fold in draw_folds(table, replace(CONFIG, folds=5), 0):
        assert set(table.truth[fold.test]) == {0, 1}
        assert len({table.scans[p].site for p in fold.test}) > 1


def test_pseudonyms_in_doubt_and_persons_with_one_picture_stay_together() -> None:
    """T24: the same pixels never stand on both sides; T2: nor does a person under two names."""
    scans = _table([12, 12]).scans
    doubtful = replace(scans[0], flags=("perhaps_P9",))
    twin = replace(scans[6], sha256="same")
    other_twin = replace(scans[40], sha256="same")
    changed = (doubtful, *scans[1:6], twin, *scans[7:40], other_twin, *scans[41:])
    groups = dict(zip((s.person_id for s in changed), splits._groups(changed, CONFIG), strict=True))
    assert groups["P0"] == groups["P9"]
    assert groups["P2"] == groups["P13"]
    assert len(set(groups.values())) == 22


def test_a_source_held_out_is_held_out_whole() -> None:
    config = replace(CONFIG, group="source")
    table = _table([20, 20], config=config)
    for fold in draw_folds(table, config, 0):
        sites = [{table.scans[p].site for p in part} for part in (fold.train, fold.test)]
        assert not sites[0] & sites[1]


def _persons_with_marks(n: int, frames: int, seed: int) -> tuple[LabelTable, np.ndarray]:
    """Return a table and features that name the person and say nothing of the class."""
    table = _table([n, n], frames=frames)
    random = np.random.default_rng(seed)
    marks = np.repeat(random.normal(size=(2 * n, 8)), frames, axis=0)
    return table, marks + 0.05 * random.normal(size=marks.shape)


def _score(table: LabelTable, features: np.ndarray, folds: list[Fold]) -> float:
    answers = np.empty(len(table.truth), dtype=np.int64)
    for fold in folds:
        model = KNeighborsClassifier(1).fit(features[fold.train], table.truth[fold.train])
        answers[fold.test] = model.predict(features[fold.test])
    return float(balanced_accuracy_score(table.truth, answers))


def test_by_frame_a_classifier_that_knows_only_persons_looks_perfect() -> None:
    """T1, T2: measured on lung ultrasound 0.975 by frame, 0.71 by person."""
    table, features = _persons_with_marks(24, 4, seed=1)
    leaky = replace(CONFIG, leaky=True)
    by_frame = replace(table, groups=splits._groups(table.scans, leaky))
    honest = _score(table, features, draw_folds(table, CONFIG, 0))
    flattered = _score(by_frame, features, draw_folds(by_frame, leaky, 0))
    assert flattered > 0.9
    # 48 persons: 0.07 is one standard deviation of a chance figure.
    assert honest < 0.75


def test_a_leak_may_lower_a_figure_and_is_still_found() -> None:
    """T26: where a person's other film has the other label, the leak misleads."""
    table, features = _persons_with_marks(30, 2, seed=2)
    truth = np.tile([0, 1], 60)
    one_of_each = replace(table, truth=truth, groups=splits._groups(table.scans, CONFIG))
    by_film = replace(one_of_each, groups=splits._groups(table.scans, replace(CONFIG, leaky=True)))
    folds = draw_folds(by_film, replace(CONFIG, leaky=True), 0)
    scores = np.empty(len(truth))
    for fold in folds:
        model = KNeighborsClassifier(1).fit(features[fold.train], truth[fold.train])
        scores[fold.test] = model.predict_proba(features[fold.test])[:, 1]
    assert roc_auc_score(truth, scores) < 0.4
    assert any(straddlers(one_of_each, fold) for fold in folds)


def test_no_split_by_scan_without_saying_so(pictures: Path) -> None:
    """T1: `leaky` is the only way to it, and it is off."""
    assert not ClassifyConfig().leaky
    table = label_table(open_cohort(pictures), CONFIG, PICTURES)
    assert len(set(table.groups)) == 36
    by_scan = label_table(open_cohort(pictures), replace(CONFIG, leaky=True), PICTURES)
    assert len(set(by_scan.groups)) == 72


def test_labels_come_from_the_target_and_flags_choose_scans(
    make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    def flagged(scan: Scan) -> Scan:
        convex = ("probe_convex",) if scan.scan_id.endswith("0") else ()
        return replace(scan, flags=convex, target=None if scan.person_id == "P000" else "x")

    def named(scan: Scan) -> Scan:
        return replace(flagged(scan), target=scan.target if scan.person_id != "P000" else None)

    root = make_pictures(tmp_path / "f", {"a": 6, "b": 6}, partition=False, change=named)
    table = label_table(
        open_cohort(root), ClassifyConfig(flags=("probe_convex",), folds=2), PICTURES
    )
    assert len(table.scans) == 11
    assert table.counts(table.person_ids) == {"a": 5, "b": 6}


def test_classes_that_nobody_has_or_that_are_one_are_refused(pictures: Path) -> None:
    cohort = open_cohort(pictures)
    with pytest.raises(SettingError, match="Did you mean 'covid'"):
        label_table(cohort, replace(CONFIG, classes=("covd", "regular")), PICTURES)
    with pytest.raises(SettingError, match="1 class"):
        label_table(cohort, replace(CONFIG, classes=("covid",)), PICTURES)
    with pytest.raises(SettingError, match="twice"):
        label_table(cohort, replace(CONFIG, classes=("covid", "covid", "regular")), PICTURES)


def test_more_folds_than_sources_are_refused() -> None:
    config = replace(CONFIG, group="source", folds=6)
    with pytest.raises(InputError, match="5 groups"):
        draw_folds(_table([20, 20], config=config), config, 0)


def test_a_class_of_one_person_cannot_be_trained_and_tested() -> None:
    with pytest.raises(InputError, match=r"classify\.folds"):
        draw_folds(_table([1, 9]), CONFIG, 0)
