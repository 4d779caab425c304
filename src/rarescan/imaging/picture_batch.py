"""A batch of synthetic pictures as files that any viewer opens: PNG, one a plane.

`write_pictures` is the way in; brains have `bids.write_derivative`. Every file says in itself that
it shows nobody, and has a sidecar that names the model, the seed and the condition asked for.
`labels.csv` is a table that `rarescan ingest` reads (`source.kind: pictures`).
"""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from rarescan.cohort.contracts import Scan
from rarescan.cohort.store import VOLUMES, tables
from rarescan.files import read_json, write_atomic, write_json
from rarescan.processes import run_parallel

MARK = "Synthetic picture: it shows no person."
LABELS = "labels.csv"
_COLUMNS = ("file", "person", "label", "item", "plane", "age_years", "sex", "site")


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One scan to be written."""

    root: Path
    index: int
    scan: Scan
    model: Mapping[str, Any]


def write_pictures(
    root: Path,
    *,
    scans: Sequence[Scan],
    name: str,
    model: Mapping[str, Any],
    workers: int | None = None,
) -> list[Scan]:
    """Write a synthetic batch of pictures; files that are there already are kept.

    Parameters
    ----------
    root : Path
        The batch's folder, which holds `rarescan/volumes.npy`, float32, shape (scans, rows,
        columns, planes), values 0 to 1.
    scans : sequence of Scan
        In the order of the volumes; `person_id` (`SYN000001`) names the files.
    name : str
        Name of the batch.
    model : mapping
        JSON values (uri, sha256, seed, decision ...) that stand in every sidecar.
    workers : int, optional
        Number of processes; the bytes do not depend on it.

    Returns
    -------
    list of Scan
        The scans with `path` (of the first plane, relative to `root`) and `sha256` (of the stored
        uint8 values, all planes).
    """
    items = [_Item(root=root, index=i, scan=scan, model=model) for i, scan in enumerate(scans)]
    done = run_parallel(_write_one, items, what="write synthetic pictures", workers=workers)
    _write_labels(root, scans, [paths for paths, _ in done])
    write_atomic(
        root / "README.md",
        f"# {name}\n\n**No picture shows a person.** One scan a synthetic person, one PNG a plane; "
        "the sidecar beside it names the model, the seed and the condition that was asked for.\n"
        f"`{LABELS}` lists them; `rarescan/` holds the tables and the values before rounding.\n",
    )
    return [
        replace(scan, path=paths[0], sha256=digest)
        for scan, (paths, digest) in zip(scans, done, strict=True)
    ]


def _write_one(item: _Item) -> tuple[list[str], str]:
    """Write the planes of one scan unless they are there; return their paths and the hash."""
    values = np.load(tables(item.root) / VOLUMES, mmap_mode="r")[item.index]
    person, n_planes = item.scan.person_id, values.shape[-1]
    paths = [f"pictures/{person}_plane-{i + 1}.png" for i in range(n_planes)]
    beside = item.root / "pictures" / f"{person}.json"
    if beside.exists():
        return paths, str(read_json(beside)["PixelSHA256"])
    pixels = np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)
    for plane, path in enumerate(paths):
        write_atomic(item.root / path, _png(np.ascontiguousarray(pixels[..., plane])))
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
    about = {
        "Synthetic": True,
        "GeneratorModel": dict(item.model),
        "ScanIndex": item.index,
        "Condition": asdict(item.scan.condition),
        "Planes": n_planes,
        "PixelSHA256": digest,
    }
    # Written last: its presence says that the scan is complete.
    write_json(beside, about)
    return paths, digest


def _png(pixels: Any) -> bytes:
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Comment", MARK)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=mark)
    return stream.getvalue()


def _write_labels(root: Path, scans: Sequence[Scan], paths: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for scan, files in zip(scans, paths, strict=True):
        asked = {key: getattr(scan.condition, key) for key in ("age_years", "sex", "site")}
        known = {key: "" if value is None else value for key, value in asked.items()}
        row = {"person": scan.person_id, "label": scan.condition.diagnosis, "item": scan.session}
        for plane, file in enumerate(files):
            writer.writerow({"file": file, "plane": plane + 1, **row, **known})
    write_atomic(root / LABELS, text.getvalue())
