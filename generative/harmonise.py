"""All of a cohort's scans as one of its sites would have shown them.

`write_harmonised` is the way in. Where site and diagnosis go together, a classifier that is
trained on harmonised scans with cells of site and diagnosis equally often cannot use the site.
Nothing is generated, and the persons who are tested are harmonised too: it is a preparation that
costs nothing, and what a generator has to beat. What it does is learned from training persons
only, and needs each scan's site: a scan of an unknown site cannot be harmonised.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rarescan.cohort.contracts import Cohort, Scan
from rarescan.cohort.store import VOLUMES, open_volumes, require_grid, tables, write_cohort
from rarescan.errors import InputError
from rarescan.files import Recipe, run_step
from rarescan.generative.code_store import first_scans, stored
from rarescan.generative.swap import Look, fit_look, shown_sites

HARMONISED = "harmonised"
"""Flag of a scan that is shown as another site would have shown it."""
_SCHEMA = 1


def write_harmonised(cohort: Cohort, folder: Path) -> Path:
    """Write a prepared cohort again, all scans as the site with the most training persons.

    Scans, persons, sites on paper and the partition stay. No noise is added. Nothing is random.

    Parameters
    ----------
    cohort : Cohort
        Prepared brains, with a partition.
    folder : Path
        Gets the harmonised cohort. A finished one is kept.

    Raises
    ------
    InputError
        No two sites have 5 training persons of one diagnosis, or a scan is of a site that too few
        training persons show.
    """
    recipe = Recipe(step="harmonise", schema=_SCHEMA, inputs={"prepared": cohort.cohort_id})

    def build(work: Path) -> None:
        looks = _looks(cohort)
        path, grid = tables(work) / VOLUMES, require_grid(cohort.root)
        rows_of = partial(_rows, cohort, looks)
        volumes = stored(path, (len(cohort.scans), *grid.shape), rows_of)
        shutil.rmtree(path.with_suffix(".done"), ignore_errors=True)
        scans = [
            _scan(scan, hashlib.sha256(volume.numpy().tobytes()).hexdigest(), looks)
            for scan, volume in zip(cohort.scans, volumes, strict=True)
        ]
        write_cohort(work, scans=scans, grid=grid, partition=cohort.partition)

    return run_step(folder, recipe, build)


def _looks(cohort: Cohort) -> dict[str | None, Look]:
    """Return what each site but the reference needs."""
    persons = first_scans(cohort, "train")
    shown, volumes = shown_sites(persons), open_volumes(cohort)
    unknown = [scan for scan in cohort.scans if scan.site not in shown]
    if unknown:
        raise InputError(
            f"{len(unknown)} scans are of sites that too few training persons show.",
            remedy="Leave them out, or train without harmonisation.",
        )
    sites = [scan.site for scan in persons.values()]
    reference = max(sorted(shown), key=sites.count)
    return {
        site: fit_look(volumes[shown[site]], volumes[shown[reference]])
        for site in shown
        if site != reference
    }


def _rows(cohort: Cohort, looks: Mapping[str | None, Look], rows: Sequence[int]) -> torch.Tensor:
    volumes = np.array(open_volumes(cohort)[list(rows)])
    for place, row in enumerate(rows):
        if look := looks.get(cohort.scans[row].site):
            volumes[place] = look.toned(volumes[place][None])[0]
    return torch.from_numpy(volumes)


def _scan(scan: Scan, sha256: str, looks: Mapping[str | None, Look]) -> Scan:
    if scan.site not in looks:
        return scan
    return replace(scan, path="", sha256=sha256, flags=(*scan.flags, HARMONISED))
