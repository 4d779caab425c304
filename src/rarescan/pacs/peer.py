"""What a PACS is to us: it is asked what it holds, and sends one series at a time.

`Peer.find` and `Peer.fetch` are the ways in; `dicomweb.Web` and `dimse.Dimse` are the two kinds.
Nothing that a peer says is believed: its matches are compared with the question, its files with
the series that was asked for, and names of files are our own.
"""

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Literal, Self

from rarescan.errors import UnreachableError
from rarescan.imaging.header import Header
from rarescan.imaging.parse import read_header
from rarescan.pacs.spec import PullConfig

Level = Literal["STUDY", "SERIES", "IMAGE"]

CREDENTIALS = "RARESCAN_PULL_CREDENTIALS"
"""Environment variable with `name:password` or `Bearer ...` for DICOMweb."""
LARGEST_FILE = 512 << 20
_MOST_MATCHES = 100_000
_SERIES_KEYS = ("SeriesInstanceUID", "SeriesDescription", "NumberOfSeriesRelatedInstances")
# Real archives hold identifiers with letters; none may begin with a dot, as a path could.
_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._\-]{0,63}")


class LostError(UnreachableError):
    """The peer answers, and failed at this one query or series."""


def lost(why: str) -> LostError:
    """Return the error for an answer that broke off; `why` holds no text of the peer."""
    return LostError(
        f"The PACS broke off ({why}).",
        remedy="Repeat the command, it goes on where it stopped; if it stays, ask its "
        "administrator whether we may query and retrieve.",
    )


@dataclass(frozen=True, kw_only=True)
class Query:
    """One question: studies of these days, or of one person or accession."""

    days: str = ""
    """DICOM range of dates, `20190611` or `20190601-20190630`; empty for all."""
    keyword: Literal["", "PatientID", "AccessionNumber"] = ""
    value: str = ""

    def matches(self, study: Mapping[str, str]) -> bool:
        """Return whether a study is what was asked for; some archives ignore keys."""
        first, _, last = self.days.partition("-")
        day = study.get("StudyDate", "").replace(".", "")
        in_time = not self.days or first <= day <= (last or first)
        return in_time and (not self.keyword or study.get(self.keyword) == self.value)


@dataclass(frozen=True, kw_only=True)
class Promise:
    """A series, and how many files the archive says that it has."""

    study_uid: str
    series_uid: str
    n_files: int

    def holds(self, header: Header) -> bool:
        """Return whether a file says that it belongs to this series."""
        return (header.study_uid, header.series_uid) == (self.study_uid, self.series_uid)


class Inbox:
    """The folder of one series that is being received."""

    def __init__(self, folder: Path, promise: Promise) -> None:
        self._folder, self._promise = folder, promise
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        folder.mkdir(parents=True)

    def __len__(self) -> int:
        """Return how many files came; one more than was promised stands for any number."""
        return len(self._seen)

    def take(self, received: Path) -> bool:
        """Keep a file under our own name, or remove it; return whether it was welcome.

        A file is kept once, and only if it can be read and belongs to the series.
        """
        with self._lock:
            small = received.stat().st_size <= LARGEST_FILE
            header = read_header(received.read_bytes()) if small else "FILE_SIZE"
            if isinstance(header, str) or not self._promise.holds(header):
                received.unlink()
                return False
            if header.sha256 in self._seen or len(self) > self._promise.n_files:
                received.unlink()
                return header.sha256 in self._seen
            received.rename(self._folder / f"{len(self):06d}.dcm")
            self._seen.add(header.sha256)
            return len(self) <= self._promise.n_files


class Peer(ABC):
    """An archive that is connected for the length of a `with` block.

    Entering raises `UnreachableError` where it does not answer; `LostError` later means that one
    query or series failed.
    """

    def __init__(self, config: PullConfig) -> None:
        self.config = config

    @abstractmethod
    def __enter__(self) -> Self:
        """Connect."""

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """Disconnect."""

    @abstractmethod
    def rows(self, level: Level, keys: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """Return the matches; empty keys are asked for, the others must match."""

    @abstractmethod
    def fetch(self, promise: Promise, inbox: Inbox) -> None:
        """Put the files of a series into its inbox."""

    def find(self, query: Query) -> list[Promise]:
        """Return the series of a query that the settings want, sorted."""
        keys = {"StudyInstanceUID": "", "StudyDate": query.days}
        keys["ModalitiesInStudy"] = self.config.modality
        if query.keyword:
            keys[query.keyword] = query.value
        found = {
            promise
            for study in self._all("STUDY", keys)
            if query.matches(study) and _UID.fullmatch(study.get("StudyInstanceUID", ""))
            for promise in self._series(study["StudyInstanceUID"])
        }
        return sorted(found, key=lambda p: (p.study_uid, p.series_uid))

    def _all(self, level: Level, keys: Mapping[str, str]) -> list[dict[str, str]]:
        found = list(islice(self.rows(level, keys), _MOST_MATCHES))
        if len(found) == _MOST_MATCHES:
            raise lost(f"more than {_MOST_MATCHES} matches for one question")
        return found

    def _series(self, study_uid: str) -> list[Promise]:
        keys = {"StudyInstanceUID": study_uid, "Modality": self.config.modality}
        pattern = self.config.description.casefold()
        wanted = []
        for series in self._all("SERIES", keys | dict.fromkeys(_SERIES_KEYS, "")):
            uid = series.get("SeriesInstanceUID", "")
            same = all(series.get(k, "") in ("", keys[k]) for k in keys)
            described = fnmatchcase(series.get("SeriesDescription", "").casefold(), pattern)
            if same and described and _UID.fullmatch(uid):
                n_files = self._count(study_uid, uid, series)
                wanted.append(Promise(study_uid=study_uid, series_uid=uid, n_files=n_files))
        return wanted

    def _count(self, study_uid: str, series_uid: str, series: Mapping[str, str]) -> int:
        told = series.get("NumberOfSeriesRelatedInstances", "")
        if told.isdecimal() and len(told) < 7:
            return int(told)
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
        return len(self._all("IMAGE", keys | {"SOPInstanceUID": ""}))
