"""Do the printed 95 % intervals hold the truth? evaluation.md, section 3, with the product's code.

    python benchmarks/coverage.py [--n 50 200] [--draws 300] [--m 0] [--d 64]

Features are Gaussian with a power-law spectrum; the generator `off` has its mean moved by 0.35 SD
and four fifths of the variance, `perfect` none of it. The truth: FID in closed form, MMD and KID
from 30,000 pairs of fresh persons. What is printed is what `table.score_pair` puts into a report:
FID at n = m for the expectation at this n, FID_jack, KID and MMD for the populations; `marked` is
the share of draws in which the row says `sufficient: false`. Below stand the shares that gates
print (Clopper-Pearson) and the area under a ROC curve (DeLong).
"""

import argparse
import time
from collections import defaultdict

import numpy as np
import numpy.typing as npt

from rarescan.evaluation import metrics
from rarescan.evaluation.intervals import auc_interval, clopper_pearson
from rarescan.evaluation.table import score_pair

Array = npt.NDArray[np.float64]

SHIFT, KEPT = 0.35, 0.8
REFERENCE = {
    ("fid", 50): "95 / 98",
    ("fid", 200): "96 / 100",
    ("fid_jackknife", 50): "95 / 90",
    ("fid_jackknife", 200): "96 / 100",
    ("mmd", 50): "94 / 98",
    ("mmd", 200): "95 / 95",
    ("kid", 50): "92 / 99",
    ("kid", 200): "95 / 99",
}


def main() -> None:
    """Print one table for each number of persons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--m", type=int, default=0, help="synthetic persons; as many as real by 0")
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--draws", type=int, default=0)
    given = parser.parse_args()
    start = time.process_time()
    for n in given.n:
        draws = given.draws or (300 if n <= 50 else 80)
        distances(given.d, n, given.m or n, draws)
    shares()
    areas()
    print(f"{time.process_time() - start:.0f} CPU seconds")


def persons(n: int, d: int, random: np.random.Generator, *, off: bool = False) -> Array:
    """Return n persons, or n of the generator that is off, shape (n, d)."""
    spectrum = 1 / np.arange(1, d + 1)
    spread = np.sqrt(spectrum / spectrum.mean())
    rows: Array = random.normal(size=(n, d)) * spread
    return np.sqrt(KEPT) * rows + SHIFT if off else rows


def distances(d: int, n: int, m: int, draws: int) -> None:
    """Print how often each distance's interval holds the truth."""
    held: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    marked: dict[str, list[bool]] = defaultdict(list)
    values: dict[tuple[str, bool], list[float]] = defaultdict(list)
    truths = {off: _Truth(d, off=off) for off in (True, False)}
    stored: dict[bool, list[dict[str, tuple[float, float, float]]]] = {True: [], False: []}
    for draw in range(draws):
        for off, truth in truths.items():
            random = np.random.default_rng([3, n, m, draw, off])
            real, rows = persons(n, d, random), persons(m, d, random, off=off)
            sigma2 = metrics.frozen_bandwidth(real)
            found = score_pair(real, rows, sigma2=sigma2, seed=draw)
            known = {"fid_jackknife": truth.fid, "kid": truth.kid, "mmd": truth.mmd(sigma2)}
            for name, value in known.items():
                score = found[name]
                held[name, off].append(bool(score.low <= value <= score.high))
                marked[name].append(not score.sufficient)
            fid = found["fid"]
            marked["fid"].append(not fid.sufficient)
            stored[off].append({"fid": (fid.value, fid.low or 0.0, fid.high or 0.0)})
            for name in ("fid", *known):
                values[name, off].append(found[name].value)
    for off, rows in stored.items():
        mean = float(np.mean([row["fid"][0] for row in rows]))
        held["fid", off] = [row["fid"][1] <= mean <= row["fid"][2] for row in rows]
    print(f"n = {n}, m = {m}, d = {d}, {draws} draws: coverage off / perfect in %")
    for name in ("fid", "fid_jackknife", "mmd", "kid"):
        shares = " / ".join(f"{100 * np.mean(held[name, off]):.0f}" for off in (True, False))
        means = " / ".join(f"{np.mean(values[name, off]):.3g}" for off in (True, False))
        reference = REFERENCE.get((name, n), "-") if m == n else "-"
        print(
            f"  {name:14s} {shares:9s} reference {reference:9s} mean {means:17s} "
            f"marked {100 * np.mean(marked[name]):.0f} %",
            flush=True,
        )


class _Truth:
    """Population distances: FID in closed form, the others from many fresh persons."""

    def __init__(self, d: int, *, off: bool) -> None:
        random = np.random.default_rng([1, d, off])
        spectrum = 1 / np.arange(1, d + 1)
        spectrum = spectrum / spectrum.mean()
        self.fid = float(d * SHIFT**2 + spectrum.sum() * (1 - np.sqrt(KEPT)) ** 2) if off else 0.0
        self._x, self._x2 = persons(30_000, d, random), persons(30_000, d, random)
        self._y = persons(30_000, d, random, off=off)
        self._y2 = persons(30_000, d, random, off=off)
        self.kid = self._distance(lambda a, b: (np.sum(a * b, axis=1) / d + 1) ** 3)
        self._off = off

    def mmd(self, sigma2: float) -> float:
        """Return the population's MMD^2 at a bandwidth."""
        if not self._off:
            return 0.0
        return self._distance(lambda a, b: np.exp(np.sum((a - b) ** 2, axis=1) / (-2 * sigma2)))

    def _distance(self, kernel) -> float:  # type: ignore[no-untyped-def]
        x, y, x2, y2 = self._x, self._y, self._x2, self._y2
        own = kernel(x, x2).mean() + kernel(y, y2).mean()
        return float(own - kernel(x, y).mean() - kernel(x2, y2).mean())


def shares() -> None:
    """Print the exact coverage of Clopper-Pearson over all shares, for the sizes of gates."""
    for n in (20, 50, 200):
        least, grid = 1.0, np.linspace(0.001, 0.999, 999)
        ends = np.array([clopper_pearson(k, n) for k in range(n + 1)])
        for share in grid:
            chance = _binomial(n, share)
            least = min(least, float(chance[(ends[:, 0] <= share) & (share <= ends[:, 1])].sum()))
        print(f"shares of {n}: the interval holds the truth in at least {100 * least:.1f} %")


def _binomial(n: int, share: float) -> Array:
    from scipy.stats import binom

    chance: Array = binom.pmf(np.arange(n + 1), n, share)
    return chance


def areas() -> None:
    """Print how often DeLong's interval holds the area under the ROC curve."""
    from scipy.stats import norm

    for n in (50, 200):
        for area in (0.75, 0.9):
            random = np.random.default_rng([4, n, int(100 * area)])
            moved = np.sqrt(2) * norm.ppf(area)
            held = 0
            for _ in range(1000):
                _, low, high = auc_interval(
                    random.normal(size=n // 3) + moved, random.normal(size=n - n // 3)
                )
                held += low <= area <= high
            print(f"area {area} with {n} persons: {held / 10:.1f} %")


if __name__ == "__main__":
    main()
