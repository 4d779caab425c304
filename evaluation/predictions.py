"""The table of `rarescan classify` as arrays that all have one order: repeats x scans.

`Predictions.read` is the way in; `levels` averages scans to items (a clip, a film) and items to
persons. Every model must have judged the same scans in every repeat, and no person may stand in
two folds of one repeat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rarescan.errors import InputError
from rarescan.evaluation.scored import Array, Scored, Whole

NETWORK = "network"
_ORDER = [(name, "ascending") for name in ("model", "repeat", "scan_id")]
Names = npt.NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What every model said of every scan."""

    scan: Names
    item: Names
    """Person and item together, because sessions of two persons may have one name."""
    person: Names
    source: Names
    truth: Whole
    fold: Whole
    """Shape (repeats, scans), as all rows of the network say."""
    probabilities: Mapping[str, Array]
    """Model -> shape (repeats, scans, classes)."""
    uncertainty: Array
    """Of the network, shape (repeats, scans); 1 - the largest probability where none was given."""
    abstained: npt.NDArray[np.bool_]
    """Of the network, shape (repeats, scans)."""

    @classmethod
    def read(cls, table: pa.Table, classes: Sequence[str], *, leaky: bool = False) -> "Predictions":
        """Check a table and return it as arrays.

        Raises
        ------
        InputError
            The network is missing, a probability is missing, models were judged on different
            scans, or (unless `leaky`) a person stands in two folds of one repeat.
        """
        table = table.sort_by(_ORDER)
        if not pc.all(pc.equal(pc.list_value_length(table["probabilities"]), len(classes))).as_py():
            raise _refused(f"do not have a probability for each of {len(classes)} classes")
        by_model = {name: _of_model(table, name) for name in pc.unique(table["model"]).to_pylist()}
        if NETWORK not in by_model:
            raise _refused("hold no rows of the model 'network'")
        network = by_model[NETWORK]
        repeats = len(set(network["repeat"].tolist()))
        for name, columns in by_model.items():
            _require_same(name, columns, network)
        n = len(network["scan_id"]) // repeats
        split = {name: values.reshape(repeats, n, -1) for name, values in network.items()}
        first = {name: values[0, :, 0] for name, values in split.items()}
        shape = (repeats, n, len(classes))
        found = cls(
            scan=first["scan_id"],
            item=np.char.add(np.char.add(first["person_id"], " "), first["item_id"]),
            person=first["person_id"],
            source=first["source"],
            truth=first["truth"].astype(np.int64),
            fold=split["fold"][:, :, 0].astype(np.int64),
            probabilities={m: c["probabilities"].reshape(shape) for m, c in by_model.items()},
            uncertainty=_filled(split["uncertainty"][:, :, 0], network["probabilities"]),
            abstained=split["abstained"][:, :, 0].astype(bool),
        )
        if not leaky:
            found.require_apart()
        return found

    def require_apart(self) -> None:
        """Raise where a person stands in two folds of one repeat, and so trained and tested."""
        _, numbers = np.unique(self.person, return_inverse=True)
        for folds in self.fold:
            if len(set(zip(numbers.tolist(), folds.tolist(), strict=True))) > numbers.max() + 1:
                raise _refused("have a person in two folds, who so was trained on and tested")

    @property
    def models(self) -> list[str]:
        """The network, then the baselines by name."""
        return [NETWORK, *sorted(self.probabilities.keys() - {NETWORK})]

    def levels(self, model: str) -> dict[str, Scored]:
        """Return one model's scans, items and persons; a person of two classes is left out.

        Raises
        ------
        InputError
            An item has two labels, or a row is no probability.
        """
        scans = Scored.of(
            self.scan.tolist(),
            self.truth,
            self.probabilities[model],
            persons=self.person.tolist(),
        )
        items = _averaged(scans, self.item, scans.person)
        if items is None:
            raise _refused("have an item with two labels")
        kept = one_truth(items.person, items.truth)
        persons = _averaged(items.among(kept), items.person[kept], None)
        return {"scan": scans, "item": items} | ({} if persons is None else {"person": persons})

    def sources(self, classes: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
        """Return class -> source -> persons and items."""
        return {
            name: {
                source: {"persons": _different(self.person[at]), "items": _different(self.item[at])}
                for source in sorted(set(self.source.tolist()))
                if (at := (self.truth == k) & (self.source == source)).any()
            }
            for k, name in enumerate(classes)
        }

    def folds(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Return persons of each class and source in each fold of the first repeat."""
        first = self.fold[0]
        return [
            {
                "fold": int(fold),
                "classes": {
                    name: _different(self.person[(first == fold) & (self.truth == k)])
                    for k, name in enumerate(classes)
                },
                "sources": {
                    source: _different(self.person[(first == fold) & (self.source == source)])
                    for source in sorted(set(self.source[first == fold].tolist()))
                },
            }
            for fold in sorted(set(first.tolist()))
        ]

    def of_items(self, values: Array) -> Array:
        """Return the mean over each item's scans, in the order of the items: (repeats, items)."""
        _, group = np.unique(self.item, return_inverse=True)
        sums = np.stack([np.bincount(group, row) for row in values.astype(np.float64)])
        return sums / np.bincount(group)


def _different(names: Names) -> int:
    return len(set(names.tolist()))


def one_truth(groups: Names | Whole, truth: Whole) -> npt.NDArray[np.bool_]:
    """Return which rows belong to a group whose rows all have one truth."""
    _, group = np.unique(groups, return_inverse=True)
    low, high = np.full(group.max() + 1, truth.max()), np.zeros(group.max() + 1, np.int64)
    np.minimum.at(low, group, truth)
    np.maximum.at(high, group, truth)
    alike: npt.NDArray[np.bool_] = (low == high)[group]
    return alike


def _averaged(units: Scored, groups: Names | Whole, person: Whole | None) -> Scored | None:
    """Return the mean over each group; None where a group has two truths or none is left."""
    if not len(groups) or not one_truth(groups, units.truth).all():
        return None
    names, first, group = np.unique(groups, return_index=True, return_inverse=True)
    count = np.bincount(group)
    means = np.zeros((len(units.probabilities), len(names), units.n_classes))
    for mean, values in zip(means, units.probabilities, strict=True):
        np.add.at(mean, group, values)
    return Scored(
        ids=tuple(map(str, names.tolist())),
        truth=units.truth[first],
        probabilities=means / count[:, None],
        person=np.arange(len(names)) if person is None else person[first],
    )


def _of_model(table: pa.Table, name: str) -> dict[str, npt.NDArray[Any]]:
    rows = table.filter(pc.equal(table["model"], name)).combine_chunks()
    columns = {
        key: np.asarray(rows[key].to_pylist())
        for key in ("scan_id", "item_id", "person_id", "repeat", "fold", "truth", "abstained")
    }
    columns["source"] = np.asarray([source or "" for source in rows["source"].to_pylist()])
    columns["uncertainty"] = rows["uncertainty"].to_pandas().to_numpy(np.float64)
    flat = np.asarray(rows["probabilities"].combine_chunks().flatten().to_pylist())
    return columns | {"probabilities": flat.reshape(len(rows), -1)}


def _require_same(
    name: str, found: Mapping[str, npt.NDArray[Any]], wanted: Mapping[str, npt.NDArray[Any]]
) -> None:
    n_repeats = len(set(wanted["repeat"].tolist()))
    apart = len(wanted["scan_id"]) % n_repeats or any(
        len(found[key]) != len(wanted[key]) or (found[key] != wanted[key]).any()
        for key in ("scan_id", "repeat", "truth", "person_id", "item_id")
    )
    columns = wanted["scan_id"].reshape(n_repeats, -1) if not apart else np.empty((1, 0))
    if apart or (columns != columns[0]).any():
        raise _refused(f"of '{name}' are of other scans than the network's")


def _filled(uncertainty: Array, probabilities: Array) -> Array:
    doubt = 1 - probabilities.max(axis=1).reshape(uncertainty.shape)
    return np.where(np.isnan(uncertainty), doubt, uncertainty)


def _refused(why: str) -> InputError:
    return InputError(
        f"The classifier's predictions {why}.", remedy="Run `rarescan classify` again."
    )
