"""What is written of folds: the table of predictions, and the page of facts beside it.

`write_predictions` and `about_cohort` are the way in. Counts are of persons, items and scans, in
this order of worth; a figure without its persons cannot be read.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import balanced_accuracy_score

from rarescan.classifiers.contract import Modality, group_means
from rarescan.classifiers.predict import spread
from rarescan.classifiers.spec import ClassifyConfig
from rarescan.classifiers.splits import Fold, LabelTable, too_few
from rarescan.cohort.contracts import FloatArray
from rarescan.files import atomic_path

NETWORK = "network"
_PARTS = ("train", "validation", "test")
_ITEM_UNITS = {"frame": "clip", "volume": "session"}
_SCHEMA = pa.schema(
    [
        ("scan_id", pa.string()),
        ("item_id", pa.string()),
        ("person_id", pa.string()),
        ("source", pa.string()),
        ("truth", pa.int16()),
        ("model", pa.string()),
        ("repeat", pa.int16()),
        ("fold", pa.int16()),
        ("probabilities", pa.list_(pa.float32())),
        ("abstained", pa.bool_()),
        ("uncertainty", pa.float32()),
    ]
)


def about_cohort(table: LabelTable, modality: Modality, config: ClassifyConfig) -> dict[str, Any]:
    """Return what is known before anything is fitted, plain values."""
    unit = modality.unit or table.scans[0].unit
    return {
        "modality": modality.name,
        "classes": list(table.labels.names),
        "ordinal": table.labels.scheme == "ordinal",
        "unit": unit,
        "item_unit": _ITEM_UNITS.get(unit, unit),
        "insufficient": too_few(table, config),
        "leaky": config.leaky,
        "group": "scan" if config.leaky else config.group,
        "top": modality.top,
        "persons": table.counts(table.person_ids),
        "items": table.counts(table.items),
        "scans": table.counts([scan.scan_id for scan in table.scans]),
        "class_by_source": _class_by_source(table, range(len(table.scans))),
        "licences": dict(sorted(Counter(scan.licence for scan in table.scans).items())),
        "settings": asdict(config),
    }


def about_fits(
    table: LabelTable, folds: Sequence[Sequence[Fold]], results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return what the fits say of themselves, lists in the order of repeats and folds."""
    networks = sorted(
        (r for r in results if r["kind"] == NETWORK), key=lambda r: (r["repeat"], r["fold"])
    )
    return {
        "temperature": [fit["temperature"] for fit in networks],
        "ece_before": [fit["ece_before"] for fit in networks],
        "ece_after": [fit["ece_after"] for fit in networks],
        "curves": [{k: fit[k] for k in ("repeat", "fold", "curve")} for fit in networks],
        "folds": [
            {
                "repeat": repeat,
                "fold": number,
                "persons": {part: _persons(table, getattr(fold, part)) for part in _PARTS},
                "class_by_source": _class_by_source(table, fold.test),
            }
            for repeat, drawn in enumerate(folds)
            for number, fold in enumerate(drawn)
        ],
    }


def aggregations(table: LabelTable, results: Sequence[dict[str, Any]], top: int) -> dict[str, Any]:
    """Return the network's balanced accuracy over items by two ways to average scans.

    Returns
    -------
    dict
        `mean`: of all scans of an item, what every figure stands on; `top`: of the `k` scans
        that are surest of each class, the second report (None where the modality has no k).
        Means over the repeats.
    """
    fits = [r for r in results if r["kind"] == NETWORK]
    repeats = sorted({fit["repeat"] for fit in fits})
    found = {}
    for name, most in (("mean", 0), ("top", top)):
        values = [_of_items(table, [f for f in fits if f["repeat"] == r], most) for r in repeats]
        found[name] = float(np.mean(values)) if most or name == "mean" else None
    return {**found, "k": top, "figure": "balanced accuracy of items"}


def _of_items(table: LabelTable, fits: Sequence[dict[str, Any]], top: int) -> float:
    positions = [p for fit in fits for p in fit["positions"]]
    shares = [row for fit in fits for row in fit["predictions"][NETWORK]["probabilities"]]
    keys = [(table.items[p], int(table.truth[p])) for p in positions]
    groups, means = group_means(keys, np.array(shares, dtype=np.float32), top=top)
    truth = [label for _, label in groups]
    return float(balanced_accuracy_score(truth, means.argmax(axis=1)))


def _persons(table: LabelTable, positions: Any) -> int:
    return len({table.scans[p].person_id for p in positions})


def _class_by_source(table: LabelTable, positions: Any) -> dict[str, dict[str, int]]:
    """Return source -> class -> persons, where a source has any."""
    shown = {
        (table.scans[p].site or "", table.truth[p], table.scans[p].person_id) for p in positions
    }
    counts: dict[str, dict[str, int]] = {}
    for source, place, _ in sorted(shown):
        of_source = counts.setdefault(source, {})
        name = table.labels.names[place]
        of_source[name] = of_source.get(name, 0) + 1
    return counts


def write_predictions(
    path: Path, table: LabelTable, config: ClassifyConfig, results: Sequence[dict[str, Any]]
) -> None:
    """Write a row a scan, model and repeat; in the order of repeats, models, scans.

    Parameters
    ----------
    path : Path
    table : LabelTable
    config : ClassifyConfig
        `uncertainty` and `abstain_above`.
    results : sequence of dict
        What the units returned: repeat, fold, positions in the table, and for each model
        probabilities and uncertainty.
    """
    said = sorted((s for result in results for s in _said(result)), key=lambda s: s.place)
    doubt_of = _over_repeats(said, len(table.scans)) if config.uncertainty == "repeats" else None
    if doubt_of is not None:
        said = [
            replace(s, doubt=float(doubt_of[s.position])) if s.model == NETWORK else s for s in said
        ]
    rows = [_row(table, s, config) for s in said]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), temporary, compression="zstd")


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What one model of one fold says of one scan."""

    model: str
    repeat: int
    fold: int
    position: int
    shares: list[float]
    doubt: float | None

    @property
    def place(self) -> tuple[int, str, int]:
        """Where its row stands in the table."""
        return self.repeat, self.model, self.position


def _said(result: dict[str, Any]) -> Iterator[_Said]:
    for model, said in result["predictions"].items():
        positions, shares = result["positions"], said["probabilities"]
        doubts = said["uncertainty"] or [None] * len(positions)
        for position, values, doubt in zip(positions, shares, doubts, strict=True):
            yield _Said(
                model=model,
                repeat=result["repeat"],
                fold=result["fold"],
                position=position,
                shares=values,
                doubt=doubt,
            )


def _over_repeats(said: Sequence[_Said], n_scans: int) -> FloatArray | None:
    """Return how far the repeats' networks differ about each scan, where there are several."""
    draws = np.array([s.shares for s in said if s.model == NETWORK], dtype=np.float32)
    repeats = draws.reshape(-1, n_scans, draws.shape[-1]) if len(draws) else draws
    return spread(repeats) if len(repeats) > 1 else None


def _row(table: LabelTable, said: _Said, config: ClassifyConfig) -> dict[str, Any]:
    scan = table.scans[said.position]
    return {
        "scan_id": scan.scan_id,
        "item_id": table.items[said.position],
        "person_id": scan.person_id,
        "source": scan.site,
        "truth": int(table.truth[said.position]),
        "model": said.model,
        "repeat": said.repeat,
        "fold": said.fold,
        "probabilities": said.shares,
        "abstained": said.doubt is not None and said.doubt > config.abstain_above,
        "uncertainty": said.doubt,
    }
