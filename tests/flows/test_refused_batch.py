"""A generator whose batch is refused ends no run: arms without it and the report follow."""

from pathlib import Path
from typing import Any

import pytest

from rarescan.configs.schema import parse_config
from rarescan.errors import GateRefusedError, InputError
from rarescan.evaluation.collect import _refused
from rarescan.files import write_json
from rarescan.flows import augment
from rarescan.flows.plan import Places


class Steps:
    """Stands for Prefect's tasks: every verb leaves a folder, `generate` may raise."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.asked = error, dict[str, Any]()

    def with_options(self, **_: Any) -> "Steps":
        return self

    def __call__(self, verb: str, _config: Any, arguments: dict[str, Any], **_: Any) -> str:
        self.asked[verb] = arguments
        if verb == "generate" and self.error is not None:
            raise self.error
        if verb == "select":
            path = Path(arguments["folder"]) / "decision.json"
            write_json(path, {"champion": {"candidate": "vae"}})
        return str(arguments["folder"])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the function that runs all steps with `generate` ending in an error or in none."""
    monkeypatch.setattr(augment, "_train_all", lambda *_, **__: [])
    monkeypatch.setattr(augment, "_show_scores", lambda _: None)
    source = {"kind": "pictures", "path": str(tmp_path)}
    config = parse_config({"name": "run", "runs": str(tmp_path), "source": source})

    def go(error: Exception | None) -> Steps:
        steps = Steps(error)
        monkeypatch.setattr(augment, "step", steps)
        augment._all_steps(config, {}, Places(config.root), overwrite=False)
        return steps

    return go


def test_the_arms_follow_and_the_report_says_why(run: Any, tmp_path: Path) -> None:
    steps = run(GateRefusedError("9 copies came.", remedy="Train another family."))
    assert steps.asked["retrain"]["batch"] is None
    found = _refused(tmp_path / "run")
    assert found is not None
    assert (found["code"], found["evidence"]) == ("batch_refused", "9 copies came.")
    assert "refused" in found["sentence"]


def test_a_later_batch_takes_the_refusal_back(run: Any, tmp_path: Path) -> None:
    run(GateRefusedError("9 copies came.", remedy="Train another family."))
    steps = run(None)
    assert steps.asked["retrain"]["batch"] is not None
    assert _refused(tmp_path / "run") is None


def test_any_other_error_ends_the_run(run: Any) -> None:
    with pytest.raises(InputError):
        run(InputError("The disk is full.", remedy="Free some."))
