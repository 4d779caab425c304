import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

CONFIG = """
name: nightly
runs: runs
source: {kind: bids, path: not_there_yet}
schedule: "* * * * *"
"""


def states(home: Path) -> dict[str, str]:
    """Return the states that any run was in, and what Prefect says of the last such."""
    try:
        with sqlite3.connect(f"file:{home / 'prefect.db'}?mode=ro", uri=True) as database:
            return dict(database.execute("SELECT type, message FROM flow_run_state").fetchall())
    except sqlite3.OperationalError:
        return {}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_schedule_becomes_runs_that_start_in_time_and_ends_with_the_command(
    tmp_path: Path,
) -> None:
    (tmp_path / "nightly.yaml").write_text(CONFIG)
    program = Path(sys.executable).with_name("rarescan")
    served = subprocess.Popen(
        [program, "deploy", "--local", "nightly.yaml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
    )
    deadline = time.monotonic() + 240
    # What it should read is not there, so a run that started has failed, with its own error.
    while "FAILED" not in states(tmp_path / "runs/.prefect") and time.monotonic() < deadline:
        time.sleep(1)
    found = states(tmp_path / "runs/.prefect")
    served.send_signal(signal.SIGINT)
    told, _ = served.communicate(timeout=60)
    assert "There is no not_there_yet" in found.get("FAILED", ""), told
    assert served.returncode == 130
