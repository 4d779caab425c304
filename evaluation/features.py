"""Feature sets: what makes them, one vector a person, stored beside the scores.

`Extractor` is the contract of everything that looks at images; `by_person` makes a feature set of
scans; `save_features`, `find_features` and `read_features` keep sets under
`features/<extractor>/<set>.npz`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rarescan.cohort.contracts import FeatureSet, FloatArray
from rarescan.errors import InputError
from rarescan.files import atomic_path

FOLDER = "features"
PRIMARY = "domain-train"
"""Extractor that decides: a network trained on the training persons."""
SECOND = "regions"
"""Second opinion: the region vector, in units of its real SD."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A function from one image to features, and its name."""

    name: str
    embed: Callable[[FloatArray], npt.NDArray[np.floating]]
    """Takes one float32 image (x, y) or (x, y, z), 0 to 1; returns features, shape (d,)."""
    weights_sha256: str = ""


def by_person(
    values: npt.NDArray[np.floating],
    person_ids: Sequence[str],
    *,
    extractor: str,
    weights_sha256: str = "",
) -> FeatureSet:
    """Return the feature set of some scans: one row a person, the mean over the person's scans.

    Parameters
    ----------
    values : float array, shape (scans, d)
    person_ids : sequence of str
        Whose scan each row is.
    extractor, weights_sha256 : str
        What made the rows.

    Raises
    ------
    InputError
        Not one row a scan.
    """
    rows, persons = person_rows(values, person_ids)
    return FeatureSet(
        values=rows.astype(np.float32),
        person_ids=persons,
        extractor=extractor,
        weights_sha256=weights_sha256,
    )


def person_rows(
    values: npt.NDArray[np.floating], person_ids: Sequence[str]
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Return one row a person, the mean over the person's scans, in order of first appearance.

    Parameters
    ----------
    values : float array, shape (scans, ...)
    person_ids : sequence of str
        Whose scan each row is.

    Raises
    ------
    InputError
        Not one row a scan.
    """
    if len(values) != len(person_ids):
        raise InputError(
            f"{len(values)} feature rows for {len(person_ids)} scans.",
            remedy="The extractor must return one row for each volume.",
        )
    persons = tuple(dict.fromkeys(person_ids))
    place = {person: index for index, person in enumerate(persons)}
    rows = np.array([place[p] for p in person_ids], dtype=np.intp)
    sums = np.zeros((len(persons), *values.shape[1:]))
    np.add.at(sums, rows, values)
    counts = np.bincount(rows, minlength=len(persons))
    return sums / counts.reshape(-1, *[1] * (values.ndim - 1)), persons


def save_features(folder: Path, name: str, features: FeatureSet, *, made_from: str = "") -> None:
    """Write one set under `folder/<extractor>/<name>.npz`, with what it was made from."""
    path = folder / features.extractor / f"{name}.npz"
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            values=features.values,
            person_ids=np.array(features.person_ids, dtype=str),
            extractor=np.array(features.extractor),
            weights_sha256=np.array(features.weights_sha256),
            made_from=np.array(made_from),
        )


def load_features(path: Path) -> FeatureSet:
    """Read what `save_features` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return FeatureSet(
            values=stored["values"],
            person_ids=tuple(str(p) for p in stored["person_ids"]),
            extractor=str(stored["extractor"]),
            weights_sha256=str(stored["weights_sha256"]),
        )


def find_features(
    folders: Iterable[Path], extractor: str, name: str, made_from: str
) -> FeatureSet | None:
    """Return a stored set if it was made from just that (a hash of voxels, persons, weights)."""
    for folder in folders:
        path = folder / extractor / f"{name}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                same = "made_from" in stored and str(stored["made_from"]) == made_from
            if same:
                return load_features(path)
    return None


def read_features(folder: Path) -> dict[str, dict[str, FeatureSet]]:
    """Return extractor -> set -> features of a finished evaluation.

    Parameters
    ----------
    folder : Path
        The folder that `rarescan evaluate` wrote.

    Raises
    ------
    InputError
        It holds no features.
    """
    found: dict[str, dict[str, FeatureSet]] = {}
    for path in sorted((folder / FOLDER).glob("*/*.npz")):
        found.setdefault(path.parent.name, {})[path.stem] = load_features(path)
    if PRIMARY not in found:
        raise InputError(
            f"{folder} holds no features of the extractor {PRIMARY}.",
            remedy="Name the folder that `rarescan evaluate` wrote.",
        )
    return found


def require_one_extractor(sets: Mapping[str, FeatureSet]) -> None:
    """Refuse to compare features of two extractors or of two versions of one."""
    kinds: dict[Any, str] = {}
    for name, features in sets.items():
        kinds.setdefault((features.extractor, features.weights_sha256), name)
    if len(kinds) > 1:
        names = " and ".join(f"'{name}'" for name in kinds.values())
        raise InputError(
            f"The feature sets {names} were made by different extractors or weights.",
            remedy="Compute both with one extractor and one file of weights; in a run, repeat "
            "`rarescan evaluate`.",
        )
