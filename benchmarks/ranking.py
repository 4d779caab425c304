"""Which metric ranks generators right when persons are few, and does `decide` choose the right one.

    python benchmarks/ranking.py metrics [--d 16 64 512] [--n 20 50 100 200] [--draws 200]
    python benchmarks/ranking.py selection [--scenario mid] [--draws 100] [--m 1000]
    python benchmarks/ranking.py champion [--draws 100] [--m 300]
    python benchmarks/ranking.py phantoms FOLDER [--draws 100] [--n 50] [--m 1000]

`metrics`: real persons have four modes and a power-law covariance; beside a perfect generator
stand one that lost 37 % of the variance (shrink), two of the modes (drop), fine detail (blur), and
one whose mean is off by 0.35 SD (shift). A cell is the percentage of draws in which the perfect one
scores better, and in brackets all four at once; below it what evaluation.md, section 2, measured
with its own code. `selection`, `champion` and `phantoms` go through `evaluation.decide` as a run
does. `phantoms` draws invented persons at 4 mm, trains the judge on others, and keeps both in
FOLDER, so that a later call goes on: real draws, atrophy weaker by a fifth, blur of half a voxel.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.distance import cdist

from rarescan.classifiers.domain import open_network, train_network
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.cohort.contracts import FeatureSet, FloatArray, Question, Score, brain_grid
from rarescan.cohort.partition import PartitionConfig
from rarescan.evaluation import metrics
from rarescan.evaluation.decide import RankedDecision, decide
from rarescan.evaluation.features import PRIMARY
from rarescan.evaluation.measures import describe
from rarescan.phantom.persons import draw_person
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import person_volumes, write_prepared

Array = npt.NDArray[np.float64]

KEPT, SHIFT, DETAIL = 0.63, 0.35, 0.09
REFERENCE = {
    ("FID", 16): "42/90/38/74 (22)  67/100/98/93 (66)  90/100/100/98 (90)  all 100",
    ("FID", 64): "12/92/2/85 (0)  22/99/28/97 (12)  74/100/100/100 (74)  all 100",
    ("FID", 512): "0/92/0/91 (0)  0/98/0/100 (0)  0/100/0/100 (0)  0/100/0/100 (0)",
    ("FID_jack", 64): "shrink and blur a coin toss  80/100/100/97 (80)",
    ("KID", 16): "66/86/54/76 (38)  76/98/62/93 (56)  86/100/73/99 (70)  96/100/84/100 (83)",
    ("KID", 64): "66/88/53/84 (40)  84/97/58/97 (55)  90/100/59/100 (57)  96/100/60/100 (60)",
    ("KID", 512): "66/88/56/92 (42)  71/98/50/100 (44)  86/100/53/100 (50)  95/100/52/100 (52)",
    ("MMD", 16): "80/90/88/78 (61)  94/100/99/98 (92)  all 100  all 100",
    ("MMD", 64): "90/90/84/89 (68)  100/98/100/99 (96)  all 100  all 100",
    ("MMD", 512): "97/92/83/96 (78)  100/98/96/100 (94)  all 100  all 100",
    ("MMD wide", 64): "71/91/62/88 (48)  90/97/78/99 (74)  96/100/92/100 (90)  100/100/98/100 (98)",
    ("MMD scaled", 64): "76/74/100/100 (64)  96/89/100/100 (86)  100/98/100/100 (98)  all 100",
    ("recall", 64): "94/78/84/38 (26)  100/94/100/70 (68)  100/98/100/88 (87)  100/100/100/98 (98)",
    ("coverage", 64): "2/71/0/42 (0)  7/98/0/88 (0)  3/100/0/96 (0)  0/100/0/100 (0)",
}
SCENARIOS: Mapping[str, tuple[tuple[float, float, int, float], ...]] = {
    # variance kept, shift, modes, variance kept in the trailing directions; the right one first
    "clear": ((0.9, 0, 4, 1), (0.63, 0, 4, 1), (1, 0, 2, 1)),
    "mid": ((0.9, 0.1, 4, 1), (0.75, 0, 4, 1), (1, 0.3, 4, 1)),
    "close": ((0.9, 0, 4, 1), (0.8, 0, 4, 1), (1, 0, 4, 0.4)),
    "identical": ((1, 0, 4, 1),) * 3,
}
IN_SET = {"clear": 100, "mid": 100, "close": 100, "identical": 94}
SMALLEST = {("clear", 300): 99, ("mid", 300): 92, ("mid", 1000): 99, ("close", 1000): 93}


@dataclass(frozen=True)
class Cloud:
    """Simulated features of persons: modes in the leading directions, power-law covariance."""

    d: int
    n_modes: int = 4
    mode_size: float = 2.0

    def persons(
        self, n: int, random: np.random.Generator, *, modes: int = 0, detail: float = 1.0
    ) -> Array:
        """Return n persons of the first `modes` modes (all by default), shape (n, d).

        `detail` is the share of the variance within modes that the trailing 7/8 of the directions
        keep: blur.
        """
        spectrum = 1 / np.arange(1, self.d + 1)
        centres = np.zeros((self.n_modes, self.d))
        centres[:, :8] = np.random.default_rng(1).normal(size=(self.n_modes, 8))
        centres -= centres.mean(axis=0)
        which = random.integers(0, modes or self.n_modes, n)
        kept = np.where(np.arange(self.d) < self.d // 8, 1.0, detail)
        spread = np.sqrt(kept * spectrum / spectrum.mean())
        rows: Array = random.normal(size=(n, self.d)) * spread
        return rows + self.mode_size * centres[which]


def main() -> None:
    """Run one part and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("metrics", "selection", "champion", "phantoms"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--d", type=int, nargs="+", default=[16, 64, 512])
    parser.add_argument("--n", type=int, nargs="+", default=[])
    parser.add_argument("--m", type=int, default=0)
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS))
    given = parser.parse_args()
    parts = {
        "metrics": rank_metrics,
        "selection": select_simulated,
        "champion": meet_champion,
        "phantoms": select_phantoms,
    }
    start = time.process_time()
    parts[given.part](given)
    print(f"{time.process_time() - start:.0f} CPU seconds")


def rank_metrics(given: argparse.Namespace) -> None:
    """Print, for each metric and number of features, how often the perfect generator wins."""
    for d in given.d:
        rows: dict[str, list[str]] = {}
        for n in given.n or [20, 50, 100, 200]:
            for name, cell in _cells(Cloud(d), n, given.draws or 200).items():
                rows.setdefault(name, []).append(cell)
            print(f"  (d = {d}, n = {n} done)", flush=True)
        for name, cells in rows.items():
            print(f"d = {d:3d}  {name:10s} ours: {'  '.join(cells)}")
            if (name, d) in REFERENCE:
                print(f"{'':20s} ref.: {REFERENCE[name, d]}", flush=True)


def _cells(cloud: Cloud, n: int, draws: int) -> dict[str, str]:
    wins: dict[str, list[list[bool]]] = {}
    for draw in range(draws):
        random = np.random.default_rng([cloud.d, n, draw])
        real = cloud.persons(n, random)
        judged = [
            _judged(real, rows, jackknife=draw < 30) for rows in _generators(cloud, n, random)
        ]
        for name, perfect in judged[0].items():
            wins.setdefault(name, []).append([perfect < other[name] for other in judged[1:]])
    cells = {}
    for name, found in wins.items():
        share = np.array(found)
        each = "/".join(f"{100 * s:.0f}" for s in share.mean(axis=0))
        cells[name] = f"{each} ({100 * share.all(axis=1).mean():.0f})"
    return cells


def _generators(cloud: Cloud, n: int, random: np.random.Generator) -> Iterator[Array]:
    yield cloud.persons(n, random)
    yield cloud.persons(n, random) * np.sqrt(KEPT)
    yield cloud.persons(n, random, modes=2)
    yield cloud.persons(n, random, detail=DETAIL)
    yield cloud.persons(n, random) + SHIFT


def _judged(real: Array, rows: Array, *, jackknife: bool) -> dict[str, float]:
    """Return every metric, turned so that smaller is better."""
    sigma2 = metrics.frozen_bandwidth(real)
    sd = real.std(axis=0, ddof=1)
    scaled = metrics.frozen_bandwidth(real / sd)
    balls = metrics.prdc_of_distances(
        cdist(real, real), cdist(rows, rows), cdist(real, rows), metrics.NEIGHBOURS
    )
    found = {
        "FID": metrics.fid(real, rows),
        "KID": metrics.kid(real, rows).value,
        "MMD": metrics.mmd(real, rows, sigma2=sigma2).value,
        "MMD wide": metrics.mmd(real, rows, sigma2=4 * sigma2).value,
        "MMD scaled": metrics.mmd(real / sd, rows / sd, sigma2=scaled).value,
        "recall": -balls["recall"],
        "coverage": -balls["coverage"],
    }
    if jackknife and len(real) <= 50 and real.shape[1] <= 64:
        found["FID_jack"] = metrics.fid_jackknife(real, rows)[1].value
    return found


def _decide(
    real: Array, candidates: Mapping[str, Array], champion: str | None = None
) -> RankedDecision:
    """Return what the product decides, every gate being passed."""
    sigma2 = metrics.frozen_bandwidth(real)
    sets = {"validation": real, **candidates}
    features = {
        name: FeatureSet(
            values=rows.astype(np.float32),
            person_ids=tuple(f"{name}-{i}" for i in range(len(rows))),
            extractor=PRIMARY,
        )
        for name, rows in sets.items()
    }
    scored = {
        name: {
            "gates": [],
            "scores": {
                PRIMARY: {
                    "mmd": asdict(
                        Score(name="mmd", value=metrics.mmd(real, rows, sigma2=sigma2).value)
                    )
                }
            },
        }
        for name, rows in candidates.items()
    }
    scores = {"extractors": {"sigma2": {PRIMARY: sigma2}}, "candidates": scored}
    return decide(scores, {}, {PRIMARY: features}, champion)


@dataclass
class Tally:
    """How often the right candidate was found."""

    right: str
    draws: int = 0
    smallest: int = 0
    inside: int = 0
    alone: int = 0
    sizes: int = 0

    def add(self, decision: RankedDecision) -> None:
        """Count one draw."""
        rows = decision.selection["candidates"]
        names = [row["id"] for row in rows if row["in_set"]]
        self.draws += 1
        self.smallest += rows[0]["id"] == self.right
        self.inside += self.right in names
        self.alone += names == [self.right]
        self.sizes += len(names)

    def __str__(self) -> str:
        share = [100 * count / self.draws for count in (self.smallest, self.inside, self.alone)]
        return (
            f"smallest MMD is right {share[0]:.0f} %, right one in set {share[1]:.0f} %, alone "
            f"{share[2]:.0f} %, set of {self.sizes / self.draws:.1f} ({self.draws} draws)"
        )


def select_simulated(given: argparse.Namespace) -> None:
    """Print how often the right one of three simulated generators is selected."""
    cloud = Cloud(64)
    for scenario in given.scenario:
        for n in given.n or [50]:
            for m in [given.m] if given.m else [300, 1000]:
                tally = Tally("0")
                for draw in range(given.draws or 100):
                    random = np.random.default_rng([5, n, m, draw])
                    real = cloud.persons(n, random)
                    made = {
                        str(i): _made(cloud, m, random, *how)
                        for i, how in enumerate(SCENARIOS[scenario])
                    }
                    tally.add(_decide(real, made))
                known = SMALLEST.get((scenario, m)) if n == 50 else None
                reference = f"; reference {known or '-'} / {IN_SET[scenario]} %"
                print(f"{scenario:9s} n = {n:3d} m = {m:4d}: {tally}{reference}", flush=True)


def _made(  # noqa: PLR0913 - one row of the table of scenarios
    cloud: Cloud,
    m: int,
    random: np.random.Generator,
    kept: float,
    shift: float,
    modes: int,
    detail: float,
) -> Array:
    return cloud.persons(m, random, modes=modes, detail=detail) * np.sqrt(kept) + shift


def meet_champion(given: argparse.Namespace) -> None:
    """Print how often challengers as good as the champion replace it."""
    cloud = Cloud(64)
    for n in given.n or [50]:
        for n_challengers in (1, 3):
            replaced = 0
            draws, m = given.draws or 100, given.m or 300
            for draw in range(draws):
                random = np.random.default_rng([6, n, n_challengers, draw])
                real = cloud.persons(n, random)
                names = ["champion", *(f"challenger {i}" for i in range(n_challengers))]
                made = {name: cloud.persons(m, random) for name in names}
                replaced += _decide(real, made, "champion").verdict == "register"
            print(
                f"n = {n}, m = {m}: {n_challengers} equal challenger(s) replace the champion in "
                f"{replaced} of {draws} draws",
                flush=True,
            )


def select_phantoms(given: argparse.Namespace) -> None:
    """Print how often real draws are selected among real, weaker atrophy and blurred phantoms."""
    found = _phantom_features(given.folder or Path("phantoms"))
    for extractor, sets in found.items():
        for n in given.n or [50]:
            for m in [given.m] if given.m else [200, 500, N_BLOCK, 1500]:
                tally = Tally("real")
                for draw in range(given.draws or 100):
                    random = np.random.default_rng([7, draw])
                    drawn = {
                        k: v[random.permutation(len(v))[: n if k == "reference" else m]]
                        for k, v in sets.items()
                    }
                    tally.add(_decide(drawn.pop("reference"), drawn))
                print(f"{extractor:13s} n = {n} m = {m}: {tally}", flush=True)


N_REFERENCE, N_BLOCK, N_BLOCKS, SPACING_MM, CHUNK = 300, 800, 2, 4.0, 50
CANDIDATES = ("real", "weaker", "blurred")


def _weaker(config: PhantomConfig, index: int, own: FloatArray) -> FloatArray:
    """Return the person with four fifths of their atrophy; controls as they are."""
    severity = draw_person(config, index).severity
    if not severity:
        return own
    weaker: FloatArray = person_volumes(config, [index], SPACING_MM, severity=0.8 * severity)[0]
    return weaker


def _phantom_features(folder: Path) -> dict[str, dict[str, Array]]:
    """Return extractor -> candidate -> features of one pool of persons, in stored chunks."""
    folder.mkdir(parents=True, exist_ok=True)
    others = PhantomConfig(patients=60, controls=120, seed=2)
    prepared = write_prepared(
        folder / "prepared", others, spacing_mm=SPACING_MM, partition=PartitionConfig()
    )
    if not (folder / "network").exists():
        train_network(prepared, folder / "network", ClassifierConfig(), Question())
    network = open_network(folder / "network")
    offset = 0
    for block in range(N_BLOCKS):
        pools = {"reference": N_REFERENCE} if block == 0 else {}
        pools |= dict.fromkeys(CANDIDATES, N_BLOCK)
        n = sum(pools.values())
        # A third of all indices are patients, at random; the same seed keeps the scanners.
        patients = (offset + n) // 3
        config = PhantomConfig(patients=patients, controls=offset + n - patients, seed=1)
        left = list(offset + np.random.default_rng(1 + block).permutation(n))
        for name, size in pools.items():
            chosen, left = left[:size], left[size:]
            for start in range(0, size, CHUNK):
                path = folder / f"{name}-{block * N_BLOCK + start:04d}.npz"
                if path.exists():
                    continue
                volumes = _rendered(config, name, chosen[start : start + CHUNK])
                rows = {PRIMARY: network.embed(volumes)[0]}
                rows["regions"] = describe(volumes, brain_grid(SPACING_MM))
                np.savez(path, **rows)
                print(f"  ({path.stem} done)", flush=True)
        offset += n
    return _gathered(folder)


def _rendered(config: PhantomConfig, name: str, indices: Sequence[int]) -> FloatArray:
    """Return persons as one candidate would make them."""
    volumes = person_volumes(config, [int(i) for i in indices], SPACING_MM)
    if name == "weaker":
        rows = [_weaker(config, int(i), own) for i, own in zip(indices, volumes, strict=True)]
        return np.stack(rows)
    if name == "blurred":
        blurred = np.stack([ndimage.gaussian_filter(volume, 0.5) for volume in volumes])
        return np.asarray(blurred * (volumes > 0), np.float32)
    return volumes


def _gathered(folder: Path) -> dict[str, dict[str, Array]]:
    found: dict[str, dict[str, Array]] = {}
    for name in ("reference", *CANDIDATES):
        chunks = [np.load(path) for path in sorted(folder.glob(f"{name}-*.npz"))]
        for extractor in chunks[0].files:
            rows = np.concatenate([chunk[extractor] for chunk in chunks]).astype(np.float64)
            found.setdefault(extractor, {})[name] = rows
    sd = found["regions"]["reference"].std(axis=0)
    found["regions"] = {k: v / np.where(sd > 0, sd, 1) for k, v in found["regions"].items()}
    return found


if __name__ == "__main__":
    main()
