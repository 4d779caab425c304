import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import training_line
from torch import Tensor, nn

from rarescan.errors import MissingExtraError, SettingError
from rarescan.generative import distributed
from rarescan.generative.contract import Batch
from rarescan.processes import one_thread_environment


def batch() -> Batch:
    return Batch(
        step=3,
        n_steps=10,
        values=torch.arange(24.0).view(8, 3),
        encoded=torch.arange(8.0)[:, None],
        noise=torch.Generator().manual_seed(1),
    )


@pytest.mark.parametrize("n", [2, 4])
def test_the_shares_of_a_batch_are_the_batch_with_its_random_numbers(n: int) -> None:
    whole = batch()
    drawn = [whole.normal(8, 5), whole.uniform(8, 1, 1), whole.normal(8)]
    shares = [distributed.share(batch(), number, n) for number in range(n)]
    own = [[s.normal(8 // n, 5), s.uniform(8 // n, 1, 1), s.normal(8 // n)] for s in shares]
    for i, numbers in enumerate(drawn):
        assert torch.equal(torch.cat([part[i] for part in own]), numbers)
    assert torch.equal(torch.cat([s.values for s in shares]), whole.values)
    assert torch.equal(torch.cat([s.encoded for s in shares]), whole.encoded)


def test_the_mean_gradient_of_the_shares_is_the_batchs() -> None:
    line = nn.Linear(3, 1)

    def gradient(part: Batch) -> Tensor:
        line.zero_grad()
        noisy = line(part.values + part.normal(*part.values.shape))
        (noisy - part.encoded).square().mean().backward()
        assert line.weight.grad is not None
        return line.weight.grad.clone()

    whole = gradient(batch())
    parts = [gradient(distributed.share(batch(), number, 2)) for number in range(2)]
    torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-6, atol=1e-6)


def test_alone_nothing_is_shared_or_averaged() -> None:
    one = batch()
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    assert distributed.share(one, distributed.rank(), distributed.size()) is one
    assert distributed.mean_over_ranks([weight], 0.3) == 0.3
    assert torch.equal(weight.grad, torch.tensor([1.0, 2.0]))
    assert distributed.any_of(True)
    assert not distributed.as_first(False)
    distributed.meet()


def test_a_group_of_one_is_no_different_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    alone, _ = training_line.train_line(tmp_path / "alone")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        one, record = training_line.train_line(tmp_path / "group")
        assert distributed.any_of(True)
        assert not distributed.as_first(False)
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(one.weight, alone.weight)
    assert record.curve[-1]["step"] == 40


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="multiple of 3"):
        training_line.train_line(tmp_path, gpus=3)


@pytest.mark.skipif(torch.cuda.device_count() > 15, reason="this machine has them")
def test_gpus_that_are_not_there_are_named() -> None:
    with pytest.raises(MissingExtraError, match="gpus is 16"):
        distributed.require_ranks(16, 32, torch.device("cuda"))


def _start(folder: Path, *arguments: Any) -> "subprocess.Popen[bytes]":
    folder.mkdir(parents=True, exist_ok=True)
    program = str(Path(training_line.__file__))
    return subprocess.Popen(
        [sys.executable, program, str(folder), *map(str, arguments)], env=one_thread_environment()
    )


@pytest.mark.long
def test_two_processes_lose_what_one_loses_and_survive_a_signal_to_any_of_them(
    tmp_path: Path,
) -> None:
    assert _start(tmp_path / "one", 40, 0, 1).wait() == 0
    # Each rank sends itself SIGTERM at step 15.
    assert _start(tmp_path / "two", 40, 0, 2, 15).wait() == 143
    assert (tmp_path / "two" / "checkpoints" / "pause-00000016.pt").exists()
    assert _start(tmp_path / "two", 40, 0, 2).wait() == 0
    one, two = (torch.load(tmp_path / name / "end.pt") for name in ("one", "two"))
    torch.testing.assert_close(two["weight"], one["weight"], rtol=1e-5, atol=1e-5)
    losses = [[point["line"] for point in end["curve"]] for end in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert one["seen"] == two["seen"]


@pytest.mark.long
def test_a_killed_rank_ends_all_and_leaves_nothing_running(tmp_path: Path) -> None:
    process = _start(tmp_path, 100000, 0.01, 2)
    ranks = _children(process.pid, 2)
    os.kill(ranks[-1], signal.SIGKILL)
    assert process.wait(60) == 1  # an error with a remedy, here without the command line
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def _children(pid: int, n: int) -> list[int]:
    """Wait until the ranks train, and return their process ids."""
    import psutil

    for _ in range(600):
        found = [c.pid for c in psutil.Process(pid).children() if "spawn_main" in str(c.cmdline())]
        if len(found) == n and all(psutil.Process(p).cpu_times().user > 2 for p in found):
            return sorted(found)
        time.sleep(0.1)
    raise AssertionError("the ranks did not start")
