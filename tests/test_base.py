"""Seeds, errors, progress and processes."""

import hashlib
import logging
import os
import pickle
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarescan.errors import ExitCode, InputError, UnreachableError, disk_full, nearest
from rarescan.processes import run_parallel
from rarescan.progress import Progress, track
from rarescan.seeds import derive, generator


def test_a_seed_is_the_head_of_a_published_hash() -> None:
    digest = hashlib.sha256(b"7:12:noise").digest()
    assert derive(7, 12, "noise") == int.from_bytes(digest[:8], "big") >> 1


@given(st.integers(0, 2**40), st.integers(0, 10**6))
def test_seeds_of_neighbouring_batches_do_not_overlap(base: int, index: int) -> None:
    assert derive(base, index) != derive(base + 1, index - 1)
    assert 0 <= derive(base, index) < 2**63


def test_a_generator_repeats_itself_and_differs_between_purposes() -> None:
    assert generator(1, "a").random() == generator(1, "a").random()
    assert generator(1, "a").random() != generator(1, "b").random()


def test_an_error_keeps_its_remedy_across_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreachableError("No answer.", remedy="Start it.")))
    assert (error.problem, error.remedy) == ("No answer.", "Start it.")
    assert error.exit_code == ExitCode.UNREACHABLE == 5


def test_a_typing_error_is_answered_with_the_nearest_word() -> None:
    assert nearest("spacing", ["spacing_mm", "strip"]) == "Did you mean 'spacing_mm'?"
    assert nearest("zzz", ["b", "a"]) == "Valid: a, b."


def test_only_a_full_disk_is_told_as_one() -> None:
    full = disk_full(OSError(28, "No space left on device", "x.npy"))
    assert isinstance(full, InputError)
    assert "x.npy" in full.problem
    assert disk_full(OSError(13, "Permission denied")) is None


def test_a_dead_worker_costs_one_item_and_not_the_run() -> None:
    signals = [0, 0, int(signal.SIGKILL), 0]
    results = run_parallel(
        signal.raise_signal, signals, what="raise", workers=2, on_death=lambda item: -item
    )
    assert results == [None, None, -9, None]


def test_results_stand_in_the_order_of_the_items_for_any_number_of_workers() -> None:
    for workers in (1, 2):
        assert run_parallel(abs, [-3, 2, -1], what="abs", workers=workers) == [3, 2, 1]


def test_workers_have_one_numeric_thread_each() -> None:
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS"]
    assert run_parallel(os.getenv, names, what="look", workers=2) == ["1", "1"]


def test_progress_is_silent_when_a_step_is_short(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert list(track([1, 2], "count")) == [1, 2]
    assert caplog.text == ""


def test_progress_says_what_is_left_when_a_step_is_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0, 20.0, 20.0, 20.0, 40.0, 40.0])
    monkeypatch.setattr("rarescan.progress.time.monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="rarescan"), Progress("train", 4) as progress:
        progress.advance(1, note="loss 0.5")
    assert "train: 1 of 4, loss 0.5, 1 min 0 s left" in caplog.text
