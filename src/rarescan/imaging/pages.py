"""Show a prepared cohort to a person: pictures, and who is where and why not.

`write_pages` is the way in: `qc/index.html` (one file, no script, nothing from outside) with the
status of every person and one row a scan, those that stand out first, and `status.tsv` with the
same table for machines. `picture` makes a scan's thumbnail while the scan is in memory.

Around the brain a picture keeps 8 mm of the head, so that cortex that the mask cut off can be
seen, and nothing of the face.
"""

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from scipy import ndimage

from rarescan.cohort.contracts import Cohort, FloatArray, Grid, Part
from rarescan.cohort.store import read_events
from rarescan.cohort.template import load_template
from rarescan.files import atomic_path, write_atomic
from rarescan.imaging import qc
from rarescan.imaging.reasons import WORDS
from rarescan.imaging.strip import Mask

NONE = "n/a"
_TEMPLATES = Path(__file__).parent / "templates"
_TILE = 192
_RIM_MM = 8.0
_PLANES_MM = (6.0, -18.0, 8.0)
_OWN, _TEMPLATE = (255, 70, 60), (60, 190, 90)
_QUALITY = 80
_FIGURES = {
    "metric": ("fit", "{:.2f}"),
    "brain_ml": ("brain ml", "{:.0f}"),
    "determinant": ("size", "{:.2f}"),
    "snr": ("signal to noise", "{:.0f}"),
    "cjv": ("tissue overlap", "{:.2f}"),
    "wrap": ("edge brightness", "{:.3f}"),
}


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where one scan is, or why there is none; a row of `status.tsv`."""

    person_id: str
    session: str
    diagnosis: str
    found: str
    """yes, or no where only the labels name the person."""
    ingest: str
    """accepted, or the reason codes of what was found and not taken."""
    prepare: str
    """prepared, or a reason code."""
    partition: str


def status(
    cohort: Cohort, codes: Mapping[str, str | None], parts: Mapping[str, Part]
) -> list[Status]:
    """Return where everybody is: one row a scan, and one a person for what was not taken.

    Parameters
    ----------
    cohort : Cohort
        The native cohort; its events say what ingest left out.
    codes : mapping
        scan_id -> reason code of prepare, None where the scan was prepared.
    parts : mapping
        person_id -> part.

    Returns
    -------
    list of Status
        Sorted by person. Of persons who have a scan, only what was quarantined is told: localizers
        and the like are in every study.
    """
    rows = [
        Status(
            person_id=scan.person_id,
            session=scan.session,
            diagnosis=scan.condition.diagnosis,
            found="yes",
            ingest="accepted",
            prepare=codes[scan.scan_id] or "prepared",
            partition=NONE if codes[scan.scan_id] else parts[scan.person_id],
        )
        for scan in cohort.scans
    ]
    for person, left_out in _left_out(cohort).items():
        found = "no" if left_out == {"LABEL_WITHOUT_SCAN"} else "yes"
        rows.append(
            Status(
                person_id=person or NONE,
                session=NONE,
                diagnosis=NONE,
                found=found,
                ingest=" ".join(sorted(left_out)),
                prepare=NONE,
                partition=parts.get(person, NONE),
            )
        )
    return sorted(rows, key=lambda row: (row.person_id, row.session))


def _left_out(cohort: Cohort) -> dict[str, set[str]]:
    """Return person -> codes of the stacks that ingest found and did not take."""
    accepted = {scan.person_id for scan in cohort.scans}
    codes: dict[str, set[str]] = defaultdict(set)
    for event in read_events(cohort.root):
        person, of_a_file = event["person_id"], not (event["person_id"] or event["stack_id"])
        told = event["action"] == "quarantine" if person in accepted else event["action"] != "fix"
        if told and not of_a_file:
            codes[person].add(event["code"])
    return codes


def write_pages(
    work: Path, cohort: Cohort, results: Sequence[Mapping[str, Any]], parts: Mapping[str, Part]
) -> None:
    """Write `status.tsv` and `qc/index.html` of a prepared cohort.

    Parameters
    ----------
    work : Path
        The prepared folder; `qc/scans/<scan_id>.webp` holds each scan's picture.
    cohort : Cohort
        The native cohort.
    results : sequence of mappings
        `scan_id`, `code` and `measures` of every scan, in the cohort's order.
    parts : mapping
        person_id -> part.
    """
    rows = status(cohort, {r["scan_id"]: r["code"] for r in results}, parts)
    lines = ["\t".join(Status.__dataclass_fields__)]
    lines += ["\t".join(asdict(row).values()) for row in rows]
    write_atomic(work / "status.tsv", "\n".join(lines) + "\n")
    kept = [(s, r) for s, r in zip(cohort.scans, results, strict=True) if r["code"] is None]
    measures = [qc.from_row(result["measures"]) for _, result in kept]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("prepared.html").stream(
        rows=sorted(rows, key=lambda row: row.partition != NONE),
        stages=_stages(rows),
        reasons=_reasons(rows),
        divided=_divided(rows),
        figures={name: label for name, (label, _) in _FIGURES.items()},
        typical=_typical(measures),
        n_prepared=len(kept),
        n_flagged=sum(bool(names) for names in qc.outliers(measures)),
        scans=_scans(work, [scan for scan, _ in kept], measures, parts),
        size=(3 * _TILE, _TILE),
    )
    # Streamed: several hundred pictures need not be in memory at once.
    with atomic_path(work / "qc" / "index.html") as path:
        page.dump(str(path), encoding="utf-8")


def _scans(
    work: Path, scans: Sequence[Any], measures: Sequence[qc.Measures], parts: Mapping[str, Part]
) -> Iterator[dict[str, Any]]:
    """Yield what the page shows of each scan, the worst first."""
    flags = qc.outliers(measures)
    for i in qc.worst_first(measures, flags):
        data = (work / "qc" / "scans" / f"{scans[i].scan_id}.webp").read_bytes()
        yield {
            "id": scans[i].scan_id,
            "diagnosis": scans[i].condition.diagnosis,
            "part": parts[scans[i].person_id],
            "picture": f"data:image/webp;base64,{base64.b64encode(data).decode()}",
            "figures": {name: _shown(name, getattr(measures[i], name)) for name in _FIGURES},
            "flags": flags[i],
        }


def _shown(name: str, value: float | None) -> str:
    return NONE if value is None else _FIGURES[name][1].format(value)


def _typical(measures: Sequence[qc.Measures]) -> dict[str, str]:
    """Return the median of every figure."""
    columns = {name: [getattr(m, name) for m in measures] for name in _FIGURES}
    known = {name: [v for v in values if v is not None] for name, values in columns.items()}
    return {n: _shown(n, median(values) if values else None) for n, values in known.items()}


def _stages(rows: Sequence[Status]) -> dict[str, tuple[int, int]]:
    """Return stage -> (persons, scans) that came so far."""
    reached = {
        "named or found": list(rows),
        "with a scan taken in": [row for row in rows if row.ingest == "accepted"],
        "prepared": [row for row in rows if row.prepare == "prepared"],
    }
    return {
        stage: (len({row.person_id for row in of} - {NONE}), sum(row.session != NONE for row in of))
        for stage, of in reached.items()
    }


def _reasons(rows: Sequence[Status]) -> list[tuple[str, str, int]]:
    """Return (code, words, rows) of everything that kept somebody out, the most frequent first."""
    codes = Counter(code for row in rows for code in row.ingest.split() if code != "accepted")
    codes += Counter(row.prepare for row in rows if row.prepare not in ("prepared", NONE))
    return [(c, WORDS[c], n) for c, n in codes.most_common()]


def _divided(rows: Sequence[Status]) -> dict[str, Counter[str]]:
    """Return diagnosis -> how many persons each part has."""
    persons = {r.person_id: r for r in rows if r.prepare == "prepared"}
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in persons.values():
        parts[row.diagnosis][row.partition] += 1
    return dict(sorted(parts.items()))


def picture(head: FloatArray, mask: Mask, grid: Grid) -> bytes:
    """Return three planes of a scan as one WebP image of 576 x 192 pixels.

    A sagittal, a coronal and an axial plane near the template's origin; what lies left in the
    coronal and the axial one is the person's left. Red is the edge of the scan's own mask, green
    the template's.

    Parameters
    ----------
    head : float32 array, shape grid.shape
        The head on the brain grid, any unit.
    mask : bool array, same shape
        Its brain.
    grid : Grid
        The brain grid.
    """
    white = max(float(np.percentile(head[mask], 99.5)), np.finfo(np.float32).tiny)
    centre = np.linalg.solve(grid.matrix(), [*_PLANES_MM, 1.0])[:3]
    template = load_template(grid.spacing_mm).brain >= 0.5
    sheet = Image.new("RGB", (3 * _TILE, _TILE))
    for axis in range(3):
        at = round(float(centre[axis]))
        brightness, own, expected = (
            np.take(volume, at, axis=axis).T[::-1] for volume in (head, mask, template)
        )
        rim = max(1, round(_RIM_MM / grid.spacing_mm))
        shown = ndimage.binary_dilation(own | expected, iterations=rim)
        tile = _tile(np.clip(brightness / white, 0, 1) * shown, own, expected)
        left, top = (_TILE - tile.width) // 2, (_TILE - tile.height) // 2
        sheet.paste(tile, (axis * _TILE + left, top))
    stream = io.BytesIO()
    sheet.save(stream, "WEBP", quality=_QUALITY)
    return stream.getvalue()


def _tile(plane: FloatArray, own: Mask, expected: Mask) -> Image.Image:
    scale = _TILE / max(plane.shape)
    size = (round(plane.shape[1] * scale), round(plane.shape[0] * scale))
    grey = Image.fromarray((plane * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    colours = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    for inside, colour in ((expected, _TEMPLATE), (own, _OWN)):
        smooth = Image.fromarray(inside.astype(np.uint8) * 255).resize(
            size, Image.Resampling.BICUBIC
        )
        filled = np.asarray(smooth) > 127
        colours[filled & ~ndimage.binary_erosion(filled, border_value=1)] = colour
    return Image.fromarray(colours)
