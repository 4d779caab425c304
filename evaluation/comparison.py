"""The distances between any two sets, with interval, floor and a table: `rarescan compare A B`.

`compare` is the way in. A is the reference (real persons), B what is held against it. The floor
is what the same distances are between random halves of A: what no generator can beat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from rarescan.cohort.contracts import Score
from rarescan.errors import SettingError, nearest
from rarescan.evaluation import metrics
from rarescan.evaluation.diversity import vendi_ratio
from rarescan.evaluation.features import Extractor
from rarescan.evaluation.pictures import pyramid, region_vector
from rarescan.evaluation.sources import Source, require_one_kind, rows_of
from rarescan.evaluation.spec import ExtractorConfig
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
    scores["vendi_ratio"] = vendi_ratio(x, y, sigma2=sigma2, seed=seed)
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


def named_extractor(name: str, others: Sequence[ExtractorConfig] = ()) -> Extractor:
    """Return one of `EXTRACTORS`, or a network of others that the settings name.

    Raises
    ------
    SettingError, InputError, MissingExtraError
        No such extractor, or as `external.open_extractor`.
    """
    known = {one.name: one for one in others}
    if name in known:
        from rarescan.evaluation.external import open_extractor

        return open_extractor(known[name])
    if name not in EXTRACTORS:
        raise SettingError(
            f"There is no extractor '{name}'.",
            remedy=f"{nearest(name, [*EXTRACTORS, *known])} `evaluate.extractors` adds others.",
        )
    return EXTRACTORS[name]


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


def _interval(score: Score) -> str:
    if score.low is None or score.high is None or not np.isfinite([score.low, score.high]).all():
        return "-"
    return f"{score.low:.4g} to {score.high:.4g}"


def _plain(score: Score) -> dict[str, Any]:
    """Return a score as JSON values; an infinite bound is no bound."""
    values = asdict(score)
    return values | {k: None for k in ("low", "high") if not np.isfinite(values[k] or 0)}
