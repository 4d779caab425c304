"""Patients made of training controls and what others know of their disease.

`write_knowledge` is the way in. A dozen patients do not hold the pattern of a disease; a map that
others published, or a table of regions, may. Here the map says where tissue goes, the training
patients say how much and how unevenly between the sides, and every synthetic patient is a training
control in whom so much has gone: sulci open where the control has them, because the share of
fluid of each voxel grows (`opened`), and tissue may shrink beside (`KnowledgeConfig.shrinkage`).
The donor's scanner stays.

What a reader would get wrong: the map is not evidence about these patients. If they do not show
it (`Disease.z`), nothing is written: controls that are called patients would only harm.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn.functional import avg_pool3d

from rarescan.cohort.contracts import BRAIN_BOX_MM, Cohort, FloatArray, Scan
from rarescan.cohort.store import (
    TABLES,
    VOLUMES,
    create_volumes,
    open_volumes,
    require_grid,
    write_cohort,
)
from rarescan.errors import GateRefusedError, InputError
from rarescan.files import Recipe, run_step, sha256_file
from rarescan.generative.code_store import first_scans
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.counterfactual import NEAR_COPY
from rarescan.generative.pattern import Direction, directions, read_pattern, reduced
from rarescan.generative.spec import KnowledgeConfig
from rarescan.progress import track
from rarescan.seeds import generator
from rarescan.threads import one_thread

Array = npt.NDArray[np.float64]

_SCHEMA = 1
_FIT_MM = 8.0
_FIT_SD_VOXELS = 12 / 2.3548 / _FIT_MM
"""Amplitudes are fitted to scans of 8 mm, smoothed by 12 mm: the same at every spacing."""
_COMPONENTS, _RIDGE = 60, 0.1
_DONORS_OF_EFFECT = 16
_SPREAD = 0.4
_WORTH_PERSONS = 12
"""The spread of amplitudes expected beforehand, of their mean, and how many patients it counts."""
_LEAST_SEVERITY = 0.2
_LEAST_Z = 1.0
"""Few patients show a pattern that is right with 2 to 4; those who do not have it, mostly below."""
_FEWEST = 3


@dataclass(frozen=True, kw_only=True)
class Disease:
    """What the pattern does to each side, and how much of it the training patients have."""

    sides: tuple[Direction, Direction]
    """Left and right."""
    mean: tuple[float, float]
    """Amplitudes: half sum (severity) and half difference of left and right."""
    factor: tuple[tuple[float, float], tuple[float, float]]
    """Lower Cholesky factor of their covariance."""
    z: float
    """Mean severity in standard errors: whether these patients show the pattern at all."""

    def draw(self, random: np.random.Generator) -> tuple[float, float]:
        """Return the amplitudes of left and right of one more patient; no side gains tissue."""
        severity, side = self.mean + np.array(self.factor) @ random.standard_normal(2)
        severity = max(severity, _LEAST_SEVERITY * self.mean[0])
        return max(float(severity + side), 0.0), max(float(severity - side), 0.0)


def write_knowledge(cohort: Cohort, folder: Path, config: KnowledgeConfig, seed: int) -> Path:
    """Write a batch of patients made from a pattern and training controls; return its folder.

    Parameters
    ----------
    cohort : Cohort
        Prepared brains with a partition; training persons only are read.
    folder : Path
        Where the batch goes: a synthetic cohort on the same grid. The condition of each scan is
        its donor's with the patients' diagnosis; all carry the flag `NEAR_COPY`, because their
        anatomy is a real person's. A finished one is kept.
    config : KnowledgeConfig
        The pattern's file, how many.
    seed : int
        Of the batch: the amplitudes of scan i are the same however many there are.

    Raises
    ------
    SettingError, InputError
        The pattern cannot be read, the cohort is no cohort of brains, or a class has fewer than
        three training persons.
    GateRefusedError
        The training patients do not show the pattern.
    """
    if cohort.grid is None or not cohort.grid.is_brain:
        raise InputError(
            "Only prepared brains can be given a pattern in the template's space.",
            remedy="Name a cohort of brain volumes that `rarescan prepare` wrote.",
        )
    grid, file = cohort.grid, Path(config.pattern)
    pattern = read_pattern(file, grid)
    settings = {k: v for k, v in asdict(config).items() if k != "pattern"}
    recipe = Recipe(
        step="knowledge",
        schema=_SCHEMA,
        config=settings,
        seeds={"batch": seed},
        inputs={"prepared": cohort.cohort_id, "pattern": sha256_file(file)[:16]},
    )

    def build(work: Path) -> None:
        with one_thread():
            donors = _training(cohort, config.question.negative)
            patients = _training(cohort, config.question.positive)
            sides = directions(pattern, grid, config.shrinkage)
            disease = fit_disease(cohort, patients, donors, sides)
            _require_shown(disease, len(patients))
            scans = _fill(work, cohort, donors=donors, disease=disease, config=config, seed=seed)
        about = {"severity": disease.mean, "factor": disease.factor, "z": disease.z}
        write_cohort(work, scans=scans, grid=grid, partition={}, about=about)

    return run_step(folder, recipe, build)


def _require_shown(disease: Disease, n_patients: int) -> None:
    if disease.z < _LEAST_Z:
        raise GateRefusedError(
            f"The {n_patients} training patients do not show the pattern: their mean severity is "
            f"{disease.z:.1f} standard errors, less than {_LEAST_Z:g}.",
            remedy="Use a pattern of this disease, or more patients.",
        )


def _training(cohort: Cohort, diagnosis: str) -> dict[int, Scan]:
    """Return position -> scan of the training persons with a diagnosis, one scan a person."""
    scans = first_scans(cohort, "train")
    found = {i: scan for i, scan in scans.items() if scan.condition.diagnosis == diagnosis}
    if len(found) < _FEWEST:
        raise InputError(
            f"{len(found)} training persons have the diagnosis '{diagnosis}': "
            "too few to fit amplitudes.",
            remedy=f"At least {_FEWEST} of both diagnoses are needed; see `question`.",
        )
    return found


def fit_disease(
    cohort: Cohort,
    patients: dict[int, Scan],
    controls: dict[int, Scan],
    sides: tuple[Direction, Direction],
) -> Disease:
    """Return how much of the pattern training patients have beyond what controls have by chance.

    Generalised least squares: what age, sex and site explain among the controls is taken off;
    in the controls' whitened principal components each person's rest is projected on the two
    directions' mean effects. The patients' covariance less the controls' is blended with an
    expected one, which counts as twelve patients; the mean difference of the sides is shrunk
    towards 0 by its reliability.
    """
    volumes = open_volumes(cohort)
    positions = [*patients, *controls]
    scans = [*patients.values(), *controls.values()]
    values = np.stack([_smoothed(volumes[i]) for i in positions])
    rest = _rest(values, _covariates(scans), n_patients=len(patients))
    whitening = _whitening(rest[len(patients) :])
    effects = _effects([volumes[i] for i in [*controls][:_DONORS_OF_EFFECT]], sides) @ whitening
    found = rest @ whitening @ np.linalg.pinv(effects)
    # Left and right as severity (half sum) and side (half difference).
    both = found @ np.array([[0.5, 0.5], [0.5, -0.5]]).T
    return _law(sides, both[: len(patients)], both[len(patients) :])


def _law(sides: tuple[Direction, Direction], patients: Array, controls: Array) -> Disease:
    """Return mean and covariance of amplitudes, shape (n, 2) each, shrunk for few patients."""
    n = len(patients)
    mean = patients.mean(0) - controls.mean(0)
    seen = np.cov(patients.T)
    z = float(mean[0] / np.sqrt(seen[0, 0] / n))
    lengths, axes = np.linalg.eigh(seen - np.cov(controls.T))
    own = (axes * np.maximum(lengths, 0)) @ axes.T
    expected = np.eye(2) * (_SPREAD * mean[0]) ** 2
    covariance = (n * own + _WORTH_PERSONS * expected) / (n + _WORTH_PERSONS)
    mean[1] *= covariance[1, 1] / (covariance[1, 1] + seen[1, 1] / n)
    factor = np.linalg.cholesky(covariance + 1e-9 * np.eye(2))
    return Disease(
        sides=sides,
        mean=(float(mean[0]), float(mean[1])),
        factor=((float(factor[0, 0]), 0.0), (float(factor[1, 0]), float(factor[1, 1]))),
        z=z,
    )


def _smoothed(volume: FloatArray) -> Array:
    """Return a volume at 8 mm, smoothed, as a row."""
    factor = round(_FIT_MM * volume.shape[0] / BRAIN_BOX_MM[0])
    coarse = avg_pool3d(torch.from_numpy(np.array(volume))[None], factor)[0].numpy()
    row: Array = ndimage.gaussian_filter(coarse.astype(np.float64), _FIT_SD_VOXELS).ravel()
    return row


def _covariates(scans: Sequence[Scan]) -> Array:
    """Return a mean, age, sex and site of each person."""
    conditions = [scan.condition for scan in scans]
    encoder = ConditionEncoder.fit(conditions, ("age_years", "sex", "site"))
    others = encoder.encode(conditions)[:, encoder.n_diagnosis_features :].double().numpy()
    return np.column_stack([np.ones(len(scans)), others])


def _rest(values: Array, design: Array, *, n_patients: int) -> Array:
    """Return what the controls' covariates do not explain, of everybody."""
    weights, *_ = np.linalg.lstsq(design[n_patients:], values[n_patients:], rcond=None)
    rest: Array = values - design @ weights
    return rest


def _whitening(rest: Array) -> Array:
    """Return the matrix, shape (voxels, components), that gives controls about unit variance."""
    _, lengths, axes = np.linalg.svd(rest, full_matrices=False)
    n = min(_COMPONENTS, len(rest) - 1)
    variances = lengths[:n] ** 2 / len(rest)
    found: Array = axes[:n].T / np.sqrt(variances + _RIDGE * variances.mean())
    return found


def _effects(donors: Sequence[FloatArray], sides: Sequence[Direction]) -> Array:
    """Return the mean change of some scans at amplitude 1 of each side, shape (2, voxels)."""
    rows = []
    for place in range(len(sides)):
        amplitudes = [float(place == other) for other in range(len(sides))]
        changes = [_smoothed(reduced(v, sides, amplitudes)) - _smoothed(v) for v in donors]
        rows.append(np.mean(changes, axis=0))
    return np.stack(rows)


def _fill(
    work: Path,
    cohort: Cohort,
    *,
    donors: dict[int, Scan],
    disease: Disease,
    config: KnowledgeConfig,
    seed: int,
) -> list[Scan]:
    """Write the volumes of a batch and return their records; donors take turns."""
    source, positions = open_volumes(cohort), list(donors)
    volumes = create_volumes(work, config.persons, require_grid(cohort.root))
    scans = []
    for row in track(range(config.persons), "make patients from a pattern"):
        position = positions[row % len(positions)]
        amounts = disease.draw(generator(seed, "knowledge", row))
        volumes[row] = reduced(np.array(source[position]), disease.sides, amounts)
        digest = hashlib.sha256(volumes[row].tobytes()).hexdigest()
        scans.append(_scan(row, donors[position], config.question.positive, digest))
    return scans


def _scan(row: int, donor: Scan, diagnosis: str, sha256: str) -> Scan:
    person = f"SYN{row + 1:06d}"
    return Scan(
        scan_id=f"{person}_ses-01_T1w",
        person_id=person,
        origin="synthetic",
        path=f"{TABLES}/{VOLUMES}",
        sha256=sha256,
        condition=replace(donor.condition, diagnosis=diagnosis, severity=None),
        target=diagnosis,
        site=donor.site,
        session=donor.session,
        flags=(NEAR_COPY,),
    )
