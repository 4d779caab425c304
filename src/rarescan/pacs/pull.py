"""From a PACS to a folder that `rarescan ingest` reads.

`pull_series` is the way in: it asks what the archive holds, day by day or person by person, and
fetches what is not there yet, one series at a time, counted against what was promised. The folder
is identifying (mode 0700):

    export/000017/000000.dcm    series that are complete: the export
    incomplete/000018/          series of which less came than was promised; nobody reads them
    pull.sqlite                 which series is which, how much was promised, how much came
    recipe.json                 there once a pull has come to its end

Everything that a peer sends is handled in a child process with limits. Repeating a pull asks
again, and fetches what is new or incomplete.
"""

import csv
import multiprocessing
import re
import resource
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from multiprocessing.connection import Connection
from os import environ
from pathlib import Path
from typing import Any

from rarescan.errors import RarescanError, SettingError, UnreachableError, disk_full
from rarescan.files import RECIPE, Recipe, write_json
from rarescan.imaging.parse import limit_this_process
from rarescan.imaging.unpack import source_id
from rarescan.pacs.address import read_address
from rarescan.pacs.manifest import Pulled, opened
from rarescan.pacs.peer import (
    CREDENTIALS,
    LARGEST_FILE,
    Inbox,
    LostError,
    Peer,
    Promise,
    Query,
    lost,
)
from rarescan.pacs.spec import PullConfig
from rarescan.processes import die_with_parent
from rarescan.progress import Progress

SCHEMA = 1
_WAITS_SECONDS = (1.0, 5.0, 20.0)
_LOST_IN_A_ROW = 3
_CHILD_MEMORY_MIB, _CHILD_CPU_SECONDS = 2048, 24 * 3600

Work = Callable[[PullConfig, str, Path, Sequence[Any]], Iterator[Any]]


def pull_series(folder: Path, config: PullConfig, *, overwrite: bool = False) -> Pulled:
    """Fetch the series that the settings describe; repeating it fetches what is missing.

    Parameters
    ----------
    folder : Path
        Made with mode 0700; `folder/export` is what `rarescan ingest` reads.
    config : PullConfig
        The archive and what is wanted of it. Credentials come from a file or the environment.
    overwrite : bool
        Empty a folder that holds series of another archive, modality or description first.

    Raises
    ------
    SettingError
        A setting is missing or ill-formed, or the archive refuses us.
    ChangedRecipeError
        The folder holds something else.
    UnreachableError
        The archive does not answer after retries; what came is kept.
    """
    queries = _queries(config)
    credentials = _credentials(config)
    temporary = folder / "incoming"
    with opened(folder, config, overwrite=overwrite) as manifest:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        child = (config, credentials, temporary)
        promised: list[Promise] = []
        _each(
            _find, child, queries, what="ask the PACS", take=lambda _, found: promised.extend(found)
        )
        waiting = manifest.add(promised)
        if waiting:
            (folder / RECIPE).unlink(missing_ok=True)
        for _ in range(2):  # a series that came incomplete is asked for once more
            _each(_fetch, child, waiting, what="fetch series", take=manifest.settle, skip=True)
            waiting = manifest.missing(waiting)
        shutil.rmtree(temporary)
        pulled = manifest.summary()
    settings = {key: getattr(config, key) for key in ("modality", "description")}
    inputs = {"export": source_id(pulled.export)}
    recipe = Recipe(step="pull", schema=SCHEMA, config=settings, inputs=inputs)
    write_json(folder / RECIPE, {"id": recipe.id, **recipe.as_dict()})
    return pulled


def _queries(config: PullConfig) -> list[Query]:
    """Return one query a person, or one a day where no persons are named."""
    first, last = _day(config.from_date, "from_date"), _day(config.to_date, "to_date")
    last = last or date.today()
    if config.persons:
        days = f"{first or date(1900, 1, 1):%Y%m%d}-{last:%Y%m%d}" if config.from_date else ""
        return [Query(days=days, keyword=k, value=v) for k, v in _persons(Path(config.persons))]
    if first is None or first > last:
        raise SettingError(
            "The settings do not say which studies to fetch.",
            remedy="Set pull.from_date (and pull.to_date), or pull.persons.",
        )
    days_ = [first + timedelta(days=k) for k in range((last - first).days + 1)]
    return [Query(days=f"{day:%Y%m%d}") for day in days_]


def _day(given: str, key: str) -> date | None:
    try:
        return date.fromisoformat(given) if given else None
    except ValueError:
        raise SettingError(
            f"pull.{key} is no date.", remedy="Write it as YYYY-MM-DD, as 2019-06-11."
        ) from None


def _persons(path: Path) -> list[tuple[Any, str]]:
    """Return keyword and value of each row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error):
        raise SettingError(
            "The file of pull.persons is missing or no CSV in UTF-8.", remedy="Correct its path."
        ) from None
    found: dict[tuple[str, str], None] = {}
    for line, row in enumerate(rows, start=2):
        patient, accession = ((row.get(key) or "").strip() for key in ("patient_id", "accession"))
        keyword, value = ("PatientID", patient) if patient else ("AccessionNumber", accession)
        if not value or re.search(r"[*?\\\x00-\x1f]", value):
            raise SettingError(
                f"Line {line} of pull.persons has no usable patient_id or accession.",
                remedy="Fill one of the two columns; `*`, `?` and `\\` would match others.",
            )
        found[keyword, value] = None
    return list(found)


def _credentials(config: PullConfig) -> str:
    if not config.credentials_file:
        return environ.get(CREDENTIALS, "").strip()
    path = Path(config.credentials_file).expanduser()
    try:
        mode, content = path.stat().st_mode, path.read_text()
    except (OSError, UnicodeDecodeError):
        raise SettingError(
            "The file of pull.credentials_file is missing.", remedy="Correct its path."
        ) from None
    if mode & 0o077:
        raise SettingError(
            "Other users can read the file of pull.credentials_file.",
            remedy=f"Run `chmod 600 {path}`.",
        )
    return content.strip()


def _each(
    work: Work,
    child: tuple[PullConfig, str, Path],
    items: Sequence[Any],
    *,
    what: str,
    take: Callable[[Any, Any], None],
    skip: bool = False,
) -> None:
    """Hand each item's result to `take`; after a lost connection wait and go on with the rest.

    With `skip` an item at which a peer that answers fails again and again is given up (None).
    """
    left = deque(items)
    tries = given_up = 0
    with Progress(what, len(items)) as progress:
        while left:
            try:
                for result in _in_child(work, *child, list(left)):
                    take(left.popleft(), result)
                    progress.advance()
                    tries = given_up = 0
            except UnreachableError as error:
                tries += 1
                if tries <= len(_WAITS_SECONDS):
                    time.sleep(_WAITS_SECONDS[tries - 1])
                    continue
                given_up += 1
                if not skip or not isinstance(error, LostError) or given_up == _LOST_IN_A_ROW:
                    raise UnreachableError(error.problem, remedy=error.remedy) from None
                take(left.popleft(), None)
                progress.advance()
                tries = 0


def _in_child(work: Work, *arguments: Any) -> Iterator[Any]:
    """Yield what `work` yields in a child process with limits, and raise what it raises."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, work, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            kind, value = receiver.recv()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    except EOFError:
        raise lost("the receiving process ran out of its limits") from None
    finally:
        process.terminate()
        process.join()
        receiver.close()


def _child(sender: Connection, work: Work, arguments: Sequence[Any]) -> None:
    """Run `work` and send what it yields."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_this_process(_CHILD_MEMORY_MIB, cpu_seconds=_CHILD_CPU_SECONDS, writes=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * LARGEST_FILE, 2 * LARGEST_FILE))
    try:
        for result in work(*arguments):
            sender.send(("value", result))
        sender.send(("end", None))
    except RarescanError as error:
        sender.send(("error", error))
    except OSError as error:
        sender.send(("error", disk_full(error) or lost(type(error).__name__)))
    except Exception as error:
        # A peer's bytes may make the libraries raise anything; its text is not repeated.
        sender.send(("error", lost(type(error).__name__)))


def _find(
    config: PullConfig, credentials: str, temporary: Path, queries: Sequence[Query]
) -> Iterator[list[Promise]]:
    with _peer(config, credentials, temporary) as peer:
        for query in queries:
            yield peer.find(query)


def _fetch(
    config: PullConfig,
    credentials: str,
    temporary: Path,
    series: Sequence[tuple[int, Promise]],
) -> Iterator[int]:
    study = None
    with _peer(config, credentials, temporary) as peer:
        for number, promise in series:
            if study not in (None, promise.study_uid):
                time.sleep(config.pause_seconds)
            study = promise.study_uid
            folder = temporary / f"{number:06d}"
            shutil.rmtree(folder, ignore_errors=True)
            inbox = Inbox(folder, promise)
            peer.fetch(promise, inbox)
            yield len(inbox)


def _peer(config: PullConfig, credentials: str, temporary: Path) -> Peer:
    """Return the archive at an address, not yet connected."""
    if read_address(config.address, "pull.address").web:
        from rarescan.pacs.dicomweb import Web

        return Web(config, credentials, temporary)
    from rarescan.pacs.dimse import Dimse

    return Dimse(config, temporary)
