"""What the report shows of volumes: real beside synthetic persons, nearest pairs, power spectra.

`pictures` is the way in. Persons are shown in their order, none picked by eye, held-out ones
where there are any. What comes from here shows scans: it stays inside the controller.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.spatial.distance import cdist

from rarescan.cohort.contracts import Cohort, FeatureSet, FloatArray, Grid
from rarescan.cohort.planes import spatial_axes
from rarescan.cohort.store import VOLUMES, open_cohort, tables
from rarescan.evaluation import figures
from rarescan.evaluation.charts import Array, map_plot, spectrum_plot
from rarescan.evaluation.features import FOLDER, load_features
from rarescan.evaluation.measures import apodised, frequencies, outline, waves
from rarescan.files import RECIPE, read_json

_PER_DIAGNOSIS = 3
_MOST_DIAGNOSES = 4
_MOST_PAIRS = 5
_VOXELS_TO_TRANSFORM = 50_000_000
_FEWEST_VOLUMES, _MOST_VOLUMES = 5, 40
_MOST_BANDS = 24
_MOST_POINTS = 300


@dataclass(frozen=True, kw_only=True)
class _Shelf:
    """Volumes to cut slices from, with what is known of each."""

    volumes: FloatArray
    diagnoses: tuple[str, ...]
    persons: tuple[str, ...]

    def first(self, diagnosis: str, rows: Sequence[int] | None = None) -> list[int]:
        """Return where the first volumes of a diagnosis are: none is picked by eye."""
        among = range(len(self.diagnoses)) if rows is None else rows
        return [row for row in among if self.diagnoses[row] == diagnosis][:_PER_DIAGNOSIS]

    def cut(self, rows: Iterable[int]) -> list[FloatArray]:
        """Return volumes."""
        return [self.volumes[row] for row in rows]


def _open_shelf(root: Path, grid: Grid) -> _Shelf | None:
    """Open a folder of volumes; None where it is missing or on another grid."""
    index, volumes = tables(root) / "scans.parquet", tables(root) / VOLUMES
    if not (index.exists() and volumes.exists()):
        return None
    stored = np.load(volumes, mmap_mode="r")
    columns = pq.read_table(index, columns=["condition_diagnosis", "person_id"]).to_pydict()
    if stored.shape[1:] != grid.shape:
        return None
    return _Shelf(
        volumes=stored,
        diagnoses=tuple(columns["condition_diagnosis"]),
        persons=tuple(columns["person_id"]),
    )


def pictures(run: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return every picture of persons, by name; empty or None where the volumes are not there.

    Parameters
    ----------
    run : Path
        The folder of the run.
    content : mapping
        From `collect.collect`.

    Returns
    -------
    dict
        `champion`: one entry a diagnosis (real, synthetic, nearest training persons);
        `candidates`: one row of slices each; `pairs`: the synthetic scans nearest to a training
        person; `spectra`, `map`: SVG.
    """
    nothing: dict[str, Any] = {"champion": [], "candidates": [], "pairs": []}
    nothing |= {"spectra": None, "map": None}
    if not (run / "prepared" / RECIPE).exists():
        return nothing
    cohort = open_cohort(run / "prepared")
    grid = cohort.grid
    real = _open_shelf(run / "prepared", grid) if grid else None
    if grid is None or real is None:
        return nothing
    held_out = cohort.indices("validation") or cohort.indices()
    shown = list(content["cohort"]["persons"])[:_MOST_DIAGNOSES]
    sets = {
        name: shelf
        for name in content["candidates"]
        if (shelf := _open_shelf(run / "evaluation" / "samples" / name, grid))
    }
    name = (content["champion"] or {}).get("candidate")
    champion = sets.get(name or "") or (_open_shelf(run / "synthetic", grid) if name else None)
    seen = _features(run, content["extractor"], name) if name in sets else {}
    groups = _Groups(real, tuple(held_out), champion, _nearest(seen)) if champion else None
    return {
        "champion": [_entry(groups, diagnosis, grid) for diagnosis in shown] if groups else [],
        "candidates": _one_row_each(real, held_out, sets, shown, grid) if sets else [],
        "pairs": _pairs(run, name, real, sets, grid),
        "spectra": _spectra(cohort, real, champion, grid) if champion else None,
        "map": _map(seen, real, champion, shown) if champion else None,
    }


@dataclass(frozen=True)
class _Groups:
    """Who is shown beside whom."""

    real: _Shelf
    held_out: tuple[int, ...]
    synthetic: _Shelf
    nearest: Mapping[str, str]
    """Synthetic person -> the training person nearest in the features."""


def _entry(groups: _Groups, diagnosis: str, grid: Grid) -> dict[str, str | None]:
    """Return one diagnosis: real persons, synthetic ones, and whom these resemble most."""
    real, synthetic = groups.real, groups.synthetic
    drawn = synthetic.first(diagnosis)
    alike = [groups.nearest.get(synthetic.persons[row], "") for row in drawn]
    rows = [real.persons.index(person) for person in alike if person in real.persons]
    return {
        "diagnosis": diagnosis,
        "real": _columns(real.cut(real.first(diagnosis, groups.held_out)), grid),
        "synthetic": _columns(synthetic.cut(drawn), grid),
        "nearest": _columns(real.cut(rows), grid) if len(rows) == len(drawn) else None,
    }


def _features(run: Path, extractor: str | None, name: str | None) -> dict[str, FeatureSet]:
    """Return the features of training, validation and the champion's persons, where all are."""
    folder = run / "evaluation" / FOLDER / (extractor or "none")
    paths = {kind: folder / f"{kind}.npz" for kind in ("train", "validation", name or "none")}
    if not all(path.exists() for path in paths.values()):
        return {}
    return {
        "synthetic" if kind == name else kind: load_features(path) for kind, path in paths.items()
    }


def _nearest(seen: Mapping[str, FeatureSet]) -> dict[str, str]:
    if not seen:
        return {}
    train, synthetic = seen["train"], seen["synthetic"]
    place = cdist(synthetic.values, train.values).argmin(axis=1)
    return dict(zip(synthetic.person_ids, (train.person_ids[i] for i in place), strict=True))


def _map(
    seen: Mapping[str, FeatureSet], real: _Shelf, synthetic: _Shelf, shown: Sequence[str]
) -> str | None:
    """Return persons on the two main axes of real persons' features, one panel a diagnosis."""
    if not seen:
        return None
    known = np.concatenate([seen["train"].values, seen["validation"].values]).astype(np.float64)
    centre = known.mean(axis=0)
    _, spread, axes = np.linalg.svd(known - centre, full_matrices=False)
    if len(spread) < 2 or not spread[0] > 0:
        return None
    share = spread**2 / np.sum(spread**2)
    diagnosis = dict(zip(real.persons, real.diagnoses, strict=True))
    diagnosis |= dict(zip(synthetic.persons, synthetic.diagnoses, strict=True))
    named = {"train": "real, training", "validation": "real, held out", "synthetic": "synthetic"}
    panels: dict[str, dict[str, Array]] = {each: {} for each in shown}
    for kind, label in named.items():
        places = (seen[kind].values - centre) @ axes[:2].T
        labels = np.array([diagnosis.get(person, "") for person in seen[kind].person_ids])
        for each, sets in panels.items():
            sets[label] = places[labels == each][:_MOST_POINTS]
    titles = [f"axis {i + 1} ({share[i]:.0%} of the variety)" for i in (0, 1)]
    return map_plot(panels, "map", (titles[0], titles[1]))


def _spectra(cohort: Cohort, real: _Shelf, synthetic: _Shelf, grid: Grid) -> str:
    """Return the radial power spectra of held-out persons and of as many synthetic ones."""
    most = int(_VOXELS_TO_TRANSFORM / np.prod(grid.shape))
    most = min(max(most, _FEWEST_VOLUMES), _MOST_VOLUMES)
    held_out = (cohort.indices("validation") or cohort.indices())[:most]
    volumes = {
        "real, held out": real.cut(held_out),
        "synthetic": synthetic.cut(range(min(most, len(synthetic.persons)))),
    }
    window = apodised(outline(np.stack(volumes["real, held out"])))
    logs = {
        label: np.stack([radial_power(v, window)[1] for v in cut]) for label, cut in volumes.items()
    }
    cycles, _ = radial_power(volumes["real, held out"][0], window)
    if not grid.is_brain:
        return spectrum_plot(cycles, logs, "spectra", "pixel")
    return spectrum_plot(cycles / grid.spacing_mm, logs, "spectra")


def radial_power(volume: FloatArray, window: FloatArray) -> tuple[Array, Array]:
    """Return spatial frequencies, cycles a voxel, and the mean power at each, in decibel.

    Parameters
    ----------
    volume, window : float32 arrays, shape (x, y, z)
        The window is 1 inside and falls to 0 at the border (`measures.apodised`).
    """
    centred = (volume - (volume * window).sum() / window.sum()) * window
    power = np.abs(waves(centred)) ** 2
    radius = np.broadcast_to(frequencies(volume.shape), power.shape)
    n_bands = min(_MOST_BANDS, min(volume.shape[a] for a in spatial_axes(volume.shape)) // 2)
    edges = np.linspace(0.02, 0.5, n_bands + 1)
    band = np.digitize(radius, edges) - 1
    inside = (band >= 0) & (band < n_bands)
    counts = np.bincount(band[inside], minlength=n_bands)
    sums = np.bincount(band[inside], weights=power[inside], minlength=n_bands)
    filled = counts > 0
    means = np.maximum(sums[filled] / counts[filled], 1e-12)
    return (edges[:-1] + edges[1:])[filled] / 2, 10 * np.log10(means)


def _columns(volumes: Sequence[FloatArray], grid: Grid) -> str | None:
    """Return a picture with one person a column and one plane a row."""
    if not volumes:
        return None
    cut = [figures.planes(volume, grid) for volume in volumes]
    rows = [[one[plane] for one in cut] for plane in cut[0]]
    return figures.webp(figures.sheet(rows, figures.shown_mm(grid), sides=grid.is_brain))


def _one_row_each(
    real: _Shelf,
    held_out: Sequence[int],
    sets: Mapping[str, _Shelf],
    shown: Sequence[str],
    grid: Grid,
) -> list[dict[str, str]]:
    """Return a row of slices for the real persons and for each candidate."""
    picks = {"real": [real.cut(real.first(d, held_out)[:1]) for d in shown]}
    picks |= {n: [s.cut(s.first(d)[:1]) for d in shown] for n, s in sets.items()}
    rows = {name: [volume for found in lists for volume in found] for name, lists in picks.items()}
    return [
        {"name": name, "picture": _strip(volumes, grid, sides=True)}
        for name, volumes in rows.items()
        if volumes
    ]


def _pairs(
    run: Path, name: str | None, real: _Shelf, sets: Mapping[str, _Shelf], grid: Grid
) -> list[dict[str, Any]]:
    """Return the champion's scans that lie nearest to a training person, with the difference."""
    path = run / "evaluation" / "scores.json"
    if name is None or name not in sets or not path.exists():
        return []
    scored = read_json(path)["candidates"].get(name, {}).get("privacy") or {}
    pairs = []
    for nearest in scored.get("nearest", [])[:_MOST_PAIRS]:
        if nearest["person_id"] not in real.persons:
            continue
        synthetic = sets[name].volumes[nearest["index"]]
        person = real.volumes[real.persons.index(nearest["person_id"])]
        pairs.append(
            {
                "flagged": nearest["flagged"],
                "score": nearest["score"],
                "synthetic": _strip([synthetic], grid),
                "real": _strip([person], grid),
                "difference": _strip([2 * np.abs(synthetic - person)], grid),
            }
        )
    return pairs


def _strip(volumes: Sequence[FloatArray], grid: Grid, *, sides: bool = False) -> str:
    """Return a picture with three planes of each volume in one row."""
    row = [tile for volume in volumes for tile in figures.planes(volume, grid).values()]
    sides = sides and grid.is_brain
    return figures.webp(figures.sheet([row], figures.shown_mm(grid), sides=sides))
