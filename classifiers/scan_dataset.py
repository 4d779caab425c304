"""Real persons and synthetic patients in one data set, for a classifier of your own.

`augmented` is the way in, also as `from rarescan.classifiers import augmented`. What it returns is
a torch data set; `as_monai` gives the same scans as a MONAI data list, whose first transform is
`read_row`. Held-out persons and synthetic scans never stand in one data set.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from rarescan.classifiers.arm_scans import require_fitting
from rarescan.classifiers.examples import Examples, labelled
from rarescan.cohort.contracts import Cohort, FloatArray, Part, Question, Scan
from rarescan.cohort.store import VOLUMES, open_cohort, tables
from rarescan.errors import InputError, SettingError
from rarescan.seeds import derive, generator

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a data set: a scan, where its voxels lie, and what it is called here."""

    scan: Scan
    file: str
    """`volumes.npy` of its cohort."""
    row: int
    affine: tuple[tuple[float, ...], ...]
    label: int | None
    """1 positive, 0 negative; None where the reader must not know."""


class ScanDataset(Dataset[dict[str, Any]]):
    """Labelled scans, read from memory-mapped files when they are asked for.

    An item is a dictionary: `image` float32 tensor, shape (1, x, y, z), values 0 to 1; `label` 1
    (positive diagnosis) or 0; `person_id`; `scan_id`; `origin` real, phantom or synthetic. Workers
    of a `DataLoader` are safe: only paths are pickled.
    """

    def __init__(
        self, entries: Sequence[Entry], *, augment: Augment | None = None, seed: int = 0
    ) -> None:
        self.entries = tuple(entries)
        self._augment, self._seed = augment, seed

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry = self.entries[index]
        item = {"image": self.image(index), **_known(entry)}
        return item if entry.label is None else {**item, "label": entry.label}

    def image(self, index: int) -> torch.Tensor:
        """Return one image, float32, shape (1, x, y, z); the same at every call."""
        entry = self.entries[index]
        image = torch.from_numpy(np.array(_volumes(entry.file)[entry.row], np.float32))[None]
        if self._augment is None:
            return image
        random = torch.Generator("cpu").manual_seed(derive(self._seed, "view", index))
        return self._augment(image, random)

    def images(self) -> FloatArray:
        """Return all images in memory, float32, shape (n, x, y, z)."""
        return np.stack([self.image(i)[0].numpy() for i in range(len(self))])

    @property
    def labels(self) -> list[int]:
        """1 or 0 of every scan; nothing where they are hidden."""
        return [entry.label for entry in self.entries if entry.label is not None]

    @property
    def is_augmented(self) -> bool:
        """Tell whether images differ from what is stored."""
        return self._augment is not None

    def as_monai(self) -> list[dict[str, Any]]:
        """Return a MONAI data list of plain values, which MONAI's caching data sets take too.

        `monai.data.Dataset(found.as_monai(), transform=Compose([read_row, ...]))`.
        """
        return [
            {
                "image": entry.file,
                "row": entry.row,
                "affine": [list(line) for line in entry.affine],
                **_known(entry),
                **({} if entry.label is None else {"label": entry.label}),
            }
            for entry in self.entries
        ]


def read_row(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return a MONAI item with its image: a `MetaTensor`, shape (1, x, y, z), affine to RAS mm."""
    from monai.data import MetaTensor

    kept = {key: value for key, value in item.items() if key not in ("row", "affine")}
    image = torch.from_numpy(np.array(_volumes(item["image"])[item["row"]], np.float32))
    affine = torch.tensor(item["affine"], dtype=torch.float64)
    return {**kept, "image": MetaTensor(image[None], affine=affine)}


def augmented(
    cohort: Cohort | Path,
    batch: Cohort | Path | None,
    ratio: float,
    *,
    part: Part = "train",
    question: Question | None = None,
    seed: int = 0,
) -> ScanDataset:
    """Return the real persons of one part, and synthetic patients beside the training persons.

    Parameters
    ----------
    cohort : Cohort or Path
        Prepared, with a partition.
    batch : Cohort or Path, optional
        Synthetic cohort whose model was trained on this cohort's training part.
    ratio : float
        Synthetic patients for each real patient, 0 or more; whole persons, chosen by the seed.
    part : {"train", "validation", "test"}
        Whose real scans. Synthetic scans go beside training persons only.
    question : Question, optional
        The positive and the negative diagnosis; bvFTD against control where it is not given.
    seed : int
        Which synthetic patients; a larger ratio keeps those of a smaller one.

    Raises
    ------
    InputError
        A diagnosis is missing, the batch does not fit (see `arm_scans.require_fitting`) or holds
        fewer patients than are asked for.
    GridMismatchError
        Cohort and batch lie on different grids.
    SettingError
        The ratio is negative, or synthetic scans are asked for beside held-out persons.
    """
    question = question or Question()
    real_cohort = cohort if isinstance(cohort, Cohort) else open_cohort(cohort)
    _require_possible(ratio, part, batch)
    real = labelled(real_cohort, question, part)
    _require_both(real_cohort, real, question, part)
    if batch is None or not ratio:
        return dataset_of(real, [real_cohort])
    root = batch.root if isinstance(batch, Cohort) else batch
    synthetic_cohort = require_fitting(real_cohort, root, question)
    wanted = round(ratio * len(real.persons(1)))
    added = _patients(labelled(synthetic_cohort, question), wanted, seed)
    return dataset_of(real.joined(added), [real_cohort, synthetic_cohort])


def dataset_of(
    examples: Examples,
    cohorts: Sequence[Cohort],
    positions: Sequence[int] | None = None,
    *,
    augment: Augment | None = None,
    seed: int = 0,
    hide_labels: bool = False,
) -> ScanDataset:
    """Return labelled scans as a data set, some of them more than once where positions repeat."""
    by_file = {(tables(c.root) / VOLUMES).resolve(): c for c in cohorts}
    files = [Path(getattr(source, "filename", "")).resolve() for source in examples.sources]
    entries = []
    for position in range(len(examples)) if positions is None else positions:
        source, row = examples.rows[position]
        home = by_file[files[source]]
        entries.append(
            Entry(
                scan=home.scans[row],
                file=str(files[source]),
                row=row,
                affine=home.grid.affine if home.grid else (),
                label=None if hide_labels else examples.labels[position],
            )
        )
    return ScanDataset(entries, augment=augment, seed=seed)


def _known(entry: Entry) -> dict[str, Any]:
    scan = entry.scan
    return {"person_id": scan.person_id, "scan_id": scan.scan_id, "origin": scan.origin}


@lru_cache(maxsize=8)
def _volumes(file: str) -> FloatArray:
    volumes: FloatArray = np.load(file, mmap_mode="r")
    return volumes


def _require_possible(ratio: float, part: Part, batch: object) -> None:
    if ratio < 0 or (ratio and batch is None):
        raise SettingError(
            f"A ratio of {ratio:g} cannot be had{' without a batch' if ratio > 0 else ''}.",
            remedy="Give a ratio of 0 or more, and a batch where it is not 0.",
        )
    if ratio and part != "train":
        raise SettingError(
            f"Synthetic scans were asked for beside {part} persons, who must stay as they are.",
            remedy="Use ratio=0 for validation and test persons.",
        )


def _require_both(cohort: Cohort, real: Examples, question: Question, part: Part) -> None:
    for label, diagnosis in ((1, question.positive), (0, question.negative)):
        if not real.persons(label):
            raise InputError(
                f"No {part} person has the diagnosis '{diagnosis}' "
                f"(the cohort has: {', '.join(cohort.diagnoses())}).",
                remedy="Name two diagnoses of this cohort: question=Question(positive=..., "
                "negative=...).",
            )


def _patients(synthetic: Examples, wanted: int, seed: int) -> Examples:
    persons = synthetic.persons(1)
    if wanted > len(persons):
        raise InputError(
            f"The batch holds {len(persons)} patients, and {wanted} are asked for.",
            remedy="Generate more (`rarescan generate --n`), or lower the ratio.",
        )
    chosen = generator(seed, "augmented").permutation(len(persons))[:wanted]
    return synthetic.take([p for i in sorted(chosen) for p in persons[i]])
