"""The order of the verbs and where each result of a run lies; no Prefect here.

`Places` names the folders of a run. `finished_report` tells without any heavy import whether a
run with these settings is complete already, which is what makes repeating a command quick.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from rarescan._version import VERSION
from rarescan.configs.schema import RunConfig, plain_config
from rarescan.errors import SettingError
from rarescan.files import content_id, read_json, read_recipe, write_json
from rarescan.processes import available_cores

_DONE = "run.json"


@dataclass(frozen=True)
class Places:
    """The folders of one run."""

    root: Path

    @property
    def phantom(self) -> Path:
        """Invented persons: export, labels, truth."""
        return self.root / "phantom"

    @property
    def pulled(self) -> Path:
        """What came from a PACS."""
        return self.root / "pulled"

    @property
    def cohort(self) -> Path:
        """Native scans in BIDS."""
        return self.root / "cohort"

    @property
    def prepared(self) -> Path:
        """Scans on one grid."""
        return self.root / "prepared"

    @property
    def models(self) -> Path:
        """One folder a candidate."""
        return self.root / "models"

    @property
    def network(self) -> Path:
        """The judge: a network that saw real persons only."""
        return self.root / "network"

    @property
    def evaluation(self) -> Path:
        """Samples, features, scores."""
        return self.root / "evaluation"

    @property
    def decision(self) -> Path:
        """Who became champion, and why."""
        return self.root / "decision"

    @property
    def synthetic(self) -> Path:
        """The batch of synthetic persons."""
        return self.root / "synthetic"

    @property
    def classifiers(self) -> Path:
        """Arms and gain."""
        return self.root / "classifiers"

    @property
    def recipes(self) -> Path:
        """One file a step: recipe, seconds, memory, versions."""
        return self.root / "recipes"

    @property
    def report(self) -> Path:
        """The page that tells all of it."""
        return self.root / "report.html"


def require_apart(configs: Sequence[RunConfig]) -> None:
    """Raise where runs that go side by side would write into one folder or replace a champion.

    Raises
    ------
    SettingError
        Two of them have one name, or register under one name what is made of different scans.
    """
    for what, key, values in (
        ("name", "name", [str(config.root) for config in configs]),
        ("registry", "registry.model_name", [_registered_as(config) for config in configs]),
    ):
        if len(set(values)) < len(values):
            raise SettingError(
                f"Two of the runs have the same {what}, so that one would replace the other's "
                "result.",
                remedy=f"Give each configuration a `{key}` of its own.",
            )


def _registered_as(config: RunConfig) -> str:
    return f"{config.registry.tracking_uri or config.runs}:{config.registry.model_name}"


def source_of(config: RunConfig) -> Path:
    """Return what the run reads; from a phantom or a PACS the export that it writes itself."""
    if config.source.kind == "phantom":
        return Places(config.root).phantom / "export"
    if config.source.kind == "pacs":
        return Places(config.root).pulled / "export"
    if not config.source.path:
        raise SettingError(
            f"The source of kind '{config.source.kind}' has no path.",
            remedy="Set source.path to the export, BIDS dataset or folder.",
        )
    path = Path(config.source.path)
    if not path.exists():
        raise SettingError(
            f"There is no {path}.", remedy="Correct source.path in the configuration."
        )
    return path


def with_phantom_tables(config: RunConfig) -> dict[str, Any]:
    """Return the settings as plain values; a phantom brings its labels and key with it."""
    plain = plain_config(config)
    if config.source.kind == "phantom":
        folder = Places(config.root).phantom
        plain["ingest"]["labels"] = plain["ingest"]["labels"] or str(folder / "labels.csv")
        plain["ingest"]["key_file"] = plain["ingest"]["key_file"] or str(folder / "pseudonym.key")
    return plain


_PATHS = {"path", "labels", "key_file", "credentials_file", "persons"}
_PATHS |= {"confirmed_scans", "confirmed_persons", "feedback", "batch", "cohort", "runs", "table"}
_PATHS |= {"codec_weights", "init_from", "checkpoints", "weights", "strip_command"}
_PATHS |= {"address", "tracking_uri", "command", "model"}
"""Names of settings that hold a path or an address, which may hold a password."""


def hide_paths(settings: Any, key: str = "") -> Any:
    """Return settings in which the paths and addresses that a person typed are secrets.

    Prefect keeps a flow's parameters, on a server that others read; a path may name a patient.
    """
    if isinstance(settings, Mapping):
        return {name: hide_paths(value, name) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [hide_paths(value, key) for value in settings]
    return SecretStr(settings) if key in _PATHS and isinstance(settings, str) else settings


def show_paths(settings: Any) -> Any:
    """Return what `hide_paths` was given."""
    if isinstance(settings, Mapping):
        return {name: show_paths(value) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [show_paths(value) for value in settings]
    return settings.get_secret_value() if isinstance(settings, SecretStr) else settings


def finished_report(config: RunConfig) -> Path | None:
    """Return the report of a complete run with the same settings and source, else None."""
    places = Places(config.root)
    try:
        done = read_json(places.recipes / _DONE)
    except FileNotFoundError:
        return None
    whole = all(
        (recipe := read_recipe(places.root / folder)) is not None and recipe.id == recipe_id
        for folder, recipe_id in done["folders"].items()
    )
    same = done["id"] == _run_id(config)
    return places.report if whole and same and places.report.is_file() else None


def mark_finished(config: RunConfig, folders: list[Path]) -> None:
    """Note that every step of the run is complete."""
    places = Places(config.root)
    recipes = {folder: read_recipe(folder) for folder in folders}
    write_json(
        places.recipes / _DONE,
        {
            "id": _run_id(config),
            "folders": {
                str(folder.relative_to(places.root)): recipe.id
                for folder, recipe in recipes.items()
                if recipe is not None
            },
        },
    )


def _run_id(config: RunConfig) -> str:
    source = None
    if config.source.kind not in ("phantom", "pacs"):
        source = _listing(source_of(config))
    return content_id({"version": VERSION, "config": plain_config(config), "source": source})


def _listing(path: Path) -> str:
    """Return an id of the names, sizes and times of a source's files."""
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    states = [(str(p), p.stat()) for p in paths]
    return content_id([(name, s.st_size, s.st_mtime_ns) for name, s in states])


def relative(path: Path, folder: Path) -> str:
    """Return where `path` lies seen from `folder`, as recipes note it."""
    return os.path.relpath(path.resolve(), folder.resolve())


def workers_of(config: RunConfig) -> int:
    """Return how many processes may work at the same time."""
    return config.workers or available_cores()
