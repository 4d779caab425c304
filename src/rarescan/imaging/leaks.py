"""The last look at a cohort: does any text of the export stand in what was written.

`require_no_leak` is the way in. It is not what keeps identities out (nothing is copied, see
`deidentify`); it is what would notice if that failed. All texts of one file of each scan, what
the index knows of one file a series, the numbers in the labels and the names of files and folders
are searched in every text that was written: names of files, tables, sidecars, headers of images.

Words that we write ourselves cannot be told from a leak and do not count: what stands in this
room's own code, in the settings and in the labels' diagnoses and sites.
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pydicom
from PIL import Image

from rarescan.errors import InputError
from rarescan.imaging.index import Index
from rarescan.imaging.labels import Labels

SHORTEST = 5
"""Characters of a text from which its appearance is no chance."""
_TEXT = frozenset(("AE", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "UC", "UI", "UT"))
# Identifiers of the standard, and days in the years where our shifted days lie.
_NO_TOKEN = re.compile(r"1\.2\.840\.10008\.|(18|190|191|192)\d+-\d\d-\d\d$")
_NIFTI_HEADER = 352

# Keyed hashes and counts: they hold any five letters by chance, and no text.
_OURS = re.compile(r"RS[A-Z2-7]{13}|ST[A-Z2-7]{13}|site[A-Z2-7]{6}|ses-\d+|\b[0-9a-f]{16,64}\b")

# As DICOM writes it. Years before 1930 are left out: there lie the shifted days.
_DAY = re.compile(r"(19[3-9]\d|20\d\d)\d{4}")

Heads = dict[str, list[str]]
"""First characters -> the tokens that begin with them."""


def require_no_leak(
    root: Path, index: Index, labels: Labels | None, *, texts: Iterable[str], own: Iterable[str]
) -> None:
    """Raise where a text of the export stands in a file below `root`.

    Parameters
    ----------
    root : Path
        What was written; folders whose name begins with a dot are not looked at.
    index : Index
        The export.
    labels : Labels, optional
        The hospital's table.
    texts : iterable of str
        What `texts_of` found in the files that became scans.
    own : iterable of str
        Texts that a human gave for writing (names, licences, diagnoses, sites).

    Raises
    ------
    InputError
        It does; the message does not repeat the text.
    """
    heads: Heads = defaultdict(list)
    for token in _tokens(index, labels).union(texts):
        heads[token[:SHORTEST]].append(token)
    ours = "\n".join((own_words(), *own))
    leaking = [path for path in _files(root) if leaks(path, root, heads, ours)]
    if leaking:
        kinds = sorted({path.suffix or path.name for path in leaking})
        raise InputError(
            f"A text of the export would stand in {len(leaking)} of the files to be written "
            f"({', '.join(kinds)}), so nothing was written.",
            remedy="If the labels repeat a text of the headers, as the name of the hospital, use "
            "a neutral word there; otherwise this is a bug to report.",
        )


@cache
def own_words() -> str:
    """Return the code of this room: every word that we may write by ourselves stands in it."""
    rooms = (Path(__file__).parent, Path(__file__).parents[1] / "cohort")
    modules = [path for room in rooms for path in sorted(room.glob("*.py"))]
    return "\n".join(path.read_text() for path in modules)


def _tokens(index: Index, labels: Labels | None) -> set[str]:
    """Return what the index knows of one file a series, its path, and the labels' numbers."""
    tokens: set[str] = set()
    with closing(index.connect()) as database:
        for _, path, header in database.execute(
            "SELECT MIN(number), path, header FROM files WHERE code IS NULL GROUP BY study, series"
        ):
            texts = (value for value in json.loads(header) if isinstance(value, str))
            tokens |= set().union(*map(_pieces, (*Path(path).parts, *texts)))
    for pair in labels.rows().values() if labels else ():
        tokens |= {number for number in pair if len(number) >= SHORTEST}
    return tokens


def texts_of(data: bytes) -> set[str]:
    """Return every text of a DICOM file from 5 characters on, also from private sequences.

    The bytes may be hostile: for a child process with limits.
    """
    try:
        dataset = pydicom.dcmread(BytesIO(data), stop_before_pixels=True, force=True)
        return _walk(dataset) | _walk(getattr(dataset, "file_meta", ()))
    except Exception:  # hostile bytes fail in any way; what ingest uses of them it parses itself
        return set()


def _walk(dataset: Iterable[Any]) -> set[str]:
    found: set[str] = set()
    for element in dataset:
        if element.VR == "SQ":
            found |= set().union(*(_walk(item) for item in element.value))
        elif element.VR in _TEXT:
            found |= _pieces(str(element.value or ""))
            found |= _pieces(_as_latin1(element.value))
        elif element.VR == "UN" and isinstance(element.value, bytes):
            found |= _pieces(element.value.decode("latin-1"))
    return found


def _as_latin1(value: Any) -> str:
    """Return a name as our own header reader sees it: the bytes of the file, as Latin-1."""
    raw = getattr(value, "original_string", b"")
    return raw.decode("latin-1") if isinstance(raw, bytes) else ""


def _pieces(text: str) -> set[str]:
    """Return what a text consists of, as far as it says something."""
    parts = (part.strip(" \0") for part in re.split(r"[\\^=\[\]',\n]+", text))
    long = {part for part in parts if len(part) >= SHORTEST and not _NO_TOKEN.match(part)}
    return long | {_dashed(part) for part in long if _DAY.fullmatch(part)}


def _dashed(day: str) -> str:
    return f"{day[:4]}-{day[4:6]}-{day[6:8]}"


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts[:-1])
        if path.is_file() and not hidden:
            yield path


def leaks(path: Path, root: Path, heads: Heads, ours: str) -> bool:
    """Return whether the name or a text of a file holds a token that is not one of our words."""
    for written in (str(path.relative_to(root)), *texts_in(path)):
        text = _OURS.sub("\n", written)
        # Most tokens have a beginning that we never write, which is quick to find.
        grams = {text[k : k + SHORTEST] for k in range(len(text) - SHORTEST + 1)}
        found = (token for gram in grams & heads.keys() for token in heads[gram])
        if any(token in text and token not in ours for token in found):
            return True
    return False


def texts_in(path: Path) -> Iterator[str]:
    """Yield the texts of a file that we wrote; numbers are none."""
    if path.name.endswith(".nii.gz"):
        with gzip.open(path) as stream:
            yield stream.read(_NIFTI_HEADER).decode("latin-1")
    elif path.suffix == ".parquet":
        yield "\n".join(_strings(pq.ParquetFile(path).read().to_pylist()))
    elif path.suffix == ".json":
        yield "\n".join(_strings(json.loads(path.read_text())))
    elif path.suffix == ".png":
        with Image.open(path) as image:
            yield "\n".join(map(str, image.info.values()))
    else:
        cells = re.split(r"[\t\n]", path.read_bytes().decode("utf-8", "replace"))
        yield "\n".join(cell for cell in cells if not re.fullmatch(r"-?\d{1,4}(\.\d+)?", cell))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (str(key) for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, str):
        # A column of JSON holds numbers too, which are no texts.
        yield from _strings(json.loads(value)) if value.startswith("{") else (value,)
