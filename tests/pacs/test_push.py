import base64
import json
import threading
from collections.abc import Callable, Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from synthetic_series import N, config, make_folder

from rarescan.configs.schema import load_config
from rarescan.errors import GateRefusedError, InputError, SettingError, UnreachableError
from rarescan.pacs import push
from rarescan.pacs.push import push_batch
from rarescan.pacs.spec import PushConfig, PushTarget


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "_WAITS_SECONDS", (0.0, 0.0))
    monkeypatch.delenv(push.CREDENTIALS_VARIABLE, raising=False)


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "dicom", "release")


class Archive:
    """A DICOM archive on the loopback that keeps what it gets, and can misbehave."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.callers: list[str] = []
        self.answer: Callable[[int], int | None] = lambda _: 0x0000

    def store(self, event: Any) -> Any:
        status = self.answer(len(self.got))
        if status is None:
            event.assoc.abort()
            return 0x0000
        self.callers.append(event.assoc.requestor.ae_title)
        if status >> 12 in (0, 0xB):
            self.got.append(event.request.DataSet.getvalue())
        return status


@pytest.fixture
def archive() -> Iterator[tuple[Archive, str]]:
    from pynetdicom import AE, evt

    kept = Archive()
    ae = AE(ae_title="RESEARCH")
    ae.require_called_aet = True
    ae.add_supported_context(MRImageStorage, ExplicitVRLittleEndian)
    handlers = [(evt.EVT_C_STORE, kept.store)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield kept, f"127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()


class Web:
    """A STOW-RS server that keeps what it gets, and answers as it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], list[bytes]]] = []
        self.answer: Callable[[int, list[bytes]], tuple[int, Any]] = lambda _, parts: (
            200,
            {"00081199": {"vr": "SQ", "Value": [{}] * len(parts)}},
        )
        self.location = ""


@pytest.fixture
def web() -> Iterator[tuple[Web, str]]:
    kept = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            message = message_from_bytes(head + body)
            parts = [part.get_payload(decode=True) for part in message.get_payload()]  # type: ignore[union-attr]
            assert all(p.get_content_type() == "application/dicom" for p in message.get_payload())  # type: ignore[union-attr]
            status, answer = kept.answer(len(kept.requests), parts)  # type: ignore[arg-type]
            kept.requests.append((self.path, dict(self.headers), parts))  # type: ignore[arg-type]
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/dicom+json; charset=utf-8")
            if kept.location:
                self.send_header("Location", kept.location)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            kept.requests.append((self.path, {}, []))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield kept, f"http://127.0.0.1:{server.server_port}/dicom-web"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def uids(parts: list[bytes]) -> set[str]:
    return {pydicom.dcmread(pydicom.filebase.DicomBytesIO(p)).SOPInstanceUID for p in parts}


def expected_uids(folder: Path) -> set[str]:
    return {pydicom.dcmread(p).SOPInstanceUID for p in folder.glob("SYN*/*.dcm")}


def test_an_archive_gets_every_file_by_c_store_once(
    batch: Path, archive: tuple[Archive, str]
) -> None:
    kept, place = archive
    target = config(f"dicom://RESEARCH@{place}")
    assert push_batch(batch, target) == 2
    sets = [pydicom.dcmread(pydicom.filebase.DicomBytesIO(d), force=True) for d in kept.got]
    assert {ds.SOPInstanceUID for ds in sets} == expected_uids(batch)
    assert all(ds.SyntheticData == "YES" for ds in sets)
    assert set(kept.callers) == {"RARESCAN"}
    assert push_batch(batch, target) == 0
    assert len(kept.got) == 2 * N


def test_an_archive_gets_the_very_bytes_by_stow(batch: Path, web: tuple[Web, str]) -> None:
    kept, url = web
    assert push_batch(batch, config(url)) == 2
    assert {path for path, _, _ in kept.requests} == {"/dicom-web/studies"}
    sent = sorted(part for _, _, parts in kept.requests for part in parts)
    assert sent == sorted(p.read_bytes() for p in batch.glob("SYN*/*.dcm"))
    assert push_batch(batch, config(url)) == 0
    assert len(kept.requests) == 2


def save_real(path: Path, batch: Path) -> None:
    """Write what a scanner would write: the same picture of a person."""
    ds = pydicom.dcmread(batch / "SYN000002" / "0001.dcm")
    del ds.SyntheticData, ds.IssuerOfPatientID
    ds.PatientName, ds.PatientID = "Mustermann^Erika", "00471199"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    ds.save_as(path)


@pytest.mark.parametrize("kind", ["no_dicom", "real", "said_no", "other_issuer"])
def test_one_file_that_is_not_synthetic_stops_everything(
    batch: Path,
    web: tuple[Web, str],
    kind: str,
) -> None:
    stranger = batch / "SYN000002" / "Mustermann.dcm"
    if kind == "no_dicom":
        stranger.write_text("not a picture")
    elif kind == "real":
        save_real(stranger, batch)
    else:
        ds = pydicom.dcmread(batch / "SYN000002" / "0001.dcm")
        ds.SyntheticData = "NO" if kind == "said_no" else "YES"
        ds.IssuerOfPatientID = "HOSPITAL"
        ds.save_as(stranger)
    with pytest.raises(InputError, match="no synthetic scan") as caught:
        push_batch(batch, config(web[1]))
    assert "Mustermann" not in str(caught.value)
    assert web[0].requests == []


def test_a_file_exchanged_after_the_first_look_is_not_sent(
    batch: Path, archive: tuple[Archive, str]
) -> None:
    kept, place = archive

    def exchange(n_got: int) -> int:
        if n_got == 0:
            save_real(batch / "SYN000001" / "0003.dcm", batch)
        return 0

    kept.answer = exchange
    with pytest.raises(InputError, match="no synthetic scan"):
        push_batch(batch, config(f"dicom://RESEARCH@{place}"))
    assert len(kept.got) == 2


def test_only_archives_of_the_settings_are_sent_to(batch: Path) -> None:
    with pytest.raises(SettingError, match="Did you mean 'research'"):
        push_batch(batch, PushConfig(to="reserch", targets=config("dicom://A@b:1").targets))
    with pytest.raises(SettingError, match=r"push\.targets"):
        push_batch(batch, PushConfig(to="https://elsewhere.example"))
    for address in ("ftp://x", "dicom://host:104", "dicom://A@host", "https://", "dicom://A@h:x"):
        with pytest.raises(SettingError, match="no address"):
            push_batch(batch, config(address))


def test_a_batch_that_is_not_for_release_stays_inside(
    tmp_path: Path, archive: tuple[Archive, str]
) -> None:
    kept, place = archive
    folder, address = make_folder(tmp_path / "d", "inside_controller"), f"dicom://RESEARCH@{place}"
    with pytest.raises(GateRefusedError, match="'research' is outside"):
        push_batch(folder, config(address))
    assert kept.got == []
    assert push_batch(folder, config(address, inside=True)) == 2


def test_a_push_that_breaks_off_goes_on_with_what_is_missing(
    batch: Path, archive: tuple[Archive, str]
) -> None:
    kept, place = archive
    target = config(f"dicom://RESEARCH@{place}")
    kept.answer = lambda n_got: 0 if n_got < N + 1 else None
    with pytest.raises(UnreachableError, match="did not take a series"):
        push_batch(batch, target)
    assert len(kept.got) == N + 1
    kept.answer = lambda _: 0
    kept.got.clear()
    assert push_batch(batch, target) == 1
    assert len(kept.got) == N


def test_a_passing_trouble_is_outlasted(batch: Path, web: tuple[Web, str]) -> None:
    kept, url = web
    well = kept.answer
    kept.answer = lambda n, parts: (503, {}) if n < 2 else well(n, parts)
    assert push_batch(batch, config(url)) == 2
    assert len(kept.requests) == 4


def test_a_warning_is_a_success_and_a_failure_is_none(
    batch: Path, archive: tuple[Archive, str]
) -> None:
    kept, place = archive
    target = config(f"dicom://RESEARCH@{place}")
    kept.answer = lambda _: 0xA700
    with pytest.raises(UnreachableError, match="0xa700"):
        push_batch(batch, target)
    kept.answer = lambda _: 0xB000
    assert push_batch(batch, target) == 2


# pynetdicom leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", ["wrong title", "nobody there", "no MR"])
def test_an_archive_that_does_not_take_us_ends_with_5(
    batch: Path, archive: tuple[Archive, str], fault: str
) -> None:
    address = f"dicom://OTHER@{archive[1]}" if fault == "wrong title" else "dicom://A@127.0.0.1:9"
    if fault == "no MR":
        from pynetdicom import AE
        from pynetdicom.sop_class import CTImageStorage

        ae = AE(ae_title="A")
        ae.add_supported_context(CTImageStorage)
        server = ae.start_server(("127.0.0.1", 0), block=False)
        address = f"dicom://A@127.0.0.1:{server.socket.getsockname()[1]}"
    with pytest.raises(UnreachableError) as caught:
        push_batch(batch, config(address))
    assert caught.value.exit_code == 5
    assert not (batch / "pushed").exists()
    if fault == "no MR":
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (401, {}, InputError),
        (409, {}, InputError),
        (307, {}, InputError),
        (500, {}, UnreachableError),
        (200, b"<html>", UnreachableError),
        (200, [], UnreachableError),
        (200, {"00081199": {"Value": [{}]}}, UnreachableError),
        (202, {"00081198": {"Value": [{}]}, "00081199": {"Value": [{}] * N}}, UnreachableError),
    ],
)
def test_what_is_not_confirmed_is_not_done(
    batch: Path, web: tuple[Web, str], status: int, answer: Any, error: type[Exception]
) -> None:
    kept, url = web
    kept.answer = lambda *_: (status, answer)
    kept.location = f"{url}/elsewhere" if status == 307 else ""
    with pytest.raises(error):
        push_batch(batch, config(url))
    assert not (batch / "pushed").exists()
    assert {path for path, _, _ in kept.requests} == {"/dicom-web/studies"}


def test_name_and_password_travel_encrypted_or_stay(
    batch: Path, web: tuple[Web, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, url = web
    monkeypatch.setenv(push.CREDENTIALS_VARIABLE, "me:secret")
    with pytest.raises(SettingError, match="unencrypted"):
        push_batch(batch, config("http://pacs.example/dicom-web"))
    push_batch(batch, config(url))
    told = {headers["Authorization"] for _, headers, _ in kept.requests}
    assert told == {f"Basic {base64.b64encode(b'me:secret').decode()}"}
    assert b"secret" not in b"".join(p.read_bytes() for p in batch.rglob("*") if p.is_file())


def test_another_address_under_the_same_name_gets_everything_again(
    batch: Path, web: tuple[Web, str], archive: tuple[Archive, str]
) -> None:
    assert push_batch(batch, config(web[1])) == 2
    assert push_batch(batch, config(f"dicom://RESEARCH@{archive[1]}")) == 2


def test_the_settings_of_a_push_are_read_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "push:\n  targets:\n    research: {address: 'dicom://R@h:104', inside: true}\n"
    )
    read = load_config(tmp_path / "mine.yaml", ["push.to=research"]).push
    assert read.targets["research"] == PushTarget(address="dicom://R@h:104", inside=True)
    with pytest.raises(SettingError, match="adress"):
        load_config(None, ["push.targets={a: {adress: x}}"])
