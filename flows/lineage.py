"""From any result back to the pseudonymous series, along the recipes.

`trace_back` is the way in. Every step's `recipe.json` names the ids of its inputs and where they
lay; a moved or deleted input is reported as missing, never guessed.
"""

from pathlib import Path
from typing import Any

from rarescan.cohort.contracts import Cohort
from rarescan.cohort.store import open_cohort, tables
from rarescan.errors import InputError
from rarescan.files import read_json, read_recipe


def trace_back(path: Path) -> list[dict[str, Any]]:
    """Return the chain of steps behind a file: `depth`, `step`, `id`, `folder`, `detail`.

    Raises
    ------
    InputError
        The path does not exist or no step of rarescan wrote it.
    """
    if not path.exists():
        raise InputError(f"There is no {path}.", remedy="Name a file that rarescan wrote.")
    folder = _step_folder(path)
    chain: list[dict[str, Any]] = []
    _walk(folder, chain, depth=0, seen=set())
    chain[0]["detail"] |= _scan_detail(folder, path) | _source_detail(folder)
    return chain


def _step_folder(path: Path) -> Path:
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents):
        if read_recipe(folder) is not None:
            return folder
    raise InputError(
        f"{path} does not lie in a folder that rarescan wrote.",
        remedy="Name a file of a run, for example runs/demo/synthetic/sub-SYN000001.",
    )


def _walk(folder: Path, chain: list[dict[str, Any]], *, depth: int, seen: set[str]) -> None:
    recipe = read_recipe(folder)
    if recipe is None:
        chain.append(
            {"depth": depth, "step": "missing", "id": "", "folder": str(folder), "detail": {}}
        )
        return
    detail = _batch_detail(folder) | _cohort_detail(folder)
    chain.append(
        {
            "depth": depth,
            "step": recipe.step,
            "id": recipe.id,
            "folder": str(folder),
            "detail": detail,
        }
    )
    if recipe.id in seen:
        return
    seen.add(recipe.id)
    for where in recipe.found_at.values():
        _walk((folder / where).resolve(), chain, depth=depth + 1, seen=seen)


def _batch_detail(folder: Path) -> dict[str, Any]:
    path = folder / "batch.json"
    return read_json(path) if path.exists() else {}


def _cohort_detail(folder: Path) -> dict[str, Any]:
    if not (tables(folder) / "cohort.json").exists():
        return {}
    cohort = open_cohort(folder)
    counts = {"scans": len(cohort.scans), "persons": len({s.person_id for s in cohort.scans})}
    return counts | ({"series": _series(cohort)} if cohort.recipe["step"] == "ingest" else {})


def _series(cohort: Cohort) -> dict[str, str]:
    """Return stack_id -> scan_id: the pseudonymous series behind the scans of an export."""
    sidecars = {
        scan.scan_id: cohort.root / scan.path.replace(".nii.gz", ".json")
        for scan in cohort.scans
        if scan.path.endswith(".nii.gz")
    }
    found = {name: read_json(path) for name, path in sidecars.items() if path.exists()}
    return {about["Stack"]: name for name, about in found.items() if "Stack" in about}


def _scan_detail(folder: Path, path: Path) -> dict[str, Any]:
    """Return the record of the scan that the file holds, if it is one."""
    if not (tables(folder) / "cohort.json").exists():
        return {}
    inside = path.resolve().relative_to(folder.resolve()).as_posix()
    for scan in open_cohort(folder).scans:
        if scan.path == inside:
            return {"scan_id": scan.scan_id, "person_id": scan.person_id}
    return {}


def _source_detail(folder: Path) -> dict[str, Any]:
    """Return which prepared scan a counterfactual shows, as far as its cohort is there."""
    recipe = read_recipe(folder)
    if recipe is None or recipe.step != "counterfactual":
        return {}
    prepared = (folder / recipe.found_at["prepared"]).resolve()
    if read_recipe(prepared) is None:
        return {}
    shown = recipe.config["volume_sha256"]
    return {"made_of": [s.scan_id for s in open_cohort(prepared).scans if s.sha256 == shown]}
