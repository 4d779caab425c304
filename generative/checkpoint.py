"""Checkpoints of a training run: exact, written whole, checksummed, loaded without pickle's code.

`save` and `newest` are the ways in. A checkpoint is valid when the SHA-256 beside it matches, so
a torn or damaged one is passed over and the one before it is used.
"""

import io
import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from rarescan.files import sha256_file, write_atomic

_SCHEMA = 1
_KEPT = 2
_log = logging.getLogger("rarescan")


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after a step (tensors and plain values), and keep the last two."""
    path = folder / f"step-{step:08d}.pt"
    # In memory first: torch has no error of its own for a full disk.
    buffer = io.BytesIO()
    torch.save({"schema": _SCHEMA, "step": step, **state}, buffer)
    write_atomic(path, buffer.getbuffer())
    write_atomic(_seal(path), sha256_file(path))
    for old in _newest_first(folder)[_KEPT:]:
        old.unlink()
        _seal(old).unlink(missing_ok=True)


def newest(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest valid checkpoint on the CPU, or None without one."""
    for path in _newest_first(folder):
        state = _read(path) if _is_whole(path) else None
        if state is not None and state["schema"] == _SCHEMA:
            return state
        _log.warning("checkpoint %s cannot be used; the one before it is used", path.name)
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint's state, or None where it holds more than tensors and plain values."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        return None
    return state


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)


def _is_whole(path: Path) -> bool:
    seal = _seal(path)
    return seal.exists() and seal.read_text() == sha256_file(path)


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")
