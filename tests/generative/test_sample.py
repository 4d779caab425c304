import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from refusal import Refusal

from rarescan.cohort.contracts import Condition
from rarescan.cohort.store import open_cohort, open_volumes, write_cohort
from rarescan.errors import GateRefusedError, InputError
from rarescan.files import Recipe, run_step
from rarescan.generative import sample
from rarescan.generative.families import load_generator
from rarescan.generative.sample import REDRAWN, write_samples
from rarescan.seeds import derive

Trained = Callable[[str, str], Path]
ASKED = [
    Condition(diagnosis="bvFTD" if i % 3 else "control", age_years=55.0 + i % 20, severity=0.5)
    for i in range(37)
]


def stored(root: Path) -> bytes:
    return (root / "rarescan" / "volumes.npy").read_bytes()


def test_any_number_of_workers_gives_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    model = trained("gaussian", "pca")
    scans = [
        write_samples(tmp_path / str(workers), model, ASKED, seed=5, workers=workers)
        for workers in (1, 2)
    ]
    assert stored(tmp_path / "1") == stored(tmp_path / "2")
    assert scans[0] == scans[1]


def test_the_rows_are_the_generators_samples_and_the_records_describe_them(
    trained: Trained, tmp_path: Path
) -> None:
    model = trained("gaussian", "pca")

    def build(work: Path) -> None:
        scans = write_samples(work, model, ASKED, seed=5)
        grid = load_generator(model).grid
        write_cohort(work, scans=scans, grid=grid, partition={})

    cohort = open_cohort(run_step(tmp_path / "batch", Recipe(step="generate", schema=1), build))
    volumes = open_volumes(cohort)
    for row, volume in enumerate(load_generator(model).sample(ASKED, 5)):
        np.testing.assert_array_equal(volumes[row], volume)
        assert cohort.scans[row].sha256 == hashlib.sha256(volume.tobytes()).hexdigest()
    first = cohort.scans[0]
    assert (first.person_id, first.origin, first.target) == ("SYN000001", "synthetic", "control")
    # The cohort had no severity: the record does not claim that it was obeyed.
    assert first.condition == Condition(diagnosis="control", age_years=55.0)
    assert len({s.scan_id for s in cohort.scans}) == 37


def test_a_killed_batch_goes_on_where_it_was(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained("gaussian", "pca")
    write_samples(tmp_path / "whole", model, ASKED, seed=5)
    write_json, written = sample.write_json, []

    def killed(path: Path, value: object) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_json(path, value)

    monkeypatch.setattr(sample, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path / "parts", model, ASKED, seed=5)
    monkeypatch.undo()
    finished = written[0].stat().st_mtime_ns
    write_samples(tmp_path / "parts", model, ASKED, seed=5)
    assert stored(tmp_path / "parts") == stored(tmp_path / "whole")
    assert written[0].stat().st_mtime_ns == finished


def test_rows_of_another_batch_are_not_taken_for_done(trained: Trained, tmp_path: Path) -> None:
    model = trained("gaussian", "pca")
    write_samples(tmp_path / "a", model, ASKED, seed=5)
    scans = write_samples(tmp_path / "a", model, ASKED, seed=6)
    assert scans == write_samples(tmp_path / "b", model, ASKED, seed=6)
    assert stored(tmp_path / "a") == stored(tmp_path / "b")


def test_a_longer_batch_begins_with_the_shorter_one(trained: Trained, tmp_path: Path) -> None:
    model = trained("diffusion", "pca")
    short = write_samples(tmp_path / "short", model, ASKED[:6], seed=5)
    long = write_samples(tmp_path / "long", model, ASKED, seed=5)
    assert [s.sha256 for s in long[:6]] == [s.sha256 for s in short]


def test_a_condition_that_cannot_be_served_stops_before_anything_is_written(
    trained: Trained, tmp_path: Path
) -> None:
    bad = [*ASKED, Condition(diagnosis="AD")]
    with pytest.raises(InputError, match="bvFTD, control"):
        write_samples(tmp_path / "x", trained("gaussian", "pca"), bad, seed=1)
    assert not (tmp_path / "x").exists()


def test_marks_hold_hashes_and_nothing_else(trained: Trained, tmp_path: Path) -> None:
    write_samples(tmp_path, trained("gaussian", "pca"), ASKED[:3], seed=5)
    marks = list((tmp_path / "rarescan" / ".samples").iterdir())
    assert [set(json.loads(m.read_text())) for m in marks] == [{"batch_id", "sha256", "refused"}]


def test_refused_scans_are_drawn_again_and_counted_and_none_of_them_is_delivered(
    trained: Trained, tmp_path: Path
) -> None:
    model, refusal = trained("gaussian", "pca"), Refusal(share=0.4)
    scans = write_samples(tmp_path / "checked", model, ASKED, seed=5, check=refusal)
    delivered = np.load(tmp_path / "checked" / "rarescan" / "volumes.npy")
    first = list(load_generator(model).sample(ASKED, 5))
    assert refusal(np.stack(first)).any()
    assert not refusal(delivered).any()
    for index, (scan, volume) in enumerate(zip(scans, delivered, strict=True)):
        refused = scan.flags.count(REDRAWN)
        assert bool(refused) == bool(refusal(first[index][None])[0])
        # Attempt k is that very scan of another batch, and can be drawn alone.
        seed = derive(5, "again", refused) if refused else 5
        alone = load_generator(model).sample([ASKED[index]], seed, first_index=index)
        np.testing.assert_array_equal(next(iter(alone)), volume)
        assert scan.sha256 == hashlib.sha256(volume.tobytes()).hexdigest()
    assert max(scan.flags.count(REDRAWN) for scan in scans) > 1


def test_replacements_depend_on_neither_workers_nor_kills_nor_the_batchs_length(
    trained: Trained, tmp_path: Path
) -> None:
    model, refusal = trained("gaussian", "pca"), Refusal(share=0.4)
    whole = write_samples(tmp_path / "1", model, ASKED, seed=5, check=refusal)
    two = write_samples(tmp_path / "2", model, ASKED, seed=5, check=refusal, workers=2)
    short = write_samples(tmp_path / "short", model, ASKED[:20], seed=5, check=refusal)
    assert stored(tmp_path / "1") == stored(tmp_path / "2")
    assert whole == two
    assert whole[:20] == short
    marks = sorted((tmp_path / "2" / "rarescan" / ".samples").iterdir())
    marks[1].unlink()
    assert write_samples(tmp_path / "2", model, ASKED, seed=5, check=refusal) == whole
    assert stored(tmp_path / "1") == stored(tmp_path / "2")


def test_rows_that_another_check_let_pass_are_not_taken_for_done(
    trained: Trained, tmp_path: Path
) -> None:
    model = trained("gaussian", "pca")
    write_samples(tmp_path, model, ASKED[:8], seed=5)
    scans = write_samples(tmp_path, model, ASKED[:8], seed=5, check=Refusal(share=0.4))
    assert any(scan.flags for scan in scans)


def test_a_generator_that_only_copies_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(GateRefusedError, match="10 draws of synthetic scan 1 "):
        write_samples(
            tmp_path, trained("gaussian", "pca"), ASKED[:2], seed=5, check=Refusal(share=1.0)
        )
