"""Kill an ingest at random moments, restart it each time, and compare with an undisturbed one.

    python benchmarks/kill_ingest.py [FOLDER] [--kills N] [--persons N] [--seed S]

The export is a phantom of a few persons. Printed are when each kill came and in which state it
found the working folder, and whether the cohort's bytes equal those of the undisturbed run.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

_CODE = """
import sys
from pathlib import Path
from rarescan.imaging.ingest import ingest_export
from rarescan.imaging.spec import IngestConfig
phantom, folder = map(Path, sys.argv[1:])
config = IngestConfig(labels=str(phantom / "labels.csv"), key_file=str(phantom / "pseudonym.key"))
if __name__ == "__main__":
    ingest_export(phantom / "export", folder, config, workers=2)
"""


def main() -> None:
    """Run undisturbed, run disturbed, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--persons", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    root = given.folder or Path(tempfile.mkdtemp(prefix="kill_ingest_"))
    phantom = _phantom(root, given.persons)
    undisturbed = root / "undisturbed"
    shutil.rmtree(undisturbed, ignore_errors=True)
    start = time.monotonic()
    subprocess.run(_command(root, undisturbed), check=True)
    seconds = time.monotonic() - start
    print(f"undisturbed: {seconds:.1f} s, {len(list((phantom / 'export').rglob('*')))} files")
    chance = random.Random(given.seed)
    states: Counter[str] = Counter()
    different = []
    while states.total() < given.kills:
        folder = root / f"disturbed{states.total()}"
        after = chance.uniform(0.02, 0.98) * seconds
        found = _killed(_command(root, folder), after, folder)
        if found is None:
            seconds *= 0.9  # the machine has less to do than at the beginning
        else:
            states[found] += 1
            subprocess.run(_command(root, folder), check=True)
            if _digests(folder) != _digests(undisturbed):
                different.append(folder.name)
        shutil.rmtree(folder)
    print(f"{states.total()} kills and restarts; found: {dict(states)}")
    print(f"cohorts with other bytes than the undisturbed one: {len(different)} {different}")
    sys.exit(bool(different))


def _phantom(root: Path, persons: int) -> Path:
    from rarescan.phantom.export import write_export
    from rarescan.phantom.spec import PhantomConfig

    config = PhantomConfig(patients=persons // 2, controls=persons - persons // 2, voxel_mm=1.6)
    return write_export(root / "phantom", config, workers=2)


def _command(root: Path, folder: Path) -> list[str]:
    script = root / "ingest.py"
    script.write_text(_CODE)
    return [sys.executable, str(script), str(root / "phantom"), str(folder)]


def _killed(command: list[str], after: float, folder: Path) -> str | None:
    """Kill an ingest and its workers after some seconds; return how far it had come, if it did."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    else:
        return None
    work = folder.with_name(f".{folder.name}.unfinished")
    marks = {
        "tables": "rarescan/cohort.json",
        "scans": ".private/*_*.json",
        "images": "sub-*/**/*.nii.gz",
        "index": ".private/index.sqlite",
    }
    return next((name for name, mark in marks.items() if any(work.glob(mark))), "nothing yet")


def _digests(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file()
    }


if __name__ == "__main__":
    main()
