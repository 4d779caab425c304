"""What others have published about a draw's disease: knowledge from outside the cohort.

`write_published_map` is the way in. Another group, with patients, controls and scanners of its
own, compares grey matter voxel by voxel and shares the map of t values, as voxel-based
morphometry studies do. What such a map holds is honest outside knowledge: a pattern with the
noise and the blur of a study of that size, or (`likeness`) the pattern of a disease like it.
"""

from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rarescan.cohort.contracts import FloatArray, brain_grid
from rarescan.files import atomic_path
from rarescan.phantom.anatomy import FWHM, brain_of
from rarescan.phantom.fields import pull, voxel_centres
from rarescan.phantom.persons import REGIONS, Person, draw_person
from rarescan.phantom.questions import DrawConfig, draw_pattern
from rarescan.phantom.spec import PhantomConfig
from rarescan.seeds import derive, generator
from rarescan.threads import one_thread

SPACING_MM = 4.0
_LEAST_GREY = 0.1
"""Share of grey matter, of all persons, below which studies leave a voxel out."""


def write_published_map(
    path: Path,
    config: DrawConfig,
    *,
    persons: int = 100,
    likeness: float = 1.0,
    smoothing_mm: float = 12.0,
) -> Path:
    """Write the map that a study of the draw's disease would share; return its path.

    Parameters
    ----------
    path : Path
        A NIfTI file on the 4 mm brain grid: t values of grey matter, patients against controls at
        the same age; negative where patients have less, 0 outside grey matter.
    config : DrawConfig
        Whose disease. None of its persons is in the study.
    persons : int
        Of the study, half of them patients.
    likeness : float
        1: the same disease. Less: a related one, whose regional weights correlate with the
        disease's by this much over draws; at 0 the two share no more than that both are atrophy.
    smoothing_mm : float
        Full width at half maximum of the Gaussian before the test.
    """
    population = PhantomConfig(
        preset="hard",
        patients=persons // 2,
        controls=persons - persons // 2,
        seed=derive(0, "utility", config.question, config.number, "published"),
    )
    pattern = _related(config, likeness)
    drawn = [draw_person(population, index, pattern=pattern) for index in range(persons)]
    with one_thread():
        grey = np.stack([_grey(population, person, smoothing_mm) for person in drawn])
    values = _t_values(grey, drawn)
    image = nibabel.Nifti1Image(values, brain_grid(SPACING_MM).matrix())
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)
    return path


def _related(config: DrawConfig, likeness: float) -> tuple[float, ...]:
    """Return regional weights that correlate with the draw's, and are as strong."""
    own = np.array(draw_pattern(config))
    rng = generator(0, "utility", config.question, config.number, "related")
    other = rng.uniform(0, 1, len(REGIONS))
    other *= np.linalg.norm(own) / np.linalg.norm(other)
    mixed = likeness * own + np.sqrt(1 - likeness**2) * other
    # Both have a common mean, of which a mixture with weights that do not add up to 1 has more.
    mixed -= (likeness + np.sqrt(1 - likeness**2) - 1) * (own.mean() + other.mean()) / 2
    mixed = np.maximum(mixed, 0)
    scaled = mixed * (np.linalg.norm(own) / np.linalg.norm(mixed))
    return tuple(float(weight) for weight in scaled)


def _grey(population: PhantomConfig, person: Person, smoothing_mm: float) -> FloatArray:
    """Return a person's share of grey matter in template space after an affine registration."""
    brain = brain_of(population, person, SPACING_MM)
    there = voxel_centres(brain_grid(SPACING_MM).shape) + brain.shape.permute(1, 2, 3, 0)
    grey = pull(brain.tissues[:1], there)[0].numpy()
    smoothed: FloatArray = ndimage.gaussian_filter(grey, smoothing_mm / FWHM / SPACING_MM)
    return smoothed


def _t_values(grey: FloatArray, persons: list[Person]) -> FloatArray:
    """Return the t value of the diagnosis in each voxel, with age and a mean beside it."""
    design: npt.NDArray[np.float64] = np.array(
        [[p.severity > 0, 1, (p.age_years - 64) / 8] for p in persons], dtype=np.float64
    )
    flat = grey.reshape(len(grey), -1).astype(np.float64)
    weights, *_ = np.linalg.lstsq(design, flat, rcond=None)
    residual = flat - design @ weights
    variance = (residual**2).sum(0) / (len(flat) - design.shape[1])
    error = np.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0])
    t = weights[0] / np.maximum(error, 1e-9)
    found: FloatArray = np.where(flat.mean(0) > _LEAST_GREY, t, 0).astype(np.float32)
    return found.reshape(grey.shape[1:])
