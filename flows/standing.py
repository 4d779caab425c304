"""The registered champion as a candidate among the new ones.

`pin_champion` notes once, in the evaluation's folder, which version stood in the registry when the
candidates were scored; `sample_champion` draws from it as from any candidate. The note is no part
of the recipe: a repeated command must find its folder although `select` has registered since.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rarescan.cohort.store import open_cohort
from rarescan.configs.schema import RunConfig
from rarescan.files import read_json, write_json
from rarescan.registry.store import ModelVersion, connect, folder_sha256

_NOTE = "champion.json"
_log = logging.getLogger("rarescan")


def pin_champion(
    config: RunConfig, evaluation: Path, candidates: Mapping[str, Path]
) -> dict[str, Any] | None:
    """Note the registry's champion of this moment, unless it is noted already, and return it.

    Returns
    -------
    dict or None
        The fields of `ModelVersion` and `candidate`: the new candidate that has the same bytes,
        or a name of its own. None where there is no champion.
    """
    if not (evaluation / _NOTE).exists():
        version = connect(config.registry, Path(config.runs)).champion()
        write_json(evaluation / _NOTE, version and _noted(version, candidates))
    return standing(evaluation)


def _noted(version: ModelVersion, candidates: Mapping[str, Path]) -> dict[str, Any]:
    same = [n for n, path in candidates.items() if folder_sha256(path) == version.model_sha256]
    return {"candidate": same[0] if same else f"champion-{version.version}", **asdict(version)}


def standing(evaluation: Path) -> dict[str, Any] | None:
    """Return the champion that an evaluation met; its `candidate` is None where it was not scored.

    Parameters
    ----------
    evaluation : Path
        Folder written by `rarescan evaluate`.
    """
    path = evaluation / _NOTE
    noted: dict[str, Any] | None = read_json(path) if path.exists() else None
    return noted


def sample_champion(
    config: RunConfig,
    prepared: Path,
    evaluation: Path,
    candidates: Mapping[str, Path],
    sample: Callable[[Path, Path], Path],
) -> dict[str, Path]:
    """Return name -> samples of the registered champion; empty where there is nothing to add.

    A champion of another grid, or one that cannot be asked for this cohort's diagnoses, cannot be
    compared: it is noted without a candidate's name, and the newcomers are judged without it.

    Parameters
    ----------
    sample : callable
        (model folder, folder of the samples) -> folder of the samples.
    """
    noted = pin_champion(config, evaluation, candidates)
    if noted is None or noted["candidate"] is None or noted["candidate"] in candidates:
        return {}
    name = str(noted["candidate"])
    version = ModelVersion(**{k: v for k, v in noted.items() if k != "candidate"})
    with tempfile.TemporaryDirectory() as temporary:
        registry = connect(config.registry, Path(config.runs))
        model = registry.download(version, Path(temporary) / "generator")
        if not _comparable(model, prepared):
            _log.warning("The registered champion was made for another grid or other diagnoses")
            write_json(evaluation / _NOTE, {**noted, "candidate": None})
            return {}
        return {name: sample(model, evaluation / "samples" / name)}


def _comparable(model: Path, prepared: Path) -> bool:
    from rarescan.generative.families import load_generator

    generator, cohort = load_generator(model), open_cohort(prepared)
    wanted = {scan.condition.diagnosis for scan in cohort.scans}
    return generator.grid == cohort.grid and wanted <= set(generator.diagnoses)
