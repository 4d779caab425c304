"""Keyed pseudonyms, shifted dates, capped ages.

Everything here is HMAC-SHA256 with a key that lies outside every cohort: H(label, x) =
HMAC(key, label 1F x). A plain hash would be reversed by trying all hospital numbers; the key is
what protects. The same key gives the same pseudonyms in a later export, another key disjoint ones.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
import unicodedata
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path

from rarescan.errors import InputError, SettingError

DEFAULT_KEY = Path("~/.config/rarescan/pseudonym.key")
KEY_VARIABLE = "RARESCAN_KEY"
OLDEST_AGE = 90
_SEPARATOR = "\x1f"
_MAKE_ONE = "Run `rarescan key new`, or name the file as key_file."


def read_key(key_file: str = "") -> bytes:
    """Return the 32 bytes of the pseudonym key.

    Parameters
    ----------
    key_file : str
        File with 64 hexadecimal digits. Empty: the environment variable RARESCAN_KEY, else
        ~/.config/rarescan/pseudonym.key.

    Raises
    ------
    SettingError
        There is no key, it is ill-formed, or other users of the machine can read its file.
    """
    given = os.environ.get(KEY_VARIABLE, "")
    if given and not key_file:
        return _decode(given, f"The environment variable {KEY_VARIABLE}")
    path = Path(key_file or DEFAULT_KEY).expanduser()
    try:
        mode, content = path.stat().st_mode, path.read_text()
    except (OSError, UnicodeDecodeError):
        raise SettingError(f"There is no pseudonym key at {path}.", remedy=_MAKE_ONE) from None
    if mode & 0o077:
        raise SettingError(
            f"Other users can read the pseudonym key {path}.", remedy=f"Run `chmod 600 {path}`."
        )
    return _decode(content, str(path))


def _decode(content: str, where: str) -> bytes:
    try:
        key = bytes.fromhex(content.strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise SettingError(f"{where} does not hold 64 hexadecimal digits.", remedy=_MAKE_ONE)
    return key


def new_key(path: Path | None = None) -> Path:
    """Write a new random key (mode 0600) and return where; ~/.config/rarescan by default.

    Raises
    ------
    InputError
        There is a file already: a lost key cannot be made again, so it is never replaced.
    """
    path = (path or DEFAULT_KEY).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InputError(
            f"{path} is there already, and pseudonyms may depend on it.",
            remedy="Use it, or name another file.",
        ) from None
    with os.fdopen(handle, "w") as stream:
        stream.write(secrets.token_hex(32) + "\n")
    return path


def _keyed(key: bytes, label: str, text: str) -> bytes:
    return hmac.new(key, f"{label}{_SEPARATOR}{text}".encode(), hashlib.sha256).digest()


def fingerprint(key: bytes) -> str:
    """Return 16 hexadecimal digits that tell keys apart and tell nothing about them."""
    return _keyed(key, "fingerprint", "").hex()[:16]


def normalise(text: str | None) -> str:
    """Return a text as it is compared: NFKC, case folded, trimmed; leading zeros stay."""
    return unicodedata.normalize("NFKC", text or "").strip().casefold()


def name_words(name: str | None) -> frozenset[str]:
    """Return the words of a person's name as they are compared: letters only, any order.

    Accents, case, titles and initials do not count; of several writings the first does. A name
    that stands for none (`anonymous`) has no words.
    """
    written = (name or "").partition("=")[0]
    with suppress(UnicodeError):
        # Many scanners write UTF-8 and do not say so.
        written = written.encode("latin-1").decode("utf-8")
    plain = "".join(c for c in unicodedata.normalize("NFKD", written.casefold()) if c.isascii())
    words = frozenset(word for word in re.split("[^a-z]+", plain) if len(word) > 1) - _TITLES
    return frozenset() if words & _NO_NAME else words


_TITLES = {"dr", "prof", "mr", "mrs", "ms", "med"}
_NO_NAME = {"anon", "anonym", "anonymous", "anonymized", "unknown", "noname", "nobody", "patient"}


def token(key: bytes, label: str, text: str, length: int = 13) -> str:
    """Return letters and digits that stand for a text of one kind (5 bits each)."""
    return base64.b32encode(_keyed(key, label, text)).decode()[:length]


def person_id(key: bytes, issuer: str | None, patient_id: str | None) -> str:
    """Return the pseudonym of a person: "RS" and 13 letters or digits (65 bits)."""
    return "RS" + token(key, "pid", f"{normalise(issuer)}{_SEPARATOR}{normalise(patient_id)}")


def uid(key: bytes, raw: str) -> str:
    """Return the UID that stands for another: "2.25." and a version 8 UUID, <= 44 characters."""
    number = int.from_bytes(_keyed(key, "uid", raw)[:16], "big")
    number = number & ~(0xF << 76) | (0x8 << 76)
    number = number & ~(0x3 << 62) | (0x2 << 62)
    return f"2.25.{number}"


def date_shift_days(key: bytes, person: str) -> int:
    """Return by how many days all dates of a person go back: a century and up to ten years."""
    return 36525 + int.from_bytes(_keyed(key, "shift", person)[:8], "big") % 3650


def shifted(key: bytes, person: str, day: str) -> str:
    """Return a date (YYYY-MM-DD) shifted; intervals between dates of one person are kept."""
    return (date.fromisoformat(day) - timedelta(date_shift_days(key, person))).isoformat()


def age(birth: str | None, taken: str | None, declared: float | None = None) -> float | None:
    """Return the age in years at a scan, from dates (YYYY-MM-DD) where both are sane."""
    if birth and taken:
        days = (date.fromisoformat(taken) - date.fromisoformat(birth)).days
        if 0 <= days <= 120 * 365.2425:
            return days / 365.2425
    return declared


def shown_age(years: float | None) -> float | None:
    """Return an age as it may leave: whole years, everyone from 90 on is 90."""
    return None if years is None else float(min(int(years), OLDEST_AGE))
