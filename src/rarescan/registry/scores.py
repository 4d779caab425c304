"""The scores of a candidate as metrics that can be read: none without persons, interval, floor.

`score_metrics` is the way in. A bare number (a FID of 0.0076 or of 226) says nothing without the
persons behind it, what looked at them, its interval, and what real persons reach among themselves.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from rarescan.cohort.contracts import Score
from rarescan.errors import InputError

_DECIDES = "mmd"


def score_metrics(
    scores: Iterable[Score], extractors: Mapping[str, Any], floor: Mapping[str, Any]
) -> list[tuple[str, float, int]]:
    """Return (name, value, 0) for every score, the ends of its interval and its persons.

    Parameters
    ----------
    scores : iterable of Score
        Of one candidate.
    extractors : mapping
        `primary`, the extractor whose MMD decides, and `weights_sha256`, by extractor.
    floor : mapping
        Name of a distance -> the same between real and real persons, in the primary features.

    Returns
    -------
    list of (str, float, int)
        `domain-train.mmd`, `.low`, `.high`, `.n_real`, `.n_synthetic`, `.floor` of each.

    Raises
    ------
    InputError
        A score says not how many persons it is of, who looked, or how sure it is; or the distance
        that decides has no floor beside it or no hash of the network.
    """
    metrics: list[tuple[str, float, int]] = []
    for score in scores:
        decides = (score.extractor, score.name) == (extractors["primary"], _DECIDES)
        own_floor = floor.get(score.name) if score.extractor == extractors["primary"] else None
        missing = _missing(score)
        if decides and not extractors["weights_sha256"].get(score.extractor):
            missing = missing or "the hash of the network that looked"
        if decides and own_floor is None:
            missing = missing or "the distance between real and real persons"
        if missing:
            raise InputError(
                f"The score '{score.name}' comes without {missing}; it is not recorded.",
                remedy="Run `rarescan evaluate` again with this version.",
            )
        name = f"{score.extractor}.{score.name}"
        parts = {"": score.value, ".low": score.low, ".high": score.high}
        parts |= {".n_real": score.n_real or None, ".n_synthetic": score.n_synthetic}
        parts |= {".floor": own_floor["value"] if own_floor else None}
        metrics += [(name + end, float(v), 0) for end, v in parts.items() if v is not None]
    return metrics


def _missing(score: Score) -> str:
    """Return what a reader would ask for, or nothing; what is marked as unreadable may lack it."""
    if not score.extractor:
        return "the features that it was measured in"
    if score.n_synthetic < 1 or (score.better != "neither" and score.n_real < 1):
        return "the number of persons"
    if score.sufficient and score.low is None and score.high is None:
        return "an interval"
    return ""
