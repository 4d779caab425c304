"""Runs and models in MLflow: the only module that knows it.

`connect` is the way in. `Registry.log` writes what one step has to say into the MLflow run of
that step's recipe (found again by its tag, so that repeating a step logs nothing twice);
`register` makes a model version; `champion` finds the one to generate from. When the server goes
away in the middle, records are spooled beside the runs and replayed at the next connection.
"""

import contextlib
import hashlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from rarescan._version import VERSION
from rarescan.cohort.contracts import Grid, PermittedUse
from rarescan.errors import InputError, UnreachableError
from rarescan.files import content_id, read_json, sha256_file, write_json
from rarescan.registry.spec import RegistryConfig

_log = logging.getLogger("rarescan")
_SECONDS_TO_ANSWER = 5
_MOST_METRICS_A_CALL = 1000
_MOST_PARAMS_A_CALL = 100
_LONGEST_DESCRIPTION = 5000
"""What every MLflow server takes; the whole card is among the run's artifacts."""
_RECIPE_TAG = "rarescan.recipe"
_CURVES = "training.json"
_REFERENCE_TAG = "rarescan.reference"

# MLflow's own defaults block for four minutes on an absent server and look up a telemetry host.
_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What one step has to say about one recipe."""

    recipe_id: str
    """Names the MLflow run, together with the step that made it."""
    name: str
    """The run's name in MLflow's pages."""
    about: str
    """What this record adds (`training`, `scores`, `arms`): each is logged once a run."""
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[tuple[str, float, int]] = ()
    """(name, value, step)."""
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    """Path of a file -> folder among the run's artifacts."""


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One version of the registered model."""

    model_uri: str
    version: str
    family: str
    model_sha256: str
    permitted_use: PermittedUse
    prepared_id: str
    decision_id: str


class Registry:
    """An open connection to MLflow; made by `connect`."""

    def __init__(self, uri: str, config: RegistryConfig, spool: Path) -> None:
        import mlflow

        with _unchanged_addresses():
            mlflow.set_tracking_uri(uri)
            mlflow.set_registry_uri(uri)
        self.uri = uri
        self._config, self._spool = config, spool
        self._client = mlflow.MlflowClient()
        self._experiment = self._open_experiment()

    def _open_experiment(self) -> str:
        name = self._config.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # Without an explicit place MLflow puts artifacts under the current directory.
        place = (
            (self._spool.parent / "artifacts").resolve().as_uri() if _is_local(self.uri) else None
        )
        return str(self._client.create_experiment(name, artifact_location=place))

    def log(self, record: RunRecord) -> None:
        """Write a record; spool it when the server does not answer."""
        try:
            self._write(record)
        except Exception as error:
            if not _is_outage(error):
                raise
            path = self._spool / f"{content_id(asdict(record))}.json"
            write_json(path, asdict(record))
            _log.warning("MLflow does not answer: kept %s for the next connection", record.name)

    def replay(self) -> int:
        """Write what was spooled earlier; return how many records."""
        waiting = sorted(self._spool.glob("*.json")) if self._spool.is_dir() else []
        for path in waiting:
            self._write(RunRecord(**read_json(path)))
            path.unlink()
        return len(waiting)

    def _write(self, record: RunRecord) -> None:
        from mlflow.entities import Metric, Param

        run_id, logged = self._find_run(record)
        if record.about in logged:
            return
        known = {} if not logged else self._client.get_run(run_id).data.params
        params = [
            Param(key, str(value)[:6000])
            for key, value in _flat(record.params).items()
            if key not in known
        ]
        metrics = [Metric(key, value, 0, step) for key, value, step in record.metrics]
        for part in _chunks(params, _MOST_PARAMS_A_CALL):
            self._client.log_batch(run_id, params=part)
        for part in _chunks(metrics, _MOST_METRICS_A_CALL):
            self._client.log_batch(run_id, metrics=part)
        for path, folder in record.files.items():
            if Path(path).exists():
                self._client.log_artifact(run_id, path, folder or None)
        for key, value in record.tags.items():
            self._client.set_tag(run_id, key, value)
        self._client.set_tag(run_id, "rarescan.logged", ",".join([*logged, record.about]))
        self._client.set_terminated(run_id)

    def _find_run(self, record: RunRecord) -> tuple[str, list[str]]:
        found = self._client.search_runs(
            [self._experiment], f"tags.`{_RECIPE_TAG}` = '{record.recipe_id}'", max_results=1
        )
        if found:
            logged = found[0].data.tags.get("rarescan.logged", "")
            return str(found[0].info.run_id), logged.split(",") if logged else []
        tags = {_RECIPE_TAG: record.recipe_id, "rarescan.version": VERSION}
        run = self._client.create_run(self._experiment, run_name=record.name, tags=tags)
        return str(run.info.run_id), []

    def register(
        self, model: Path, *, grid: Grid, recipe_id: str, tags: Mapping[str, str]
    ) -> ModelVersion:
        """Store a generator folder as a new version and give it the alias `champion`.

        Parameters
        ----------
        model : Path
            A folder written by `rarescan train`.
        grid : Grid
            Where its volumes lie; becomes the output schema.
        recipe_id : str
            Recipe of the training, whose MLflow run the version belongs to.
        tags : mapping
            `family`, `permitted_use`, `prepared_id`, `decision_id`, and the decision's numbers.

        Returns
        -------
        ModelVersion
            With the address `models:/<name>/<version>`.
        """
        import mlflow

        digest = folder_sha256(model)
        run_id, _ = self._find_run(RunRecord(recipe_id=recipe_id, name=model.name, about=""))
        with (
            _without_mlflows_advice(),
            mlflow.start_run(run_id=run_id),
            _neutral_copy(model) as (code, weights),
        ):
            info = mlflow.pyfunc.log_model(
                name="generator",
                python_model=str(code),
                artifacts={"generator": str(weights)},
                signature=_signature(grid),
                pip_requirements=[f"rarescan=={VERSION}"],
                registered_model_name=self._config.model_name,
            )
        version = str(info.registered_model_version)
        for key, value in {**tags, "model_sha256": digest}.items():
            self._client.set_model_version_tag(self._config.model_name, version, key, value[:5000])
        self._client.set_registered_model_alias(self._config.model_name, "champion", version)
        return self._version(self._client.get_model_version(self._config.model_name, version))

    def champion(self) -> ModelVersion | None:
        """Return the version to generate from, or None where there is none."""
        return self.find(f"models:/{self._config.model_name}@champion")

    def find(self, model_uri: str) -> ModelVersion | None:
        """Return the version at `models:/name/3` or `models:/name@alias`, or None."""
        from mlflow.exceptions import MlflowException

        name, sign, which = model_uri.removeprefix("models:/").partition(
            "@" if "@" in model_uri else "/"
        )
        try:
            if sign == "@":
                return self._version(self._client.get_model_version_by_alias(name, which))
            return self._version(self._client.get_model_version(name, which))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def registered_by(self, decision_id: str) -> ModelVersion | None:
        """Return the version that a decision registered, so that repeating it registers once."""
        found = self._client.search_model_versions(f"name = '{self._config.model_name}'")
        mine = [v for v in found if v.tags.get("decision_id") == decision_id]
        return self._version(mine[0]) if mine else None

    def log_decision(self, record: RunRecord, reference_id: str) -> None:
        """Log a decision as a run of its own, found again by the persons that it used."""
        tags = {**record.tags, "decision_id": record.recipe_id, _REFERENCE_TAG: reference_id}
        self.log(replace(record, tags=tags))

    def decisions_on(self, reference_id: str) -> list[str]:
        """Return the ids of the decisions that used these validation persons."""
        found = self._client.search_runs(
            [self._experiment], f"tags.`{_REFERENCE_TAG}` = '{reference_id}'"
        )
        return sorted({str(run.data.tags["decision_id"]) for run in found})

    def describe(self, version: ModelVersion, card: str) -> None:
        """Show a model card on the version's page."""
        name = version.model_uri.removeprefix("models:/").rpartition("/")[0]
        self._client.update_model_version(name, version.version, card[:_LONGEST_DESCRIPTION])

    def retire(self, version: ModelVersion, decision_id: str) -> None:
        """Take the alias `champion` from a version that failed a gate since."""
        name = version.model_uri.removeprefix("models:/").rpartition("/")[0]
        self.tag(version, "permitted_use", "inside_controller")
        self.tag(version, "retired_by", decision_id)
        champion = self.champion()
        if champion is not None and champion.model_uri == version.model_uri:
            self._client.delete_registered_model_alias(name, "champion")

    def tag(self, version: ModelVersion, key: str, value: str) -> None:
        """Set one tag of a version, for example `helps` after `rarescan retrain`."""
        name = version.model_uri.removeprefix("models:/").rpartition("/")[0]
        self._client.set_model_version_tag(name, version.version, key, value)

    def mark_erased(self, prepared_ids: Collection[str]) -> list[str]:
        """Mark every version that learned from a person who was erased; return their addresses.

        Such a version may not be released, and is champion no more. Of a `transfer` version, which
        holds the anatomy of persons, the stored files are removed.

        Parameters
        ----------
        prepared_ids : collection of str
            Ids of the prepared cohorts that held the person.
        """
        marks = {
            "erased_person": "yes",
            "needs_retraining": "yes",
            "permitted_use": "inside_controller",
        }
        champion, marked = self.champion(), []
        for found in self._client.search_model_versions(f"name = '{self._config.model_name}'"):
            version = self._version(found)
            if version.prepared_id not in prepared_ids:
                continue
            for key, value in marks.items():
                self.tag(version, key, value)
            if champion is not None and champion.version == version.version:
                self._client.delete_registered_model_alias(found.name, "champion")
            if version.family == "transfer":
                self._remove_files(version)
            marked.append(version.model_uri)
        return sorted(marked)

    def _remove_files(self, version: ModelVersion) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        name = version.model_uri.removeprefix("models:/").rpartition("/")[0]
        place = self._client.get_model_version_download_uri(name, version.version)
        repository: Any = get_artifact_repository(place)
        repository.delete_artifacts()

    def download(self, version: ModelVersion, folder: Path) -> Path:
        """Copy a version's generator folder to `folder` and check it against its fingerprint.

        Raises
        ------
        InputError
            The stored files are not the ones that were registered.
        """
        import mlflow

        with tempfile.TemporaryDirectory() as temporary:
            local = mlflow.artifacts.download_artifacts(version.model_uri, dst_path=temporary)
            shutil.copytree(Path(local) / "artifacts" / "generator", folder, dirs_exist_ok=True)
        if folder_sha256(folder) != version.model_sha256:
            raise InputError(
                f"The files of {version.model_uri} are not the ones that were registered.",
                remedy="Register the model again with `rarescan select --overwrite`, and find out "
                "who can write to the model store.",
            )
        return folder

    def _version(self, found: Any) -> ModelVersion:
        tags = found.tags
        return ModelVersion(
            model_uri=f"models:/{found.name}/{found.version}",
            version=str(found.version),
            family=tags.get("family", ""),
            model_sha256=tags.get("model_sha256", ""),
            permitted_use=tags.get("permitted_use", "inside_controller"),
            prepared_id=tags.get("prepared_id", ""),
            decision_id=tags.get("decision_id", ""),
        )


def connect(config: RegistryConfig, runs: Path) -> Registry:
    """Open the registry, make it if it is a local one, and replay what was spooled.

    Parameters
    ----------
    config : RegistryConfig
        Names the server; empty means `MLFLOW_TRACKING_URI`, then a database below `runs`.
    runs : Path
        The folder of all runs.

    Raises
    ------
    UnreachableError
        The server did not answer within 5 seconds.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    place = runs / "mlflow"
    uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if not uri:
        place.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{(place / 'mlflow.db').resolve()}"
    if uri.startswith(("http://", "https://")):
        _require_answer(uri)
    try:
        registry = Registry(uri, config, place / "spool")
        registry.replay()
    except Exception as error:
        if not _is_outage(error):
            raise
        raise _unreachable() from None
    return registry


def folder_sha256(folder: Path) -> str:
    """Return one SHA-256 for the names and bytes of all files that make a model.

    How long its training took is none of them: the same seed gives the same fingerprint.
    """
    digest = hashlib.sha256()
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != _CURVES)
    for path in sorted(files):
        digest.update(f"{path.relative_to(folder).as_posix()}:{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _require_answer(uri: str) -> None:
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=_SECONDS_TO_ANSWER):
            return
    except (URLError, OSError, ValueError):
        raise _unreachable() from None


def _unreachable() -> UnreachableError:
    return UnreachableError(
        "The MLflow server does not answer.",
        remedy="Start it, correct MLFLOW_TRACKING_URI (or registry.tracking_uri), or unset it to "
        "use a database beside the runs. Finished steps are kept.",
    )


def _is_outage(error: Exception) -> bool:
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, requests.RequestException | ConnectionError | TimeoutError):
        return True
    # MLflow wraps connection errors in an exception of its own, without a type for them.
    return isinstance(error, MlflowException) and any(
        word in str(error) for word in ("API request to", "Max retries exceeded", "Connection")
    )


@contextmanager
def _unchanged_addresses() -> Iterator[None]:
    """Take back what MLflow writes into the environment: the next connection may be another."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _is_local(uri: str) -> bool:
    return not uri.startswith(("http://", "https://", "databricks"))


@contextmanager
def _without_mlflows_advice() -> Iterator[None]:
    """Keep to ourselves what MLflow prints for the authors of a model, not for its users."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore", UserWarning)
        yield


def _signature(grid: Grid) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    columns: list[Any] = [ColSpec("string", "diagnosis")] + [
        ColSpec(kind, name, required=False)
        for kind, name in (
            ("double", "age_years"),
            ("string", "sex"),
            ("string", "site"),
            ("double", "severity"),
        )
    ]
    params = ParamSchema([ParamSpec(n, "long", 0) for n in ("seed", "first_index")])
    output = Schema([TensorSpec(np.dtype("float32"), (-1, *grid.shape))])
    return ModelSignature(inputs=Schema(columns), outputs=output, params=params)


@contextmanager
def _neutral_copy(model: Path) -> Iterator[tuple[Path, Path]]:
    """Yield copies of the model's code and weights: MLflow stores the path that it was given."""
    with tempfile.TemporaryDirectory() as temporary:
        code = Path(temporary) / "generator.py"
        shutil.copy(Path(__file__).parent / "pyfunc.py", code)
        weights = Path(shutil.copytree(model, Path(temporary) / "generator"))
        yield code, weights


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        flat |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return flat


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
