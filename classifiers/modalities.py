"""Which modalities there are: ours by name, anybody's by the module that holds it.

`find_modality` and `modality_of` are the way in. A module of your own needs one value,
`MODALITY`, and a YAML with `classify.modality: its.name`.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import replace

from rarescan.classifiers import echo_views, mammography, mri2d, ultrasound
from rarescan.classifiers.contract import Modality
from rarescan.classifiers.mri import MRI
from rarescan.classifiers.planes import PICTURES
from rarescan.cohort.contracts import Cohort
from rarescan.errors import SettingError, nearest

MODALITIES: Mapping[str, Modality] = {
    modality.name: modality
    for modality in (
        MRI,
        mri2d.MODALITY,
        ultrasound.MODALITY,
        echo_views.MODALITY,
        mammography.MODALITY,
        PICTURES,
    )
}
_OF_SCANS = {"US": "ultrasound", "ECHO": "echo_views", "MG": "mammography", "MR2D": "mri2d"}


def find_modality(name: str) -> Modality:
    """Return a modality of ours, or `MODALITY` of the module of that name.

    Raises
    ------
    SettingError
        There is neither.
    """
    if name in MODALITIES:
        return MODALITIES[name]
    if "." not in name and importlib.util.find_spec(name) is None:
        raise SettingError(f"There is no modality '{name}'.", remedy=nearest(name, [*MODALITIES]))
    try:
        found = getattr(importlib.import_module(name), "MODALITY", None)
    except ModuleNotFoundError as error:
        raise SettingError(
            f"The modality's module '{name}' cannot be imported: no module '{error.name}'.",
            remedy="Install it, or add its folder to PYTHONPATH.",
        ) from None
    if not isinstance(found, Modality):
        raise SettingError(
            f"The module '{name}' has no MODALITY.",
            remedy="Give it `MODALITY = Modality(name=..., build=..., prepare=..., augment=...)`.",
        )
    return replace(found, name=name)


def modality_of(cohort: Cohort, name: str = "") -> Modality:
    """Return the modality that is named, or the one of the cohort's scans.

    Pictures of a kind that is none of ours are `planes.PICTURES`: moved a little, never mirrored.
    """
    if name:
        return find_modality(name)
    if cohort.grid is None or cohort.grid.is_brain:
        return MRI
    kinds = {scan.modality for scan in cohort.scans}
    kind = kinds.pop() if len(kinds) == 1 else ""
    return MODALITIES[_OF_SCANS.get(kind, PICTURES.name)]
