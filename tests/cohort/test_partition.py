from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.cohort.contracts import Condition, Scan
from rarescan.cohort.partition import PartitionConfig, draw_partition
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
