"""What follows from the rows: a printed line, the claims that are checked, each family's place."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from studies import Study

from rarescan.evaluation.features import PRIMARY, read_features
from rarescan.evaluation.metrics import frozen_bandwidth
from rarescan.evaluation.relative import Side, compare_sides
from rarescan.files import require_recipe

Table = Mapping[str, Mapping[str, Any]]

BASELINES = ("pca-gaussian", "haar-gaussian", "transfer")
OURS = ("diffusion", "vae", "gan")
TUTORIAL = "tutorial-ddpm-1000"
LEVEL = 0.05
_GATES = {"spread": "spread", "high_frequency": "detail", "copies": "copies"}


def line(name: str, row: Mapping[str, Any], floor: Mapping[str, Any] | None) -> str:
    """Return one printed line: cost, distance with interval, distance above the floor, gates."""
    if "not_measured" in row:
        return f"{name:19s} not measured: {row['not_measured']}"
    mmd = {key: 1000 * value for key, value in row["mmd"].items() if value is not None}
    interval = f"({mmd.get('low', np.nan):.1f} to {mmd.get('high', np.nan):.1f})"
    above = f"{mmd['value'] - 1000 * floor['mmd']['value']:8.1f}" if floor else f"{'':8s}"
    gates = " ".join(f"{said} {row['gates'].get(gate, '-')}" for gate, said in _GATES.items())
    shipped = ", its network not kept" if row.get("network_kept") is False else ""
    agreed = "" if row["agreement"] is None else f" as asked {row['agreement']:.2f}"
    return (
        f"{name:19s} {row['cpu_seconds']:6.1f} s {row['steps']:5d} steps "
        f"{row['seconds_each']:8.3f} s each  MMD {mmd['value']:7.1f} {interval:20s} above {above}  "
        f"{gates}{agreed} (n = {row['n_synthetic']}{shipped})"
    )


def claims(study: Study, table: Table, budget_s: float) -> list[str]:
    """Return what was asked for, and whether it holds, for the rows that were measured."""
    measured = {name: row for name, row in table.items() if "mmd" in row}
    said = [
        f"{name} took {row['cpu_seconds']:.0f} s of training: over the budget"
        for name, row in measured.items()
        if row["cpu_seconds"] > 1.1 * budget_s
    ]
    floor = measured["real"]["mmd"]["value"] if "real" in measured else 0.0
    above = {name: row["mmd"]["value"] - floor for name, row in measured.items()}
    if "diffusion" not in measured:
        return said
    ours = above["diffusion"]
    if TUTORIAL in measured:
        theirs = above[TUTORIAL]
        said.append(f"{_holds(ours <= theirs / 2)}: diffusion above the floor {1000 * ours:.1f}, "
                    f"the tutorial's DDPM {1000 * theirs:.1f}; asked half at most")  # fmt: skip
        faster = measured[TUTORIAL]["seconds_each"] / measured["diffusion"]["seconds_each"]
        said.append(f"{_holds(faster >= 30)}: drawn {faster:.0f} x faster; asked 30 x")
    known = {name: above[name] for name in BASELINES if name in above}
    if known:
        best = min(known, key=lambda name: known[name])
        p = compare_sides(_side(study, table, "diffusion"), _side(study, table, best)).p_worse
        said.append(
            f"{_holds(p >= LEVEL)}: diffusion {1000 * ours:.1f}, the best baseline ({best}) "
            f"{1000 * known[best]:.1f}; asked not worse, p of that {p:.2f}"
        )
    for name in OURS:
        gates = measured[name]["gates"] if name in measured else {}
        failed = [gate for gate in ("spread", "high_frequency") if gates.get(gate) == "fail"]
        if gates:
            said.append(f"{_holds(not failed)}: {name}, gates that fail: {failed or 'none'}")
    return said


def _holds(true: bool) -> str:
    return "holds" if true else "DOES NOT HOLD"


def places(study: Study, table: Table) -> dict[str, Any]:
    """Return each family's place against PCA + Gaussian, by a paired test at 5 %.

    Returns
    -------
    dict
        `about` and, below `families`, family -> `difference` of squared MMD (family less
        Gaussian, negative is nearer to real persons), `se`, `p` (two-sided), `place`: better, no
        better or worse, `network_kept`: false where the family shipped the Gaussian itself.
    """
    cohort = study.cohort()
    train = [cohort.scans[i].condition.diagnosis for i in cohort.indices("train")]
    found: dict[str, Any] = {
        "about": {
            "population": "phantom, easy",
            "spacing_mm": cohort.grid.spacing_mm if cohort.grid else None,
            "patients": train.count(study.question.positive),
            "controls": train.count(study.question.negative),
            "held_out": len(cohort.indices("validation")),
            "prepared": require_recipe(study.prepared).id,
            "against": "pca-gaussian",
        },
        "families": {},
    }
    measured = [n for n in (*OURS, "transfer") if "mmd" in table.get(n, {})]
    if "mmd" not in table.get("pca-gaussian", {}):
        return found
    against = _side(study, table, "pca-gaussian")
    for name in measured:
        test = compare_sides(_side(study, table, name), against)
        p = min(1.0, 2 * min(test.p_worse, test.p_better))
        place = "no better" if p >= LEVEL else "worse" if test.difference > 0 else "better"
        found["families"][name] = {
            "difference": test.difference,
            "se": test.se,
            "p": p,
            "place": place,
            "network_kept": table[name].get("network_kept"),
        }
    return found


def _side(study: Study, table: Table, name: str) -> Side:
    features = read_features(study.root / table[name]["scores"])[PRIMARY]
    real = features["validation"].values.astype(np.float64)
    return Side.of(real, features[name].values, frozen_bandwidth(real))


def too_few(table: Table) -> str:
    """Return the verdict on a training set of this size.

    Persons are too few unless a generator that keeps nobody's anatomy passes the gates of spread,
    detail and copies, and is no farther from held-out persons than training persons are. A gate
    that is `insufficient` says that the persons do not suffice to know.
    """
    faults = {name: _faults(row) for name, row in table.items() if name != "transfer"}
    able = sorted(name for name, found in faults.items() if not found)
    if able:
        return f"enough for {', '.join(able)}"
    if any("not_measured" in row for row in table.values()):
        return "not decided: " + "; ".join(
            f"{n}: {', '.join(found)}" for n, found in faults.items()
        )
    return "too few: " + "; ".join(f"{name}: {', '.join(found)}" for name, found in faults.items())


def _faults(row: Mapping[str, Any]) -> list[str]:
    if "not_measured" in row:
        return [str(row["not_measured"])]
    found = [f"{g} {row['gates'][g]}" for g in _GATES if row["gates"].get(g) != "pass"]
    if row["mmd"]["low"] > row["floor_train"]["high"]:
        found.append("farther from held-out persons than training persons are")
    return found
