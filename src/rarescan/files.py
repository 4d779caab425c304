"""Files that are whole or absent, and the one mechanism for caching, resuming and lineage.

`run_step` is the way in: it builds a folder once. The folder's `recipe.json` says which step
made it, from which settings, seeds and inputs; its id is the hash of that. Repeating a step
finds the folder and returns; a step that was killed finds its half-written folder (the one
without a recipe) and goes on in it. `write_atomic` serves single files.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rarescan.errors import ChangedRecipeError, InputError

RECIPE = "recipe.json"
_UNFINISHED = "recipe.unfinished.json"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a step is made of; two runs with equal recipes give equal results."""

    step: str
    """The verb, for example `prepare`."""
    schema: int
    """Raised by hand when the step's code changes what it writes."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The step's part of the settings, plain JSON values."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Name of each input -> id of its recipe (or hash of a source)."""
    found_at: Mapping[str, str] = field(default_factory=dict)
    """Name of each input -> its path relative to the folder; not part of the id."""

    @property
    def id(self) -> str:
        """16 hexadecimal digits: the hash of everything but `found_at`."""
        return content_id({k: v for k, v in self.as_dict().items() if k not in ("found_at", "id")})

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as they stand in `recipe.json`."""
        return {
            "step": self.step,
            "schema": self.schema,
            "config": _plain(self.config),
            "seeds": dict(self.seeds),
            "inputs": dict(self.inputs),
            "found_at": dict(self.found_at),
        }


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def content_id(value: Any) -> str:
    """Return 16 hexadecimal digits that name a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a name beside `path`; what is written there takes its place when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last because nibabel, numpy and matplotlib look at it.
    temporary = path.with_name(f".{path.name.split('.')[0]}.{os.getpid()}.tmp{_suffixes(path)}")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _suffixes(path: Path) -> str:
    return path.name[len(path.name.split(".")[0]) :]


def write_atomic(path: Path, data: bytes | memoryview | str) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all, keys in the order given."""
    write_atomic(path, json.dumps(value, indent=1, default=str, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


def read_recipe(folder: Path) -> Recipe | None:
    """Return the recipe of a finished folder, or None where there is none."""
    try:
        stored = read_json(folder / RECIPE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    stored.pop("id", None)
    return Recipe(**stored)


def require_recipe(folder: Path, step: str | None = None) -> Recipe:
    """Return the recipe of a finished folder; say what to run where it is missing."""
    recipe = read_recipe(folder)
    if recipe is None:
        raise InputError(
            f"{folder} is no finished rarescan folder (it has no {RECIPE}).",
            remedy=f"Run `rarescan {step or 'run'}` first, or name the folder that it wrote.",
        )
    if step is not None and recipe.step != step:
        raise InputError(
            f"{folder} was made by `rarescan {recipe.step}`, not by `rarescan {step}`.",
            remedy=f"Name the folder that `rarescan {step}` wrote.",
        )
    return recipe


def is_done(folder: Path, recipe: Recipe) -> bool:
    """Return whether the folder already holds this recipe's result."""
    stored = read_recipe(folder)
    return stored is not None and stored.id == recipe.id


def run_step(
    folder: Path,
    recipe: Recipe,
    build: Callable[[Path], None],
    *,
    overwrite: bool = False,
) -> Path:
    """Return `folder`, filled by `build` unless it already holds this recipe's result.

    Parameters
    ----------
    folder : Path
        Where the result goes.
    recipe : Recipe
        What it is made of.
    build : callable
        Writes the result into the folder that it is given: beside the final one, empty, or with
        what an interrupted run of the same recipe left. It must skip what is there already.
        Paths that it stores must be relative to that folder.
    overwrite : bool
        Replace a folder that holds another recipe's result.

    Raises
    ------
    ChangedRecipeError
        Another result lies there and `overwrite` is false. The message names the changed keys.
    """
    if is_done(folder, recipe):
        return folder
    if not overwrite:
        _require_free(folder, recipe)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.unfinished")
    with _only_one(work):
        if is_done(folder, recipe):
            return folder
        _open_work(work, recipe)
        build(work)
        write_json(work / RECIPE, {"id": recipe.id, **recipe.as_dict()})
        (work / _UNFINISHED).unlink(missing_ok=True)
        _take_place(work, folder)
    return folder


def _require_free(folder: Path, recipe: Recipe) -> None:
    stored = read_recipe(folder)
    if stored is not None:
        changed = ", ".join(changed_keys(stored, recipe)) or "the step"
        raise ChangedRecipeError(
            f"{folder} holds a result made with other settings (changed: {changed}).",
            remedy="Add --overwrite to replace it, or choose another run name or folder.",
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise ChangedRecipeError(
            f"{folder} is not empty and was not written by rarescan.",
            remedy="Choose another folder, or add --overwrite to replace it.",
        )


def changed_keys(old: Recipe, new: Recipe) -> list[str]:
    """Return the dotted names of everything that differs between two recipes."""
    before, after = (_flatten({**r.as_dict(), "found_at": {}}) for r in (old, new))
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _open_work(work: Path, recipe: Recipe) -> None:
    """Keep what an interrupted run of the same recipe left; empty the folder otherwise."""
    try:
        unfinished = read_json(work / _UNFINISHED)
    except (FileNotFoundError, ValueError):
        unfinished = None
    if unfinished != recipe.id:
        for entry in work.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    write_json(work / _UNFINISHED, recipe.id)


def _take_place(work: Path, folder: Path) -> None:
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        work.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        work.rename(folder)


@contextmanager
def _only_one(work: Path) -> Iterator[None]:
    """Make the working folder and hold its lock; the kernel frees it when the process dies."""
    work.mkdir(parents=True, exist_ok=True)
    handle = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(
            f"Another process is already writing {work.name[1:].removesuffix('.unfinished')}.",
            remedy="Wait until it ends, or choose another folder.",
        ) from None
    finally:
        os.close(handle)
