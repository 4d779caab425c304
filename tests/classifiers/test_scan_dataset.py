"""Real persons and synthetic patients for code of others: who is in it, and who never is."""

import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rarescan.classifiers import augmented, read_row
from rarescan.cohort.contracts import Question
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.errors import GridMismatchError, InputError, SettingError
from rarescan.files import require_recipe


@pytest.fixture(scope="module")
def batch(prepared: Path, make_cohort: Callable[..., Path], tmp_path_factory: Any) -> Path:
    """Return 30 synthetic patients and 5 synthetic controls, generated for this cohort."""
    return make_cohort(
        tmp_path_factory.mktemp("batch") / "synthetic", 30, 5, seed=50, origin="synthetic",
        partition=False, prepared_id=require_recipe(prepared).id,
    )  # fmt: skip


@pytest.mark.parametrize("ratio", [0.0, 0.5, 2.0])
def test_the_ratio_counts_synthetic_patients_for_each_real_one(
    ratio: float, prepared: Path, batch: Path
) -> None:
    found = augmented(prepared, batch, ratio)
    cohort = open_cohort(prepared)
    train = {p for p, part in cohort.partition.items() if part == "train"}
    sick = {s.person_id for s in cohort.scans if s.condition.diagnosis == "bvFTD"}
    items = [found[i] for i in range(len(found))]
    synthetic = [item for item in items if item["origin"] == "synthetic"]
    assert len(synthetic) == round(ratio * len(train & sick))
    assert {item["label"] for item in synthetic} <= {1}
    real = [item for item in items if item["origin"] != "synthetic"]
    assert {item["person_id"] for item in real} == train
    assert all(item["label"] == (item["person_id"] in sick) for item in real)


def test_no_held_out_person_is_ever_beside_a_synthetic_one(prepared: Path, batch: Path) -> None:
    cohort = open_cohort(prepared)
    for part in ("validation", "test"):
        with pytest.raises(SettingError, match=f"beside {part} persons"):
            augmented(prepared, batch, 1, part=part)
        found = augmented(prepared, batch, 0, part=part)
        people = {found[i]["person_id"] for i in range(len(found))}
        assert people == {p for p, given in cohort.partition.items() if given == part}


def test_an_image_is_the_stored_one_and_a_larger_ratio_keeps_the_patients_of_a_smaller(
    prepared: Path, batch: Path
) -> None:
    small, large = (augmented(prepared, batch, ratio, seed=3) for ratio in (0.5, 2.0))
    stored = {s.scan_id: v for s, v in zip(open_cohort(batch).scans, open_volumes(open_cohort(batch)), strict=True)}  # fmt: skip # noqa: E501
    last = small[len(small) - 1]
    assert last["image"].dtype == torch.float32
    np.testing.assert_array_equal(last["image"][0], stored[last["scan_id"]])
    names = [{e.scan.scan_id for e in found.entries} for found in (small, large)]
    assert names[0] < names[1]
    other = augmented(prepared, batch, 0.5, seed=4)
    assert {e.scan.scan_id for e in other.entries} != names[0]


def test_a_loader_with_a_worker_gives_the_same_batches_and_only_paths_are_pickled(
    prepared: Path, batch: Path
) -> None:
    found = augmented(prepared, batch, 1)
    plain = torch.stack([found[i]["image"] for i in range(len(found))])
    loader = DataLoader(found, batch_size=7, num_workers=1)
    torch.testing.assert_close(torch.cat([b["image"] for b in loader]), plain, rtol=0, atol=0)
    assert len(pickle.dumps(found)) < 100 * len(found) + 20_000


def test_where_one_stands_does_not_matter(
    prepared: Path, batch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepared.parent)
    found = augmented(Path(prepared.name), Path("..") / batch.parent.name / batch.name, 1)
    monkeypatch.chdir(batch)
    assert found[len(found) - 1]["origin"] == "synthetic"
    assert all(Path(row["image"]).is_absolute() for row in found.as_monai())


def test_a_batch_of_a_model_that_saw_other_persons_is_refused(
    make_cohort: Callable[..., Path], prepared: Path, tmp_path: Path
) -> None:
    foreign = make_cohort(
        tmp_path / "b", 3, 0, origin="synthetic", partition=False, prepared_id="0" * 16
    )
    with pytest.raises(InputError, match="trained on another cohort"):
        augmented(prepared, foreign, 0.1)
    other = make_cohort(tmp_path / "c", 3, 0, origin="synthetic", partition=False, spacing_mm=16.0)
    with pytest.raises(GridMismatchError):
        augmented(prepared, other, 0.1)


def test_what_cannot_be_had_is_said(prepared: Path, batch: Path) -> None:
    with pytest.raises(InputError, match="30 patients, and 140 are asked for"):
        augmented(prepared, batch, 10)
    with pytest.raises(SettingError, match="without a batch"):
        augmented(prepared, None, 1)
    with pytest.raises(SettingError, match="-1"):
        augmented(prepared, batch, -1)
    with pytest.raises(InputError, match="the cohort has: bvFTD, control"):
        augmented(prepared, batch, 1, question=Question(positive="AD"))


@pytest.mark.long
def test_the_verb_is_found_without_torch_and_stays_the_function(prepared: Path) -> None:
    code = (
        "import sys, rarescan.classifiers as c; assert 'torch' not in sys.modules; "
        "from rarescan.classifiers import augmented; import rarescan.classifiers.scan_dataset; "
        "from rarescan.classifiers import augmented as again; assert callable(again) and "
        "again is augmented"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


@pytest.mark.long
def test_monai_reads_the_list_with_its_own_transforms_and_knows_where_voxels_lie(
    prepared: Path, batch: Path, tmp_path: Path
) -> None:
    from monai.data import PersistentDataset
    from monai.transforms import Compose, Flipd

    found = augmented(prepared, batch, 1)
    rows = found.as_monai()
    data = PersistentDataset(rows, Compose([read_row, Flipd("image", 0)]), cache_dir=tmp_path)
    item = data[len(data) - 1]
    np.testing.assert_array_equal(item["image"][0].flip(0), found[len(found) - 1]["image"][0])
    assert Counter(row["origin"] for row in rows)["synthetic"] == 14
    low = (item["image"].affine @ torch.tensor([19.0, 0, 0, 1], dtype=torch.float64))[:3]
    assert low.tolist() == [-76.0, -108.0, -72.0]
