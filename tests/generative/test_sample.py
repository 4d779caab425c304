import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusal import Refusal
from torch import Tensor

from rarescan.cohort.contracts import Condition
from rarescan.cohort.store import open_cohort, open_volumes, write_cohort
from rarescan.errors import GateRefusedError, InputError, MissingExtraError, SettingError
from rarescan.files import Recipe, run_step
from rarescan.generative import families, memory, sample
from rarescan.generative.codecs import restore_codec
from rarescan.generative.families import load_generator
from rarescan.generative.model import TrainedGenerator, read_model
from rarescan.generative.sample import REDRAWN, Means, write_samples
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
        write_samples(tmp_path / str(workers), model, ASKED, seed=5, means=Means(workers=workers))
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


@pytest.mark.long
def test_replacements_depend_on_neither_workers_nor_kills_nor_the_batchs_length(
    trained: Trained, tmp_path: Path
) -> None:
    model, refusal = trained("gaussian", "pca"), Refusal(share=0.4)
    whole = write_samples(tmp_path / "1", model, ASKED, seed=5, check=refusal)
    two = write_samples(tmp_path / "2", model, ASKED, seed=5, check=refusal, means=Means(workers=2))
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


@pytest.mark.parametrize(("family", "codec"), [("gaussian", "pca"), ("gaussian", "haar")])
def test_scans_are_drawn_and_decoded_where_the_prior_lies(
    trained: Trained, family: str, codec: str
) -> None:
    # On torch's device without values, where an operation with a tensor of the CPU is an error.
    generator: Any = load_generator(trained(family, codec))
    seen = []

    class Witness:
        def decode(self, codes: Tensor) -> Tensor:
            seen.append(codes.device.type)
            return torch.full((len(codes), 2, *generator.grid.shape), 0.5)

    there = TrainedGenerator(generator.grid, Witness(), generator.prior.to("meta"))  # type: ignore[arg-type]
    volumes = list(there.sample(ASKED[:5], 5))
    assert seen == ["meta", "meta"]
    assert [volume.shape for volume in volumes] == [generator.grid.shape] * 5


def test_codec_and_prior_are_made_on_the_device_that_is_asked_for(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def restore(*given: Any) -> Any:
        made.append(torch.get_default_device().type)
        with torch.device("cpu"):
            return restore_codec(*given)

    monkeypatch.setattr(families, "restore_codec", restore)
    monkeypatch.setattr(families, "choose_device", torch.device)
    monkeypatch.setattr(families, "fitting_batch", lambda *_: 2)
    generators: list[Any] = [
        load_generator(trained("gaussian", "haar"), device=device) for device in ("cpu", "meta")
    ]
    assert made == ["cpu", "meta"]
    assert [g.prior.floor.spread.device.type for g in generators] == made
    assert generators[1].micro_batch == 2


def test_a_gpu_that_is_not_there_is_named_before_anything_is_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = trained("gaussian", "haar")
    with pytest.raises(MissingExtraError, match="device is cuda"):
        write_samples(tmp_path / "a", model, ASKED[:2], seed=5, means=Means(device="cuda"))
    assert not (tmp_path / "a").exists()
    auto = write_samples(tmp_path / "b", model, ASKED[:2], seed=5, means=Means(device="auto"))
    assert auto == write_samples(tmp_path / "c", model, ASKED[:2], seed=5)


def test_auto_leaves_a_gpu_alone_for_principal_components_and_takes_it_for_networks(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = {
        (codec, device): sample._chosen(trained("gaussian", codec), device)
        for codec in ("pca", "haar")
        for device in ("auto", "cuda", "cpu")
    }
    on_gpu = {case for case, device in chosen.items() if device == "cuda"}
    assert on_gpu == {("haar", "auto"), ("haar", "cuda"), ("pca", "cuda")}


def test_as_many_scans_are_drawn_together_as_the_gpus_memory_holds(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, device = read_model(trained("gaussian", "haar")), torch.device("cuda")
    about = (stored.encoder.n_features, sum(stored.encoder.n_by_diagnosis))
    needed = {
        n: memory.footprint(stored.spec, stored.grid.shape, *about, drawn_together=n).sampling_bytes
        for n in (1, 2, 4)
    }
    assert needed[1] < needed[2] < needed[4]
    for free, n in ((needed[4], 4), (needed[4] - 1, 2), (needed[1], 1)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        assert memory.fitting_batch(stored, device) == n
    monkeypatch.setattr(memory, "free_bytes", lambda _: needed[1] - 1)
    with pytest.raises(SettingError, match="To draw one scan"):
        memory.fitting_batch(stored, device)
