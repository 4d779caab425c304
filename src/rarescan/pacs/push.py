"""Send synthetic DICOM series to a research archive, and to nothing else.

`push_batch` is the way in: a folder written by `dicom_out` goes to an archive that the settings
name, by STOW-RS or C-STORE. Each file is looked at right before it is sent; one that does not say
SyntheticData = YES stops everything. A batch that is not for release goes only to an archive that
the settings declare `inside`. What the archive has confirmed is not sent again.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Sequence
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from rarescan.errors import (
    GateRefusedError,
    InputError,
    MissingExtraError,
    SettingError,
    UnreachableError,
    nearest,
)
from rarescan.files import RECIPE, content_id, read_json, require_recipe, write_json
from rarescan.imaging.dicom_out import BATCH, ISSUER
from rarescan.pacs.address import NoRedirect, authorization, read_address
from rarescan.pacs.spec import PushConfig, PushTarget
from rarescan.progress import track

CREDENTIALS_VARIABLE = "RARESCAN_PUSH_CREDENTIALS"
_SENT = "pushed"
_WAITS_SECONDS = (1.0, 5.0)
_SECONDS_TO_ANSWER = 60
_DICOM_JSON = "application/dicom+json"
_BOUNDARY = "rarescan-8f14e45fceea167a5a36dedd4bea2543"
_FAILED, _STORED = "00081198", "00081199"

Send = Callable[[Sequence[Path]], None]


class _NotTakenError(Exception):
    """The archive did not confirm a series; the message says why."""


def push_batch(folder: Path, config: PushConfig) -> int:
    """Send a batch to the archive `config.to`; repeating it sends what is not confirmed yet.

    Parameters
    ----------
    folder : Path
        Written by `dicom_out.write_dicom`. `pushed/` in it records what was confirmed.
    config : PushConfig
        The archives that may be sent to, and which of them is meant. Name and password or token
        for STOW-RS stand in the environment variable RARESCAN_PUSH_CREDENTIALS (`name:password`
        or `Bearer ...`).

    Returns
    -------
    int
        How many series were sent now.

    Raises
    ------
    SettingError
        The archive is not in the settings, or its address is none.
    GateRefusedError
        The batch is not for release, and the archive is not `inside`.
    InputError
        A file is not synthetic: nothing is sent. Or the archive refuses a series.
    UnreachableError
        The archive does not answer after retries.
    """
    require_recipe(folder, "dicom")
    target = _target(config)
    send = _sender(target, config)
    if read_json(folder / BATCH)["permitted_use"] != "release" and not target.inside:
        raise GateRefusedError(
            f"This batch may be used inside the hospital only, and '{config.to}' is outside.",
            remedy="Send a batch of a model that passed every gate, or declare the archive "
            f"`push.targets.{config.to}.inside: true` if the hospital itself runs it.",
        )
    series = _series(folder)
    record = folder / _SENT / f"{content_id(target.address)}.json"
    done = read_json(record) if record.exists() else {}
    waiting = {name: paths for name, paths in series.items() if done.get(name) != len(paths)}
    for name, paths in track(waiting.items(), "send series", total=len(waiting)):
        _send_patiently(send, paths, config.to)
        done[name] = len(paths)
        write_json(record, done)
    return len(waiting)


def _target(config: PushConfig) -> PushTarget:
    if config.to not in config.targets:
        known = nearest(config.to, list(config.targets)) if config.targets else ""
        raise SettingError(
            f"'{config.to}' is no archive that synthetic scans may be sent to.",
            remedy=f"Name one with --to, and its address below push.targets. {known}".strip(),
        )
    return config.targets[config.to]


def _series(folder: Path) -> dict[str, list[Path]]:
    """Return the files by series, each one looked at."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        where = path.relative_to(folder)
        if where.parts[0] not in (RECIPE, BATCH, _SENT):
            _require_synthetic(path.read_bytes())
            found[where.parts[0]].append(path)
    return found


def _require_synthetic(data: bytes) -> Dataset:
    """Return a file's data set, or raise where it is not one of ours."""
    try:
        dataset = pydicom.dcmread(BytesIO(data))
        ours = dataset.SyntheticData == "YES" and dataset.IssuerOfPatientID == ISSUER
    except Exception:  # a foreign file may fail with any exception
        ours = False
    if not ours:
        raise InputError(
            "The folder holds a file that is no synthetic scan; it was not sent.",
            remedy="Write the folder again with `rarescan dicom`, and put nothing else into it.",
        )
    return dataset


def _send_patiently(send: Send, paths: Sequence[Path], name: str) -> None:
    for wait_seconds in (*_WAITS_SECONDS, None):
        try:
            return send(paths)
        except (_NotTakenError, OSError, HTTPException, RuntimeError) as problem:
            if wait_seconds is None:
                why = str(problem) if isinstance(problem, _NotTakenError) else "no answer"
                raise UnreachableError(
                    f"The archive '{name}' did not take a series ({why}).",
                    remedy="Check its address and that it knows us; then repeat the command, it "
                    "goes on where it stopped.",
                ) from None
            time.sleep(wait_seconds)


def _sender(target: PushTarget, config: PushConfig) -> Send:
    """Return how to send one series to this address."""
    address = read_address(target.address, f"push.targets.{config.to}.address")
    if address.web:
        headers = authorization(address.web, os.environ.get(CREDENTIALS_VARIABLE, ""))
        return lambda paths: _stow(f"{address.web}/studies", headers, paths)
    place = (address.host, address.port)
    return lambda paths: _store(place, address.ae_title, config, paths)


def _stow(url: str, headers: dict[str, str], paths: Sequence[Path]) -> None:
    """Send one series by STOW-RS (PS3.18 section 10.5)."""
    parts = []
    for path in paths:
        data = path.read_bytes()
        _require_synthetic(data)
        parts += [
            f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode(),
            data,
            b"\r\n",
        ]
    kind = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
    headers = {**headers, "Content-Type": kind, "Accept": _DICOM_JSON}
    body = b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()])
    request = urllib.request.Request(url, body, headers, method="POST")
    try:
        opener = urllib.request.build_opener(NoRedirect)
        with opener.open(request, timeout=_SECONDS_TO_ANSWER) as answer:
            told = json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code < 500 and error.code not in (408, 429):
            raise InputError(
                f"The archive refuses a series (HTTP status {error.code}).",
                remedy=f"Check its address, its rights, and {CREDENTIALS_VARIABLE}.",
            ) from None
        raise _NotTakenError(f"HTTP status {error.code}") from None
    except ValueError:
        raise _NotTakenError("an answer that is no JSON") from None
    stored, failed = (_count(told, tag) for tag in (_STORED, _FAILED))
    if failed or stored != len(paths):
        raise _NotTakenError(f"{stored} of {len(paths)} files stored")


def _count(told: Any, tag: str) -> int:
    sequence = told.get(tag) if isinstance(told, dict) else None
    return len(sequence.get("Value", [])) if isinstance(sequence, dict) else 0


def _store(place: tuple[str, int], title: str, config: PushConfig, paths: Sequence[Path]) -> None:
    """Send one series by C-STORE (PS3.4 annex B), in an association of its own."""
    try:
        from pynetdicom import AE
    except ImportError:
        raise MissingExtraError(
            "pynetdicom is not installed.", remedy="Run `pip install 'rarescan[dicom-net]'`."
        ) from None
    ae = AE(ae_title=config.own_ae_title)
    ae.add_requested_context(pydicom.uid.MRImageStorage, pydicom.uid.ExplicitVRLittleEndian)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
    association = ae.associate(*place, ae_title=title)
    if not association.is_established:
        raise _NotTakenError("rejected us" if association.is_rejected else "no association")
    try:
        for path in paths:
            sent = association.send_c_store(_require_synthetic(path.read_bytes()))
            # Without a status it hung up; 0xB... is stored with a warning.
            status = int(sent.Status) if "Status" in sent else -1
            if status != 0 and status >> 12 != 0xB:
                raise _NotTakenError(f"C-STORE status {status:#06x}")
    except ValueError:
        raise _NotTakenError("does not store MR images") from None
    finally:
        association.release()
