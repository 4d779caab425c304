"""Compose the rooms' settings and read them from YAML.

`load_config` is the way in: a file, then `key=value` overrides, checked as a whole. Rooms never
import this module; each reads only its own part. What is written beside the results
(`dump_config`) runs again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at
import yaml
from pydantic import TypeAdapter, ValidationError

from rarescan.classifiers.echo.spec import EchoConfig
from rarescan.classifiers.spec import AnomalyConfig, ClassifyConfig, CompressConfig, RetrainConfig
from rarescan.cohort.contracts import Question
from rarescan.cohort.partition import PartitionConfig
from rarescan.configs.utility_schema import UtilityConfig
from rarescan.errors import SettingError, nearest
from rarescan.evaluation.spec import EvaluateConfig, MonitorConfig, ReportConfig, SelectConfig
from rarescan.generative.spec import GenerateConfig, GeneratorSpec
from rarescan.imaging.spec import (
    AdoptConfig,
    IngestConfig,
    PicturesConfig,
    PlanesConfig,
    PrepareConfig,
)
from rarescan.pacs.spec import PullConfig, PushConfig
from rarescan.phantom.spec import PhantomConfig
from rarescan.registry.spec import RegistryConfig
from rarescan.settings import STRICT


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where a run starts."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    kind: Literal["phantom", "pacs", "dicom", "bids", "table", "pictures"] = "phantom"
    """`phantom` makes its own export; `pacs` fetches one first, as `pull` says; `dicom` is a folder
    or archive from a PACS; `bids` a BIDS dataset; `table` a folder of NIfTI files with a CSV;
    `pictures` a folder of pictures and clips, as `pictures` says."""
    path: str = ""
    """The folder or archive; not needed for `phantom` and `pacs`."""


@dataclass(frozen=True, kw_only=True)
class ThinnedConfig:
    """How rare `rarescan bench thinned` makes the positive diagnosis."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    patients: Annotated[tuple[Annotated[int, at.Ge(2)], ...], at.MinLen(1)] = (10, 20, 40)
    """Patients who train in each fold; the others of the training persons are tested."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that `rarescan run` needs to know."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: Annotated[str, at.MinLen(1)] = "run"
    """The run's name: results go to `<runs>/<name>/`."""
    runs: str = "runs"
    """The folder of all runs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are trained."""
    workers: Annotated[int, at.Ge(0)] = 0
    """Processes at the same time; 0 takes every core that this process may use."""
    schedule: str = ""
    """When `rarescan deploy` starts this run, as a cron line ("0 2 * * 6"); empty: never."""
    question: Question = field(default_factory=Question)
    source: SourceConfig = field(default_factory=SourceConfig)
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    pull: PullConfig = field(default_factory=PullConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    adopt: AdoptConfig = field(default_factory=AdoptConfig)
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    planes: PlanesConfig = field(default_factory=PlanesConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    train: dict[str, GeneratorSpec] = field(
        default_factory=lambda: {
            family: GeneratorSpec(family=family)
            for family in ("gaussian", "transfer", "vae", "gan", "diffusion")
        }
    )
    """The candidates, by name; a candidate named like a family needs no `family` key."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    thinned: ThinnedConfig = field(default_factory=ThinnedConfig)
    utility: UtilityConfig = field(default_factory=UtilityConfig)
    anomaly: AnomalyConfig = field(default_factory=AnomalyConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    echo: EchoConfig = field(default_factory=EchoConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    push: PushConfig = field(default_factory=PushConfig)

    @property
    def root(self) -> Path:
        """The run's folder."""
        return Path(self.runs) / self.name


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file (or a preset's name), apply `key=value` overrides, check everything.

    Raises
    ------
    SettingError
        The file is missing or no YAML, a key is unknown, a value is out of range. The message
        names every faulty key and the nearest valid one.
    """
    values = {} if path is None else _read_yaml(_find(path))
    for override in overrides:
        _apply(values, override)
    return parse_config(values)


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Check plain values and return them as a `RunConfig`."""
    plain = json.loads(json.dumps(values, default=str))
    for name, spec in (plain.get("train") or {}).items():
        plain["train"][name] = {"family": name, **(spec or {})}
    try:
        return _adapter().validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise SettingError(
            " ".join(_words(fault) for fault in error.errors()),
            remedy="Correct the configuration; `rarescan config show` prints every key.",
        ) from None


def dump_config(config: RunConfig) -> str:
    """Return the resolved settings as YAML that runs again."""
    return yaml.safe_dump(plain_config(config), sort_keys=False, allow_unicode=True)


def plain_config(config: RunConfig) -> dict[str, Any]:
    """Return the resolved settings as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the settings, with each field's description."""
    return _adapter().json_schema()


def presets() -> list[str]:
    """Return the names of the presets that ship with the package."""
    folder = package_files("rarescan.configs")
    return sorted(p.name for p in folder.iterdir() if p.name.endswith(".yaml"))


@cache
def _adapter() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


def _find(path: Path | str) -> Path:
    """Return the file itself, or the preset of that name (`demo`, `configs/demo.yaml`)."""
    given = Path(path)
    if given.is_file():
        return given
    preset = Path(str(package_files("rarescan.configs"))) / f"{given.stem}.yaml"
    if preset.is_file() and given.parent.name in ("", "configs"):
        return preset
    raise SettingError(
        f"There is no configuration {path}.",
        remedy=f"Name a YAML file or a preset ({', '.join(presets())}).",
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        raise SettingError(
            f"{path} is no valid YAML{f' (line {where.line + 1})' if where else ''}.",
            remedy="Correct the file; indentation and colons are the usual faults.",
        ) from None
    if values is not None and not isinstance(values, dict):
        raise SettingError(
            f"{path} holds no keys.", remedy="Write `key: value` lines, as in configs/demo.yaml."
        )
    return values or {}


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one dotted key in place; the value is read as YAML (numbers, lists, booleans)."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SettingError(
            f"'{override}' is no override.",
            remedy="Write --set key=value, as prepare.spacing_mm=4.",
        )
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if inner is None:
            inner = values[parent] = {}
        if not isinstance(inner, dict):
            raise SettingError(
                f"'{key}' does not exist: '{parent}' is a value.", remedy=f"Set '{parent}' itself."
            )
        values = inner
    values[last] = yaml.safe_load(text)


def _words(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        hint = nearest(str(fault["loc"][-1]), _keys_beside(fault["loc"]))
        return f"'{key}' is no setting. {hint}"
    return f"'{key}': {fault['msg'][0].lower()}{fault['msg'][1:]} (given: {fault['input']!r})."


def _keys_beside(place: Sequence[str | int]) -> list[str]:
    """Return the valid keys of the section in which `place` stands."""
    schema = json_schema()
    section = schema
    for part in place[:-1]:
        properties = section.get("properties", {})
        section = properties.get(part, section.get("additionalProperties", {}))
        if "$ref" in section:
            section = schema["$defs"][section["$ref"].rsplit("/", 1)[1]]
    return list(section.get("properties", {}))
