"""Severity on the persons of the open lung ultrasound table: too few, and the command says so."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rarescan.cli import classify, verbs  # noqa: F401 - one command alone would have no name
from rarescan.cli.main import app
from rarescan.configs.schema import RunConfig
from rarescan.flows.verbs import VERBS

RUN = CliRunner()


@pytest.mark.parametrize("name", ["classify", "anomaly"])
def test_a_grade_with_too_few_persons_ends_in_an_answer_and_0(
    name: str,
    make_pictures: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Persons of each severity 0 to 3 as in the open lung ultrasound table."""

    def at_once(config: RunConfig, verb: str, folders: dict[str, str], *, overwrite: bool) -> Path:
        return VERBS[verb](config, **{key: Path(value) for key, value in folders.items()})

    monkeypatch.setattr("rarescan.flows.start.run_verb", at_once)
    persons = {"0": 23, "1": 6, "2": 4, "3": 3} if name == "classify" else {"0": 23, "1": 3}
    prepared = make_pictures(tmp_path / "prepared", persons, partition=False)
    grades = ["--set", 'classify.classes=["0","1","2","3"]', "--set", "classify.scheme=ordinal"]
    more = {"classify": grades, "anomaly": ["--normal", "0"]}[name]
    result = RUN.invoke(app, [name, str(prepared), str(tmp_path / "out"), *more])
    assert result.exit_code == 0, result.output
    assert "Too few" in result.stdout or "insufficient" in result.stdout.lower()
    assert "Insufficient: " in (tmp_path / "out" / "classification.json").read_text()
