"""How fast the distances are beside torchmetrics, and how much memory streaming takes.

    python benchmarks/evaluation_speed.py [fid] [intervals] [compare] [stream]

Same features for both, one BLAS thread, d = 2048, CPU seconds of the process (best of several).
`fid`: the numeric part, from features to the distance, at n = 200, 1,000 and 10,000 (asked: 100
times faster, 4 times, no slower). `intervals`: FID, KID and MMD, all with intervals, at n = 200
against torchmetrics' bare FID there (asked: 5 times faster). `compare`: `rarescan compare` of 200
+ 200 stored features (asked: 2 s after start). `stream`: FID and KID of 100,000 rows a set that
are never in memory together (asked: below 1 GiB). Without words: all but `stream`, which takes
some minutes.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from rarescan.evaluation import fid, kid, metrics, mmd
from rarescan.evaluation.moments import Moments, frechet
from rarescan.evaluation.streamed import ROWS, kid_of_blocks

D = 2048
N_STREAMED = 100_000
Rows = npt.NDArray[np.float32]
Timed = tuple[float, Any]


class Identity(nn.Module):
    """Hands features to torchmetrics."""

    num_features = D

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what came."""
        return rows


def features(n: int, seed: int, shift: float = 0.0) -> Rows:
    """Return rows like those of an Inception network: not negative, one strong direction first."""
    random = np.random.default_rng(seed)
    spectrum = (1 / np.sqrt(np.arange(1, D + 1))).astype(np.float32)
    rows = random.standard_normal((n, D), np.float32) * spectrum
    mixed = np.roll(rows, D // 3, axis=1) * 0.3 + rows + shift
    return np.maximum(mixed, 0) + 0.01 * random.standard_normal((n, D), np.float32)


def best_of(times: int, work: Callable[[Rows, Rows], Any], sets: tuple[Rows, Rows]) -> Timed:
    """Return the smallest number of CPU seconds that the work took, and its last result."""
    found = []
    for _ in range(times):
        start = time.process_time()
        result = work(*sets)
        found.append(time.process_time() - start)
    return min(found), result


def of_torchmetrics(real: Rows, synthetic: Rows) -> float:
    """Return their FID of the same features."""
    judge = FrechetInceptionDistance(feature=Identity())
    judge.set_dtype(torch.float64)
    for rows, is_real in ((real, True), (synthetic, False)):
        judge.update(torch.from_numpy(rows.astype(np.float64)), real=is_real)
    return float(judge.compute())


def ours(real: Rows, synthetic: Rows) -> float:
    """Return our FID of the same features."""
    return metrics.fid(real.astype(np.float64), synthetic.astype(np.float64))


def compare_fids() -> None:
    """Time the bare distances."""
    for n, times, asked in ((200, 3, 100.0), (1000, 2, 4.0), (10_000, 1, 1.0)):
        sets = features(n, 1), features(n, 2, shift=0.02)
        (mine, value), (theirs, other) = (
            best_of(times, work, sets) for work in (ours, of_torchmetrics)
        )
        gap = abs(value / other - 1)
        print(
            f"fid n = {n:6}: ours {mine:8.3f} s, torchmetrics {theirs:8.3f} s, "
            f"{theirs / mine:6.1f} times (asked {asked:g}); relative gap {gap:.1e}",
            flush=True,
        )


def compare_intervals() -> None:
    """Time FID, KID and MMD with intervals against a bare FID."""
    sets = features(200, 1), features(200, 2, shift=0.02)
    mine, _ = best_of(3, lambda x, y: [score(x, y) for score in (fid, kid, mmd)], sets)
    theirs, _ = best_of(2, of_torchmetrics, sets)
    print(
        f"fid + kid + mmd with intervals, n = 200: {mine:.3f} s; torchmetrics' fid {theirs:.3f} s, "
        f"{theirs / mine:.1f} times (asked 5)"
    )


def time_command() -> None:
    """Time `rarescan compare` of stored features against `rarescan compare --help`."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.npz" for name in "ab"]
        for index, path in enumerate(paths):
            np.savez(path, values=features(200, index, shift=0.02 * index))
        start = _command_seconds("import rarescan.evaluation.comparison, pandas")
        command = "from rarescan.cli.main import main; main()"
        whole = _command_seconds(command, "compare", *map(str, paths))
    print(
        f"rarescan compare, 200 + 200: {whole:.2f} s, of which imports {start:.2f} s; "
        f"{whole - start:.2f} s after start (asked 2)"
    )


def _command_seconds(code: str, *words: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def stream() -> None:
    """Stream both sets block by block and print the peak of resident memory."""
    blocks = N_STREAMED // ROWS

    def rows_of(offset: int) -> Iterator[Rows]:
        for index in range(blocks):
            yield features(ROWS, offset + index)

    start = time.process_time()
    real, synthetic = (Moments.fold(rows_of(k * blocks)) for k in (0, 1))
    folded = time.process_time()
    distance = frechet(real, synthetic)
    done = time.process_time()
    print(
        f"stream fid 2 x {N_STREAMED}: {distance:.5f}; fold {folded - start:.0f} s, finish "
        f"{done - folded:.0f} s; peak {_peak_mib():.0f} MiB (asked 1024)",
        flush=True,
    )
    found = kid_of_blocks(rows_of(0), rows_of(blocks))
    print(
        f"stream kid 2 x {N_STREAMED}: {found.value:.2e} +- {found.se:.2e}; "
        f"{time.process_time() - done:.0f} s; peak {_peak_mib():.0f} MiB"
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PARTS = {
    "fid": compare_fids,
    "intervals": compare_intervals,
    "compare": time_command,
    "stream": stream,
}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which figures")
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        for part in parser.parse_args().parts or ("fid", "intervals", "compare"):
            PARTS[part]()


if __name__ == "__main__":
    main()
