from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.cohort.contracts import Condition, Scan
from rarescan.cohort.partition import PERHAPS, PartitionConfig, draw_partition, smallest_group
from rarescan.errors import InputError


def scan(person: str, diagnosis: str = "control", site: str | None = None) -> Scan:
    condition = Condition(diagnosis=diagnosis, site=site)
    return Scan(scan_id=f"{person}-1", person_id=person, condition=condition)


def cohort(patients: int, controls: int) -> list[Scan]:
    return [scan(f"P{i}", "bvFTD") for i in range(patients)] + [
        scan(f"C{i}") for i in range(controls)
    ]


@settings(max_examples=30)
@given(st.integers(6, 60), st.integers(6, 120), st.integers(0, 9))
def test_every_person_has_one_part_and_each_diagnosis_its_shares(
    patients: int, controls: int, seed: int
) -> None:
    config = PartitionConfig(validation=0.2, test=0.2, fewest_validation=0, seed=seed)
    partition = draw_partition(cohort(patients, controls), config)
    assert len(partition) == patients + controls
    for letter, size in (("P", patients), ("C", controls)):
        counts = Counter(part for person, part in partition.items() if person[0] == letter)
        assert abs(counts["train"] - 0.6 * size) <= 1
        assert abs(counts["test"] - 0.2 * size) <= 1


def test_file_order_does_not_matter() -> None:
    scans = cohort(10, 30)
    assert draw_partition(scans, PartitionConfig()) == draw_partition(
        scans[::-1], PartitionConfig()
    )


def test_persons_keep_their_part_when_the_cohort_grows() -> None:
    before = draw_partition(cohort(10, 30), PartitionConfig())
    after = draw_partition(cohort(25, 60), PartitionConfig(), previous=before)
    assert {person: after[person] for person in before} == before
    counts = Counter(after.values())
    assert abs(counts["test"] - 17) <= 1


def test_sites_are_divided_too() -> None:
    scans = [scan(f"A{i}", site="a") for i in range(20)] + [
        scan(f"B{i}", site="b") for i in range(20)
    ]
    partition = draw_partition(scans, PartitionConfig(fewest_validation=0))
    tests = Counter(person[0] for person, part in partition.items() if part == "test")
    assert tests == {"A": 4, "B": 4}


def test_small_cohorts_give_validation_its_twenty_as_far_as_training_keeps_half() -> None:
    wanted = PartitionConfig(validation=0.2, test=0.2, fewest_validation=20)
    counts = Counter(draw_partition(cohort(20, 30), wanted).values())
    assert counts["validation"] == 20
    counts = Counter(draw_partition(cohort(8, 22), wanted).values())
    assert counts["validation"] == 12


def test_a_one_patient_cohort_is_refused_with_a_remedy() -> None:
    with pytest.raises(InputError, match="Only 1 person has the diagnosis 'bvFTD'") as caught:
        draw_partition(cohort(1, 30), PartitionConfig())
    assert "6 a diagnosis" in caught.value.remedy


def test_a_person_with_two_diagnoses_is_refused() -> None:
    scans = [*cohort(8, 8), scan("C1", "bvFTD")]
    with pytest.raises(InputError, match="more than one diagnosis, first C1"):
        draw_partition(scans, PartitionConfig())


def doubtful(scans: list[Scan], *groups: tuple[str, ...]) -> list[Scan]:
    head = {person: min(group) for group in groups for person in group}
    return [
        replace(s, flags=(f"{PERHAPS}{head[s.person_id]}",)) if s.person_id in head else s
        for s in scans
    ]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 25)), min_size=1, max_size=4),
    sites=st.integers(1, 3),
    pairs=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8),
    seed=st.integers(0, 9),
)
def test_however_the_cohort_grows_old_persons_keep_their_part_and_doubtful_ones_stay_together(
    sizes: list[tuple[int, int]], sites: int, pairs: list[tuple[int, int]], seed: int
) -> None:
    patients, controls, part = 6, 6, {}
    config = PartitionConfig(seed=seed)
    for more_patients, more_controls in [(0, 0), *sizes]:
        first_new = controls
        patients, controls = patients + more_patients, controls + more_controls
        scans = [scan(f"P{i:03}", "bvFTD", f"s{i % sites}") for i in range(patients)]
        scans += [scan(f"C{i:03}", site=f"s{i % sites}") for i in range(controls)]
        # A new person may look like another one; two old persons who differ are another test.
        new = [(a, b) for a, b in pairs if first_new <= max(a, b) < controls and a != b]
        groups = {max(pair): pair for pair in new}.values()
        lone = [g for g in groups if sum({*g} & {*h} != set() for h in groups) == 1]
        together = [(f"C{a:03}", f"C{b:03}") for a, b in lone]
        again = draw_partition(doubtful(scans, *together), config, previous=part)
        assert {person: again[person] for person in part} == part
        assert again.keys() == {s.person_id for s in scans}
        assert all(again[a] == again[b] for a, b in together)
        part = again


def test_two_old_persons_in_different_parts_who_may_be_one_stop_the_partition() -> None:
    before = draw_partition(cohort(10, 30), PartitionConfig())
    one = next(p for p, part in before.items() if part == "train" and p[0] == "C")
    other = next(p for p, part in before.items() if part == "test" and p[0] == "C")
    scans = doubtful(cohort(10, 30), (one, other))
    with pytest.raises(InputError, match=r"different parts .*test, train") as caught:
        draw_partition(scans, PartitionConfig(), previous=before)
    assert "rarescan review" in caught.value.remedy
    fresh = draw_partition(scans, PartitionConfig())
    assert fresh[one] == fresh[other]


def test_doubtful_persons_with_two_diagnoses_stop_the_partition() -> None:
    with pytest.raises(InputError, match="C0, may be one person and have different diagnoses"):
        draw_partition(doubtful(cohort(8, 8), ("C0", "P0")), PartitionConfig())


def test_the_smallest_group_is_counted_over_persons_at_their_first_scan() -> None:
    scans = [
        replace(scan(f"P{i}", site="a"), condition=Condition(diagnosis="x", age_years=years))
        for i, years in enumerate((61.0, 69.0, 70.0))
    ]
    later = replace(scans[0], scan_id="P0-2", condition=Condition(diagnosis="x", age_years=75.0))
    assert smallest_group([*scans, later]) == {"persons": 1, "groups": 2, "alone": 1}
    assert smallest_group([]) == {"persons": 0, "groups": 0, "alone": 0}
