"""Take one person out of everything below a folder of runs.

`erase_person` is the way in. Cohorts lose the person's files, rows and volumes, and remember that
the person must stay away from a later ingest; what was made from them is marked and may not be
released any more. Marks come first and the cohort last, so that a killed command can be repeated.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq

from rarescan.classifiers.echo.rows import forget_person, holds
from rarescan.cohort.contracts import Scan
from rarescan.cohort.erase import drop_volumes, strip
from rarescan.cohort.partition import smallest_group
from rarescan.cohort.store import VOLUMES, read_scans, tables
from rarescan.errors import InputError
from rarescan.files import RECIPE, Recipe, read_json, read_recipe, write_json
from rarescan.imaging.persons import (
    erased_list,
    fingerprint,
    read_erased,
    with_erased,
    write_erased,
)
from rarescan.registry.spec import RegistryConfig

_PICTURES = (".png", ".html", ".webp", ".jpg")
_LEARNED_FROM = ("train", "validation")
_REGISTRY = "mlflow"


@dataclass(kw_only=True)
class Erasure:
    """What was done, folder by folder."""

    cleaned: list[Path] = field(default_factory=list)
    """Cohorts that the person was removed from."""
    marked: list[Path] = field(default_factory=list)
    """Results that had used the person."""
    versions: list[str] = field(default_factory=list)
    """Registered models that must be trained again."""
    removed: list[Path] = field(default_factory=list)
    """Unfinished results, reports, and what holds the person's anatomy (models of `transfer`,
    counterfactuals, masks and films of echocardiograms): gone."""


def erase_person(person: str, runs: Path, registry: RegistryConfig) -> Erasure:
    """Remove a person from all results below `runs`; repeating it ends the same.

    Parameters
    ----------
    person : str
        Pseudonym, as it stands in `participants.tsv` after `sub-`.
    runs : Path
        A folder of runs, of one run, or of single results. Cohorts elsewhere that these were made
        from are found by their recipes.
    registry : RegistryConfig
        Where models are registered.

    Raises
    ------
    InputError
        Nobody has this pseudonym, another process is writing there, or echocardiograms also stand
        in a database whose address RARESCAN_ECHO does not tell.
    UnreachableError
        The registry or that database does not answer; repeat the command.
    """
    if not re.fullmatch("[A-Za-z0-9_-]+", person):
        raise InputError("This is no pseudonym.", remedy="Name it as in participants.tsv: RS...")
    done, results = Erasure(), _Results(runs)
    held = [folder for folder in results.recipes if _holds(folder, person)]
    copies = results.near_copies(person, held)
    hearts = [f for f in results.of_step("echo clips") if holds(f.parent, person)]
    taught = {f: how for f in results.of_step("echo train") if (how := _taught(f, person))}
    known = any(fingerprint(person) in read_erased(f) for f in results.recipes)
    if not (held or copies or hearts or taught or known):
        raise InputError(
            f"No result below {runs} holds this person.",
            remedy="Check the pseudonym and --runs, or the key: another key gives other names.",
        )
    done.removed += [*_remove_unfinished(runs), *copies]
    for folder in copies:
        del results.recipes[folder]
        _remove(folder)
    for folder in hearts:
        write_erased(folder, {*read_erased(folder), fingerprint(person)})
        done.removed += forget_person(folder.parent, person)
        done.cleaned.append(folder.parent)
    for folder, how in taught.items():
        _mark(folder, person, needs_retraining=how == "taught")
        done.marked.append(folder)
    # Dependents first: as long as a cohort holds the person, a repeated command finds them again.
    for folder in sorted(held, key=lambda f: len(results.dependents(f))):
        _mark_dependents(folder, person, results, (runs, registry), done)
        _clean(folder, person)
        done.cleaned.append(folder)
    for folder in sorted(results.recipes, key=lambda f: -len(results.dependents(f))):
        if fingerprint(person) in read_erased(folder):
            _renew_recipe(folder)
    return done


class _Results:
    """The finished folders below a folder, and those that they were made from."""

    def __init__(self, runs: Path) -> None:
        self.recipes: dict[Path, Recipe] = {}
        waiting = [p.parent.resolve() for p in runs.rglob(RECIPE) if _REGISTRY not in p.parts]
        while waiting:
            folder = waiting.pop()
            recipe = read_recipe(folder)
            if folder in self.recipes or recipe is None:
                continue
            self.recipes[folder] = recipe
            waiting += self._inputs(folder)

    def of_step(self, step: str) -> list[Path]:
        """Return the folders that a step made."""
        return [folder for folder, recipe in self.recipes.items() if recipe.step == step]

    def _inputs(self, folder: Path) -> list[Path]:
        return [(folder / where).resolve() for where in self.recipes[folder].found_at.values()]

    @cached_property
    def _users(self) -> dict[Path, set[Path]]:
        users: dict[Path, set[Path]] = {folder: set() for folder in self.recipes}
        for folder in self.recipes:
            for source in self._inputs(folder):
                if source in users:
                    users[source].add(folder)
        return users

    def near_copies(self, person: str, held: Sequence[Path]) -> list[Path]:
        """Return the counterfactuals of a person's scan, and the filled batches that show it.

        Whose scan a file shows is not known, so those made of files with the help of a cohort
        that holds the person are taken for the person's.
        """
        ids = {i for folder in held for i in (self.recipes[folder].id, *_earlier_ids(folder))}
        return [
            folder
            for folder, recipe in self.recipes.items()
            if (recipe.step in ("counterfactual", "fill") or "fill" in recipe.config)
            and (
                recipe.config.get("person") == fingerprint(person)
                or (not recipe.config.get("person") and recipe.inputs["prepared"] in ids)
            )
        ]

    def dependents(self, folder: Path) -> list[Path]:
        """Return everything that was made from a folder, directly or not."""
        found: set[Path] = set()
        waiting = [folder]
        while waiting:
            new = self._users[waiting.pop()] - found
            found |= new
            waiting += new
        return sorted(found)


def _holds(folder: Path, person: str) -> bool:
    paths = [tables(folder) / f"{name}.parquet" for name in ("scans", "events")]
    return any(
        person in pq.read_table(path, columns=["person_id"])["person_id"].to_pylist()
        for path in paths
        if path.exists()
    )


def _remove_unfinished(runs: Path) -> list[Path]:
    """Remove half-made results: they may hold the person and are made again."""
    found = [*runs.rglob(".*.unfinished"), *runs.rglob(".*.old")]
    for folder in found:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"A process is writing {folder.name}.", remedy="Wait until it ends, or stop it."
            ) from None
        else:
            shutil.rmtree(folder)
        finally:
            os.close(handle)
    return found


def _remove(folder: Path) -> None:
    """Remove a result; what it is found by goes last, should the command be killed."""
    for entry in [p for p in folder.iterdir() if p.name != RECIPE]:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (folder / RECIPE).unlink()
    folder.rmdir()


def _mark_dependents(
    folder: Path,
    person: str,
    results: _Results,
    registered: tuple[Path, RegistryConfig],
    done: Erasure,
) -> None:
    """Mark what was made from a prepared cohort, in the registry first."""
    part = read_json(tables(folder) / "cohort.json")["partition"].get(person)
    if part is None:
        return
    if part in _LEARNED_FROM:
        ids = {results.recipes[folder].id, *_earlier_ids(folder)}
        done.versions += _mark_versions(ids, *registered)
    for dependent in results.dependents(folder):
        step = results.recipes[dependent].step
        trained = part in _LEARNED_FROM or step == "retrain"
        done.removed += _remove_anatomy(dependent, step) if part in _LEARNED_FROM else []
        _mark(dependent, person, needs_retraining=trained)
        done.marked.append(dependent)
    for report in [p for p in folder.parent.glob("report.*") if p.suffix in (".html", ".json")]:
        # It shows scans of persons; `rarescan report` makes it again without this one.
        report.unlink()
        done.removed.append(report)


def _mark(folder: Path, person: str, *, needs_retraining: bool) -> None:
    """Strip a result of the person's name, and note that it had used the person."""
    with suppress(FileNotFoundError):
        needs_retraining |= bool(read_json(erased_list(folder)).get("needs_retraining"))
    strip(folder, person)
    erased = {*read_erased(folder), fingerprint(person)}
    write_erased(folder, erased, needs_retraining=needs_retraining)


def _taught(folder: Path, person: str) -> str:
    """Return how a network for echocardiograms knows a person, as long as it is not marked."""
    known = read_json(folder / "taught.json")
    if fingerprint(person) in read_erased(folder):
        return ""
    return next((how for how, people in known.items() if fingerprint(person) in people), "")


def _earlier_ids(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return list(read_json(erased_list(folder)).get("earlier_ids", []))
    return []


def _mark_versions(prepared_ids: set[str], runs: Path, config: RegistryConfig) -> list[str]:
    local = next((p for p in (runs, *runs.resolve().parents[:1]) if (p / _REGISTRY).is_dir()), None)
    if local is None and not (config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")):
        return []
    from rarescan.registry.store import connect

    return connect(config, local or runs).mark_erased(prepared_ids)


def _remove_anatomy(folder: Path, step: str) -> list[Path]:
    """Remove what keeps a person's anatomy: a `transfer` model's weights and samples."""
    if step == "train" and read_json(folder / "spec.json").get("family") == "transfer":
        found = [*folder.glob("*.safetensors")]
    elif step == "evaluate":
        spec = (folder.parent / "models").glob("*/spec.json")
        names = [p.parent.name for p in spec if read_json(p).get("family") == "transfer"]
        found = [p for name in names if (p := tables(folder / "samples" / name) / VOLUMES).exists()]
    else:
        found = []
    for path in found:
        path.unlink()
    return found


def _clean(folder: Path, person: str) -> None:
    """Remove a person from a cohort; what `_holds` looks at goes last."""
    recipe = read_recipe(folder)
    ids = sorted({*_earlier_ids(folder), *([recipe.id] if recipe else [])})
    write_erased(folder, {*read_erased(folder), fingerprint(person)}, earlier_ids=ids)
    if (tables(folder) / "scans.parquet").exists():
        scans = read_scans(folder)
        drop_volumes(tables(folder) / VOLUMES, [s.person_id != person for s in scans])
        _renew_counts(folder, person, [s for s in scans if s.person_id != person])
    for picture in [p for p in (folder / "qc").glob("*") if p.suffix in _PICTURES]:
        picture.unlink()
    strip(folder, person)


def _renew_counts(folder: Path, person: str, scans: Sequence[Scan]) -> None:
    path = tables(folder) / "cohort.json"
    stored = read_json(path)
    stored["partition"].pop(person, None)
    about = stored["about"]
    if "smallest_group" in about:
        about |= {"smallest_group": smallest_group(scans)}
        about |= {"persons": len({s.person_id for s in scans}), "scans": len(scans)}
    write_json(path, stored)


def _renew_recipe(folder: Path) -> None:
    """Give a cohort that lost a person another id, so that what was made from it is made again."""
    recipe = read_recipe(folder)
    if recipe is None or not (tables(folder) / "scans.parquet").exists():
        return
    if recipe.step == "ingest":
        renewed = with_erased(recipe, read_erased(folder))
    elif recipe.step in ("prepare", "hold-out"):
        name = "cohort" if recipe.step == "prepare" else "prepared"
        source = read_recipe((folder / recipe.found_at[name]).resolve())
        inputs = {**recipe.inputs, **({name: source.id} if source else {})}
        renewed = Recipe(**{**recipe.as_dict(), "inputs": inputs})
    else:
        return
    if renewed.id != recipe.id:
        write_json(folder / RECIPE, {"id": renewed.id, **renewed.as_dict()})
