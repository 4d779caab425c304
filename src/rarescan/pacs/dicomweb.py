"""A PACS that speaks DICOMweb: QIDO-RS to ask, WADO-RS to retrieve (DICOM PS3.18).

`Web` is the way in. Files are streamed to disk as they are stored in the archive, byte by byte;
nobody is followed to another address.
"""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self

from pydicom.datadict import tag_for_keyword

from rarescan.errors import SettingError, UnreachableError, disk_full
from rarescan.pacs.address import NoRedirect, authorization, read_address
from rarescan.pacs.peer import (
    CREDENTIALS,
    LARGEST_FILE,
    Inbox,
    Level,
    LostError,
    Peer,
    Promise,
    lost,
)
from rarescan.pacs.spec import PullConfig

_SECONDS_TO_ANSWER = 60
_PAGE = 1000
_LARGEST_ANSWER, _LARGEST_PART_HEADER = 64 << 20, 64 << 10
_BLOCK = 1 << 20
_FILES = 'multipart/related; type="application/dicom"; transfer-syntax=*'


class Web(Peer):
    """An archive at `https://host/dicom-web`."""

    def __init__(self, config: PullConfig, credentials: str, temporary: Path) -> None:
        super().__init__(config)
        self._url = read_address(config.address, "pull.address").web
        self._headers = authorization(self._url, credentials)
        self._open = urllib.request.build_opener(NoRedirect).open
        self._part = temporary / "part"

    def __enter__(self) -> Self:
        """Ask for anything at all."""
        try:
            self._json("/studies?limit=1")
        except LostError as error:
            raise UnreachableError(
                "The PACS does not answer.",
                remedy="Check pull.address and the network; then repeat the command.",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open between two questions."""

    def rows(self, level: Level, keys: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """Yield the matches, page by page."""
        path = "/studies"
        if level != "STUDY":
            path += f"/{keys['StudyInstanceUID']}/series"
        if level == "IMAGE":
            path += f"/{keys['SeriesInstanceUID']}/instances"
        asked = {k: v for k, v in keys.items() if v and k not in _IN_PATH[level]}
        fields = ",".join(f"{tag_for_keyword(k):08X}" for k in keys)
        offset = 0
        last_page: list[Any] = []
        while True:
            page = {**asked, "includefield": fields, "limit": _PAGE, "offset": offset}
            found = self._json(f"{path}?{urllib.parse.urlencode(page)}")
            # Some archives ignore `offset` and would send the first page for ever.
            if not isinstance(found, list) or found == last_page:
                return
            yield from ({k: _text(row, k) for k in keys} for row in found)
            if len(found) < _PAGE:
                return
            offset, last_page = offset + len(found), found

    def fetch(self, promise: Promise, inbox: Inbox) -> None:
        """Retrieve one series by WADO-RS."""
        path = f"/studies/{promise.study_uid}/series/{promise.series_uid}"
        with _told_briefly(), self._get(path, _FILES) as answer:
            boundary = re.search(r'boundary="?([^";]+)', answer.headers.get("Content-Type", ""))
            if boundary is None:
                raise lost("an answer without parts")
            body = _Body(answer.read)
            delimiter = b"\r\n--" + boundary[1].strip().encode()
            body.copy_until(delimiter, len, _LARGEST_PART_HEADER)
            while body.starts_with_new_part():
                body.copy_until(b"\r\n\r\n", len, _LARGEST_PART_HEADER)
                with self._part.open("wb") as out:
                    body.copy_until(delimiter, out.write, LARGEST_FILE)
                inbox.take(self._part)

    def _json(self, path: str) -> Any:
        with _told_briefly(), self._get(path, "application/dicom+json") as answer:
            text = answer.read(_LARGEST_ANSWER)
            return json.loads(text) if text else []

    def _get(self, path: str, accept: str) -> Any:
        headers = {**self._headers, "Accept": accept}
        request = urllib.request.Request(self._url + path, headers=headers)
        return self._open(request, timeout=_SECONDS_TO_ANSWER)


_IN_PATH: Mapping[Level, tuple[str, ...]] = {
    "STUDY": (),
    "SERIES": ("StudyInstanceUID",),
    "IMAGE": ("StudyInstanceUID", "SeriesInstanceUID"),
}


@contextmanager
def _told_briefly() -> Iterator[None]:
    """Turn what goes wrong on the way into errors that repeat nothing of the peer's text."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            raise SettingError(
                f"The PACS refuses us (HTTP status {error.code}).",
                remedy=f"Check {CREDENTIALS} and our rights.",
            ) from None
        raise lost(f"HTTP status {error.code}") from None
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, OSError) and disk_full(error) is not None:
            raise
        raise lost(type(error).__name__) from None


def _text(row: Any, keyword: str) -> str:
    """Return the first value of an attribute in DICOM JSON (PS3.18 annex F), as text."""
    found = row.get(f"{tag_for_keyword(keyword):08X}") if isinstance(row, dict) else None
    values = found.get("Value") if isinstance(found, dict) else None
    first = values[0] if isinstance(values, list) and values else ""
    return str(first).strip() if isinstance(first, str | int) else ""


class _Body:
    """A multipart body (RFC 2046) that is read in blocks, whatever its size."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer = b"\r\n"

    def copy_until(self, marker: bytes, write: Callable[[bytes], int], limit: int) -> None:
        """Hand on what comes before `marker`, and step over it."""
        n_bytes = 0
        while (at := self._buffer.find(marker)) < 0:
            sure = max(len(self._buffer) - len(marker) + 1, 0)
            n_bytes += write(self._buffer[:sure])
            if n_bytes > limit:
                raise lost("an answer larger than any file")
            self._buffer = self._buffer[sure:] + self._more()
        write(self._buffer[:at])
        self._buffer = self._buffer[at + len(marker) :]

    def starts_with_new_part(self) -> bool:
        """Return whether another part follows the delimiter that was just read."""
        while len(self._buffer) < 2:
            self._buffer += self._more()
        return self._buffer[:2] != b"--"

    def _more(self) -> bytes:
        block = self._read(_BLOCK)
        if not block:
            raise lost("in the middle of a file")
        return block
