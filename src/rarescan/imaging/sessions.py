"""From a planned session to its scan: what runs in child processes, and equal pixels afterwards.

`convert` makes one scan; `settle_equal_pixels` looks at all of them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rarescan.files import read_json, write_json
from rarescan.imaging.bids import scan_stem, write_image
from rarescan.imaging.convert import PixelFaultError, read_stack
from rarescan.imaging.deidentify import sidecar
from rarescan.imaging.index import Index
from rarescan.imaging.leaks import texts_of
from rarescan.imaging.parse import limit_this_process
from rarescan.imaging.persons import Register
from rarescan.imaging.plan import Candidate, Event, Session, event
from rarescan.imaging.reasons import ACTIONS
from rarescan.imaging.stacks import Stack

_CHILD_MEMORY_MIB = 2048

Item = tuple[Path, Index, Session]
Result = dict[str, Any]


def convert(item: Item) -> Result:
    """Make the scan of one session from its best usable stack, in a child process."""
    limit_this_process(_CHILD_MEMORY_MIB, writes=True)
    work, index, session = item
    record = work / ".private" / f"{session.person}_{session.session}.json"
    if record.exists():
        stored: Result = read_json(record)
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
    action = ACTIONS[code]
    return event(candidate.stack_id, session.person, code, action, candidate.n_files)


def crashed(item: Item) -> Result:
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
    about = sidecar(stack.first, candidate.gadolinium)
    lineage = {
        "Stack": candidate.stack_id,
        "T1Score": sum(candidate.terms.values()),
        "T1Terms": candidate.terms,
        "VoxelSHA256": digest,
    }
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
        "texts": sorted(texts_of(found[0][1].read_bytes())),
    }
    return scan, volume.fixes


def settle_equal_pixels(
    work: Path, results: Sequence[Result], events: list[Event], register: Register
) -> list[dict[str, Any]]:
    """Keep one of several scans of a person with equal voxels; none, where persons differ."""
    by_voxels: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_voxels[result["scan"]["sha256"]].append(result["scan"])
    used = []
    for equal in by_voxels.values():
        names = {scan["session"]["person"] for scan in equal}
        two_persons = len(names) > 1
        if two_persons:
            register.doubt(names, "equal pixels")
        code = "SAME_PIXELS_TWO_PEOPLE" if two_persons else "DUP_STACK"
        kept = [] if two_persons else equal[:1]
        for scan in equal[len(kept) :]:
            person, action = scan["session"]["person"], ACTIONS[code]
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
