"""The gate for single scans: a function that says, while a batch is drawn, which scans are copies.

`copy_check` is the way in. It calibrates the search exactly as scoring does, on the same
persons, so a scan that is refused here would have been flagged there.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from rarescan.cohort.contracts import FloatArray
from rarescan.cohort.store import open_cohort
from rarescan.evaluation.copies import Matches, coarsen
from rarescan.evaluation.images import SetTask, describe_set, part_of, reference_of
from rarescan.evaluation.intervals import clopper_pearson, upper_bound_of_share
from rarescan.evaluation.privacy import ALLOWED_SHARE, Calibration, calibrate
from rarescan.evaluation.spec import EvaluateConfig
from rarescan.files import content_id


@dataclass(frozen=True, kw_only=True)
class CopyCheck:
    """Which of some volumes are copies of training persons; small, so that workers can have it."""

    prepared: Path
    cohort_id: str
    shift_mm: float
    scale: Calibration

    @property
    def id(self) -> str:
        """What the answers depend on, beside the volumes."""
        return content_id([self.cohort_id, self.shift_mm, asdict(self.scale)])

    def __call__(self, volumes: FloatArray) -> npt.NDArray[np.bool_]:
        """Return which volumes, shape (n, x, y, z) on the cohort's grid, are copies: shape (n,)."""
        reference = reference_of(self.prepared, self.cohort_id, self.shift_mm)
        small = coarsen(volumes, reference.grid.spacing_mm)
        return self.scale.flagged(reference.assay.match(small))

    def too_many(self, drawn: int, flagged: int) -> bool:
        """Return whether more copies were drawn than a gate lets pass, beyond doubt."""
        return clopper_pearson(flagged, drawn, level=0.9)[0] > ALLOWED_SHARE

    def statement(self, drawn: int, flagged: int) -> dict[str, Any]:
        """Return what may be said of a batch for which so many scans were drawn and refused."""
        blind = self.scale.blind_to() if self.scale.tells_apart else list(self.scale.power)
        return {
            "drawn": drawn,
            "replaced": flagged,
            "upper_bound": upper_bound_of_share(flagged, drawn),
            "blind_to": sorted(blind),
            "n_validation": self.scale.n_strangers,
        }


def copy_check(prepared: Path, config: EvaluateConfig) -> CopyCheck:
    """Return the check of a cohort, calibrated by its validation persons and planted copies.

    Parameters
    ----------
    prepared : Path
        Root of the prepared cohort whose training persons must not be copied.
    config : EvaluateConfig
        How far copies may be shifted, how many persons are planted, the seed: as in scoring.

    Raises
    ------
    InputError
        The cohort has no validation persons or fewer than two training persons.
    """
    cohort = open_cohort(prepared)
    task = SetTask(
        images=part_of(cohort, "train"),
        prepared=cohort.root,
        cohort_id=cohort.cohort_id,
        shift_mm=config.copy_shift_mm,
        canaries=config.canary_persons,
        seed=config.seed,
    )
    strangers = part_of(cohort, "validation")
    reference = reference_of(task.prepared, task.cohort_id, task.shift_mm)
    spacing_mm = reference.grid.spacing_mm
    small = np.concatenate([coarsen(volumes, spacing_mm) for volumes in strangers.chunks()])
    canaries = cast(dict[str, Matches], describe_set(task))
    return CopyCheck(
        prepared=task.prepared,
        cohort_id=task.cohort_id,
        shift_mm=task.shift_mm,
        scale=calibrate(reference.assay.match(small), canaries),
    )
