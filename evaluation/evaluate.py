"""Score every candidate: features, distances with intervals, gates, condition fidelity.

`write_scores` is the way in. `people.measure` looks at every set once; here its rows become the
numbers of `scores.json`. The reference are validation persons, whom no generator has seen;
training persons serve the search for copies and fix the scale of the region vector.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from rarescan.cohort.contracts import Gate, Question, Score
from rarescan.cohort.store import open_cohort, read_about
from rarescan.evaluation.copies import Matches
from rarescan.evaluation.diversity import similarity_score, vendi_ratio
from rarescan.evaluation.effects import Effects
from rarescan.evaluation.features import FOLDER, PRIMARY, SECOND, save_features
from rarescan.evaluation.fidelity import age_fidelity, condition_fidelity
from rarescan.evaluation.measures import BLURS_VOXELS, MEASURES
from rarescan.evaluation.membership import black_box, membership_gate, white_box
from rarescan.evaluation.metrics import frozen_bandwidth
from rarescan.evaluation.people import REAL_PARTS, Embed, People, measure
from rarescan.evaluation.plausibility import (
    blur_power,
    high_frequency_gate,
    plausibility_gate,
    spread_gate,
)
from rarescan.evaluation.privacy import (
    Calibration,
    batch_gate,
    data_gate,
    feature_nearness,
    judge_copies,
)
from rarescan.evaluation.spec import EvaluateConfig
from rarescan.evaluation.table import in_their_span, inception_score_row, score_pair
from rarescan.files import write_json
from rarescan.seeds import generator

Array = npt.NDArray[np.float64]

SCORES = "scores.json"
_FLOOR = ("mmd", "kid", "fid", "fid_jackknife")
_FEWEST = 3


def write_scores(
    work: Path,
    prepared: Path,
    samples: Mapping[str, Path],
    embed: Embed,
    config: EvaluateConfig,
    question: Question,
) -> None:
    """Score candidates and write `features/<extractor>/<set>.npz` and `scores.json` into `work`.

    Parameters
    ----------
    work : Path
        The evaluation's folder, finished or not.
    prepared : Path
        Root of the prepared cohort with its partition.
    samples : mapping of str to Path
        Candidate -> root of its synthetic cohort, on the same grid.
    embed : callable
        The domain network: float32 volumes (n, x, y, z) -> features float32 (n, d) and
        probabilities float32 (n, 2), columns negative and positive. Where it is the method of an
        object with `weights_sha256`, that is noted.
    config : EvaluateConfig
    question : Question
        The diagnoses that the network tells apart.

    Raises
    ------
    InputError
        No candidate, a part without persons, features that cannot be compared.
    SettingError
        The file of an extractor is missing or has another hash.
    GridMismatchError
        Samples on another grid than the cohort.
    """
    people, scale = measure(open_cohort(prepared), samples, embed, config, _kept_features(work))
    for name, one in people.items():
        for extractor in (PRIMARY, SECOND):
            save_features(work / FOLDER, name, one.features[extractor])
    write_json(work / SCORES, _Evaluation(config, question, people, scale).scores())


def _kept_features(work: Path) -> tuple[Path, Path]:
    """Return where features may lie: here, and in the finished result that this one replaces."""
    finished = work.with_name(work.name.removeprefix(".").removesuffix(".unfinished"))
    return work / FOLDER, finished / FOLDER


@dataclass(frozen=True)
class _Evaluation:
    """Everything that was measured; turns it into the numbers of `scores.json`."""

    config: EvaluateConfig
    question: Question
    people: Mapping[str, People]
    scale: Calibration

    def scores(self) -> dict[str, Any]:
        made = {name: one for name, one in self.people.items() if name not in REAL_PARTS}
        real = self.people["validation"]
        sigma2 = {extractor: frozen_bandwidth(real.rows(extractor)) for extractor in real.features}
        return {
            "extractors": {
                "primary": PRIMARY,
                "weights_sha256": {e: f.weights_sha256 for e, f in real.features.items()},
                "sigma2": sigma2,
            },
            # ImageNet's classes or two diagnoses: neither says whether a brain looks real.
            "informative": {"is": False},
            "network": self._network(),
            "floor": self._floor(sigma2[PRIMARY], min(len(one.ids) for one in made.values())),
            "candidates": {name: self._candidate(one, sigma2) for name, one in made.items()},
        }

    def _real(self) -> tuple[People, People]:
        """Return training and validation persons."""
        return self.people["train"], self.people["validation"]

    def _network(self) -> dict[str, Any]:
        """How well the judge itself does on real persons that it has not seen."""
        judged = self._agreement(self.people["validation"], synthetic=False)
        return {"auc": _plain(judged["auc"]), "accuracy": _plain(judged["agreement"])}

    def _agreement(self, one: People, *, synthetic: bool) -> dict[str, Any]:
        return condition_fidelity(
            one.probabilities, list(one.diagnoses), self.question, synthetic=synthetic
        )

    def _floor(self, sigma2: float, most: int, diagnosis: str | None = None) -> dict[str, Any]:
        """Distances between real and real, at most `most` against the validation persons.

        What a perfect generator could reach at this n: distances with a bias compare at one only.
        """
        train, validation = (_rows_of(one, diagnosis) for one in self._real())
        n = min(len(train), most)
        if not _comparable(validation, n):
            return {}
        drawn = np.sort(generator(self.config.seed, "floor").permutation(len(train))[:n])
        rows = score_pair(validation, train[drawn], sigma2=sigma2, seed=self.config.seed)
        return {name: _plain(rows[name], PRIMARY) for name in _FLOOR if name in rows}

    def _candidate(self, one: People, sigma2: Mapping[str, float]) -> dict[str, Any]:
        fewest = self.config.fewest_persons
        train, validation = self._real()
        spread, spread_numbers = self._spread(one)
        copies, privacy = judge_copies(
            cast(Matches, one.matches), self.scale, sorted(train.ids), fewest_persons=fewest
        )
        blur, detail = high_frequency_gate(
            validation.high_frequency, one.high_frequency, fewest_persons=fewest
        )
        effects = self._effects(one)
        plausible, plausibility = plausibility_gate(
            np.concatenate([train.measures, validation.measures]),
            one.measures,
            effects,
            fewest_persons=fewest,
            names=one.ids,
            columns=one.names,
        )
        about_persons, more_privacy = self._about_persons(one)
        gates = (spread, blur, copies, plausible, *about_persons)
        return {
            "scores": self._distances(one, sigma2),
            "by_diagnosis": self._by_diagnosis(one, sigma2[PRIMARY]),
            "diversity": self._diversity(one, sigma2[PRIMARY]),
            "gates": [asdict(gate) for gate in gates],
            "condition_fidelity": self._fidelity(one),
            "spread": spread_numbers,
            "high_frequency": detail | {"power_at_blur": self._blur_power(len(one.ids))},
            "privacy": privacy | more_privacy,
            "plausibility": plausibility,
            "regions": effects.table() if effects else {},
        }

    def _about_persons(self, one: People) -> tuple[tuple[Gate, ...], dict[str, Any]]:
        """Judge whether the sets are clean, the batch leans, and members can be told."""
        train, validation = self._real()
        nearness = feature_nearness(one.rows(), validation.rows(), train.rows())
        # The region vector was not fitted to training persons, as the network's features were.
        rows = [people.rows(SECOND) for people in (one, train, validation)]
        seen = black_box(rows[0], rows[1], rows[2], seed=self.config.seed)
        losses = read_about(one.images.root).get("person_losses", {})
        gates = (
            data_gate(train.ids, validation.ids, self.scale),
            batch_gate(nearness),
            membership_gate(seen),
        )
        return gates, {"feature_nearness": nearness, "membership": [seen, *white_box(losses)]}

    def _distances(self, one: People, sigma2: Mapping[str, float]) -> dict[str, Any]:
        validation = self.people["validation"]
        found: dict[str, Any] = {}
        for extractor in one.features:
            rows = score_pair(
                validation.rows(extractor),
                one.rows(extractor),
                sigma2=sigma2[extractor],
                seed=self.config.seed,
            )
            if extractor == PRIMARY:
                rows["is"] = inception_score_row(
                    one.probabilities, "from the network's class probabilities"
                )
            found[extractor] = {k: _plain(s, extractor) for k, s in rows.items()}
        return found

    def _by_diagnosis(self, one: People, sigma2: float) -> dict[str, Any]:
        """Return the distances among the persons of each diagnosis, with their floor."""
        found: dict[str, Any] = {}
        for diagnosis in sorted({str(d) for d in one.diagnoses}):
            real, made = (_rows_of(p, diagnosis) for p in (self.people["validation"], one))
            entry: dict[str, Any] = {"n_real": len(real), "n_synthetic": len(made), "scores": {}}
            if _comparable(real, len(made)):
                rows = score_pair(real, made, sigma2=sigma2, seed=self.config.seed)
                entry["scores"] = {k: _plain(s, PRIMARY) for k, s in rows.items()}
            found[diagnosis] = entry | {"floor": self._floor(sigma2, len(made), diagnosis)}
        return found

    def _diversity(self, one: People, sigma2: float) -> dict[str, Any]:
        """Return how varied the set is, beside real persons."""
        pair = in_their_span(self.people["validation"].rows(), one.rows())
        real = np.concatenate([people.similarity for people in self._real()])
        return {
            "vendi_ratio": _plain(
                vendi_ratio(*pair, sigma2=sigma2, seed=self.config.seed), PRIMARY
            ),
            "ms_ssim": _plain(similarity_score("ms_ssim", one.similarity, synthetic=True)),
            "ms_ssim_real": _plain(similarity_score("ms_ssim_real", real, synthetic=False)),
        }

    def _spread(self, one: People) -> tuple[Gate, dict[str, Any]]:
        """Judge the primary features; the region vector may withhold a pass, never give one."""
        validation = self.people["validation"]
        judged = {
            extractor: spread_gate(
                validation.rows(extractor),
                one.rows(extractor),
                fewest_persons=self.config.fewest_persons,
            )
            for extractor in (PRIMARY, SECOND)
        }
        gate, numbers = judged[PRIMARY]
        second, second_numbers = judged[SECOND]
        if gate.outcome == "pass" and second.outcome == "fail":
            reason = f"{gate.reason} The region vector disagrees: {second.reason}"
            gate = replace(gate, outcome="insufficient", reason=reason)
        return gate, numbers | {"outcome": gate.outcome, SECOND: second_numbers}

    def _blur_power(self, n_synthetic: int) -> list[dict[str, float]]:
        """Return how often each blur would be noticed with so many synthetic persons."""
        validation = self.people["validation"]
        return [
            {
                "sd_voxels": sd,
                "power": blur_power(
                    validation.high_frequency, blurred, n_synthetic, seed=self.config.seed
                ),
            }
            for sd, blurred in zip(BLURS_VOXELS, cast(Array, validation.blurred).T, strict=True)
        ]

    def _effects(self, one: People) -> Effects | None:
        if one.names != MEASURES:
            return None

        def groups(people: Iterable[People]) -> tuple[Array, Array]:
            rows = np.concatenate([p.measures for p in people])
            labels = np.concatenate([p.diagnoses for p in people])
            return rows[labels == self.question.positive], rows[labels == self.question.negative]

        return Effects.of(groups(self._real()), groups((one,)))

    def _fidelity(self, one: People) -> dict[str, Any]:
        judged = self._agreement(one, synthetic=True)
        pairs = [(people.rows(SECOND), people.ages) for people in (*self._real(), one)]
        ages = age_fidelity(pairs[0], pairs[1], pairs[2])
        return {
            "agreement": _plain(judged["agreement"]),
            "by_diagnosis": {d: _plain(score) for d, score in judged["by_diagnosis"].items()},
            "auc": _plain(judged["auc"]),
            "age": {n: _plain(score) for n, score in ages.items()} if ages else None,
        }


def _rows_of(one: People, diagnosis: str | None) -> Array:
    """Return the primary features of the persons with a diagnosis, or of all."""
    rows = one.rows()
    return rows if diagnosis is None else rows[one.diagnoses == diagnosis]


def _comparable(real: Array, n: int) -> bool:
    """Return whether so many persons can be compared with some real ones of one diagnosis."""
    return min(len(real), n) >= _FEWEST and bool(np.ptp(real, axis=0).any())


def _plain(score: Score | None, extractor: str = "") -> dict[str, Any] | None:
    """Return a score as JSON values; an infinite bound is no bound."""
    if score is None:
        return None
    values = asdict(replace(score, extractor=extractor or score.extractor))
    infinite = [end for end in ("low", "high") if not np.isfinite(values[end] or 0)]
    return values | dict.fromkeys(infinite)
