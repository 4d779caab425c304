"""Whose scans an arm sees, how often: counted over many steps."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.classifiers.arm_scans import added_scans, pools_of, real_scans, seen_scans
from rarescan.classifiers.arm_table import ArmSpec, arm_spec
from rarescan.classifiers.examples import Examples, draw
from rarescan.classifiers.spec import ClassifierConfig, RetrainConfig
from rarescan.cohort.contracts import Cohort, Condition, Question
from rarescan.errors import InputError

CONFIG = ClassifierConfig(steps=40, batch_size=16)


def _examples(*groups: tuple[int, int, str, float], name: str = "P") -> Examples:
    """Return persons in groups of (label, how many, site, age)."""
    people = [(label, site, age) for label, n, site, age in groups for _ in range(n)]
    return Examples(
        sources=(np.zeros((len(people), 2, 2, 2), np.float32),),
        rows=tuple((0, i) for i in range(len(people))),
        labels=tuple(label for label, _, _ in people),
        person_ids=tuple(f"{name}{i}" for i in range(len(people))),
        conditions=tuple(
            Condition(diagnosis="bvFTD" if label else "control", site=site, age_years=age)
            for label, site, age in people
        ),
    )


CONFOUNDED = _examples((1, 11, "A", 70), (1, 1, "B", 58), (0, 12, "A", 69), (0, 108, "B", 55))
SWAPPED = _examples(
    (1, 11, "B", 70), (1, 1, "A", 58), (0, 12, "B", 69), (0, 108, "A", 55), name="S"
)


def _drawn(
    spec: ArmSpec, real: Examples, added: Examples | None, steps: int = 40, batch_size: int = 16
) -> list[list[int]]:
    pools = pools_of(spec, real, added, replace(CONFIG, batch_size=batch_size))
    return [draw(pools, 5, step) for step in range(steps)]


def _cells(found: list[list[int]], joined: Examples, n_real: int) -> Counter[tuple[object, ...]]:
    return Counter(
        (joined.labels[p], joined.conditions[p].site, p < n_real) for batch in found for p in batch
    )


def test_site_balanced_sees_the_four_cells_equally_often() -> None:
    found = _drawn(arm_spec("site_balanced"), CONFOUNDED, None)
    cells = _cells(found, CONFOUNDED, len(CONFOUNDED))
    assert set(cells.values()) == {160}


def test_age_balanced_sees_old_and_young_of_both_classes_equally_often() -> None:
    found = _drawn(arm_spec("age_balanced"), CONFOUNDED, None)
    ages = Counter(
        (CONFOUNDED.labels[p], (CONFOUNDED.conditions[p].age_years or 0) > 62)
        for batch in found
        for p in batch
    )
    assert set(ages.values()) == {160}


@settings(deadline=None, max_examples=30)
@given(share=st.sampled_from([0.0, 0.25, 0.5, 0.7]), batch_size=st.integers(4, 24))
def test_real_persons_keep_their_share_of_every_cell(share: float, batch_size: int) -> None:
    spec = replace(arm_spec("site_balanced+swap:all"), real_share=share)
    steps = 60
    found = _drawn(spec, CONFOUNDED, SWAPPED, steps, batch_size)
    assert {len(batch) for batch in found} == {batch_size}
    cells = _cells(found, CONFOUNDED.joined(SWAPPED), len(CONFOUNDED))
    for label, size in ((0, batch_size // 2), (1, batch_size - batch_size // 2)):
        for site in "AB":
            real, other = cells[label, site, True], cells[label, site, False]
            assert abs(real + other - steps * size / 2) <= 1
            assert abs(real - share * (real + other)) <= 1


def test_by_number_of_persons_nobody_is_seen_more_often_than_another() -> None:
    spec = replace(arm_spec("classical+swap:all"), real_share=None)
    seen = Counter(p for batch in _drawn(spec, CONFOUNDED, SWAPPED, 60) for p in batch)
    for label in (0, 1):
        joined = CONFOUNDED.joined(SWAPPED)
        counts = [seen[p] for p, own in enumerate(joined.labels) if own == label]
        assert max(counts) - min(counts) <= 1


def test_an_empty_cell_is_filled_by_the_batch_alone() -> None:
    real = _examples((1, 12, "A", 70), (0, 60, "A", 60), (0, 60, "B", 60))
    added = _examples((1, 12, "B", 70), name="S")
    cells = _cells(_drawn(arm_spec("site_balanced+swap:all"), real, added), real.joined(added), 132)
    assert cells[1, "A", True] == cells[1, "B", False] == 160
    assert cells[1, "A", False] == 0


def test_only_synthetic_patients_and_real_controls_where_the_batch_has_none() -> None:
    added = _examples((1, 20, "A", 70), name="S")
    cells = _cells(
        _drawn(arm_spec("classical+vae:only"), CONFOUNDED, added), CONFOUNDED.joined(added), 132
    )
    assert {key[::2] for key in cells} == {(1, False), (0, True)}
    kept = seen_scans(arm_spec("classical+vae:only"), CONFOUNDED, added)
    assert Counter(kept.labels) == {0: 120, 1: 20}
    patients = [p for p, label in zip(kept.person_ids, kept.labels, strict=True) if label]
    assert all(person.startswith("S") for person in patients)


def test_pretraining_ends_half_way_and_then_shows_what_the_free_arm_sees() -> None:
    added = _examples((1, 20, "A", 70), (0, 20, "A", 70), name="S")
    found = _drawn(arm_spec("strong+vae:pretrain"), CONFOUNDED, added)
    assert all(p >= 132 for batch in found[:20] for p in batch)
    assert found[20:] == _drawn(arm_spec("strong"), CONFOUNDED, None)[20:]


def test_patients_of_a_batch_change_nothing_else_in_a_step() -> None:
    added = _examples((1, 50, "A", 70), name="S")
    without = _drawn(arm_spec("strong"), CONFOUNDED, None)
    with_batch = _drawn(arm_spec("strong+vae"), CONFOUNDED, added)
    for a, b in zip(without, with_batch, strict=True):
        assert a[:12] == b[:12]
        assert all(p >= 132 for p in b[12:])


def test_placebos_are_as_many_as_synthetic_patients_and_all_of_them_controls() -> None:
    batch = _examples((1, 40, "A", 70), (0, 9, "A", 60), name="S")
    for arm in ("placebo", "placebo_by_number"):
        placebo = added_scans(arm_spec(arm), CONFOUNDED, batch, RetrainConfig(), 0)
        assert placebo is not None
        assert placebo.labels == (1,) * 40
        controls = {
            p for p, v in zip(CONFOUNDED.person_ids, CONFOUNDED.labels, strict=True) if not v
        }
        assert set(placebo.person_ids) <= controls
    found = _drawn(arm_spec("placebo_by_number"), CONFOUNDED, placebo, 65)
    positive = [p for b in found for p in b if CONFOUNDED.joined(placebo).labels[p]]
    assert np.mean([p < 132 for p in positive]) == pytest.approx(12 / 52, abs=0.01)


def test_weights_make_classes_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rarescan.classifiers.arm_scans.labelled", lambda *_: CONFOUNDED)
    cohort = Cohort(cohort_id="", root=None, grid=None, scans=())  # type: ignore[arg-type]
    assert real_scans(arm_spec("weighted"), cohort, Question()).positive_weight == 10
    assert real_scans(arm_spec("oversampled"), cohort, Question()).positive_weight == 1


@pytest.mark.parametrize(("arm", "what"), [("site_balanced", "site"), ("age_balanced", "age")])
def test_what_is_balanced_has_to_be_known(arm: str, what: str) -> None:
    unknown = replace(CONFOUNDED.conditions[3], site=None, age_years=None)
    conditions = (*CONFOUNDED.conditions[:3], unknown, *CONFOUNDED.conditions[4:])
    with pytest.raises(InputError, match=f"balances the {what}"):
        _drawn(arm_spec(arm), replace(CONFOUNDED, conditions=conditions), None)
