"""From a PACS export to a pseudonymous BIDS cohort.

`ingest_export` is the way in: index every file, form stacks, judge them, choose one T1 a session,
convert it, and write what may leave. Every file of the export ends in exactly one of used,
dropped, quarantined, and the counts stand in the cohort's `about`. What holds identities lies in
one private folder inside the step's working folder, and is removed before the step ends.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom

from rarescan._version import VERSION
from rarescan.cohort.contracts import Condition, Scan
from rarescan.cohort.partition import PERHAPS, smallest_group
from rarescan.cohort.store import read_about, write_cohort, write_events
from rarescan.errors import InputError, RarescanError
from rarescan.files import Recipe, run_step, sha256_file
from rarescan.imaging import identity
from rarescan.imaging.bids import write_raw
from rarescan.imaging.index import Index, build_index
from rarescan.imaging.labels import read_labels
from rarescan.imaging.leaks import require_no_leak
from rarescan.imaging.persons import (
    Pair,
    fingerprint,
    persons,
    read_erased,
    register_persons,
    unions,
    with_erased,
    write_erased,
)
from rarescan.imaging.plan import CONFIRMABLE, Event, Plan, Session, event
from rarescan.imaging.reasons import ACTIONS, WORDS, count_codes
from rarescan.imaging.review import PERSONS, SCANS, read_answers, write_lists
from rarescan.imaging.sessions import convert, crashed, settle_equal_pixels
from rarescan.imaging.spec import IngestConfig
from rarescan.imaging.unpack import open_source, require_source, source_id
from rarescan.processes import run_parallel

SCHEMA = 2
_FORMS = {"confirmed_scans": SCANS, "confirmed_persons": PERSONS}
_TABLES = ("labels", "key_file", *_FORMS)
_log = logging.getLogger("rarescan")


def ingest_export(
    export: Path,
    folder: Path,
    config: IngestConfig,
    *,
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Return `folder`, filled with the cohort of an export.

    Parameters
    ----------
    export : Path
        Folder, zip or tar archive (gz, xz) with DICOM files in any order and depth.
    folder : Path
        Where the cohort goes: BIDS raw with native heads (mode 0700), tables in `rarescan/`.
    config : IngestConfig
        Labels, key, and what is accepted.
    workers : int, optional
        Number of processes; all cores by default. The result does not depend on it.
    overwrite : bool
        Replace another result.

    Raises
    ------
    InputError
        The export is empty, holds no DICOM or no accepted T1; the labels contradict themselves.
    SettingError
        The key or the labels are missing or ill-formed.
    """
    require_source(export)
    key = identity.read_key(config.key_file)
    labels = read_labels(Path(config.labels)) if config.labels else None
    scans, same = (read_answers(getattr(config, name), form) for name, form in _FORMS.items())
    plan = Plan(
        key=key, config=config, labels=labels, confirmed={stack: y for (stack,), y in scans.items()}
    )
    given = _Given(
        export=export,
        plan=plan,
        same={frozenset(pair): yes for pair, yes in same.items()},
        erased=read_erased(folder),
        workers=workers,
    )
    inputs = {"export": source_id(export), "key": identity.fingerprint(key)}
    inputs |= {
        name: sha256_file(Path(path))[:16]
        for name in _TABLES
        if (path := getattr(config, name)) and name != "key_file"
    }
    # Paths may name patients or projects; what they lead to stands under `inputs`.
    settings = {k: v for k, v in asdict(config).items() if k not in _TABLES}
    recipe = with_erased(
        Recipe(step="ingest", schema=SCHEMA, config=settings, inputs=inputs), given.erased
    )

    def build(work: Path) -> None:
        work.chmod(0o700)
        try:
            _fill(work, given)
        except RarescanError:
            shutil.rmtree(work)
            raise

    run_step(folder, recipe, build, overwrite=overwrite)
    if not read_about(folder)["scans"]:
        raise InputError(
            "No T1 scan was accepted, and some wait for a human.",
            remedy=f"Look at `rarescan review {folder.name}`, answer, and ingest again with "
            "ingest.confirmed_scans and --overwrite.",
        )
    return folder


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What an ingest is told."""

    export: Path
    plan: Plan
    same: Mapping[Pair, bool]
    """Pair of pseudonyms -> whether a human said that both are one person."""
    erased: tuple[str, ...]
    workers: int | None


def _fill(work: Path, given: _Given) -> None:
    private, plan, workers = work / ".private", given.plan, given.workers
    private.mkdir(exist_ok=True, mode=0o700)
    index = build_index(open_source(given.export, private), private, workers=workers)
    events = _file_events(index)
    if sum(row["n_files"] for row in events) == index.n_files():
        raise InputError(
            f"None of the {index.n_files()} files can be read as DICOM.",
            remedy="Name the folder that holds the DICOM files; unpack archives inside it first.",
        )
    register = register_persons(index, plan.key, plan.labels, given.same)
    register.forget(given.erased)
    sessions: list[Session] = []
    for series in persons(index, register):
        if fingerprint(series[0].person) in given.erased:
            n_files = sum(len(one.files) for one in series)
            events.append(event("", "", "ERASED", "drop", n_files))
            continue
        found, own = plan.person(series)
        sessions += found
        events += own
    items = [(work, index, session) for session in sessions]
    what = "convert scans"
    results = run_parallel(convert, items, what=what, workers=workers, on_death=crashed)
    for result in results:
        events += result["events"]
    used = settle_equal_pixels(work, [r for r in results if r["scan"]], events, register)
    if not used and not any(row["code"] in CONFIRMABLE for row in events):
        raise _no_t1(events)
    rows = {found["session"]["label_row"] for found in used}
    events += plan.labels_without_scan(rows, register)
    _write(work, used, given, register.doubts, events, index.n_files())
    conditions = [found["session"]["condition"] for found in used]
    words = {str(c[name]) for c in conditions for name in ("diagnosis", "site")}
    own_words = [plan.config.name, plan.config.licence, *words, *_versions().values()]
    texts = {text for result in results if result["scan"] for text in result["scan"]["texts"]}
    require_no_leak(work, index, plan.labels, texts=texts, own=own_words)
    shutil.rmtree(private)
    _say(events, len(used), register.doubts)


def _say(events: Iterable[Event], n_scans: int, doubts: Mapping[Pair, str]) -> None:
    """Tell what waits for a human, in numbers."""
    counts = Counter(e["code"] for e in events)
    open_scans = sum(counts[code] for code in CONFIRMABLE)
    _log.info(
        "%d scans; %d to confirm, %d pairs of persons to confirm (rarescan review); %d rows of "
        "the labels without a scan, %d scans without a label",
        *(n_scans, open_scans, len(doubts), counts["LABEL_WITHOUT_SCAN"], counts["UNLABELLED"]),
    )


def _file_events(index: Index) -> list[Event]:
    counts = sorted(index.counts().items())
    return [event("", "", code, ACTIONS[code], n) for code, n in counts]


def _no_t1(events: Iterable[Event]) -> InputError:
    codes = Counter(e["code"] for e in events if e["stack_id"] and e["action"] != "fix")
    found = ", ".join(f"{n} x {code} ({WORDS[code]})" for code, n in codes.most_common(4))
    return InputError(
        f"No T1 scan was accepted out of {sum(codes.values())} stacks: {found}.",
        remedy="Check that the export holds T1-weighted 3D scans of labelled adults; "
        "ingest.accept_review and ingest.allow_gadolinium take more.",
    )


def _scans(used: Iterable[Mapping[str, Any]], doubts: Iterable[Pair]) -> Iterator[Scan]:
    first_of = unions(doubts)
    for found in used:
        session = found["session"]
        doubtful = [f"{PERHAPS}{first_of[p]}"] if (p := session["person"]) in first_of else []
        condition = Condition(**session["condition"])
        yield Scan(
            scan_id=found["scan_id"],
            person_id=session["person"],
            session=session["session"],
            path=found["path"],
            sha256=found["sha256"],
            condition=condition,
            target=condition.diagnosis,
            site=session["site"],
            licence=session["licence"],
            flags=(*found["flags"], *doubtful),
        )


def _write(
    work: Path,
    used: Sequence[Mapping[str, Any]],
    given: _Given,
    doubts: Mapping[Pair, str],
    events: Sequence[Event],
    n_files: int,
) -> None:
    """Write the tables."""
    config = given.plan.config
    scans = list(_scans(used, [pair for pair in doubts if len(pair) == 2]))
    acquired = {found["scan_id"]: found["day"] for found in used}
    write_raw(work, scans=scans, acquired=acquired, name=config.name, licence=config.licence)
    events = sorted(events, key=_event_order)
    write_events(work, events)
    write_lists(work, events, doubts)
    write_erased(work, given.erased)
    about = {
        "files": _file_counts(events, sum(found["n_files"] for found in used), n_files),
        **count_codes(e["code"] for e in events),
        "persons": len({scan.person_id for scan in scans}),
        "persons_to_confirm": len({person for pair in doubts for person in pair}),
        "smallest_group": smallest_group(scans),
        "scans": len(scans),
        "labels_without_scan": sum(e["code"] == "LABEL_WITHOUT_SCAN" for e in events),
        "faces": True,
        "versions": _versions(),
    }
    write_cohort(work, scans=scans, grid=None, partition={}, about=about)


def _versions() -> dict[str, str]:
    return {
        "rarescan": VERSION,
        "pydicom": pydicom.__version__,
        "nibabel": nib.__version__,
        "numpy": np.__version__,
    }


def _event_order(row: Mapping[str, Any]) -> tuple[str, str, str, int]:
    return row["person_id"], row["stack_id"], row["code"], row["detail"].get("row", 0)


def _file_counts(events: Iterable[Event], n_used: int, n_found: int) -> dict[str, int]:
    counts = {"found": n_found, "used": n_used, "dropped": 0, "quarantined": 0}
    names = {"drop": "dropped", "quarantine": "quarantined"}
    for row in events:
        if row["action"] in names:
            counts[names[row["action"]]] += row["n_files"]
    return counts
