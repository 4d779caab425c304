"""A real Orthanc with the export of two invented persons, inside a private network namespace."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest

from rarescan.phantom.export import write_export
from rarescan.phantom.spec import PhantomConfig

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass(frozen=True)
class Orthanc:
    """What a test needs to know of the server."""

    web: str
    dicom: str
    credentials: str

    def call(self, path: str, data: bytes | None = None, method: str | None = None) -> Any:
        root = self.web.removesuffix("/dicom-web")
        request = urllib.request.Request(root + path, data, method=method)
        request.add_header("Authorization", "Basic Y2k6Y2k=")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())


SETTINGS = {
    "Name": "ci", "HttpServerEnabled": True, "HttpPort": 18042, "RemoteAccessAllowed": False,
    "AuthenticationEnabled": True, "RegisteredUsers": {"ci": "ci"}, "DicomServerEnabled": True,
    "DicomAet": "CIPACS", "DicomPort": 14242, "DicomCheckCalledAet": True,
    "DicomAlwaysAllowStore": True, "DicomAlwaysAllowFind": False, "DicomAlwaysAllowGet": False,
    "DicomAlwaysAllowMove": False, "UnknownSopClassAccepted": True, "OverwriteInstances": False,
    "StableAge": 2, "Plugins": [str(PLUGIN)],
    "DicomModalities": {"rarescan": {
        "AET": "RARESCAN", "Host": "127.0.0.1", "Port": 11113, "AllowFind": True,
        "AllowGet": True, "AllowMove": True, "AllowStore": True}},
    "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Ssl": False},
}  # fmt: skip


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two invented persons as a PACS would hand them over, and the labels beside them."""
    folder = tmp_path_factory.mktemp("phantom") / "phantom"
    settings = PhantomConfig(patients=1, controls=1, seed=1, faults=False)
    written = write_export(folder, settings, workers=1) / "export"
    for path in written.iterdir():
        if path.name != "DICOM":
            path.unlink()
    return written


@pytest.fixture(scope="session")
def held(export: Path) -> dict[str, bytes]:
    """Return the files of the export by SOPInstanceUID."""
    found = {}
    for path in sorted(p for p in (export / "DICOM").rglob("*") if p.is_file()):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        found[str(header.SOPInstanceUID)] = path.read_bytes()
    return found


@pytest.fixture(scope="session")
def program() -> str:
    """Return the server's program; skip with the reason where it cannot be started."""
    found = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if found is None or not PLUGIN.exists():
        pytest.skip("Orthanc is not installed (apt-get install orthanc orthanc-dicomweb)")
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        pytest.skip("Orthanc listens on every interface: run `make pacs`, which has only loopback")
    return found


@pytest.fixture(scope="session")
def orthanc(
    program: str, held: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Orthanc]:
    """Return a server that holds the export."""
    folder = tmp_path_factory.mktemp("orthanc")
    places = {"StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db")}
    (folder / "settings.json").write_text(json.dumps({**SETTINGS, **places}))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, folder / "settings.json"], stdout=log, stderr=log)
    server = Orthanc("http://127.0.0.1:18042/dicom-web", "dicom://CIPACS@127.0.0.1:14242", "ci:ci")
    try:
        _wait(server)
        for data in held.values():
            server.call("/instances", data)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def _wait(server: Orthanc) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            server.call("/system")
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
