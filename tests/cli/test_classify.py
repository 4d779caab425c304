"""`rarescan classify`: flags, exit codes, what is printed."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rarescan.cli import beside, classify, verbs  # noqa: F401 - one command alone would have no name
from rarescan.cli.main import app
from rarescan.files import write_json

RUN = CliRunner()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what the flow was asked for; it answers with a verdict."""
    calls: list[Any] = []

    def run_verb(config: Any, verb: str, folders: dict[str, str], *, overwrite: bool) -> Path:
        calls.append((config, verb, folders, overwrite))
        verdict = {"sentence": "LEAKY SPLIT: persons stand on both sides.", "code": "leaky"}
        write_json(tmp_path / "classification.json", {"verdict": verdict})
        return tmp_path

    monkeypatch.setattr("rarescan.flows.start.run_verb", run_verb)
    return calls


def test_options_are_keys_and_the_verdict_is_printed_first(asked: list[Any]) -> None:
    """T1: a leaky split is said before any figure."""
    words = ["classify", "prepared", "out", "-c", "ultrasound", "--repeats", "3"]
    result = RUN.invoke(app, [*words, "--set", "classify.leaky=true", "--overwrite"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("LEAKY SPLIT")
    config, verb, folders, overwrite = asked[0]
    assert (verb, folders) == ("classify", {"prepared": "prepared", "folder": "out"})
    assert config.classify.repeats == 3
    assert config.classify.leaky
    assert overwrite


@pytest.mark.parametrize("value", ["False", "no", "off", "false"])
def test_false_is_false(value: str, asked: list[Any]) -> None:
    """T32: `type=bool` made "--aug False" true."""
    key = f"classify.network.mixed_precision={value}"
    result = RUN.invoke(app, ["classify", "prepared", "out", "--set", key])
    assert result.exit_code == 0, result.output
    assert asked[0][0].classify.network.mixed_precision is False


def test_json_is_the_whole_result(asked: list[Any]) -> None:
    result = RUN.invoke(app, ["classify", "prepared", "out", "--json"])
    assert json.loads(result.stdout)["verdict"]["code"] == "leaky"


def test_the_command_is_registered() -> None:
    assert classify.classify.__name__ == "classify"
    assert "baselines" in RUN.invoke(app, ["classify", "--help"]).stdout
