"""From a PACS export to a pseudonymous BIDS cohort.

`ingest_export` is the way in: index every file, form stacks, judge them, choose one T1 a session,
convert it, and write what may leave. Every file of the export ends in exactly one of used,
dropped, quarantined, and the counts stand in the cohort's `about`. What holds identities lies in
one private folder inside the step's working folder, and is removed before the step ends.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom

from rarescan._version import VERSION
from rarescan.cohort.contracts import Condition, Scan
from rarescan.cohort.store import write_cohort, write_events
from rarescan.errors import InputError, RarescanError
from rarescan.files import Recipe, read_json, run_step, sha256_file, write_json
from rarescan.imaging import faults, identity
from rarescan.imaging.bids import scan_stem, write_image, write_raw
from rarescan.imaging.convert import PixelFaultError, read_stack
from rarescan.imaging.deidentify import sidecar
from rarescan.imaging.index import Index, build_index
from rarescan.imaging.labels import read_labels
from rarescan.imaging.parse import limit_this_process
from rarescan.imaging.persons import persons
from rarescan.imaging.plan import Candidate, Event, Plan, Session, event
from rarescan.imaging.spec import IngestConfig
from rarescan.imaging.stacks import Stack
from rarescan.imaging.unpack import open_source, require_source, source_id
from rarescan.processes import run_parallel

SCHEMA = 1
_CHILD_MEMORY_MIB = 2048


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
    inputs = {"export": source_id(export), "key": identity.fingerprint(key)}
    if config.labels:
        inputs["labels"] = sha256_file(Path(config.labels))[:16]
    # Paths may name patients or projects; what they lead to stands under `inputs`.
    settings = {k: v for k, v in asdict(config).items() if k not in ("labels", "key_file")}
    recipe = Recipe(step="ingest", schema=SCHEMA, config=settings, inputs=inputs)

    def build(work: Path) -> None:
        work.chmod(0o700)
        try:
            _fill(work, export, Plan(key=key, config=config, labels=labels), workers)
        except RarescanError:
            shutil.rmtree(work)
            raise

    return run_step(folder, recipe, build, overwrite=overwrite)


def _fill(work: Path, export: Path, plan: Plan, workers: int | None) -> None:
    private = work / ".private"
    private.mkdir(exist_ok=True, mode=0o700)
    index = build_index(open_source(export, private), private, workers=workers)
    events = _file_events(index)
    if sum(row["n_files"] for row in events) == index.n_files():
        raise InputError(
            f"None of the {index.n_files()} files can be read as DICOM.",
            remedy="Name the folder that holds the DICOM files; unpack archives inside it first.",
        )
    sessions: list[Session] = []
    for series in persons(index):
        found, own = plan.person(series)
        sessions += found
        events += own
    items = [(work, index, session) for session in sessions]
    what = "convert scans"
    results = run_parallel(_convert, items, what=what, workers=workers, on_death=_crashed)
    for result in results:
        events += result["events"]
    used = _settle_equal_pixels(work, [r for r in results if r["scan"]], events)
    if not used:
        raise _no_t1(events)
    events += plan.labels_without_scan({found["session"]["label_row"] for found in used})
    _write(work, used, plan.config, events, index.n_files())
    shutil.rmtree(private)


def _file_events(index: Index) -> list[Event]:
    counts = sorted(index.counts().items())
    return [event("", "", code, faults.FILE_CODES[code][0], n) for code, n in counts]


def _no_t1(events: Iterable[Event]) -> InputError:
    codes = Counter(e["code"] for e in events if e["stack_id"] and e["action"] != "fix")
    found = ", ".join(f"{n} x {code} ({faults.why(code)})" for code, n in codes.most_common(4))
    return InputError(
        f"No T1 scan was accepted out of {sum(codes.values())} stacks: {found}.",
        remedy="Check that the export holds T1-weighted 3D scans of labelled adults; "
        "ingest.accept_review and ingest.allow_gadolinium take more.",
    )


_Item = tuple[Path, Index, Session]
_Result = dict[str, Any]


def _convert(item: _Item) -> _Result:
    """Make the scan of one session from its best usable stack, in a child process."""
    limit_this_process(_CHILD_MEMORY_MIB, writes=True)
    work, index, session = item
    record = work / ".private" / f"{session.person}_{session.session}.json"
    if record.exists():
        stored: _Result = read_json(record)
        return stored
    events: list[Event] = []
    scan: dict[str, Any] | None = None
    for candidate in session.candidates:
        if scan is not None:
            events.append(_candidate_event(session, candidate, "RUNNER_UP"))
            continue
        try:
            scan, fixes = _convert_stack(work, index, session, candidate)
        except PixelFaultError as fault:
            events.append(_candidate_event(session, candidate, str(fault)))
        else:
            events += [_candidate_event(session, candidate, code) for code in fixes]
    result = {"scan": scan, "events": events}
    write_json(record, result)
    return result


def _candidate_event(session: Session, candidate: Candidate, code: str) -> Event:
    action = faults.PIXEL_CODES[code][0]
    return event(candidate.stack_id, session.person, code, action, candidate.n_files)


def _crashed(item: _Item) -> _Result:
    """Give the result of a session whose process died on the pixels."""
    session = item[2]
    events = [_candidate_event(session, c, "TRUNC_PIXELS") for c in session.candidates]
    return {"scan": None, "events": events}


def _convert_stack(
    work: Path, index: Index, session: Session, candidate: Candidate
) -> tuple[dict[str, Any], tuple[str, ...]]:
    found = index.read(candidate.numbers)
    stack = Stack(files=tuple(file for file, _ in found))
    volume = read_stack(stack, [path for _, path in found])
    stem = scan_stem(session.person, session.session)
    digest = write_image(
        work / f"{stem}.nii.gz",
        volume.voxels,
        stack.affine(),
        slope=volume.slope,
        intercept=volume.intercept,
    )
    about = sidecar(stack.first)
    lineage = {"Stack": candidate.stack_id, "T1Score": candidate.score, "VoxelSHA256": digest}
    write_json(work / f"{stem}.json", about | lineage)
    gadolinium = [f"gadolinium_{about['Gadolinium']}"] if about["Gadolinium"] != "unknown" else []
    scan = {
        "scan_id": f"{session.person}_ses-{session.session}",
        "path": f"{stem}.nii.gz",
        "sha256": digest,
        "flags": [*gadolinium, *(["lossy"] if "LossyImageCompression" in about else [])],
        "day": session.day,
        "n_files": candidate.n_files,
        "stack_id": candidate.stack_id,
        "session": asdict(session) | {"candidates": ()},
    }
    return scan, volume.fixes


def _settle_equal_pixels(
    work: Path, results: Sequence[_Result], events: list[Event]
) -> list[dict[str, Any]]:
    """Keep one of several scans of a person with equal voxels; none, where persons differ."""
    by_voxels: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_voxels[result["scan"]["sha256"]].append(result["scan"])
    used = []
    for equal in by_voxels.values():
        two_persons = len({scan["session"]["person"] for scan in equal}) > 1
        code = "SAME_PIXELS_TWO_PEOPLE" if two_persons else "DUP_STACK"
        kept = [] if two_persons else equal[:1]
        for scan in equal[len(kept) :]:
            person, action = scan["session"]["person"], faults.PIXEL_CODES[code][0]
            events.append(event(scan["stack_id"], person, code, action, scan["n_files"]))
            _remove_scan(work, scan)
        used += kept
    return sorted(used, key=lambda scan: str(scan["scan_id"]))


def _remove_scan(work: Path, scan: Mapping[str, Any]) -> None:
    image = work / scan["path"]
    for path in (image, image.with_name(image.name.replace(".nii.gz", ".json"))):
        path.unlink(missing_ok=True)
    for folder in list(image.relative_to(work).parents)[:3]:
        if (work / folder).is_dir() and not any((work / folder).iterdir()):
            (work / folder).rmdir()


def _scans(used: Iterable[Mapping[str, Any]]) -> Iterator[Scan]:
    for found in used:
        session = found["session"]
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
            flags=tuple(found["flags"]),
        )


def _write(
    work: Path,
    used: Sequence[Mapping[str, Any]],
    config: IngestConfig,
    events: Sequence[Event],
    n_files: int,
) -> None:
    """Write the tables."""
    scans = list(_scans(used))
    acquired = {found["scan_id"]: found["day"] for found in used}
    write_raw(work, scans=scans, acquired=acquired, name=config.name, licence=config.licence)
    write_events(work, sorted(events, key=_event_order))
    about = {
        "files": _file_counts(events, sum(found["n_files"] for found in used), n_files),
        **faults.count_codes(e["code"] for e in events),
        "persons": len({scan.person_id for scan in scans}),
        "scans": len(scans),
        "labels_without_scan": sum(e["code"] == "LABEL_WITHOUT_SCAN" for e in events),
        "faces": True,
        "versions": {
            "rarescan": VERSION,
            "pydicom": pydicom.__version__,
            "nibabel": nib.__version__,
            "numpy": np.__version__,
        },
    }
    write_cohort(work, scans=scans, grid=None, partition={}, about=about)


def _event_order(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["person_id"], row["stack_id"], row["code"]


def _file_counts(events: Iterable[Event], n_used: int, n_found: int) -> dict[str, int]:
    counts = {"found": n_found, "used": n_used, "dropped": 0, "quarantined": 0}
    names = {"drop": "dropped", "quarantine": "quarantined"}
    for row in events:
        if row["action"] in names:
            counts[names[row["action"]]] += row["n_files"]
    return counts
