"""Does a word stand in any byte below some folders, however it is packed or spelled."""

import gzip
import json
import sqlite3
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


def spellings(token: str) -> set[bytes]:
    """Return the bytes that a token may be written in."""
    words = {token, token.lower(), unicodedata.normalize("NFD", token), json.dumps(token)[1:-1]}
    if token.isdigit() and len(token) == 8:
        words.add(f"{token[:4]}-{token[4:6]}-{token[6:]}")
    return {w.encode(code) for w in words for code in ("utf-8", "utf-16-le", "utf-16-be")}


def readings(path: Path) -> Iterator[bytes]:
    """Yield a file's name and bytes, and what is inside where they are packed."""
    data = path.read_bytes()
    yield str(path).encode() + b"\n" + data
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    elif data[:4] == b"PAR1":
        yield json.dumps(pq.read_table(path).to_pylist(), default=str, ensure_ascii=False).encode()
    elif data[:15] == b"SQLite format 3":
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type='table'")
            for (table,) in tables.fetchall():
                rows = database.execute(f'SELECT * FROM "{table}"').fetchall()
                yield json.dumps(rows, default=repr, ensure_ascii=False).encode()


def found(tokens: list[str], places: list[Path]) -> dict[str, list[str]]:
    """Return which tokens stand in which files."""
    by_start: dict[bytes, list[tuple[bytes, str]]] = {}
    starts = np.zeros((2, 2**16), bool)
    for token in tokens:
        for word in spellings(token):
            by_start.setdefault(word[:4], []).append((word, token))
            starts[[0, 1], np.frombuffer(word[:4], ">u2")] = True
    hits: dict[str, list[str]] = {}
    for path in sorted(p for place in places for p in place.rglob("*") if p.is_file()):
        blob = b"\n".join(readings(path))
        # A table of first letters leaves few places at which whole words must be compared.
        letters = np.frombuffer(blob, np.uint8).astype(np.uint16)
        pairs = letters[:-1] << 8 | letters[1:]
        likely = np.flatnonzero(starts[0][pairs[:-2]] & starts[1][pairs[2:]])
        here = {t for k in likely for word, t in by_start.get(blob[k : k + 4], ())
                if blob.startswith(word, k)}  # fmt: skip
        if here:
            hits[path.name] = sorted(here)
    return hits
