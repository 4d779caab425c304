"""What the docs tell a data scientist, run on the tutorial's cohort, batch and champion."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rarescan.files import read_json

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
DOCS = Path(__file__).parents[2] / "docs"

Command = Callable[..., subprocess.CompletedProcess[str]]


def example() -> tuple[str, str]:
    """Return the training script and the command of the how-to."""
    page = (DOCS / "how-to.md").read_text()
    section = page[page.index("## Ask whether synthetic persons help a classifier of your own") :]
    script = re.search(r"```python\n(# train\.py\n.*?)```", section, re.DOTALL)
    command = re.search(r"^rarescan retrain play/.*$", section, re.MULTILINE)
    assert script is not None
    assert command is not None
    return script[1], command[0]


@pytest.fixture(scope="module")
def own(play: Path, command: Command) -> Path:
    """Return the result of the how-to's example."""
    script, line = example()
    (play / "train.py").write_text(script)
    done = command(line.replace("python train.py", f"{sys.executable} train.py"), play)
    assert done.returncode == 0, done.stderr
    return play / "play" / "own"


def test_a_foreign_training_script_goes_through_the_arms_and_gets_a_verdict(own: Path) -> None:
    found = read_json(own / "gain.json")
    assert set(found["arms"]) >= {"real", "classical", "classical_synthetic", "placebo"}
    assert found["about"]["classifier"] == "command"
    assert found["gain"]["low"] < found["gain"]["high"]
    assert found["arms"]["real"]["auc"]["value"] > 0.8


def test_strict_ends_in_3_unless_the_verdict_is_use(
    own: Path, play: Path, command: Command
) -> None:
    _, line = example()
    line = line.replace("python train.py", f"{sys.executable} train.py")
    done = command(f"{line} --strict", play)
    expected = 0 if read_json(own / "gain.json")["verdict"] == "use" else 3
    assert done.returncode == expected
    assert "Traceback" not in done.stderr


def test_the_version_that_made_the_batch_says_whom_it_helps(own: Path, play: Path) -> None:
    code = """
import json, mlflow
client = mlflow.MlflowClient("sqlite:///runs/mlflow/mlflow.db", "sqlite:///runs/mlflow/mlflow.db")
print(json.dumps(client.get_model_version("rarescan-generator", "1").tags))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=play, capture_output=True, text=True, check=True
    )
    tags = json.loads(done.stdout.splitlines()[-1])
    of_own = read_json(own / "gain.json")["verdict"]
    of_ours = read_json(play / "play" / "classifiers" / "gain.json")["verdict"]
    assert tags["helps"] == tags["helps.command.bvFTD-control.new_persons"] == of_own
    assert tags["helps.small.bvFTD-control.new_persons"] == of_ours


def test_the_notebook_goes_from_the_champion_to_the_gain_plot_in_20_lines(play: Path) -> None:
    notebook = json.loads((DOCS / "notebooks" / "gain.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    lines = [line for cell in cells for line in cell.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("import", "from"))]) <= 20
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])

    done = subprocess.run(
        [sys.executable, "-P", "-c", "\n".join(cells)],
        cwd=play, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    picture = (play / "play" / "notebook" / "gain.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000
