import os
import shutil
import socket
from pathlib import Path

import mlflow
import pytest

from rarescan.errors import UnreachableError
from rarescan.registry.spec import RegistryConfig
from rarescan.registry.store import Registry, RunRecord, connect, folder_sha256

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a database whose migrations have run (they take seconds)."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect(RegistryConfig(), runs)
    return runs


@pytest.fixture
def runs(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(migrated, tmp_path / "runs")
    return tmp_path / "runs"


def record(about: str = "training", **changes: object) -> RunRecord:
    values = {
        "recipe_id": "abc",
        "name": "demo/vae",
        "about": about,
        "params": {"train": {"steps": 9}},
        "metrics": [("loss", 0.5, 0), ("loss", 0.25, 1)],
        "tags": {"family": "vae"},
    }
    return RunRecord(**{**values, **changes})  # type: ignore[arg-type]


def stored() -> list[mlflow.entities.Run]:
    return mlflow.search_runs(
        experiment_names=["rarescan"], output_format="list", order_by=["start_time"]
    )


def test_a_record_becomes_a_run_with_its_curve_and_settings(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{}")
    registry = connect(RegistryConfig(), runs)
    registry.log(record(files={str(tmp_path / "spec.json"): "settings"}))
    (run,) = stored()
    assert run.data.params == {"train.steps": "9"}
    assert run.data.metrics == {"loss": 0.25}
    assert run.data.tags["family"] == "vae"
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(0, 0.5), (1, 0.25)]
    assert client.list_artifacts(run.info.run_id, "settings")[0].path == "settings/spec.json"


def test_repeating_a_record_logs_nothing_twice_and_another_one_joins_its_run(runs: Path) -> None:
    registry = connect(RegistryConfig(), runs)
    registry.log(record())
    registry.log(record())
    registry.log(record("scores", params={}, metrics=[("mmd", 0.1, 0)]))
    (run,) = stored()
    assert run.data.metrics == {"loss": 0.25, "mmd": 0.1}
    assert len(mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")) == 2


def test_artifacts_lie_beside_the_runs_and_not_in_the_current_folder(
    runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.rmtree(runs / "mlflow")
    monkeypatch.chdir(tmp_path)
    connect(RegistryConfig(), runs).log(record())
    (run,) = stored()
    assert str(runs / "mlflow" / "artifacts") in run.info.artifact_uri
    assert not (tmp_path / "mlruns").exists()


def test_an_absent_server_is_told_within_seconds_with_exit_code_5(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = RegistryConfig(tracking_uri=f"http://127.0.0.1:{port}")
    with pytest.raises(UnreachableError, match="MLflow server does not answer") as caught:
        connect(config, tmp_path)
    assert caught.value.exit_code == 5


def test_what_is_logged_during_an_outage_is_replayed_at_the_next_connection(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = connect(RegistryConfig(), runs)
    with monkeypatch.context() as outage:
        outage.setattr(Registry, "_find_run", _raise_connection_error)
        registry.log(record())
    assert stored() == []
    assert len(list((runs / "mlflow" / "spool").glob("*.json"))) == 1
    connect(RegistryConfig(), runs)
    (run,) = stored()
    assert run.data.metrics == {"loss": 0.25}
    assert list((runs / "mlflow" / "spool").glob("*.json")) == []


def _raise_connection_error(*_: object) -> None:
    raise ConnectionError


def test_each_connection_goes_to_the_database_of_its_own_runs(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "others")
    first = connect(RegistryConfig(), runs)
    second = connect(RegistryConfig(), tmp_path / "others")
    assert first.uri != second.uri
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_an_empty_registry_has_no_champion(runs: Path) -> None:
    registry = connect(RegistryConfig(), runs)
    assert registry.champion() is None
    assert registry.find("models:/nobody/1") is None


def test_nothing_is_sent_home_and_nothing_is_unpickled(runs: Path) -> None:
    connect(RegistryConfig(), runs)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_a_folder_is_known_by_its_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = folder_sha256(tmp_path)
    (tmp_path / "training.json").write_text('{"seconds": 3}')
    assert folder_sha256(tmp_path) == before
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert folder_sha256(tmp_path) != before
