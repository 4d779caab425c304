"""What can be compared: arrays, tensors, feature sets, feature files and folders of images.

`rows_of` turns any of them into one row a person and says how it did so. Images go through
`pictures`; feature files are npz (`features.save_features` writes them), parquet or csv, whose
numeric columns are features and whose column `person_id` (or `participant_id`) names persons.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rarescan.cohort.contracts import FeatureSet
from rarescan.errors import InputError
from rarescan.evaluation.features import Extractor, person_rows, require_one_extractor

Array = npt.NDArray[np.float64]
Source = npt.NDArray[np.floating] | FeatureSet | Path | str | Any
"""An array or tensor (n, d), a feature set, a feature file, or a folder of images."""

TABLES = (".npz", ".parquet", ".csv")
_PERSON_COLUMNS = ("person_id", "participant_id", "person")
_ABOUT = ("extractor", "weights_sha256")
_ROW = "one row = one person"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One side of a comparison, one row a person."""

    values: Array
    """Shape (persons, d)."""
    n_scans: int
    extractor: str = ""
    """Empty where nobody knows."""
    weights_sha256: str = ""
    kind: str = ""
    """Shape and voxel size of the images, in words; empty for features."""
    notes: tuple[str, ...] = ()
    """What a reader must know about how persons were told apart."""


def rows_of(
    source: Source, extractor: Extractor | None = None, *, name: str = "A", like: str = ""
) -> Sample:
    """Return one row a person.

    Parameters
    ----------
    source : array, tensor, FeatureSet, Path or str
        An array is taken as one row a person; scans of one person in a file or a folder are
        averaged.
    extractor : Extractor, optional
        Looks at images; needed for folders only.
    name : str
        What messages call the source.
    like : str
        `Sample.kind` of the side that this one is compared with.

    Raises
    ------
    InputError
        It is none of these, it holds nothing numeric, or images that cannot be read.
    """
    if isinstance(source, FeatureSet):
        return _of_feature_set(source)
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            return _of_folder(path, extractor, name, like)
        return _of_file(path, name)
    tensor = source.detach().cpu() if hasattr(source, "detach") else source
    values = np.atleast_1d(np.asarray(tensor))
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise InputError(
            f"'{name}' holds no real numbers but {values.dtype}.",
            remedy="Give an array or tensor of numbers, one row a person.",
        )
    return Sample(values=values.astype(np.float64), n_scans=len(values))


def require_one_kind(real: Sample, synthetic: Sample) -> str:
    """Return the extractor of both sides, or refuse to mix two; unknown ones go with any."""
    known = [s for s in (real, synthetic) if s.extractor]
    sets = {
        name: FeatureSet(
            values=np.empty((0, 0), np.float32),
            person_ids=(),
            extractor=sample.extractor,
            weights_sha256=sample.weights_sha256,
        )
        for name, sample in zip(("A", "B"), known, strict=False)
    }
    require_one_extractor(sets)
    return known[0].extractor if known else ""


def _of_feature_set(features: FeatureSet) -> Sample:
    return Sample(
        values=features.values.astype(np.float64),
        n_scans=len(features.values),
        extractor=features.extractor,
        weights_sha256=features.weights_sha256,
    )


def _of_folder(folder: Path, extractor: Extractor | None, name: str, like: str) -> Sample:
    from rarescan.evaluation.pictures import read_images

    if extractor is None:
        raise InputError(
            f"'{name}' is a folder of images, and nothing says how to look at them.",
            remedy="Pass `extractor=` (see `rarescan.evaluation.compare`).",
        )
    found, persons, notes = [], [], set()
    for image in read_images(folder, name=name, like=like):
        found.append(np.asarray(extractor.embed(image.values), dtype=np.float64))
        persons.append(image.person)
        notes.add(image.person_rule)
        like = image.kind
    return replace(
        _grouped(np.stack(found), persons),
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
        kind=like,
        notes=tuple(sorted(notes)),
    )


def _of_file(path: Path, name: str) -> Sample:
    if path.suffix not in TABLES:
        raise InputError(
            f"'{name}' is neither a folder nor a feature file ({', '.join(TABLES)}).",
            remedy="Name a folder of images, or a file that is there and ends in one of these.",
        )
    try:
        return _of_npz(path) if path.suffix == ".npz" else _of_table(path, name)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"The features of '{name}' cannot be read from the {path.suffix} file.",
            remedy="An npz file needs an array `values` (persons, features); a table one row a "
            "person, numeric columns and, if a person has several rows, a column person_id.",
        ) from error


def _of_npz(path: Path) -> Sample:
    with np.load(path, allow_pickle=False) as stored:
        values = stored["values"]
        persons = stored["person_ids"] if "person_ids" in stored else np.arange(len(values))
        about = [str(stored[key]) if key in stored else "" for key in _ABOUT]
    note = () if "person_ids" in stored else (_ROW,)
    sample = _grouped(values, [str(p) for p in persons])
    return replace(sample, notes=note, extractor=about[0], weights_sha256=about[1])


def _of_table(path: Path, name: str) -> Sample:
    table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    about = []
    for key in _ABOUT:
        kinds = sorted(set(table.pop(key).astype(str))) if key in table else [""]
        if len(kinds) > 1:
            raise InputError(
                f"'{name}' holds features of {len(kinds)} extractors or weights.",
                remedy="Keep the rows of one extractor.",
            )
        about.append(kinds[0])
    column = next((c for c in _PERSON_COLUMNS if c in table), None)
    persons = table.pop(column).astype(str).tolist() if column else None
    words = table.select_dtypes(exclude="number").columns
    if len(words) or not len(table.columns):
        raise InputError(
            f"'{name}' has {len(words)} columns that hold no numbers, and "
            f"{len(table.columns) - len(words)} that do.",
            remedy="Leave only features, and persons as `person_id`.",
        )
    values = table.to_numpy(dtype=np.float64)
    sample = _grouped(values, persons or [str(i) for i in range(len(values))])
    note = () if persons else (_ROW,)
    return replace(sample, notes=note, extractor=about[0], weights_sha256=about[1])


def _grouped(values: npt.NDArray[np.floating], persons: Sequence[str]) -> Sample:
    rows, _ = person_rows(values, persons)
    return Sample(values=rows, n_scans=len(values))
