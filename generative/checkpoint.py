"""Checkpoints of a training run: exact, written whole, checksummed, loaded without pickle's code.

`Store` is the way in: a folder, and, where a URL is given, a copy of it elsewhere (any protocol of
fsspec), so that a machine that is taken away takes no work with it. A checkpoint is valid when the
SHA-256 beside it matches, so a torn or damaged one is passed over and the one before it is used.
One of another training (other persons, settings or seed) is an error, never a start.

`step-*.pt` (every so many steps) and `pause-*.pt` (when a clock or a signal asked) are everything
that a run needs to go on; `averaged-*.pt` are the averaged weights alone, at log-spaced steps, to
which a run returns that has begun to copy persons.
"""

import io
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import torch

from rarescan.errors import InputError, MissingExtraError, SettingError, UnreachableError
from rarescan.files import atomic_path, sha256_file, write_atomic

_SCHEMA = 2
_KEPT = 2
_STEP, _PAUSE, _AVERAGED = "step", "pause", "averaged"
_log = logging.getLogger("rarescan")


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where one training keeps its checkpoints.

    Attributes
    ----------
    folder : Path
        On this machine.
    training : str
        The id of the training; a checkpoint that has another is refused.
    url : str
        Where copies go, below a folder named after the training; none without.
    """

    folder: Path
    training: str
    url: str = ""

    def tidy(self) -> None:
        """Remove what was half written when a process was killed."""
        for torn in self.folder.glob(".*.tmp*"):
            torn.unlink(missing_ok=True)

    def save(self, step: int, state: dict[str, Any], *, scheduled: bool = True) -> None:
        """Write the state after a step (tensors and plain values); keep the last two of a kind.

        What a clock or a signal asked for is not `scheduled`: a run goes on from it, but never
        returns to it after a divergence, so that no result depends on a clock.
        """
        kind = _STEP if scheduled else _PAUSE
        self._write(_name(kind, step), {"step": step, **state})
        for old in self._steps(kind)[_KEPT:]:
            self._remove(_name(kind, old))

    def save_averaged(self, step: int, weights: dict[str, torch.Tensor]) -> None:
        """Write the averaged weights after a step; all of these are kept."""
        self._write(_name(_AVERAGED, step), {"weights": weights})

    def newest(self, *, scheduled: bool = False) -> dict[str, Any] | None:
        """Return the newest valid state, here or at the URL, on the CPU; None without one.

        Raises
        ------
        InputError
            It belongs to another training.
        UnreachableError
            The URL did not answer.
        """
        kinds = (_STEP,) if scheduled else (_STEP, _PAUSE)
        names = {path.name for path in self.folder.glob("*.pt")}
        names |= self._copy.names() if self._copy else set()
        found = [(_step_of(n), n) for n in names if n.startswith(kinds)]
        for _, name in sorted(found, reverse=True):
            state = self._read(name)
            if state is not None:
                return state
            _log.warning("checkpoint %s cannot be used; the one before it is used", name)
        return None

    def averaged(self, step: int) -> dict[str, torch.Tensor] | None:
        """Return the averaged weights after a step; None where they are lost or damaged."""
        state = self._read(_name(_AVERAGED, step))
        return None if state is None else state["weights"]

    def leave(self, name: str, state: dict[str, Any]) -> None:
        """Write something for another process of the same training."""
        self._write(f"{name}.pt", state)

    def take(self, name: str) -> dict[str, Any]:
        """Return what was left under a name."""
        state = self._read(f"{name}.pt")
        if state is None:
            raise InputError(
                f"What the training left ({name}) is missing or damaged.",
                remedy="Check the disk, then repeat the command: it continues.",
            )
        return state

    @cached_property
    def _copy(self) -> "_Copy | None":
        return _Copy.open(self.url, self.training) if self.url else None

    def _write(self, name: str, state: dict[str, Any]) -> None:
        path = self.folder / name
        # In memory first: torch has no error of its own for a full disk.
        buffer = io.BytesIO()
        torch.save({"schema": _SCHEMA, "training": self.training, **state}, buffer)
        write_atomic(path, buffer.getbuffer())
        write_atomic(_seal(path), sha256_file(path))
        if self._copy is not None:
            self._copy.send(path)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        if not _is_whole(path) and self._copy is not None:
            self._copy.fetch(path)
        state = _load(path) if _is_whole(path) else None
        if state is not None and state["training"] != self.training:
            raise InputError(
                f"The checkpoint {name} belongs to another training: other persons, settings or "
                "seed.",
                remedy="Move it away, or train into another folder.",
            )
        return state

    def _steps(self, kind: str) -> list[int]:
        """Return the steps of the checkpoints on this machine, newest first."""
        return sorted((_step_of(p.name) for p in self.folder.glob(f"{kind}-*.pt")), reverse=True)

    def _remove(self, name: str) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        _seal(path).unlink(missing_ok=True)
        if self._copy is not None:
            self._copy.remove(path)


@dataclass(frozen=True)
class _Copy:
    """The copies at a URL. What goes wrong after the start is said and never ends a training."""

    files: Any
    root: str

    @classmethod
    def open(cls, url: str, training: str) -> "_Copy":
        protocol = url.split("://")[0]
        try:
            files, root = fsspec.core.url_to_fs(f"{url.rstrip('/')}/{training}")
        except ImportError as error:
            raise MissingExtraError(
                f"Checkpoints at {protocol}:// need a package: {error}",
                remedy="Install it (s3:// needs s3fs, gs:// gcsfs, az:// adlfs), or use file://.",
            ) from None
        except ValueError:
            raise SettingError(
                f"checkpoints: nothing is known of {protocol}://.",
                remedy="Use a URL of fsspec, for example s3://bucket/folder or file:///folder.",
            ) from None
        copy = cls(files, root)
        with _reaching(protocol):
            files.makedirs(root, exist_ok=True)
            copy.names()
        return copy

    def names(self) -> set[str]:
        """Return the names of the sealed checkpoints there."""
        self.files.invalidate_cache()
        names = {path.rsplit("/", 1)[-1] for path in self.files.ls(self.root, detail=False)}
        return {n for n in names if n.endswith(".pt") and f"{n[:-3]}.sha256" in names}

    def send(self, path: Path) -> None:
        """Copy a checkpoint, its seal last; a copy that fails is tried again with the next."""
        try:
            for one in (path, _seal(path)):
                self.files.put_file(str(one), f"{self.root}/{one.name}")
        except Exception as error:  # every protocol has errors of its own
            _log.warning("%s was not copied (%s); it is kept here", path.name, type(error).__name__)

    def fetch(self, path: Path) -> None:
        """Bring a checkpoint here; whether it is whole is for the caller to see."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            for one in (path, _seal(path)):
                with atomic_path(one) as temporary:
                    self.files.get_file(f"{self.root}/{one.name}", str(temporary))
        except Exception as error:  # every protocol has errors of its own
            _log.warning("%s was not fetched (%s)", path.name, type(error).__name__)

    def remove(self, path: Path) -> None:
        """Remove a copy that is not needed any more."""
        for one in (path, _seal(path)):
            try:
                self.files.rm_file(f"{self.root}/{one.name}")
            except Exception as error:  # every protocol has errors of its own
                _log.debug("%s was not removed (%s)", one.name, type(error).__name__)


@contextmanager
def _reaching(protocol: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # every protocol has errors of its own
        raise UnreachableError(
            f"The place for checkpoints ({protocol}://) cannot be used ({type(error).__name__}).",
            remedy="Check the address, the credentials and the network, then repeat the command.",
        ) from error


def _load(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint, or None where it holds more than tensors and plain values."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        return None
    ours = isinstance(state, dict) and {"schema", "training"} <= state.keys()
    return state if ours and state["schema"] == _SCHEMA else None


def _name(kind: str, step: int) -> str:
    return f"{kind}-{step:08d}.pt"


def _step_of(name: str) -> int:
    digits = name.split("-")[-1].removesuffix(".pt")
    return int(digits) if digits.isdigit() else -1


def _is_whole(path: Path) -> bool:
    seal = _seal(path)
    return path.exists() and seal.exists() and seal.read_text() == sha256_file(path)


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")
