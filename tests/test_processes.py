import subprocess
import sys
import time
from pathlib import Path

import psutil

COMMAND = """
import sys
sys.path.insert(0, ".")
from nap import nap
from rarescan.processes import run_parallel
if __name__ == "__main__":
    run_parallel(nap, [1, 2, 3], what="nap", workers=2)
"""


def test_workers_end_with_the_command_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "nap.py").write_text(
        "import time\nfrom pathlib import Path\n"
        "def nap(k):\n    Path(f'awake{k}').touch()\n    time.sleep(300)\n"
    )
    (tmp_path / "command.py").write_text(COMMAND)
    command = subprocess.Popen([sys.executable, "command.py"], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("awake*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    family = psutil.Process(command.pid).children(recursive=True)
    assert len(family) >= 3, "two workers, and the server that forks them"
    command.kill()
    command.wait()
    assert psutil.wait_procs(family, timeout=20)[1] == []
