import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rarescan.configs.schema import RunConfig, parse_config, plain_config
from rarescan.errors import InputError, SettingError
from rarescan.flows.job import (
    JobDiedError,
    JobFailedError,
    _read_answer,
    run_job,
)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return parse_config(
        {"runs": str(tmp_path), "phantom": {"patients": 6, "controls": 6}, "workers": 1}
    )


def test_an_error_of_a_job_arrives_with_its_kind_and_remedy(
    config: RunConfig, tmp_path: Path
) -> None:
    folders = {"prepared": str(tmp_path), "folder": str(tmp_path / "vea")}
    with pytest.raises(SettingError, match="no candidate 'vea'") as caught:
        run_job("train", plain_config(config), folders)
    assert "diffusion" in caught.value.remedy


def test_a_missing_input_is_told_by_the_job_that_needs_it(
    config: RunConfig, tmp_path: Path
) -> None:
    folders = {"prepared": str(tmp_path), "folder": str(tmp_path / "vae")}
    with pytest.raises(InputError, match="no finished rarescan folder"):
        run_job("train", plain_config(config), folders)
    assert not (tmp_path / "vae").exists()


def test_a_killed_job_says_so_and_its_folder_is_not_there(
    config: RunConfig, tmp_path: Path
) -> None:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            run_job("phantom", plain_config(config), {"folder": str(tmp_path / "phantom")})
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not (tmp_path / ".phantom.unfinished").exists():
        time.sleep(0.02)
    for child in psutil.Process().children():
        if "rarescan.flows.job" in " ".join(child.cmdline()):
            child.kill()
    thread.join()
    assert isinstance(caught[0], JobDiedError)
    assert "SIGKILL" in caught[0].problem
    assert not (tmp_path / "phantom").exists()


@pytest.mark.parametrize("status", [130, 143])
def test_an_interrupted_job_ends_the_command_with_its_status(status: int) -> None:
    with pytest.raises(SystemExit) as caught:
        _read_answer("train", status, "")
    assert caught.value.code == status


def test_a_bug_is_told_from_an_error_and_from_a_kill() -> None:
    with pytest.raises(JobFailedError):
        _read_answer("train", 1, "")
    with pytest.raises(JobDiedError, match="SIGSEGV"):
        _read_answer("train", -signal.SIGSEGV, "")
    answer = json.dumps({"error": "InputError", "problem": "A.", "remedy": "B."})
    with pytest.raises(InputError, match=r"A\. B\."):
        _read_answer("train", 4, f"noise\n{answer}\n")


def test_memory_of_the_whole_tree_is_seen() -> None:
    code = """
import time
import numpy as np
from rarescan.flows.job import peak_memory
with peak_memory() as before:
    time.sleep(0.2)
with peak_memory() as peak:
    block = np.ones(25_000_000)
    time.sleep(1.5)
print(peak[0] - before[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 150 < float(done.stdout) < 400, "200 MB were taken"
