"""Which Prefect server a command talks to.

`prefect_server` is the way in. With `PREFECT_API_URL` set it is that one; without, a server that
ends with the command (see `flows.guardian`). Either way, runs that an earlier command of this
machine left `Running` when it was killed are marked `Crashed` first.
"""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from rarescan.errors import UnreachableError
from rarescan.files import content_id
from rarescan.flows.guardian import mark_crashed

OWNER_TAG = "rarescan-owner"
_SECONDS_TO_ANSWER = 5
_SECONDS_TO_START = 120

_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_CLI_PROMPT": "false",
    # A person sees our one line; the whole log is on the server's pages.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "rarescan",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


def quiet_prefect() -> None:
    """Set Prefect's settings for this process; must come before Prefect is imported."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)


@contextmanager
def prefect_server(home: Path, *, schedules: bool = False) -> Iterator[str]:
    """Yield the address of the Prefect API to use, and set the environment for it.

    Parameters
    ----------
    home : Path
        Where Prefect keeps its database when no server is configured.
    schedules : bool
        A server of our own also plans scheduled runs.

    Raises
    ------
    UnreachableError
        A server is configured and does not answer.
    """
    quiet_prefect()
    configured = os.environ.get("PREFECT_API_URL")
    if configured:
        _require_answer(configured)
        _clear_up(configured)
        yield configured
        return
    home.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_HOME", str(home.resolve()))
    with _own_server(schedules=schedules) as api:
        os.environ["PREFECT_API_URL"] = api
        try:
            _clear_up(api)
            _limit_gpu(api)
            yield api
        finally:
            _send_what_waits()
            del os.environ["PREFECT_API_URL"]


def _send_what_waits() -> None:
    """Let Prefect send its last log lines and events while the server is still there."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=5)
    EventsWorker.drain_all(timeout=5)


def owner() -> str:
    """Return the tag that names this process on this machine, also after it has died."""
    return _owner_tag(os.getpid(), psutil.Process().create_time())


def _owner_tag(pid: int, created: float) -> str:
    return f"{_machine_tag()}:{pid}:{created:.0f}"


def _machine_tag() -> str:
    return f"{OWNER_TAG}:{content_id(socket.gethostname())[:8]}"


@contextmanager
def _own_server(*, schedules: bool) -> Iterator[str]:
    # What Prefect calls ephemeral starts quicker, without the service that plans runs.
    kind = {} if schedules else {"PREFECT__SERVER_EPHEMERAL": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "rarescan.flows.guardian", owner()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PREFECT_UI_ENABLED": "0", **kind},
        start_new_session=True,
    )
    try:
        port = process.stdout.readline().strip().decode() if process.stdout else ""
        if not port:
            raise UnreachableError(
                "Prefect's own server did not start.",
                remedy="Start one with `prefect server start` and set PREFECT_API_URL to see why.",
            )
        yield f"http://127.0.0.1:{port}/api"
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        process.wait(timeout=_SECONDS_TO_START)


def _require_answer(api: str) -> None:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=_SECONDS_TO_ANSWER):
            return
    except (urllib.error.URLError, OSError, ValueError):
        raise UnreachableError(
            "The Prefect server does not answer.",
            remedy="Start it, correct PREFECT_API_URL, or unset it to run without one.",
        ) from None


def _clear_up(api: str) -> None:
    """Mark what dead processes of this machine left running."""
    for tag in _unfinished_owners(api):
        pid, created = tag.rsplit(":", 2)[1:]
        if not _alive(int(pid), int(created)):
            mark_crashed(api, tag)


def _unfinished_owners(api: str) -> set[str]:
    body = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}}
    request = urllib.request.Request(
        f"{api}/flow_runs/filter",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        runs = json.load(answer)
    return {tag for run in runs for tag in run["tags"] if tag.startswith(f"{_machine_tag()}:")}


def _alive(pid: int, created: int) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - created) < 2
    except psutil.NoSuchProcess:
        return False


def _limit_gpu(api: str) -> None:
    """Make the limit `gpu` of a server of our own: one job at a time on the device."""
    body = {"name": "gpu", "limit": 1}
    request = urllib.request.Request(
        f"{api}/v2/concurrency_limits/",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=30):
            return
    except urllib.error.HTTPError as error:
        if error.code != 409:  # it exists already
            raise
