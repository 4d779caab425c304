"""Everything that is measured in a set of scans, one row a person.

`measure` is the way in: the real parts of a cohort and every candidate's samples go in, one
`People` each comes out, with what the domain network, the regions, the search for copies and the
networks of others saw in them. From here on nobody thinks of scans.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from rarescan.cohort.contracts import Cohort, FeatureSet, FloatArray
from rarescan.errors import InputError
from rarescan.evaluation.copies import Matches
from rarescan.evaluation.features import (
    PRIMARY,
    SECOND,
    Extractor,
    by_person,
    find_features,
    person_rows,
    save_features,
)
from rarescan.evaluation.images import (
    ImageSet,
    SetFacts,
    SetTask,
    describe_set,
    part_of,
    require_grid,
    samples_of,
)
from rarescan.evaluation.measures import measure_names
from rarescan.evaluation.metrics import require_comparable
from rarescan.evaluation.privacy import Calibration, calibrate
from rarescan.evaluation.spec import EvaluateConfig, ExtractorConfig
from rarescan.files import content_id
from rarescan.processes import run_parallel

Array = npt.NDArray[np.float64]
Embed = Callable[[FloatArray], tuple[FloatArray, FloatArray]]

REAL_PARTS = ("train", "validation")
_WORTH_PROCESSES_BYTES = 64 * 2**20
_PIECE = 100
"""Scans that one worker measures at a time."""


@dataclass(frozen=True, kw_only=True)
class People:
    """A set of persons."""

    images: ImageSet
    diagnoses: npt.NDArray[np.str_]
    """True ones, or those asked for."""
    ages: Array
    """Years; NaN where unknown."""
    probabilities: FloatArray
    """Of the negative and the positive diagnosis, by the domain network."""
    features: Mapping[str, FeatureSet]
    """By extractor."""
    measures: Array
    """Columns of `names`, the overlap with the training persons' outline and the distance to
    their histogram."""
    names: tuple[str, ...]
    """What was measured: `measures.MEASURES` where there are brains."""
    high_frequency: Array
    blurred: Array | None
    """Of the validation persons, what `high_frequency` would be after each of some blurs."""
    similarity: Array
    """MS-SSIM of pairs, one value a pair."""
    matches: Matches | None
    """One a scan; None for the training persons themselves."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Pseudonyms, in the order of all rows."""
        return self.features[PRIMARY].person_ids

    def rows(self, extractor: str = PRIMARY) -> Array:
        """Return features as float64, shape (persons, d)."""
        return self.features[extractor].values.astype(np.float64)


def measure(
    cohort: Cohort,
    samples: Mapping[str, Path],
    embed: Embed,
    config: EvaluateConfig,
    folders: Sequence[Path],
) -> tuple[dict[str, People], Calibration]:
    """Return what was seen in every set, and the scale of the search for copies.

    Parameters
    ----------
    cohort : Cohort
        Prepared, with a partition.
    samples : mapping of str to Path
        Candidate -> root of its synthetic cohort, on the same grid.
    embed : callable
        The domain network, as `evaluate.write_scores` takes it.
    config : EvaluateConfig
    folders : sequence of Path
        Where features of the networks of others are kept; new ones go into the first.

    Raises
    ------
    InputError, SettingError, GridMismatchError
        As `evaluate.write_scores`.
    """
    sets = _image_sets(cohort, samples)
    _require_extractors(config.extractors)
    looked = {name: _Looked.at(images, embed) for name, images in sets.items()}
    for name, one in looked.items():
        require_comparable(looked["validation"].features.values, one.features.values, name)
    facts, similarity, calibration = _facts(sets, cohort, config)
    features = _features(sets, looked, facts, config.extractors, folders)
    people = {
        name: People(
            images=images,
            diagnoses=looked[name].diagnoses,
            ages=looked[name].ages,
            probabilities=looked[name].probabilities,
            features=features[name],
            measures=person_rows(facts[name].measures, images.persons)[0],
            names=measure_names(require_grid(cohort)),
            high_frequency=person_rows(facts[name].high_frequency, images.persons)[0],
            blurred=_of_persons(facts[name].blurred, images),
            similarity=similarity[name],
            matches=facts[name].matches,
        )
        for name, images in sets.items()
    }
    return people, calibration


def _of_persons(rows: Array | None, images: ImageSet) -> Array | None:
    return None if rows is None else person_rows(rows, images.persons)[0]


def _image_sets(cohort: Cohort, samples: Mapping[str, Path]) -> dict[str, ImageSet]:
    if not samples:
        raise InputError(
            "There is no candidate to score.",
            remedy="Train a generator first: `rarescan train PREPARED MODELS`.",
        )
    taken = set(samples) & set(REAL_PARTS)
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
    """What the domain network saw in a set, one row a person."""

    features: FeatureSet
    probabilities: FloatArray
    diagnoses: npt.NDArray[np.str_]
    ages: Array

    @classmethod
    def at(cls, images: ImageSet, embed: Embed) -> "_Looked":
        parts = [embed(volumes) for volumes in images.chunks()]
        features = by_person(
            np.concatenate([p[0] for p in parts]),
            images.persons,
            extractor=PRIMARY,
            weights_sha256=_weights_of(embed),
        )
        chances, _ = person_rows(np.concatenate([p[1] for p in parts]), images.persons)
        ages, _ = person_rows(np.array(images.ages), images.persons)
        by_id = dict(zip(reversed(images.persons), reversed(images.diagnoses), strict=True))
        diagnoses = np.array([by_id[person] for person in features.person_ids])
        return cls(features, chances.astype(np.float32), diagnoses, ages)


def _weights_of(embed: Embed) -> str:
    """Return the hash of the weights, where the function's network names it."""
    return str(getattr(getattr(embed, "__self__", embed), "weights_sha256", ""))


def _facts(
    sets: Mapping[str, ImageSet], cohort: Cohort, config: EvaluateConfig
) -> tuple[dict[str, SetFacts], dict[str, Array], Calibration]:
    """Measure every set, its pairs and the planted copies; calibrate the search for copies."""
    task = SetTask(
        images=sets["train"],
        prepared=cohort.root,
        cohort_id=cohort.cohort_id,
        shift_mm=config.copy_shift_mm,
        seed=config.seed,
    )
    pieces = {name: images.pieces(_PIECE) for name, images in sets.items()}
    tasks = [replace(task, canaries=config.canary_persons)]
    tasks += [replace(task, images=images, pairs=True) for images in sets.values()]
    tasks += [replace(task, images=piece) for cut in pieces.values() for piece in cut]
    found = run_parallel(
        describe_set, tasks, what="measure volumes", workers=_workers(sets.values())
    )
    canaries = cast(dict[str, Matches], found[0])
    rest = iter(found[1:])
    similarity = {name: cast(Array, next(rest)) for name in sets}
    facts = {
        name: SetFacts.joined(cast(list[SetFacts], list(islice(rest, len(cut)))))
        for name, cut in pieces.items()
    }
    scale = calibrate(cast(Matches, facts["validation"].matches), canaries)
    return facts, similarity, scale


def _workers(sets: Iterable[ImageSet]) -> int | None:
    """Return 1 where starting processes costs more seconds than they would save."""
    return 1 if sum(images.n_bytes for images in sets) < _WORTH_PROCESSES_BYTES else None


def _features(
    sets: Mapping[str, ImageSet],
    looked: Mapping[str, _Looked],
    facts: Mapping[str, SetFacts],
    extractors: Sequence[ExtractorConfig],
    folders: Sequence[Path],
) -> dict[str, dict[str, FeatureSet]]:
    """Return set -> extractor -> features."""
    regions = _region_features(sets, facts)
    found = {name: {PRIMARY: looked[name].features, SECOND: regions[name]} for name in sets}
    asked = [(extractor, name) for extractor in extractors for name in sets]
    tasks = [LookTask(images=sets[n], extractor=e, folders=tuple(folders)) for e, n in asked]
    if not tasks:
        return found
    seen = run_parallel(
        features_of, tasks, what="other networks look", workers=_workers(sets.values())
    )
    for (extractor, name), features in zip(asked, seen, strict=True):
        found[name][extractor.name] = features
    return found


def _region_features(
    sets: Mapping[str, ImageSet], facts: Mapping[str, SetFacts]
) -> dict[str, FeatureSet]:
    """Return region vectors in units of the training persons' SD."""
    # The last two columns are comparisons with the training persons.
    rows = {name: facts[name].measures[:, :-2] for name in sets}
    training, _ = person_rows(rows["train"], sets["train"].persons)
    centre, sd = training.mean(axis=0), training.std(axis=0)
    return {
        name: by_person(
            (rows[name] - centre) / np.where(sd > 0, sd, 1), images.persons, extractor=SECOND
        )
        for name, images in sets.items()
    }


def _require_extractors(extractors: Sequence[ExtractorConfig]) -> None:
    """Refuse missing and changed files before anything is computed."""
    if extractors:
        from rarescan.evaluation.external import require_weights

        for extractor in extractors:
            require_weights(extractor)


@dataclass(frozen=True, kw_only=True)
class LookTask:
    """One set and one network of others, for one worker."""

    images: ImageSet
    extractor: ExtractorConfig
    folders: tuple[Path, ...]
    """Where features are kept; new ones are written into the first."""


def features_of(task: LookTask) -> FeatureSet:
    """Return one row a person; what was computed from the same voxels is not computed again."""
    images, config = task.images, task.extractor
    made_from = content_id([config.kind, config.sha256.lower(), images.persons, images.content()])
    found = find_features(task.folders, config.name, images.name, made_from)
    if found is None:
        extractor = _opened(config)
        found = by_person(
            np.stack([extractor.embed(v) for volumes in images.chunks() for v in volumes]),
            images.persons,
            extractor=config.name,
            weights_sha256=extractor.weights_sha256,
        )
    save_features(task.folders[0], images.name, found, made_from=made_from)
    return found


@lru_cache(maxsize=1)
def _opened(config: ExtractorConfig) -> Extractor:
    """Open a network once a worker."""
    from rarescan.evaluation.external import open_extractor

    return open_extractor(config)
