"""`rarescan bench`: what is asked of the flows, and what is printed."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from utility_table import write_result

from rarescan.cli import bench, verbs  # noqa: F401 - one command alone would have no name
from rarescan.cli.main import app
from rarescan.files import read_json

RUN = CliRunner()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what the flow was asked for; it answers with a result."""
    calls: list[Any] = []

    def run_verb(config: Any, verb: str, folders: dict[str, str], *, overwrite: bool) -> Path:
        calls.append((config, verb, folders, overwrite))
        write_result(tmp_path).rename(tmp_path / "thinned.json")
        return tmp_path

    monkeypatch.setattr("rarescan.flows.start.run_verb", run_verb)
    return calls


def test_a_disease_is_made_rare_by_preset_and_the_verdicts_are_printed(
    asked: list[Any], tmp_path: Path
) -> None:
    options = ["--set", "thinned.patients=[8]", "--workers", "1", "--overwrite"]
    result = RUN.invoke(app, ["bench", "thinned", *options])
    assert result.exit_code == 0, result.output
    config, verb, folders, overwrite = asked[0]
    assert (verb, folders, overwrite) == ("thinned", {"folder": "runs/thinned/thinned"}, True)
    assert (config.thinned.patients, config.workers) == ((8,), 1)
    lines = result.stdout.splitlines()
    for entry in read_json(tmp_path / "thinned.json"):
        assert sum(line.endswith(entry["sentence"]) for line in lines) >= 1
    assert lines[-1] == str(tmp_path / "utility.html")


def test_machines_get_the_whole_result(asked: list[Any], tmp_path: Path) -> None:
    result = RUN.invoke(app, ["bench", "thinned", "thinned-t1", "--json"])
    assert json.loads(result.stdout) == read_json(tmp_path / "thinned.json")
    assert asked[0][0].question.positive == "depression"
