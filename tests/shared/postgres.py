"""A PostgreSQL server of one's own for as long as a test needs it: no password, one socket."""

import asyncio
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.util import greenlet_spawn

PLACES = [os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
OWNER = "rarescan"


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the address of a fresh server, or skip with the reason."""
    programs = {
        name: shutil.which(name, path=os.pathsep.join(PLACES)) for name in ("initdb", "postgres")
    }
    driver = next((d for d in ("psycopg", "asyncpg") if importlib.util.find_spec(d)), None)
    if not all(programs.values()):
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    if driver is None:
        pytest.skip("no driver for PostgreSQL is installed (pip install 'rarescan[service]')")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    # The server refuses to run as root.
    who = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    if who:
        shutil.chown(folder, "nobody")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    make = [programs["initdb"], "-D", folder / "data", "-U", OWNER, "-A", "trust", "--no-sync"]
    subprocess.run(make, check=True, **who, **quiet)
    start = [programs["postgres"], "-D", folder / "data", "-k", folder, "-F"]
    server = subprocess.Popen([*start, "-c", "listen_addresses="], **who, **quiet)
    try:
        for _ in range(200):
            if (folder / ".s.PGSQL.5432").exists():
                break
            time.sleep(0.1)
        yield f"postgresql+{driver}://{OWNER}@/postgres?host={folder}"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


def run(url: str, work: Callable[[], object]) -> None:
    """Do what talks to the database; asyncpg, which comes with Prefect, needs a loop around it."""
    if "+asyncpg" in url:
        asyncio.run(greenlet_spawn(work))
    else:
        work()
