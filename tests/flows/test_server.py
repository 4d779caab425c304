import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rarescan.errors import UnreachableError
from rarescan.flows.server import prefect_server

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, time
from pathlib import Path
from rarescan.flows.server import owner, prefect_server
with prefect_server(Path(sys.argv[1])):
    from prefect import flow, tags
    @flow
    def sleepy(seconds: int) -> str:
        Path(sys.argv[1], "started").touch()
        time.sleep(seconds)
        return "done"
    with tags(owner()):
        print(sleepy(int(sys.argv[2])))
"""


def start(home: Path, seconds: int) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", SCRIPT, str(home), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def states(home: Path) -> list[str]:
    with sqlite3.connect(home / "prefect.db") as database:
        return [row[0] for row in database.execute("SELECT state_type FROM flow_run")]


def guardians(home: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "rarescan.flows.guardian" in (process.info["cmdline"] or [])
        and (process.info["environ"] or {}).get("PREFECT_HOME") == str(home)
    ]


@pytest.mark.long
def test_a_flow_runs_without_a_server_and_a_killed_one_leaves_neither_server_nor_run(
    tmp_path: Path,
) -> None:
    whole = start(tmp_path, 0)
    assert whole.communicate(timeout=120)[0].strip() == "done"
    assert states(tmp_path) == ["COMPLETED"]
    (tmp_path / "started").unlink()

    killed = start(tmp_path, 600)
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    assert len(guardians(tmp_path)) == 1
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    deadline = time.monotonic() + 60
    while guardians(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert guardians(tmp_path) == []
    assert sorted(states(tmp_path)) == ["COMPLETED", "CRASHED"]


def test_a_configured_server_that_is_away_is_an_error_with_exit_code_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    with pytest.raises(UnreachableError, match="Prefect server"), prefect_server(tmp_path):
        pass
