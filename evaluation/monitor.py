"""Watch a champion: look at the scans that came since, and say what they mean for it.

`look_at` measures the persons of a cohort (`drift.drift` compares two looks), `champion_now` says
what a scoring on a grown cohort changed, `write_page` writes it down for machines and people.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup

from rarescan.cohort.contracts import Cohort, Grid
from rarescan.cohort.store import open_volumes, require_grid, tables
from rarescan.cohort.template import load_template
from rarescan.errors import InputError
from rarescan.evaluation.charts import forest_plot
from rarescan.evaluation.drift import QUALITY, Array, Look
from rarescan.evaluation.features import person_rows
from rarescan.evaluation.measures import apodised, describe, high_frequency
from rarescan.evaluation.page import in_words, render
from rarescan.evaluation.spec import MonitorConfig
from rarescan.files import write_atomic, write_json
from rarescan.processes import run_parallel

RESULT, PAGE = "monitor.json", "monitor.html"
_CHUNK = 16
_WORTH_PROCESSES = 128


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """One worker's unit of work."""

    cohort: Cohort
    grid: Grid
    rows: tuple[int, ...]


def look_at(cohort: Cohort, persons: Collection[str], *, workers: int = 1) -> Look:
    """Measure persons of a prepared cohort, the mean over each person's scans.

    Parameters
    ----------
    cohort : Cohort
        Prepared: on a brain grid, with volumes.
    persons : collection of str
        Whom of it.
    workers : int
        Processes; used where there are many scans.

    Raises
    ------
    InputError
        The cohort is not prepared, or has none of the persons.
    """
    rows = [i for i, scan in enumerate(cohort.scans) if scan.person_id in persons]
    grid = require_grid(cohort.root)
    if not grid.is_brain:
        raise InputError(
            "What is measured to see a drift are parts of a brain, and these scans are pictures.",
            remedy="Evaluate the champion again on the grown cohort: `rarescan evaluate`.",
        )
    if not rows:
        raise InputError(
            "The cohort has no person to look at.",
            remedy="Name a prepared cohort with persons that the run does not know yet.",
        )
    parts = [tuple(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
    found = run_parallel(
        _measure,
        [_Chunk(cohort=cohort, grid=grid, rows=part) for part in parts],
        what="look at scans",
        workers=workers if len(rows) > _WORTH_PROCESSES else 1,
    )
    owners = [cohort.scans[i].person_id for i in rows]
    appearance, order = person_rows(np.concatenate(found), owners)
    noted = _quality(cohort, rows)
    first = {cohort.scans[i].person_id: cohort.scans[i].condition for i in reversed(rows)}
    return Look(
        conditions=tuple(first[person] for person in order),
        appearance=appearance,
        quality=None if noted is None else person_rows(noted, owners)[0],
    )


def _measure(chunk: _Chunk) -> Array:
    volumes = np.asarray(open_volumes(chunk.cohort)[list(chunk.rows)])
    window = apodised(load_template(chunk.grid.spacing_mm).brain > 0.5)
    return np.column_stack([describe(volumes, chunk.grid), high_frequency(volumes, window)])


def _quality(cohort: Cohort, rows: Sequence[int]) -> Array | None:
    path = tables(cohort.root) / "qc.parquet"
    if not path.exists():
        return None
    columns = pq.read_table(path, columns=["scan_id", *QUALITY]).to_pydict()
    place = {scan: row for row, scan in enumerate(columns["scan_id"])}
    values = np.array([columns[name] for name in QUALITY], dtype=np.float64).T
    nothing = np.full(len(QUALITY), np.nan)
    scans = (cohort.scans[i].scan_id for i in rows)
    return np.stack([values[place[scan]] if scan in place else nothing for scan in scans])


def champion_now(
    then: Mapping[str, Any], now: Mapping[str, Any], candidate: str, primary: str
) -> dict[str, Any]:
    """Return what scoring the champion again, on the grown cohort, says beside the first time.

    Parameters
    ----------
    then, now : mapping
        `scores.json` of the evaluation that chose it and of the one on the grown cohort.
    candidate : str
        Its name in both.
    primary : str
        The extractor whose MMD^2 decides.

    Returns
    -------
    dict
        `outcome`: fails (a gate fails now) or holds; `failed`: names of these gates; `mmd` and
        `floor`, each `then` and `now`; `gates` of now.
    """
    sides = {"then": then, "now": now}
    gates = now["candidates"][candidate]["gates"]
    failed = [gate["name"] for gate in gates if gate["outcome"] == "fail"]
    return {
        "candidate": candidate,
        "outcome": "fails" if failed else "holds",
        "failed": failed,
        "mmd": {k: s["candidates"][candidate]["scores"][primary]["mmd"] for k, s in sides.items()},
        "floor": {k: (s.get("floor") or {}).get("mmd") for k, s in sides.items()},
        "gates": gates,
    }


def write_page(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `monitor.json` and `monitor.html`: one file, no script, nothing from outside.

    Parameters
    ----------
    folder : Path
    content : mapping
        What `drift` returned, `champion` (`champion_now`, or `reason` why it was not judged),
        `phantom`, `ids` (name -> id of the cohorts and the decision).
    """
    rows = [
        (in_words(row["name"], "drift_features"), row, row["p_holm"] < content["alpha"])
        for row in content["features"]
    ]
    label = "chance that a new person has more (0.5: no difference)"
    # Matplotlib has escaped the texts inside.
    plot = Markup(forest_plot(rows, "features", axis_label=label, line_at=0.5)) if rows else None
    write_json(folder / RESULT, {"schema": 1, **content})
    write_atomic(folder / PAGE, render("monitor.html", report=content, plots={"features": plot}))


def settings_that_matter(config: MonitorConfig) -> dict[str, Any]:
    """Return the settings that change what is found; not when and where it is looked."""
    return {k: v for k, v in asdict(config).items() if k not in ("cohort", "schedule")}
