"""What a scan and an item are called where figures are told."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rarescan.classifiers.fold_tables import about_cohort
from rarescan.classifiers.modalities import modality_of
from rarescan.classifiers.spec import ClassifyConfig
from rarescan.classifiers.splits import label_table
from rarescan.cohort.store import open_cohort


@pytest.mark.parametrize(
    ("kind", "unit", "item"), [("MR2D", "session", "session"), ("US", "frame", "clip")]
)
def test_three_planes_of_a_brain_are_a_session_and_frames_a_clip(
    kind: str, unit: str, item: str, make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    persons = {"healthy": 6, "dementia": 6}
    cohort = open_cohort(make_pictures(tmp_path / "p", persons, frames=1, modality=kind))
    config, modality = ClassifyConfig(), modality_of(cohort)
    about = about_cohort(label_table(cohort, config, modality), modality, config)
    assert (about["unit"], about["item_unit"]) == (unit, item)
