"""Score every candidate: features, distances with intervals, gates, condition fidelity.

`write_scores` is the way in. The reference are validation persons, whom no generator has seen;
training persons serve the search for copies and fix the scale of the region vector.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from rarescan.cohort.contracts import (
    Cohort,
    FeatureSet,
    FloatArray,
    Gate,
    Question,
    Score,
)
from rarescan.cohort.store import open_cohort, read_about
from rarescan.errors import InputError
from rarescan.evaluation.copies import Matches
from rarescan.evaluation.effects import Effects
from rarescan.evaluation.features import (
    FOLDER,
    PRIMARY,
    SECOND,
    load_features,
    person_rows,
    save_features,
)
from rarescan.evaluation.fidelity import age_fidelity, condition_fidelity
from rarescan.evaluation.images import (
    ImageSet,
    SetFacts,
    SetTask,
    describe_set,
    part_of,
    require_grid,
    samples_of,
)
from rarescan.evaluation.measures import MEASURES
from rarescan.evaluation.membership import black_box, membership_gate, white_box
from rarescan.evaluation.metrics import frozen_bandwidth, require_comparable
from rarescan.evaluation.plausibility import (
    high_frequency_gate,
    plausibility_gate,
    spread_gate,
)
from rarescan.evaluation.privacy import (
    Calibration,
    batch_gate,
    calibrate,
    data_gate,
    feature_nearness,
    judge_copies,
)
from rarescan.evaluation.spec import EvaluateConfig
from rarescan.evaluation.table import inception_score_row, score_pair
from rarescan.files import write_json
from rarescan.processes import run_parallel

Array = npt.NDArray[np.float64]
Embed = Callable[[FloatArray], tuple[FloatArray, FloatArray]]

SCORES = "scores.json"
_REAL_PARTS = ("train", "validation")
_INCEPTION = "inception"
_WORTH_PROCESSES_BYTES = 64 * 2**20


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
    GridMismatchError
        Samples on another grid than the cohort.
    """
    cohort = open_cohort(prepared)
    sets = _image_sets(cohort, samples)
    looked = {name: _Looked.at(images, embed) for name, images in sets.items()}
    for name, one in looked.items():
        require_comparable(looked["validation"].features, one.features, name)
    facts, calibration = _measure(sets, cohort, config)
    features = {
        PRIMARY: {
            name: FeatureSet(
                values=one.features,
                person_ids=one.persons,
                extractor=PRIMARY,
                weights_sha256=_weights_of(embed),
            )
            for name, one in looked.items()
        },
        SECOND: _region_features(sets, facts),
    }
    for extractor in features.values():
        for name, values in extractor.items():
            save_features(work / FOLDER, name, values)
    if config.inception_weights:
        features[_INCEPTION] = _inception_features(work / FOLDER, sets, config)
    evaluation = _Evaluation(config, question, sets, looked, facts, calibration, features)
    write_json(work / SCORES, evaluation.scores())


def _image_sets(cohort: Cohort, samples: Mapping[str, Path]) -> dict[str, ImageSet]:
    if not samples:
        raise InputError(
            "There is no candidate to score.",
            remedy="Train a generator first: `rarescan train PREPARED MODELS`.",
        )
    taken = set(samples) & set(_REAL_PARTS)
    if taken:
        raise InputError(
            f"A candidate is called '{min(taken)}', which is the name of a part of the cohort.",
            remedy="Give the candidate another name.",
        )
    grid = require_grid(cohort)
    real = {"train": part_of(cohort, "train"), "validation": part_of(cohort, "validation")}
    return real | {name: samples_of(name, root, grid) for name, root in samples.items()}


@dataclass(frozen=True)
class _Looked:
    """What the network saw in a set, one row a person."""

    persons: tuple[str, ...]
    diagnoses: tuple[str, ...]
    ages: Array
    features: FloatArray
    probabilities: FloatArray

    @classmethod
    def at(cls, images: ImageSet, embed: Embed) -> "_Looked":
        parts = [embed(volumes) for volumes in images.chunks()]
        features, persons = person_rows(np.concatenate([p[0] for p in parts]), images.persons)
        chances, _ = person_rows(np.concatenate([p[1] for p in parts]), images.persons)
        ages, _ = person_rows(np.array(images.ages), images.persons)
        by_person = dict(zip(reversed(images.persons), reversed(images.diagnoses), strict=True))
        return cls(
            persons,
            tuple(by_person[p] for p in persons),
            ages,
            features.astype(np.float32),
            chances.astype(np.float32),
        )


def _weights_of(embed: Embed) -> str:
    """Return the hash of the weights, where the function's network names it."""
    return str(getattr(getattr(embed, "__self__", embed), "weights_sha256", ""))


def _measure(
    sets: Mapping[str, ImageSet], cohort: Cohort, config: EvaluateConfig
) -> tuple[dict[str, SetFacts], Calibration]:
    """Measure every set and the planted copies, and calibrate the search for copies."""
    task = SetTask(
        images=sets["train"],
        prepared=cohort.root,
        cohort_id=cohort.cohort_id,
        shift_mm=config.copy_shift_mm,
        seed=config.seed,
    )
    tasks = [replace(task, canaries=config.canary_persons)]
    tasks += [replace(task, images=images) for images in sets.values()]
    # Starting processes costs seconds, which little data does not give back.
    small = sum(images.n_bytes for images in sets.values()) < _WORTH_PROCESSES_BYTES
    found = run_parallel(describe_set, tasks, what="measure volumes", workers=1 if small else None)
    canaries = cast(dict[str, Matches], found[0])
    facts = {n: cast(SetFacts, f) for n, f in zip(sets, found[1:], strict=True)}
    return facts, calibrate(cast(Matches, facts["validation"].matches), canaries)


def _region_features(
    sets: Mapping[str, ImageSet], facts: Mapping[str, SetFacts]
) -> dict[str, FeatureSet]:
    """Return region vectors in units of the training persons' SD."""
    rows = {
        name: person_rows(facts[name].measures[:, : len(MEASURES)], images.persons)
        for name, images in sets.items()
    }
    centre, sd = rows["train"][0].mean(axis=0), rows["train"][0].std(axis=0)
    return {
        name: FeatureSet(
            values=((values - centre) / np.where(sd > 0, sd, 1)).astype(np.float32),
            person_ids=persons,
            extractor=SECOND,
        )
        for name, (values, persons) in rows.items()
    }


def _inception_features(
    folder: Path, sets: Mapping[str, ImageSet], config: EvaluateConfig
) -> dict[str, FeatureSet]:
    """Return Inception features of mid-slices; sets that are there already are not repeated."""
    from rarescan.evaluation.inception import load_inception, slice_features

    network = None
    found = {}
    for name, images in sets.items():
        path = folder / _INCEPTION / f"{name}.npz"
        if not path.exists():
            network = network or load_inception(
                Path(config.inception_weights), config.inception_sha256
            )
            scans = np.concatenate([slice_features(network, v) for v in images.chunks()])
            rows, persons = person_rows(scans, images.persons)
            features = FeatureSet(
                values=rows.astype(np.float32),
                person_ids=persons,
                extractor=_INCEPTION,
                weights_sha256=config.inception_sha256,
            )
            save_features(folder, name, features)
        found[name] = load_features(path)
    return found


@dataclass(frozen=True)
class _Evaluation:
    """Everything that was measured; turns it into the numbers of `scores.json`."""

    config: EvaluateConfig
    question: Question
    sets: Mapping[str, ImageSet]
    looked: Mapping[str, _Looked]
    facts: Mapping[str, SetFacts]
    calibration: Calibration
    features: Mapping[str, Mapping[str, FeatureSet]]

    def scores(self) -> dict[str, Any]:
        sigma2 = {e: frozen_bandwidth(self._values(e, "validation")) for e in self.features}
        return {
            "extractors": {
                "primary": PRIMARY,
                "weights_sha256": {
                    name: sets["validation"].weights_sha256 for name, sets in self.features.items()
                },
                "sigma2": sigma2,
            },
            "network": self._network(),
            "floor": self._floor(sigma2[PRIMARY]),
            "candidates": {
                name: self._candidate(name, sigma2) for name in self.sets if name not in _REAL_PARTS
            },
        }

    def _values(self, extractor: str, name: str) -> Array:
        return self.features[extractor][name].values.astype(np.float64)

    def _network(self) -> dict[str, Any]:
        """How well the judge itself does on real persons that it has not seen."""
        one = self.looked["validation"]
        judged = condition_fidelity(
            one.probabilities, one.diagnoses, self.question, synthetic=False
        )
        return {"auc": _plain(judged["auc"]), "accuracy": _plain(judged["agreement"])}

    def _floor(self, sigma2: float) -> dict[str, Any]:
        """Distances between real and real: what a perfect generator could reach at this n."""
        pair = (self._values(PRIMARY, name) for name in ("validation", "train"))
        rows = score_pair(*pair, sigma2=sigma2, seed=self.config.seed)
        return {name: _plain(rows[name], PRIMARY) for name in ("mmd", "kid", "fid") if name in rows}

    def _candidate(self, name: str, sigma2: Mapping[str, float]) -> dict[str, Any]:
        fewest = self.config.fewest_persons
        spread, spread_numbers = self._spread(name)
        copies, privacy = judge_copies(
            cast(Matches, self.facts[name].matches),
            self.calibration,
            sorted(set(self.sets["train"].persons)),
            fewest_persons=fewest,
        )
        blur, detail = high_frequency_gate(
            *(self._per_person("high_frequency", n) for n in ("validation", name)),
            fewest_persons=fewest,
        )
        effects = self._effects(name)
        real = np.concatenate([self._per_person("measures", part) for part in _REAL_PARTS])
        plausible, plausibility = plausibility_gate(
            real,
            self._per_person("measures", name),
            effects,
            fewest_persons=fewest,
            names=self.looked[name].persons,
        )
        about_persons, more_privacy = self._about_persons(name)
        gates = (spread, blur, copies, plausible, *about_persons)
        return {
            "scores": self._distances(name, sigma2),
            "gates": [asdict(gate) for gate in gates],
            "condition_fidelity": self._fidelity(name),
            "spread": spread_numbers,
            "high_frequency": detail,
            "privacy": privacy | more_privacy,
            "plausibility": plausibility,
            "regions": effects.table() if effects else {},
        }

    def _about_persons(self, name: str) -> tuple[tuple[Gate, ...], dict[str, Any]]:
        """Judge whether the sets are clean, the batch leans, and members can be told."""
        train, validation = self.sets["train"], self.sets["validation"]
        sets = [self._values(PRIMARY, n) for n in (name, "validation", "train")]
        nearness = feature_nearness(sets[0], sets[1], sets[2])
        # The region vector was not fitted to training persons, as the network's features were.
        rows = [self._values(SECOND, n) for n in (name, "train", "validation")]
        seen = black_box(rows[0], rows[1], rows[2], seed=self.config.seed)
        losses = read_about(self.sets[name].root).get("person_losses", {})
        gates = (
            data_gate(train.persons, validation.persons, self.calibration),
            batch_gate(nearness),
            membership_gate(seen),
        )
        return gates, {"feature_nearness": nearness, "membership": [seen, *white_box(losses)]}

    def _distances(self, name: str, sigma2: Mapping[str, float]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for extractor in self.features:
            rows = score_pair(
                self._values(extractor, "validation"),
                self._values(extractor, name),
                sigma2=sigma2[extractor],
                seed=self.config.seed,
            )
            if extractor == PRIMARY:
                rows["is"] = inception_score_row(
                    self.looked[name].probabilities, "from the network's class probabilities"
                )
            found[extractor] = {k: _plain(s, extractor) for k, s in rows.items()}
        return found

    def _spread(self, name: str) -> tuple[Gate, dict[str, Any]]:
        """Judge the primary features; the region vector may withhold a pass, never give one."""
        judged = {
            extractor: spread_gate(
                self._values(extractor, "validation"),
                self._values(extractor, name),
                fewest_persons=self.config.fewest_persons,
            )
            for extractor in (PRIMARY, SECOND)
        }
        gate, numbers = judged[PRIMARY]
        second, second_numbers = judged[SECOND]
        if gate.outcome == "pass" and second.outcome == "fail":
            gate = Gate(
                name=gate.name,
                outcome="insufficient",
                statistic=gate.statistic,
                limit=gate.limit,
                reason=f"{gate.reason} The region vector disagrees: {second.reason}",
            )
        return gate, numbers | {"outcome": gate.outcome, SECOND: second_numbers}

    def _per_person(self, what: str, name: str) -> Array:
        return person_rows(getattr(self.facts[name], what), self.sets[name].persons)[0]

    def _effects(self, name: str) -> Effects | None:
        def groups(parts: Iterable[str]) -> tuple[Array, Array]:
            rows = np.concatenate([self._per_person("measures", part) for part in parts])
            labels = np.concatenate([np.array(self.looked[part].diagnoses) for part in parts])
            return rows[labels == self.question.positive], rows[labels == self.question.negative]

        return Effects.of(groups(_REAL_PARTS), groups((name,)))

    def _fidelity(self, name: str) -> dict[str, Any]:
        one = self.looked[name]
        judged = condition_fidelity(one.probabilities, one.diagnoses, self.question, synthetic=True)
        pairs = [(self._values(SECOND, n), self.looked[n].ages) for n in (*_REAL_PARTS, name)]
        ages = age_fidelity(pairs[0], pairs[1], pairs[2])
        return {
            "agreement": _plain(judged["agreement"]),
            "by_diagnosis": {d: _plain(score) for d, score in judged["by_diagnosis"].items()},
            "auc": _plain(judged["auc"]),
            "age": {n: _plain(score) for n, score in ages.items()} if ages else None,
        }


def _plain(score: Score | None, extractor: str = "") -> dict[str, Any] | None:
    """Return a score as JSON values; an infinite bound is no bound."""
    if score is None:
        return None
    values = asdict(replace(score, extractor=extractor))
    infinite = [end for end in ("low", "high") if not np.isfinite(values[end] or 0)]
    return values | dict.fromkeys(infinite)
