import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training_line
from torch import Tensor
from training_line import CPU, Line
from training_line import train_line as run

from rarescan.cohort.contracts import Condition
from rarescan.errors import InputError, MissingExtraError
from rarescan.generative.checkpoint import Store
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Batch
from rarescan.generative.floor import Floor
from rarescan.generative.gan import Gan
from rarescan.generative.spec import GeneratorSpec
from rarescan.generative.train import Plan, TrainingData, choose_device, fit
from rarescan.processes import one_thread_environment
from rarescan.seeds import generator


def test_the_loop_learns_and_keeps_the_averaged_weights(tmp_path: Path) -> None:
    model, record = run(tmp_path, steps=300)
    torch.testing.assert_close(model.weight.detach(), torch.full((3,), 2.0), atol=0.1, rtol=0)
    assert record.curve[-1]["step"] == 300
    looked_at = [p["validation"] for p in record.curve if p["validation"] is not None]
    assert len(looked_at) == 10
    assert looked_at[-1] < looked_at[0]


def test_batches_draw_evenly_from_rare_and_frequent_classes(tmp_path: Path) -> None:
    _, record = run(tmp_path, steps=200)
    rare, frequent = record.samples_by_class
    assert rare + frequent == 1600
    assert rare == pytest.approx(800, abs=80)


@pytest.mark.parametrize("case", range(3))
def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path: Path, case: int) -> None:
    stop_at = int(generator(case, "stop").integers(1, 39))
    whole, whole_record = run(tmp_path / "whole")
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "parts", Line(stop_at=stop_at))
    assert stopped.value.code == 143
    resumed, record = run(tmp_path / "parts")
    assert torch.equal(resumed.weight, whole.weight)
    assert record.samples_by_class == whole_record.samples_by_class
    losses = [[(p["step"], p["line"]) for p in r.curve] for r in (record, whole_record)]
    assert losses[0] == losses[1]
    assert len(resumed.seen) == 40 - stop_at - 1


def test_a_kill_without_warning_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")

    class Killed(Line):
        def loss(self, batch: Batch) -> Tensor:
            if batch.step == 25:
                raise KeyboardInterrupt
            return super().loss(batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", Killed())
    resumed, _ = run(tmp_path / "parts")
    assert len(resumed.seen) == 20
    assert torch.equal(resumed.weight, whole.weight)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: Any) -> None:
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", Line(stop_at=25))
    newest = next((tmp_path / "parts").glob("pause-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed, _ = run(tmp_path / "parts")
    assert "cannot be used" in caplog.text
    assert len(resumed.seen) == 20
    assert torch.equal(resumed.weight, whole.weight)


def test_a_clock_decides_when_to_save_and_nothing_else(tmp_path: Path) -> None:
    whole, record = run(tmp_path / "whole", Line(bad_steps=(17,)))
    clocked, clocked_record = run(
        tmp_path / "clocked", Line(bad_steps=(17,)), checkpoint_minutes=1e-9
    )
    assert list((tmp_path / "clocked").glob("pause-*.pt"))
    assert not list((tmp_path / "whole").glob("pause-*.pt"))
    assert torch.equal(clocked.weight, whole.weight)
    assert clocked_record.events == record.events


def test_a_run_started_elsewhere_goes_on_from_the_second_place(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    there = {"checkpoints": f"file://{tmp_path / 'bucket'}", "training": "t1"}
    with pytest.raises(SystemExit):
        run(tmp_path / "lost", Line(stop_at=25), **there)
    resumed, _ = run(tmp_path / "new", **there)
    assert len(resumed.seen) == 14
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.parametrize("changes", [{"seed": 4}, {"steps": 50}, {"training": "other"}])
def test_checkpoints_of_another_training_are_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, Line(stop_at=25))
    with pytest.raises(InputError, match="another training"):
        run(tmp_path, **changes)


def test_a_checkpoint_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, Line(stop_at=25))
    path = next(tmp_path.glob("pause-*.pt"))
    state = torch.load(path)
    state["model"]["weight"] = torch.zeros(4)
    Store(folder=tmp_path, training=state.pop("training")).save(26, state, scheduled=False)
    with pytest.raises(InputError, match="does not fit"):
        run(tmp_path)


def test_a_loss_that_is_not_finite_goes_back_with_half_the_rate(tmp_path: Path) -> None:
    _, record = run(tmp_path, Line(bad_steps=(17, 33)))
    assert record.events == [
        {"event": "not finite", "step": 17, "back_to": 10, "rate_factor": 0.5},
        {"event": "not finite", "step": 33, "back_to": 30, "rate_factor": 0.25},
    ]
    assert record.curve[-1]["step"] == 40
    assert [p["step"] for p in record.curve] == list(range(1, 41))


def jump(first: int, n: int, factor: float = 1e4) -> Any:
    return lambda step, loss: loss * factor if first <= step < first + n else loss


def test_a_loss_that_jumps_and_stays_goes_back_with_half_the_rate_and_is_then_let_be(
    tmp_path: Path,
) -> None:
    # This one does not depend on the rate, so going back never helps.
    _, record = run(tmp_path, Line(change=jump(85, 9)), steps=120)
    assert [e["event"] for e in record.events] == ["spike"] * 5
    assert record.events[0] == {"event": "spike", "step": 89, "back_to": 80, "rate_factor": 0.5}
    assert record.curve[-1]["step"] == 120


@pytest.mark.parametrize(
    "change",
    [
        jump(85, 4),
        jump(0, 30),
        lambda step, loss: loss * (1 + 20 * (step % 4 == 0)),
        lambda step, loss: loss * 1.05**step,
        lambda step, loss: loss - 3.0,
    ],
    ids=["4 hard batches", "first steps", "every fourth", "slowly rising", "below zero"],
)
def test_what_happens_in_good_runs_is_no_spike(tmp_path: Path, change: Any) -> None:
    _, record = run(tmp_path, Line(change=change), steps=120)
    assert record.events == []


def test_nothing_in_the_life_of_a_gan_is_a_spike(tmp_path: Path) -> None:
    codes = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    conditions = [Condition(diagnosis="bvFTD" if i % 3 else "control") for i in range(24)]
    encoder = ConditionEncoder.fit(conditions, ())
    encoded = encoder.encode(conditions)
    spec = GeneratorSpec(family="gan", width=8, steps=150, batch_size=16, learning_rate=0.1)
    prior = Gan(spec, Floor.fit(codes, encoded, 2), encoder)
    data = TrainingData(values=codes, encoded=encoded, classes=encoded[:, :2].argmax(1))
    record = fit(prior, data, Plan.of(spec), folder=tmp_path, device=CPU, what="train a gan")
    losses = [point["generator"] for point in record.curve]
    assert max(losses) > 1.2 * min(losses)  # a life with ups and downs
    assert record.events == []


def test_no_checkpoint_to_return_to_is_written_in_the_middle_of_a_spike(tmp_path: Path) -> None:
    _, record = run(tmp_path, Line(change=jump(87, 9)), steps=120)
    # 90 is a scheduled step, the fourth of the spike.
    assert {event["back_to"] for event in record.events} == {80}


def test_interrupted_in_the_middle_of_a_spike_equals_uninterrupted(tmp_path: Path) -> None:
    whole, record = run(tmp_path / "whole", Line(change=jump(87, 9)), steps=120)
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", Line(change=jump(87, 9), stop_at=89), steps=120)
    resumed, resumed_record = run(tmp_path / "parts", Line(change=jump(87, 9)), steps=120)
    assert torch.equal(resumed.weight, whole.weight)
    assert resumed_record.events == record.events


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_too_little_memory_says_what_to_make_smaller(tmp_path: Path, error: Exception) -> None:
    def fail(step: int, loss: Tensor) -> Tensor:
        raise error

    with pytest.raises(InputError, match=r"batch_size 8.*smaller batch_size"):
        run(tmp_path, Line(change=fail))


def test_another_error_of_torch_stays_a_bug(tmp_path: Path) -> None:
    def fail(step: int, loss: Tensor) -> Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        run(tmp_path, Line(change=fail))


class Scripted:
    """Says at each look what a test wants."""

    def __init__(self, first_copy: int) -> None:
        self.first_copy, self.looks = first_copy, 0

    def look(self, device: torch.device) -> dict[str, Any]:
        step = 16 * 2**self.looks
        self.looks += 1
        outcome = "fail" if step >= self.first_copy else "pass"
        return {"ratio": 0.9, "p": 0.01, "outcome": outcome}


def test_a_run_that_copies_ends_with_the_weights_of_the_last_look_that_passed(
    tmp_path: Path,
) -> None:
    model, record = run(tmp_path, watch=Scripted(64), steps=300)
    assert record.stopped == {"why": "copies", "step": 64, "kept": 32}
    assert [(s["step"], s["outcome"]) for s in record.snapshots] == [
        (16, "pass"), (32, "pass"), (64, "fail"),
    ]  # fmt: skip
    assert all(s["validation"] is not None for s in record.snapshots)
    assert len(model.seen) == 64
    kept = torch.load(tmp_path / "averaged-00000032.pt")["weights"]["weight"]
    assert torch.equal(model.weight, kept)
    assert record.curve[-1]["step"] == 60


def test_a_run_that_copies_at_the_first_look_keeps_its_first_weights(tmp_path: Path) -> None:
    model, record = run(tmp_path, watch=Scripted(16), steps=300)
    assert record.stopped["kept"] == 0
    assert torch.equal(model.weight, torch.zeros(3))


def test_a_lost_snapshot_is_replaced_by_the_one_before_it(tmp_path: Path) -> None:
    class Losing(Scripted):
        def look(self, device: torch.device) -> dict[str, Any]:
            (tmp_path / "averaged-00000032.pt").unlink(missing_ok=True)
            return super().look(device)

    _, record = run(tmp_path, watch=Losing(64), steps=300)
    assert record.stopped["kept"] == 16


def test_looks_change_no_bytes_and_survive_an_interruption(tmp_path: Path) -> None:
    plain, plain_record = run(tmp_path / "plain")
    watched, record = run(tmp_path / "watched", watch=Scripted(1000))
    assert torch.equal(watched.weight, plain.weight)
    assert record.stopped == plain_record.stopped == {"why": "steps", "step": 40, "kept": 40}
    assert [s["step"] for s in record.snapshots] == [16, 32, 40]
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", Line(stop_at=25), watch=Scripted(1000))
    resumed, resumed_record = run(tmp_path / "parts", watch=Scripted(1000))
    assert torch.equal(resumed.weight, plain.weight)
    assert [s["step"] for s in resumed_record.snapshots] == [16, 32, 40]


@pytest.mark.long
def test_a_process_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    program = [sys.executable, str(Path(training_line.__file__))]

    def start(folder: Path, seconds: float) -> "subprocess.Popen[bytes]":
        folder.mkdir(exist_ok=True)
        arguments = [str(folder), "60", str(seconds), "1"]
        return subprocess.Popen([*program, *arguments], env=one_thread_environment())

    assert start(tmp_path / "whole", 0).wait() == 0
    ends = []
    for number, after in enumerate((12, 25, 40)):
        process = start(tmp_path / "parts", 0.1)
        _wait_for_step(tmp_path / "parts" / "checkpoints", after // 10 * 10, process)
        process.kill() if number % 2 else process.terminate()
        ends.append(process.wait(20))
    assert ends == [143, -9, 143]
    assert start(tmp_path / "parts", 0).wait() == 0
    whole, parts = (torch.load(tmp_path / name / "end.pt") for name in ("whole", "parts"))
    assert torch.equal(parts["weight"], whole["weight"])
    assert parts["seen"] == whole["seen"]


def _wait_for_step(folder: Path, step: int, process: "subprocess.Popen[bytes]") -> None:
    import time

    while not (folder / f"step-{step:08d}.sha256").exists():
        assert process.poll() is None, "the training ended too early"
        time.sleep(0.05)


def test_a_plan_reads_every_setting_of_a_spec(quick: Any) -> None:
    spec = quick(precision="bf16", gpus=2, checkpoint_minutes=3.0, checkpoints="memory://x")
    plan = Plan.of(spec)
    names = ("steps", "batch_size", "learning_rate", "ema_decay", "checkpoint_every", "seed")
    for name in (*names, "precision", "gpus", "checkpoint_minutes", "checkpoints"):
        assert getattr(plan, name) == getattr(spec, name)


def test_training_that_always_diverges_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"diverged 6 times.*learning_rate"):
        run(tmp_path, Line(bad_steps=(5,) * 20))


def test_another_seed_draws_other_batches(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "one", steps=3)
    same, _ = run(tmp_path / "same", steps=3)
    other, _ = run(tmp_path / "other", steps=3, seed=4)
    assert torch.equal(one.seen[0], same.seen[0])
    assert not torch.equal(one.seen[0], other.seen[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named() -> None:
    assert choose_device("auto") == CPU
    with pytest.raises(MissingExtraError, match="device to auto"):
        choose_device("cuda")
