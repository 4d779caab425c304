"""The tutorial's commands, run once in a folder of their own; the tests look at what they left."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


@pytest.fixture(scope="session")
def play(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Path:
    """Return the folder in which every command of the tutorial was run, in order."""
    folder = tmp_path_factory.mktemp("tutorial")
    commands = [
        line.removeprefix("$ ")
        for line in TUTORIAL.read_text().splitlines()
        if line.startswith("$ ")
    ]
    assert len(commands) >= 9
    for command in commands:
        done = run_command(shlex.split(command), folder, prefect_api)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    return folder


def run_command(
    words: list[str], folder: Path, prefect_api: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / words[0]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    return subprocess.run(
        [str(program), *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**clean, "PREFECT_API_URL": prefect_api, **environment},
    )


@pytest.fixture(scope="session")
def command(prefect_api: str) -> object:
    """Return a function that runs a command in a folder."""

    def run(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_command(shlex.split(line), folder, prefect_api, **environment)

    return run
