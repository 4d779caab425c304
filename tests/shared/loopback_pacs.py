"""A small archive in memory that can misbehave, and its face towards DICOMweb."""

import http.server
import json
import socket
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

SLICES = 6


class Archive:
    """Two series of one person and one of another; what it does wrong is set by the test."""

    def __init__(self, datasets: list[Dataset]) -> None:
        self.datasets = datasets
        self.promise: Callable[[int], int] = lambda n: n
        self.deliver: Callable[[list[Dataset]], list[Dataset]] = lambda found: found
        self.drops: list[str] = []
        """Series during which the connection is dropped, each once."""
        self.ignores_keys = False
        self.more: list[dict[str, str]] = []
        self.asked: list[str] = []
        self.counts = True
        self.knows_us = True

    def find(self, level: str, keys: dict[str, str]) -> list[dict[str, str]]:
        if level == "IMAGE":
            return [
                {"SOPInstanceUID": ds.SOPInstanceUID} for ds in self.of(keys["SeriesInstanceUID"])
            ]
        unique = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID"}[level]
        rows = {}
        for ds in self.datasets:
            row = {k: str(ds.get(k, "")) for k in (*keys, unique, "StudyDate", "PatientID")}
            told = self.promise(len(self.of(ds.SeriesInstanceUID)))
            row["NumberOfSeriesRelatedInstances"] = str(told) if self.counts else ""
            matched = all(
                row[k] == v
                for k, v in keys.items()
                if v and k not in ("ModalitiesInStudy", "StudyDate")
            )
            first, _, last = keys.get("StudyDate", "").partition("-")
            in_time = not first or first <= row["StudyDate"] <= (last or first)
            if (matched and in_time) or self.ignores_keys:
                rows[row[unique]] = row
        return [*rows.values(), *(row for row in self.more if row["level"] == level)]

    def of(self, series: str) -> list[Dataset]:
        return [ds for ds in self.datasets if ds.SeriesInstanceUID == series]


def matches(archive: Archive, asked: Dataset) -> Iterator[Dataset]:
    keys = {e.keyword: str(e.value or "") for e in asked if e.keyword != "QueryRetrieveLevel"}
    archive.asked.append(asked.QueryRetrieveLevel)
    for row in archive.find(asked.QueryRetrieveLevel, keys):
        found = Dataset()
        for key in keys.keys() & row.keys():
            setattr(found, key, row[key])
        yield found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Web(http.server.BaseHTTPRequestHandler):
    """The same archive behind DICOMweb."""

    archive: Archive
    status: int = 200
    authorization = ""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        parts = path.strip("/").split("/")
        if self.status != 200:
            self.send_response(self.status)
            self.send_header("Location", "http://127.0.0.1:1/studies")
            self.end_headers()
        elif parts[-1] in ("studies", "series", "instances"):
            asked = dict(urllib.parse.parse_qsl(query))
            level = {"studies": "STUDY", "series": "SERIES", "instances": "IMAGE"}[parts[-1]]
            Web.authorization = self.headers.get("Authorization", "")
            names = {"limit", "offset", "includefield"}
            keys = {k: v for k, v in asked.items() if k not in names}
            if level != "STUDY":
                keys["StudyInstanceUID"] = parts[1]
            if level == "IMAGE":
                keys["SeriesInstanceUID"] = parts[3]
            wanted = asked.get("includefield", "").split(",")
            keys |= {pydicom.datadict.keyword_for_tag(t): "" for t in wanted if t} | keys
            self.answer("application/dicom+json", json.dumps(self.rows(level, keys)).encode())
        else:
            self.send_files(parts[3])

    def rows(self, level: str, keys: dict[str, str]) -> list[dict[str, Any]]:
        return [
            {
                f"{pydicom.datadict.tag_for_keyword(k):08X}": {"vr": "UI", "Value": [v]}
                for k, v in row.items()
                if k != "level"
            }
            for row in self.archive.find(level, keys)
        ]

    def send_files(self, series: str) -> None:
        self.archive.asked.append(series)
        body = b""
        for ds in self.archive.deliver(self.archive.of(series)):
            data = Path(str(ds.filename)).read_bytes()
            body += b"\r\n--xYx\r\nContent-Type: application/dicom\r\n\r\n" + data
        body += b"\r\n--xYx--\r\n"
        if series in self.archive.drops:
            self.archive.drops.remove(series)
            body = body[: len(body) // 2]
        self.answer('multipart/related; type="application/dicom"; boundary="xYx"', body)

    def answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)
