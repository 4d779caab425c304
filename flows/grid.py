"""Many experiments on one prepared cohort: a folder of settings, one table.

`classify_grid` is the way in. Every YAML or JSON file is one experiment, laid over the settings of
the command (and over `default*` of its folder), run in numerical order, each as a job of its own
process. What the reader would get wrong: a failing experiment stops no other, and still makes the
command fail at its end; repeating it runs only what is missing.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rarescan.configs.schema import RunConfig, parse_config, plain_config
from rarescan.errors import InputError, RarescanError, SettingError
from rarescan.files import read_json, require_recipe, write_json
from rarescan.flows.job import JobFailedError, run_job
from rarescan.registry.store import RunRecord, connect

Plain = dict[str, Any]
TABLE = "grid.json"
_KINDS = (".yaml", ".yml", ".json")
_FIGURES = ("balanced_accuracy", "macro_auc")


def classify_grid(
    config: RunConfig, configs: Path, prepared: Path, folder: Path, *, overwrite: bool = False
) -> Path:
    """Run every experiment of a folder and write `grid.json`; return the folder of results.

    Parameters
    ----------
    config : RunConfig
        What all experiments have in common.
    configs : Path
        YAML with a `classify` section, or JSON of the mammography system
        (`classifiers.foreign_config`). `default*.yaml` and `default*.json` are laid under the
        files of their kind.
    prepared : Path
        Prepared cohort.
    folder : Path
        Gets one folder an experiment, as `rarescan classify` writes it, and `grid.json`.
    overwrite : bool
        Run finished experiments again whose settings changed.

    Raises
    ------
    InputError
        The folder holds no experiment; or, after all have run, some failed.
    """
    registry = connect(config.registry, Path(config.runs))
    require_recipe(prepared)
    rows = []
    for path in experiments(configs):
        row = _run(config, path, prepared, folder, overwrite=overwrite)
        rows.append(row)
        write_json(folder / TABLE, {"rows": rows, "table": table(rows)})
        if row["outcome"] == "done":
            registry.log(_record(config, folder / path.stem, row))
    failed = [row["experiment"] for row in rows if row["outcome"] == "failed"]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(rows)} experiments failed: {', '.join(failed)}.",
            remedy=f"Read why in {folder / TABLE}, correct their settings, and repeat the command: "
            "the others are kept.",
        )
    return folder


def experiments(configs: Path) -> list[Path]:
    """Return a folder's files of settings in numerical order: 2 before 10.

    Raises
    ------
    InputError
        There are none, or two have the same name.
    """
    found = [p for p in sorted(configs.glob("*")) if p.suffix in _KINDS and not _is_default(p)]
    names = [path.stem for path in found]
    if not found or len(set(names)) < len(names):
        raise InputError(
            f"{configs} holds two experiments of one name."
            if found
            else f"{configs} holds no experiment.",
            remedy="Name a folder with one YAML or JSON file an experiment, as config_1.yaml.",
        )
    return sorted(found, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.stem)], p.stem))


def _is_default(path: Path) -> bool:
    return path.stem.startswith("default")


def _run(
    config: RunConfig, path: Path, prepared: Path, folder: Path, *, overwrite: bool
) -> dict[str, Any]:
    """Return an experiment's row; what goes wrong in it stands in the row."""
    arguments = {"prepared": str(prepared), "folder": str(folder / path.stem)}
    try:
        settings = plain_config(settings_of(config, path, prepared))
        run_job("classify", settings, arguments, overwrite=overwrite)
    except (RarescanError, JobFailedError) as error:
        return {"experiment": path.stem, "outcome": "failed", "reason": str(error)}
    result = read_json(folder / path.stem / "classification.json")
    return {
        "experiment": path.stem,
        "outcome": "done",
        "verdict": result["verdict"]["code"],
        "persons": result.get("n_persons"),
        "figures": _figures(result),
        "settings": settings["classify"],
    }


def settings_of(config: RunConfig, path: Path, prepared: Path) -> RunConfig:
    """Return the settings of one experiment, checked as a whole.

    Raises
    ------
    SettingError
        A key is unknown, does nothing here, or has a wrong value.
    """
    own = _merged(*(_read(p) for p in _defaults(path)), _read(path))
    plain = plain_config(config)
    if path.suffix == ".json" and "classify" not in own:
        for override in _translated(own, path, prepared):
            key, _, text = override.partition("=")
            plain = _merged(plain, _nested(key.split("."), json.loads(text)))
        return parse_config(plain)
    for key in own:
        if key != "classify":
            raise SettingError(
                f"'{key}' in {path.name} has no effect in an experiment.",
                remedy="Write `classify:` only; the rest comes from --config and --set.",
            )
    return parse_config(_merged(plain, own))


def _defaults(path: Path) -> list[Path]:
    kinds = (".json",) if path.suffix == ".json" else (".yaml", ".yml")
    return [p for p in sorted(path.parent.glob("default*")) if p.suffix in kinds]


def _read(path: Path) -> Plain:
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict):
        raise SettingError(
            f"{path.name} holds no settings.", remedy="Write `classify:` and its keys below."
        )
    return values


def _merged(*layers: Mapping[str, Any]) -> Plain:
    """Return mappings laid over each other, later ones on top."""
    found: Plain = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
            found[key] = _merged(found[key], value) if both else value
    return found


def _nested(keys: list[str], value: Any) -> Plain:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}


def _translated(values: Plain, path: Path, prepared: Path) -> list[str]:
    from rarescan.classifiers.foreign_config import translate

    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / path.name
        whole.write_text(json.dumps(values))
        return translate(whole, prepared).overrides


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the network's figures over items and those of the best baseline."""
    found: dict[str, Any] = {}
    models = result.get("models", {})
    for figure in _FIGURES:
        scores = {name: units["item"].get(figure) for name, units in models.items()}
        network = scores.pop("network", None)
        others = {n: s["value"] for n, s in scores.items() if s and s["value"] is not None}
        if network and others:
            best = max(others, key=lambda name: others[name])
            found[figure] = {
                **{key: network.get(key) for key in ("value", "low", "high")},
                "best_baseline": best,
                "baseline": others[best],
            }
    return found


def _record(config: RunConfig, folder: Path, row: Mapping[str, Any]) -> RunRecord:
    metrics = [
        (f"{name}.{key}", float(figure[key]), 0)
        for name, figure in row["figures"].items()
        for key in ("value", "low", "high", "baseline")
        if figure[key] is not None
    ]
    return RunRecord(
        recipe_id=require_recipe(folder, "classify").id,
        name=f"{config.name}/{row['experiment']}",
        about="classify",
        params=row["settings"],
        metrics=metrics,
        tags={"verdict": str(row["verdict"]), "experiment": str(row["experiment"])},
        files={str(folder / "classification.json"): ""},
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Return the experiments as text, a line each."""
    width = max(len(str(row["experiment"])) for row in rows)
    lines = [f"{'experiment':{max(width, 10)}s}  balanced accuracy [95 %]  best baseline"]
    for row in rows:
        figure = row.get("figures", {}).get("balanced_accuracy")
        if row["outcome"] == "failed":
            said = f"FAILED: {row['reason']}"
        elif figure is None:
            said = str(row["verdict"])
        else:
            span = (
                " " * 14
                if figure["low"] is None
                else f"[{figure['low']:.2f}, {figure['high']:.2f}]"
            )
            said = (
                f"{figure['value']:.3f} {span}      {figure['baseline']:.3f} "
                f"{figure['best_baseline']}  {row['verdict']}"
            )
        lines.append(f"{row['experiment']:{max(width, 10)}s}  {said}")
    return "\n".join(lines)
