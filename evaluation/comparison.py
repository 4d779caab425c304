"""The distances between any two sets, with interval, floor and a table: `rarescan compare A B`.

`compare` is the way in. A is the reference (real persons), B what is held against it. The floor
is what the same distances are between random halves of A: what no generator can beat.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from rarescan.cohort.contracts import FloatArray, Score
from rarescan.errors import SettingError, nearest
from rarescan.evaluation import metrics
from rarescan.evaluation.intervals import Z95
from rarescan.evaluation.pictures import pyramid, region_vector
from rarescan.evaluation.sources import Extractor, Source, require_one_kind, rows_of
from rarescan.evaluation.table import in_their_span, score_pair
from rarescan.seeds import generator

Array = npt.NDArray[np.float64]

EXTRACTORS: Mapping[str, Extractor] = {
    "pyramid": Extractor(name="pyramid", embed=pyramid),
    "regions": Extractor(name="regions", embed=region_vector),
}
"""What looks at images without weights: `pyramid` at any, `regions` at brains on the brain grid."""
_SPLITS = 20
_FID_OF_PARTS = "fid_of_parts"
_MOST_IN_A_HALF = 1000


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found."""

    scores: dict[str, Score]
    floor: dict[str, Score]
    """The same between halves of A; missing where A has fewer than six persons."""
    extractor: str
    n_scans: tuple[int, int]
    notes: tuple[tuple[str, ...], ...] = field(default=((), ()))
    """For A and B, how persons were told apart."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        rows = {
            part: {name: _plain(score) for name, score in getattr(self, part).items()}
            for part in ("scores", "floor")
        }
        about = {"extractor": self.extractor, "n_scans": self.n_scans, "notes": self.notes}
        return {**about, **rows}

    def table(self) -> str:
        """Return the table that a person reads."""
        one = self.scores["mmd"]
        lines = [
            f"{side}: {persons} persons, {scans} scans{''.join(f'; {note}' for note in notes)}"
            for side, persons, scans, notes in zip(
                "AB", (one.n_real, one.n_synthetic), self.n_scans, self.notes, strict=True
            )
        ]
        lines += [f"extractor: {self.extractor or 'unknown (features were given)'}", ""]
        lines.append(f"{'':14}{'value':>11}  {'95 % interval':24}{'n':13}floor: halves of A")
        lines += [self._line(score) for score in self.scores.values()]
        if not all(score.sufficient for score in self.scores.values()):
            lines += ["", "* too few persons to read anything from it"]
        return "\n".join(lines)

    def _line(self, score: Score) -> str:
        interval = _interval(score)
        mark = " " if score.sufficient else "*"
        n = f"{score.n_real} + {score.n_synthetic}"
        floor = self.floor.get(score.name)
        beside = f"{floor.value:.4g} ({_interval(floor)}) at n = {floor.n_real}" if floor else ""
        name = score.name.replace("_", " ")
        return f"{name:13}{mark}{score.value:11.4g}  {interval:24}{n:13}{beside}".rstrip()


def compare(
    a: Source,
    b: Source,
    *,
    extractor: str | Extractor = "pyramid",
    seed: int = 0,
) -> Comparison:
    """Return every distance between two sets, each with its interval and, where it can, a floor.

    Parameters
    ----------
    a, b : array or tensor (n, d) and (m, d), FeatureSet, feature file or folder of images
        A is the reference. One row a person; see `sources.rows_of` for files and folders.
    extractor : str or Extractor
        Looks at the images of folders: "pyramid", "regions", or your own.
    seed : int
        Draws of equal size and halves.

    Raises
    ------
    InputError, GridMismatchError
        The sets cannot be compared; the message says what to change.
    SettingError
        No such extractor.
    """
    eye = named_extractor(extractor) if isinstance(extractor, str) else extractor
    sides = [rows_of(a, eye, name="A")]
    sides.append(rows_of(b, eye, name="B", like=sides[0].kind))
    about = require_one_kind(*sides)
    x, y = metrics.require_comparable(sides[0].values, sides[1].values, "B", reference="A")
    # Several threads on busy cores are slower than one, by far at these sizes.
    with threadpool_limits(limits=1):
        scores, floor = _numbers(x, y, seed)
    return Comparison(
        scores={name: replace(score, extractor=about) for name, score in scores.items()},
        floor={name: replace(score, extractor=about) for name, score in floor.items()},
        extractor=about,
        n_scans=(sides[0].n_scans, sides[1].n_scans),
        notes=(sides[0].notes, sides[1].notes),
    )


def _numbers(x: Array, y: Array, seed: int) -> tuple[dict[str, Score], dict[str, Score]]:
    """Return scores and floors of comparable sets."""
    cubic = metrics.cubic(x, x)
    sigma2 = metrics.frozen_bandwidth(x)
    scores = score_pair(x, y, sigma2=sigma2, seed=seed)
    x, y = in_their_span(x, y)
    scores["vendi_ratio"] = _vendi_ratio(x, y, sigma2=sigma2, seed=seed)
    n = min(len(y), len(x) // 2, _MOST_IN_A_HALF)
    if n < 3:
        return scores, {}
    kernels = {"mmd": metrics.rbf(x, x, sigma2), "kid": cubic}
    found: dict[str, list[float]] = {name: [] for name in (*kernels, "fid", "against B")}
    for index in range(_SPLITS):
        draw = generator(seed, "floor", index)
        order = draw.permutation(len(x))
        i, j = order[:n], order[n : 2 * n]
        for name, k in kernels.items():
            parts = (k[np.ix_(i, i)], k[np.ix_(j, j)], k[np.ix_(i, j)])
            found[name].append(metrics.mmd_of_kernels(*parts).value)
        found["fid"].append(metrics.fid(x[i], x[j]))
        found["against B"].append(metrics.fid(x[i], y[draw.choice(len(y), n, replace=False)]))
    # FIDs compare at one n only, and halves of A are smaller than A.
    scores |= {_FID_OF_PARTS: _of_parts(_FID_OF_PARTS, found.pop("against B"), n)}
    floor = {name: _of_parts(name, values, n) for name, values in found.items()}
    return scores, {_FID_OF_PARTS if name == "fid" else name: row for name, row in floor.items()}


def named_extractor(name: str) -> Extractor:
    """Return one of `EXTRACTORS`."""
    if name not in EXTRACTORS:
        raise SettingError(
            f"There is no extractor '{name}'.", remedy=nearest(name, list(EXTRACTORS))
        )
    return EXTRACTORS[name]


def inception_extractor(weights: Path, sha256: str) -> Extractor:
    """Return Inception-v3 as FID is defined with, for pictures and middle slices of volumes.

    Raises
    ------
    SettingError, InputError
        As `inception.load_inception`.
    """
    import torch

    from rarescan.evaluation import inception

    network = inception.load_inception(weights, sha256)

    def embed(image: FloatArray) -> npt.NDArray[np.floating]:
        if image.ndim == 3:
            return np.asarray(inception.slice_features(network, image[None])[0])
        grey = torch.from_numpy(np.rint(image.T * 255).astype(np.float32))[None, None]
        with torch.inference_mode():
            resized = inception.resize_like_tensorflow1(grey, 299)
            return np.asarray(network(resized.expand(1, 3, -1, -1))[0][0])

    return Extractor(name="inception", embed=embed, weights_sha256=sha256)


def _of_parts(name: str, values: list[float], n: int) -> Score:
    low, high = np.quantile(values, (0.025, 0.975))
    return Score(
        name=name,
        value=float(np.mean(values)),
        low=float(low),
        high=float(high),
        n_real=n,
        n_synthetic=n,
        sufficient=False,
        method=f"mean and middle 95 % of {_SPLITS} random pairs of parts; does not decide",
    )


def _vendi_ratio(x: Array, y: Array, *, sigma2: float, seed: int) -> Score:
    """Return how many different persons B is worth, over A at the same number of persons."""
    n = min(len(x), len(y), _MOST_IN_A_HALF)
    ratios, halves = [], []
    for index in range(_SPLITS):
        draw = generator(seed, "vendi", index)
        a, b = (rows[draw.choice(len(rows), n, replace=False)] for rows in (x, y))
        ratios.append(_vendi(b, sigma2) / _vendi(a, sigma2))
        half = slice(n // 2)  # rows were drawn in random order
        halves.append(_vendi(b[half], sigma2) / _vendi(a[half], sigma2))
    value, se = float(np.mean(ratios)), float(np.std(halves, ddof=1))
    return Score(
        name="vendi_ratio",
        value=value,
        low=max(0.0, value - Z95 * se),
        high=value + Z95 * se,
        better="higher",
        n_real=n,
        n_synthetic=n,
        sufficient=n >= 50,
        method="Vendi scores with the frozen RBF kernel, B over A at equal n; interval from half "
        "samples, which covers 83 to 90 % of true values, not 95 %; does not decide",
    )


def _vendi(rows: Array, sigma2: float) -> float:
    return metrics.vendi(metrics.rbf(rows, rows, sigma2))


def _interval(score: Score) -> str:
    if score.low is None or score.high is None or not np.isfinite([score.low, score.high]).all():
        return "-"
    return f"{score.low:.4g} to {score.high:.4g}"


def _plain(score: Score) -> dict[str, Any]:
    """Return a score as JSON values; an infinite bound is no bound."""
    values = asdict(score)
    return values | {k: None for k in ("low", "high") if not np.isfinite(values[k] or 0)}
