"""A PACS that speaks DICOM's own protocol: C-FIND to ask, C-GET or C-MOVE to retrieve.

`Dimse` is the way in; it runs in a child process of its own, because it changes settings of
pynetdicom that hold for the whole process. For C-MOVE the archive connects to our receiver, which
listens for the length of the `with` block and takes files from that archive only.
"""

import logging
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    BreastTomosynthesisImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    MRSpectroscopyStorage,
    RawDataStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from rarescan.errors import MissingExtraError, SettingError, UnreachableError
from rarescan.pacs.address import read_address
from rarescan.pacs.peer import Inbox, Level, Peer, Promise, lost
from rarescan.pacs.spec import PullConfig

try:
    from pynetdicom import AE, AllStoragePresentationContexts, _config, build_context, evt
    from pynetdicom.presentation import build_role
    from pynetdicom.transport import AssociationSocket
except ImportError:
    raise MissingExtraError(
        "pynetdicom is not installed.", remedy="Run `pip install 'rarescan[dicom-net]'`."
    ) from None

Find, Get, Move = (UID(f"1.2.840.10008.5.1.4.1.2.2.{kind}") for kind in (1, 3, 2))
"""The Study Root information models of PS3.4 annex C."""
_SECONDS_TO_CONNECT, _SECONDS_TO_ANSWER = 10, 60
_LARGEST_PDU, _LARGEST_MESSAGE = 16382, 1 << 20
_receive_any = AssociationSocket.recv
_PENDING, _DONE, _NO_SUCH_DESTINATION = (0xFF00, 0xFF01), 0x0000, 0xA801
_STORED, _NOT_WELCOME = 0x0000, 0xA700
_PLAIN: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_PACKED: list[str | UID] = [
    uid for uid in AllTransferSyntaxes if uid.is_compressed and not uid.is_deflated
]
_AS_STORED = [*([how] for how in _PLAIN), _PACKED]
"""Proposed one by one, so that the archive need not encode what it holds anew."""
# With C-GET we propose what may come; a series may hold more than images of its modality.
_TAKEN = (
    BreastTomosynthesisImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    EnhancedMRImageStorage,
    MRImageStorage,
    MRSpectroscopyStorage,
    RawDataStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)
_REJECTED_FOR_GOOD = 1


class Dimse(Peer):
    """An archive at `dicom://AE_TITLE@host:port`."""

    def __init__(self, config: PullConfig, temporary: Path) -> None:
        super().__init__(config)
        address = read_address(config.address, "pull.address")
        self._place, self._title = (address.host, address.port), address.ae_title
        self._inbox: Inbox | None = None
        self._association: Any = None
        self._receiver: Any = None
        _quiet_and_chunked(temporary)

    def __enter__(self) -> Self:
        """Connect, and open the receiver that C-MOVE needs."""
        if self.config.retrieve == "move":
            self._receiver = self._listen()
        self._connected()
        return self

    def __exit__(self, *error: object) -> None:
        """Hang up; in the middle of an answer without waiting for its end."""
        if self._association is not None and self._association.is_established:
            if error[0] is None:
                self._association.release()
            else:
                self._association.abort()
        if self._receiver is not None:
            self._receiver.shutdown()

    def _entity(self) -> AE:
        entity = AE(ae_title=self.config.own_ae_title)
        entity.maximum_pdu_size = _LARGEST_PDU
        entity.connection_timeout = _SECONDS_TO_CONNECT
        entity.acse_timeout = _SECONDS_TO_CONNECT
        entity.dimse_timeout = entity.network_timeout = _SECONDS_TO_ANSWER
        return entity

    def _listen(self) -> Any:
        entity = self._entity()
        entity.require_called_aet = True
        entity.require_calling_aet = [self._title]
        entity.supported_contexts = AllStoragePresentationContexts
        for context in entity.supported_contexts:
            context.transfer_syntax = [*_PLAIN, *_PACKED]
        place = (self.config.receive_host, self.config.receive_port)
        try:
            return entity.start_server(
                place, block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
            )
        except OSError:
            raise SettingError(
                f"Nothing can be received at {place[0]}:{place[1]}.",
                remedy="Set pull.receive_host to an address of this machine and "
                "pull.receive_port to a free port.",
            ) from None

    def _connected(self) -> Any:
        """Return the association, made again where it was lost."""
        if self._association is not None and self._association.is_established:
            return self._association
        entity = self._entity()
        entity.add_requested_context(Find)
        entity.add_requested_context(Get if self.config.retrieve == "get" else Move)
        roles: list[Any] = []
        if self.config.retrieve == "get":
            roles = [build_role(uid, scp_role=True) for uid in _TAKEN]
            proposed = [build_context(uid, how) for uid in _TAKEN for how in _AS_STORED]
            entity.requested_contexts = [*entity.requested_contexts, *proposed]
        host, port = self._place
        self._association = entity.associate(
            host,
            port,
            ae_title=self._title,
            ext_neg=roles,
            evt_handlers=[(evt.EVT_C_STORE, self._store)],
        )
        if not self._association.is_established:
            raise self._not_connected()
        return self._association

    def _not_connected(self) -> Exception:
        answer = self._association.acceptor.primitive
        if self._association.is_rejected and answer.result == _REJECTED_FOR_GOOD:
            return SettingError(
                "The PACS rejects us.",
                remedy="Check the AE title in pull.address, and ask its administrator to enter "
                f"'{self.config.own_ae_title}' (pull.own_ae_title).",
            )
        return UnreachableError(
            "The PACS does not answer.",
            remedy="Check pull.address and the network; then repeat the command.",
        )

    def rows(self, level: Level, keys: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """Yield the matches of one C-FIND."""
        question = _identifier(level, keys)
        for status, found in self._answers("send_c_find", question, Find):
            if status == _DONE:
                return
            if status not in _PENDING or found is None:
                raise lost(_shown(status))
            yield {key: _text(found, key) for key in keys}

    def fetch(self, promise: Promise, inbox: Inbox) -> None:
        """Retrieve one series; how much of it came is for the inbox to say."""
        self._inbox = inbox
        keys = {"StudyInstanceUID": promise.study_uid, "SeriesInstanceUID": promise.series_uid}
        question = _identifier("SERIES", keys)
        if self.config.retrieve == "get":
            answers = self._answers("send_c_get", question, Get)
        else:
            answers = self._answers("send_c_move", question, self.config.own_ae_title, Move)
        for status, _ in answers:
            if status == _NO_SUCH_DESTINATION:
                raise SettingError(
                    f"The PACS does not know where '{self.config.own_ae_title}' is.",
                    remedy="Ask its administrator to enter our AE title with the address of this "
                    "machine and pull.receive_port.",
                )
            if status is None:
                raise lost(_shown(status))

    def _answers(self, ask: str, *question: Any) -> Iterator[tuple[int | None, Dataset | None]]:
        """Yield status and match of each response; the status of a lost connection is None."""
        try:
            answers = getattr(self._connected(), ask)(*question)
        except ValueError:
            raise SettingError(
                f"The PACS does not allow {ask[5:].replace('_', '-').upper()}.",
                remedy="Ask its administrator for the right, or change pull.retrieve.",
            ) from None
        for status, found in answers:
            yield getattr(status, "Status", None), found

    def _store(self, event: Any) -> int:
        """Take a file that the archive sends, under our own name."""
        path, inbox = Path(event.dataset_path), self._inbox
        if inbox is None:
            path.unlink()
            return _NOT_WELCOME
        return _STORED if inbox.take(path) else _NOT_WELCOME


def _quiet_and_chunked(temporary: Path) -> None:
    """Let this process stream what it receives to `temporary`, and log no word of a peer."""
    _config.STORE_RECV_CHUNKED_DATASET = True
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    tempfile.tempdir = str(temporary)
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # A hostile message may end a thread of pynetdicom; its traceback would show the message.
    threading.excepthook = lambda _: None
    AssociationSocket.recv = _receive  # type: ignore[method-assign, assignment]
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def _receive(connection: AssociationSocket, n_bytes: int) -> bytearray:
    """Read one message; pynetdicom would collect the 4 GiB that a header may claim."""
    if n_bytes > _LARGEST_MESSAGE:
        raise ConnectionError("message too large")
    return _receive_any(connection, n_bytes)


def _identifier(level: Level, keys: Mapping[str, str]) -> Dataset:
    question = Dataset()
    question.QueryRetrieveLevel = level
    for key, value in keys.items():
        setattr(question, key, value)
    return question


def _text(found: Dataset, key: str) -> str:
    value = found.get(key)
    return "" if value is None else str(value).strip(" \0")


def _shown(status: int | None) -> str:
    return "no status" if status is None else f"status {status:#06x}"
