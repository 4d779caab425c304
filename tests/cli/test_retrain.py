"""`rarescan retrain`: a command is words and never a shell's line; `--strict` asks for `use`."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rarescan.cli import verbs
from rarescan.cli.main import app
from rarescan.errors import GateRefusedError, SettingError
from rarescan.files import write_json
from rarescan.flows import start


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keep the settings that the flow would get; the verdict is `undecided`."""
    kept: list[Any] = []

    def run_verb(config: Any, verb: str, folders: dict[str, Any], *, overwrite: bool) -> Path:
        kept.append(config)
        write_json(tmp_path / "out" / "gain.json", {"verdict": "undecided"})
        return tmp_path / "out"

    monkeypatch.setattr(start, "run_verb", run_verb)
    return kept


def call(tmp_path: Path, *more: str) -> Any:
    assert verbs.app is app
    words = ["retrain", "prepared", "synthetic", str(tmp_path / "out"), *more]
    return CliRunner().invoke(app, words)


def test_a_command_is_divided_into_words_and_nothing_in_it_is_a_shells(
    asked: list[Any], tmp_path: Path
) -> None:
    line = "python 'my train.py' {train} {test} {scores} ; rm -rf $HOME"
    assert call(tmp_path, "--command", line).exit_code == 0
    assert asked[0].retrain.command == (
        "python", "my train.py", "{train}", "{test}", "{scores}", ";", "rm", "-rf", "$HOME",
    )  # fmt: skip


def test_without_strict_any_verdict_is_done_and_with_it_only_use(
    asked: list[Any], tmp_path: Path
) -> None:
    assert call(tmp_path).exit_code == 0
    refused = call(tmp_path, "--strict").exception
    assert isinstance(refused, GateRefusedError)
    assert refused.exit_code == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--command", "python train.py"], "does not say where"),
        (["--command", "python 'train.py {train}"], "no closing quotation"),
        (["--held-out", "city"], "retrain.held_out"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_runs(
    words: list[str], says: str, asked: list[Any], tmp_path: Path
) -> None:
    refused = call(tmp_path, *words).exception
    assert isinstance(refused, SettingError)
    assert says in refused.problem.lower() or says in refused.problem
    assert not asked


def test_a_run_cannot_hold_out_a_site_because_it_divides_persons(tmp_path: Path) -> None:
    found = CliRunner().invoke(
        app, ["run", "ci", "--set", f"runs={tmp_path}", "--set", "retrain.held_out=site"]
    )
    assert isinstance(found.exception, SettingError)
    assert "hold-out" in found.exception.remedy
