import logging
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from rarescan.errors import InputError, MissingExtraError, SettingError, UnreachableError
from rarescan.generative.checkpoint import Store


def store(folder: Path, **changes: Any) -> Store:
    return Store(**{"folder": folder, "training": "a1b2", "url": ""} | changes)


def state(value: int) -> dict[str, Any]:
    return {"model": {"w": torch.full((3,), float(value))}, "note": ["plain", value]}


@pytest.fixture
def url() -> Any:
    """Return a place of its own in fsspec's memory."""
    memory = fsspec.filesystem("memory")
    yield "memory://checkpoints"
    memory.rm("/checkpoints", recursive=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_state_comes_back_as_it_was(tmp_path: Path) -> None:
    assert store(tmp_path).newest() is None
    for step in (10, 20):
        store(tmp_path).save(step, state(step))
    found = store(tmp_path).newest()
    assert found is not None
    assert (found["step"], found["note"]) == (20, ["plain", 20])
    assert torch.equal(found["model"]["w"], torch.full((3,), 20.0))


def test_the_last_two_of_a_kind_are_kept_and_every_averaged_one(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        store(tmp_path).save(step, state(step))
        store(tmp_path).save(step + 5, state(step), scheduled=False)
        store(tmp_path).save_averaged(step, {"w": torch.zeros(2)})
    assert [name for name in names(tmp_path) if name.endswith(".pt")] == [
        "averaged-00000010.pt", "averaged-00000020.pt", "averaged-00000030.pt",
        "pause-00000025.pt", "pause-00000035.pt", "step-00000020.pt", "step-00000030.pt",
    ]  # fmt: skip
    assert len(names(tmp_path)) == 14


def test_what_a_kill_left_half_written_is_no_checkpoint_and_is_removed(tmp_path: Path) -> None:
    store(tmp_path).save(10, state(10))
    (tmp_path / ".step-00000020.123.tmp.pt").write_bytes(b"half")
    found = store(tmp_path).newest()
    assert found is not None
    assert found["step"] == 10
    store(tmp_path).tidy()
    assert names(tmp_path) == ["step-00000010.pt", "step-00000010.sha256"]


def test_what_a_clock_asked_for_is_no_place_to_return_to(tmp_path: Path) -> None:
    store(tmp_path).save(10, state(10))
    store(tmp_path).save(15, state(15), scheduled=False)
    newest, scheduled = store(tmp_path).newest(), store(tmp_path).newest(scheduled=True)
    assert newest is not None
    assert scheduled is not None
    assert (newest["step"], scheduled["step"]) == (15, 10)


@pytest.mark.parametrize("damage", ["cut", "no seal", "other bytes", "empty"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str, caplog: Any) -> None:
    for step in (10, 20):
        store(tmp_path).save(step, state(step))
    path = tmp_path / "step-00000020.pt"
    content = path.read_bytes()
    if damage == "no seal":
        path.with_suffix(".sha256").unlink()
    else:
        other = bytes([content[0] ^ 1]) + content[1:]
        path.write_bytes({"cut": content[:-100], "other bytes": other, "empty": b""}[damage])
    found = store(tmp_path).newest()
    assert found is not None
    assert found["step"] == 10
    assert "step-00000020.pt cannot be used" in caplog.text


class Hostile:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


@pytest.mark.parametrize("kind", ["runs code", "a list", "no torch file", "older"])
def test_a_well_sealed_one_that_is_none_of_ours_is_passed_over(tmp_path: Path, kind: str) -> None:
    store(tmp_path).save(10, state(10))
    path = tmp_path / "step-00000020.pt"
    if kind == "no torch file":
        path.write_bytes(b"PK\x03\x04 this is no archive")
    else:
        content: Any = {"model": Hostile(tmp_path / "ran"), "schema": 2, "training": "a1b2"}
        content = {"runs code": content, "a list": [1, 2], "older": {"schema": 1}}[kind]
        torch.save(content, path)
    path.with_suffix(".sha256").write_text(_sha256(path))
    found = store(tmp_path).newest()
    assert found is not None
    assert found["step"] == 10
    assert not (tmp_path / "ran").exists()


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_of_another_training_is_refused_by_name(tmp_path: Path) -> None:
    store(tmp_path, training="others").save(10, state(10))
    with pytest.raises(InputError, match=r"step-00000010.pt belongs to another training"):
        store(tmp_path).newest()


def test_a_machine_that_is_gone_takes_nothing_with_it(tmp_path: Path, url: str) -> None:
    there = store(tmp_path / "lost", url=url)
    for step in (10, 20, 30):
        there.save(step, state(step))
    there.save_averaged(16, {"w": torch.ones(2)})
    new = store(tmp_path / "new", url=url)
    found, averaged = new.newest(), new.averaged(16)
    assert found is not None
    assert found["step"] == 30
    assert averaged is not None
    assert torch.equal(averaged["w"], torch.ones(2))
    kept = fsspec.filesystem("memory").ls("/checkpoints/a1b2", detail=False)
    assert len([name for name in kept if "step-" in name]) == 4


def test_the_newer_of_both_places_is_taken(tmp_path: Path, url: str) -> None:
    store(tmp_path / "a", url=url).save(10, state(10))
    store(tmp_path / "b").save(20, state(20))
    store(tmp_path / "c").save(5, state(5))
    local, elsewhere = (store(tmp_path / name, url=url).newest() for name in ("b", "c"))
    assert local is not None
    assert elsewhere is not None
    assert (local["step"], elsewhere["step"]) == (20, 10)


def test_a_damaged_one_is_fetched_again_and_a_torn_copy_is_none(tmp_path: Path, url: str) -> None:
    there = store(tmp_path / "a", url=url)
    for step in (10, 20):
        there.save(step, state(step))
    (tmp_path / "a" / "step-00000020.pt").write_bytes(b"torn")
    found = store(tmp_path / "a", url=url).newest()
    assert found is not None
    assert found["step"] == 20
    fsspec.filesystem("memory").pipe_file("/checkpoints/a1b2/step-00000020.pt", b"torn")
    elsewhere = store(tmp_path / "b", url=url).newest()
    assert elsewhere is not None
    assert elsewhere["step"] == 10


def test_a_copy_that_fails_is_said_and_ends_nothing(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    kept = store(tmp_path, url=url)
    kept.save(10, state(10))

    def fail(*_: Any) -> None:
        raise ConnectionError("the token of P0001")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", fail)
    with caplog.at_level(logging.WARNING, "rarescan"):
        kept.save(20, state(20))
    assert "step-00000020.pt was not copied (ConnectionError)" in caplog.text
    assert "P0001" not in caplog.text
    found = store(tmp_path, url=url).newest()
    assert found is not None
    assert found["step"] == 20


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("nowhere://x", SettingError, "nothing is known of nowhere://"),
        ("file:///proc/nowhere", UnreachableError, "cannot be used"),
    ],
)
def test_a_place_that_cannot_be_used_is_named_at_the_start(
    tmp_path: Path, url: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        store(tmp_path, url=url).newest()


def test_a_protocol_whose_package_is_missing_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MissingExtraError, match="needs s3fs"):
        store(tmp_path, url="s3://bucket/x").newest()
