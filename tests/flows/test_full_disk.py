"""A disk that is full, for real: a small file system of its own, mounted for one command."""

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = shlex.quote(str(Path(sys.executable).with_name("rarescan")))


def _on_a_small_disk(
    folder: Path, command: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a shell line where `folder` is a file system of 300 kB."""
    mount = f"mount -t tmpfs -o size=300k tmpfs {shlex.quote(str(folder))}"
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && {command}"],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


WRITERS = {
    "an array of volumes": "from rarescan.cohort.store import new_array\n"
    "new_array(Path('disk/a.npy'), 'f4', (100_000,))",
    "a checkpoint": "import torch; from rarescan.generative.checkpoint import Store\n"
    "Store(folder=Path('disk'), training='t').save(1, {'a': torch.zeros(100_000)})",
    "features": "import numpy as np\n"
    "from rarescan.evaluation.features import FeatureSet, save_features\n"
    "values = np.zeros((1000, 100)); persons = tuple(f'p{k}' for k in range(1000))\n"
    "save_features(Path('disk'), 'a', FeatureSet(values=values, person_ids=persons,"
    " extractor='e', weights_sha256=''))",
}


@pytest.mark.parametrize("code", WRITERS.values(), ids=list(WRITERS))
def test_every_writer_says_so_when_the_disk_is_full(tmp_path: Path, code: str) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    if _on_a_small_disk(folder, "true").returncode:
        pytest.skip("this machine does not let a user mount a file system of his own")
    (tmp_path / "write.py").write_text(
        f"from pathlib import Path\ntry:\n    exec({code!r})\n"
        "except OSError as error:\n    print(error.errno)\n"
    )
    done = _on_a_small_disk(folder, f"{shlex.quote(sys.executable)} write.py")
    assert done.stdout.split() == [str(errno.ENOSPC)], done.stderr


@pytest.mark.long
def test_a_full_disk_is_one_line_with_a_remedy_and_leaves_nothing_that_looks_done(
    tmp_path: Path, prefect_api: str
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    if _on_a_small_disk(folder, "true").returncode:
        pytest.skip("this machine does not let a user mount a file system of his own")
    command = f"{PROGRAM} phantom disk/export --patients 1 --controls 1; echo $?; ls disk"
    done = _on_a_small_disk(folder, command, PREFECT_API_URL=prefect_api)
    assert done.stdout.split() == ["4"], done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("rarescan: The disk is full. Free some space and repeat"), last
    assert "Traceback" not in done.stderr
