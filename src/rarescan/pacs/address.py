"""Where an archive is, and how we show who we are: one spelling for pull and push.

`read_address` is the way in: `https://host/dicom-web` speaks DICOMweb, `dicom://AE_TITLE@host:port`
DICOM's own protocol. Names and passwords travel encrypted only, and to nobody else.
"""

import base64
import ipaddress
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rarescan.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Address:
    """An archive's address, taken apart."""

    web: str = ""
    """Root of its DICOMweb services, without a slash at its end; empty: it speaks DIMSE."""
    host: str = ""
    port: int = 0
    ae_title: str = ""


def read_address(text: str, key: str) -> Address:
    """Take an address apart.

    Parameters
    ----------
    text : str
        What the settings hold.
    key : str
        Under which key, for the message.

    Raises
    ------
    SettingError
        It is no address of an archive.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme in ("http", "https") and parts.hostname:
        return Address(web=text.rstrip("/"))
    title = parts.netloc.rpartition("@")[0]
    if parts.scheme == "dicom" and title and parts.hostname and port:
        return Address(host=parts.hostname, port=port, ae_title=title)
    raise SettingError(
        f"{key} is no address of a PACS.",
        remedy="Write https://host/dicom-web or dicom://AE_TITLE@host:port.",
    )


def authorization(address: str, credentials: str) -> dict[str, str]:
    """Return the header that carries `name:password` or `Bearer ...`, which travels encrypted.

    Raises
    ------
    SettingError
        The address is neither https nor on this machine.
    """
    if not credentials:
        return {}
    parts = urlsplit(address)
    if parts.scheme != "https" and not _on_this_machine(parts.hostname or ""):
        raise SettingError(
            "Name and password would travel unencrypted.", remedy="Use an https address."
        )
    if credentials.startswith("Bearer "):
        return {"Authorization": credentials}
    return {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}


def _on_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """An archive may not hand us, and our password, on to another address."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse."""
