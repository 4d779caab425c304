import hashlib
import hmac
from base64 import b32encode
from datetime import date
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarescan.errors import InputError, SettingError
from rarescan.imaging import identity

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
keys = st.binary(min_size=32, max_size=32)


def test_a_pseudonym_is_the_keyed_hash_of_issuer_and_number() -> None:
    digest = hmac.new(KEY, b"pid\x1fclinic\x1f00471199", hashlib.sha256).digest()
    assert identity.person_id(KEY, "Clinic ", " 00471199") == "RS" + b32encode(digest).decode()[:13]


def test_leading_zeros_and_issuers_tell_persons_apart_and_case_does_not() -> None:
    person = identity.person_id(KEY, None, "00a7")
    assert person == identity.person_id(KEY, "", "00A7")
    others = [("", "0a7"), ("x", "00a7")]
    assert person not in [identity.person_id(KEY, issuer, number) for issuer, number in others]


def test_another_key_gives_disjoint_pseudonyms() -> None:
    numbers = [f"{n:06d}" for n in range(500)]
    mine, theirs = ({identity.person_id(k, "", n) for n in numbers} for k in (KEY, OTHER))
    assert len(mine) == len(theirs) == 500
    assert not mine & theirs
    assert identity.fingerprint(KEY) != identity.fingerprint(OTHER)
    assert KEY.hex()[:8] not in identity.fingerprint(KEY)


@given(key=keys, raw=st.text(max_size=70))
def test_uids_are_valid_version_8_and_repeatable(key: bytes, raw: str) -> None:
    found = identity.uid(key, raw)
    assert found == identity.uid(key, raw)
    assert len(found) <= 44
    assert found.startswith("2.25.")
    number = UUID(int=int(found[5:]))
    assert (number.version, number.variant) == (8, "specified in RFC 4122")


@given(key=keys, days=st.lists(st.dates(date(1990, 1, 1), date(2024, 12, 31)), min_size=2))
def test_shifted_dates_keep_intervals_and_go_back_a_century(key: bytes, days: list[date]) -> None:
    shifted = [date.fromisoformat(identity.shifted(key, "RSX", d.isoformat())) for d in days]
    assert [b - a for a, b in pairwise(shifted)] == [b - a for a, b in pairwise(days)]
    assert 36525 <= (days[0] - shifted[0]).days < 36525 + 3650


@pytest.mark.parametrize(
    ("birth", "taken", "declared", "expected"),
    [
        ("1955-03-20", "2019-03-19", 12.0, 63),
        ("1955-03-20", "2019-03-21", None, 64),
        ("1925-01-01", "2019-03-21", None, 90),
        ("2020-01-01", "2019-03-21", 63.4, 63),
        (None, "2019-03-21", 63.4, 63),
        ("1955-03-20", None, None, None),
    ],
)
def test_ages_are_whole_years_capped_at_90(
    birth: str | None, taken: str | None, declared: float | None, expected: float | None
) -> None:
    assert identity.shown_age(identity.age(birth, taken, declared)) == expected


def test_a_new_key_is_private_random_and_never_replaced(tmp_path: Path) -> None:
    path = identity.new_key(tmp_path / "deep/er/my.key")
    assert path.stat().st_mode & 0o777 == 0o600
    key = identity.read_key(str(path))
    assert key != identity.read_key(str(identity.new_key(tmp_path / "other.key")))
    with pytest.raises(InputError, match="already"):
        identity.new_key(path)
    assert identity.read_key(str(path)) == key


def test_the_key_comes_from_file_then_environment_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RARESCAN_KEY", raising=False)
    with pytest.raises(SettingError, match="rarescan key new"):
        identity.read_key()
    assert identity.new_key() == tmp_path / ".config/rarescan/pseudonym.key"
    at_home = identity.read_key()
    monkeypatch.setenv("RARESCAN_KEY", KEY.hex())
    assert identity.read_key() == KEY != at_home
    assert identity.read_key(str(tmp_path / ".config/rarescan/pseudonym.key")) == at_home


@pytest.mark.parametrize("content", ["", "secret", "00" * 31, "zz" * 32])
def test_an_ill_formed_or_open_key_is_refused_without_showing_it(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "k"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(SettingError) as caught:
        identity.read_key(str(path))
    assert not content or content not in str(caught.value)
    path.write_text(KEY.hex())
    path.chmod(0o640)
    with pytest.raises(SettingError, match="chmod 600"):
        identity.read_key(str(path))
