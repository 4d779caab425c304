"""Kill a whole run at random moments until it ends, and compare it with an undisturbed one.

    python benchmarks/kill_anytime.py [FOLDER] [--kills N] [--seed S]

Both runs are `rarescan run ci`. Alternately the whole process group is killed without warning,
only the command is, and the command is asked to end (SIGTERM). Printed are the moment of each
kill and, for each part of the result, whether its bytes equal those of the undisturbed run.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = ("prepared/rarescan/volumes.npy", "models", "synthetic", "classifiers", "decision")
_SAME = (".npy", ".nii.gz", ".safetensors", ".tsv", ".parquet")


def main() -> None:
    """Run undisturbed, run disturbed, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="kill_anytime_"))
    start = time.monotonic()
    subprocess.run(_command(folder / "undisturbed"), check=True, stderr=subprocess.DEVNULL)
    whole = time.monotonic() - start
    print(f"undisturbed: {whole:.0f} s")
    chance = random.Random(given.seed)
    for kill in range(given.kills):
        limit = chance.uniform(0.05, 0.35) * whole
        if not _killed(folder / "disturbed", limit, kill):
            print("ended before the next kill")
            break
    subprocess.run(_command(folder / "disturbed"), check=True, stderr=subprocess.DEVNULL)
    equal = [_compare(folder, part) for part in PARTS]
    print(f"processes left behind: {_left(folder)}")
    sys.exit(not all(equal))


def _command(runs: Path) -> list[str]:
    return [str(Path(sys.executable).with_name("rarescan")), "run", "ci", "--set", f"runs={runs}"]


def _killed(runs: Path, limit: float, kill: int) -> bool:
    """Start the command, kill it after `limit` seconds; False when it was done before."""
    process = subprocess.Popen(
        _command(runs), start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        pass
    else:
        return False
    how = ("SIGKILL to all", "SIGKILL to the command", "SIGTERM to the command")[kill % 3]
    if how.endswith("all"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL if "KILL" in how else signal.SIGTERM)
    told = process.communicate(timeout=120)[1].decode().strip().splitlines()
    step = next((line for line in reversed(told) if line.endswith("...")), "start")
    print(f"{limit:6.0f} s  {how}, during: {step}", flush=True)
    return True


def _compare(folder: Path, part: str) -> bool:
    one, other = (_digests(folder / name / "ci" / part) for name in ("undisturbed", "disturbed"))
    different = sorted(
        path for path in one.keys() | other.keys() if one.get(path) != other.get(path)
    )
    print(f"{part}: {len(one)} files, {len(different)} different {different[:5]}")
    return not different and bool(one)


def _digests(place: Path) -> dict[str, str]:
    """Return a digest of each file that must not depend on when and how often the run began."""
    paths = [place] if place.is_file() else sorted(place.rglob("*"))
    found = {}
    for path in paths:
        content = path.read_bytes() if path.is_file() else b""
        if path.name in ("decision.json", "gain.json", "curves.json"):
            content = json.dumps(_timeless(json.loads(content)), sort_keys=True).encode()
        elif not path.name.endswith(_SAME):
            continue
        found[str(path.relative_to(place.parent))] = hashlib.sha256(content).hexdigest()
    return found


def _timeless(content: object) -> object:
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if key != "seconds"}
    if isinstance(content, list):
        return [_timeless(value) for value in content]
    return content


def _left(folder: Path) -> int:
    time.sleep(5)
    found = subprocess.run(["pgrep", "-fc", str(folder)], capture_output=True, text=True)
    return int(found.stdout or 0) - found.stdout.count("kill_anytime")


if __name__ == "__main__":
    main()
