"""A folder of experiments: order, defaults, failures, the table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rarescan.configs.schema import RunConfig
from rarescan.errors import InputError, SettingError
from rarescan.files import Recipe, read_json, run_step, write_json
from rarescan.flows import grid
from rarescan.flows.job import JobFailedError
from rarescan.registry.spec import RegistryConfig
from rarescan.registry.store import RunRecord


class _Records(list[RunRecord]):
    def log(self, record: RunRecord) -> None:
        self.append(record)


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> _Records:
    found = _Records()
    monkeypatch.setattr(grid, "connect", lambda *_: found)
    return found


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the experiments that were run; those called `bad` fail."""
    names: list[str] = []

    def run(
        verb: str, config: Mapping[str, Any], arguments: Mapping[str, str], *, overwrite: bool
    ) -> None:
        assert verb == "classify"
        folder = Path(arguments["folder"])
        names.append(folder.name)
        if folder.name.startswith("bad"):
            raise JobFailedError("`rarescan classify` met a bug")
        steps = config["classify"]["network"]["steps"]

        def build(work: Path) -> None:
            scores = {
                name: {"item": {"balanced_accuracy": {"value": value, "low": 0.1, "high": 0.9}}}
                for name, value in {
                    "network": steps / 1000,
                    "majority": 0.3,
                    "nearest": 0.4,
                }.items()
            }
            said = {"verdict": {"code": "does_not_beat"}, "models": scores, "n_persons": 36}
            write_json(work / "classification.json", said)

        run_step(folder, Recipe(step="classify", schema=1, config={"steps": steps}), build)

    monkeypatch.setattr(grid, "run_job", run)
    return names


def _write(folder: Path, texts: Mapping[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def _steps(n: int) -> str:
    return f"classify: {{network: {{steps: {n}}}}}\n"


CONFIG = RunConfig(name="grid")


def test_experiments_run_in_numerical_order(tmp_path: Path) -> None:
    texts = {f"config_{n}.yaml": _steps(n) for n in (10, 2, 1)} | {"default.yaml": "", "a.txt": ""}
    found = grid.experiments(_write(tmp_path, texts))
    assert [path.stem for path in found] == ["config_1", "config_2", "config_10"]


def test_t31_a_failing_experiment_stops_no_other_and_fails_the_command(
    records: _Records, ran: list[str], pictures: Path, tmp_path: Path
) -> None:
    texts = {
        "bad_1.yaml": _steps(50),
        "c_2.yaml": _steps(500),
        "c_3.yaml": "classify: {network: {stepz: 7}}\n",
        "c_4.yaml": _steps(700),
    }
    configs = _write(tmp_path / "configs", texts)
    with pytest.raises(InputError, match=r"2 of 4 experiments failed: bad_1, c_3") as caught:
        grid.classify_grid(CONFIG, configs, pictures, tmp_path / "out")
    assert caught.value.exit_code == 4
    stored = read_json(tmp_path / "out" / "grid.json")
    assert [row["outcome"] for row in stored["rows"]] == ["failed", "done", "failed", "done"]
    assert "stepz" in stored["rows"][2]["reason"]
    assert ran == ["bad_1", "c_2", "c_4"]
    assert [record.name for record in records] == ["grid/c_2", "grid/c_4"]


def test_the_table_shows_each_network_beside_its_best_baseline(
    records: _Records, ran: list[str], pictures: Path, tmp_path: Path
) -> None:
    configs = _write(tmp_path / "configs", {"a1.yaml": _steps(500), "a2.yaml": _steps(250)})
    folder = grid.classify_grid(CONFIG, configs, pictures, tmp_path / "out")
    lines = read_json(folder / "grid.json")["table"].splitlines()
    assert " ".join(lines[1].split()) == "a1 0.500 [0.10, 0.90] 0.400 nearest does_not_beat"
    assert dict((name, value) for name, value, _ in records[1].metrics) == {
        "balanced_accuracy.value": 0.25,
        "balanced_accuracy.low": 0.1,
        "balanced_accuracy.high": 0.9,
        "balanced_accuracy.baseline": 0.4,
    }


def test_what_is_finished_is_kept(
    records: _Records, ran: list[str], pictures: Path, tmp_path: Path
) -> None:
    configs = _write(tmp_path / "configs", {"a1.yaml": _steps(500)})
    grid.classify_grid(CONFIG, configs, pictures, tmp_path / "out")
    before = (tmp_path / "out" / "a1" / "classification.json").stat().st_mtime_ns
    grid.classify_grid(CONFIG, configs, pictures, tmp_path / "out")
    assert (tmp_path / "out" / "a1" / "classification.json").stat().st_mtime_ns == before


def test_defaults_lie_under_every_experiment_of_their_kind(pictures: Path, tmp_path: Path) -> None:
    texts = {
        "default.yaml": "classify: {folds: 3, network: {steps: 70, dropout: 0.1}}\n",
        "c1.yaml": _steps(90),
        "default_cfg.json": json.dumps({"encoder": "resnet18", "batch_size": 8}),
        "c2.json": json.dumps({"batch_size": 12, "learning_rate": 0.0001}),
    }
    configs = _write(tmp_path / "configs", texts)
    ours = grid.settings_of(CONFIG, configs / "c1.yaml", pictures).classify
    assert (ours.folds, ours.network.steps, ours.network.dropout) == (3, 90, 0.1)
    theirs = grid.settings_of(CONFIG, configs / "c2.json", pictures).classify.network
    assert (theirs.network, theirs.batch_size, theirs.learning_rate) == ("resnet18", 12, 0.0001)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("classify: {network: {stepz: 7}}\n", "stepz"),
        ("phantom: {patients: 3}\n", "no effect"),
        ("just words\n", "holds no settings"),
        ("", "holds no settings"),
    ],
)
def test_a_key_without_effect_is_an_error(
    text: str, why: str, pictures: Path, tmp_path: Path
) -> None:
    configs = _write(tmp_path / "configs", {"c1.yaml": text})
    with pytest.raises(SettingError, match=why):
        grid.settings_of(CONFIG, configs / "c1.yaml", pictures)


@pytest.mark.parametrize("texts", [{}, {"a.yaml": "", "a.json": ""}])
def test_a_folder_without_clear_experiments_is_refused(
    texts: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="experiment"):
        grid.experiments(_write(tmp_path / "configs", texts))


@pytest.mark.long
def test_all_experiments_are_runs_of_one_mlflow_experiment(
    ran: list[str], pictures: Path, tmp_path: Path
) -> None:
    import mlflow

    config = RunConfig(
        name="grid", runs=str(tmp_path / "runs"), registry=RegistryConfig(experiment="encoders")
    )
    configs = _write(tmp_path / "configs", {"a1.yaml": _steps(500), "a2.yaml": _steps(250)})
    for _ in range(2):
        grid.classify_grid(config, configs, pictures, tmp_path / "out")
    database = (tmp_path / "runs" / "mlflow" / "mlflow.db").resolve()
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("encoders")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    values = {run.info.run_name: run.data.metrics["balanced_accuracy.value"] for run in runs}
    assert values == {"grid/a1": 0.5, "grid/a2": 0.25}
