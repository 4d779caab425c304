"""Which acquisitions a batch gets: none, one, or drawn from what scanners do.

`acquisitions_of` does what `generate.acquisition` asks for. `measure` reads what each scan of a
cohort shows beyond their mean, `measured_range` makes a `Range` of that, `draw` takes an
`Acquisition` from a range. The estimates are simple and robust, not precise: known acquisitions of
phantoms at 4 mm, each alone, are found again within 10 % (contrast, blur, noise) or 20 % (shading)
in the mean of 20 scans. A single scan's contrast has its anatomy in it (large ventricles look like
dark fluid), so that the range of contrasts is rather too wide than too narrow.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.optimize import least_squares

from rarescan.cohort.contracts import BRAIN_BOX_MM, Cohort, FloatArray
from rarescan.cohort.store import open_volumes
from rarescan.errors import InputError, SettingError
from rarescan.generative.acquisition import (
    DARKEST,
    FWHM,
    LEVELS,
    NEUTRAL_CONTRAST,
    Acquisition,
    Array,
    Mask,
    polynomials,
    tone_curve,
)
from rarescan.generative.code_store import first_scans
from rarescan.generative.spec import AcquisitionConfig
from rarescan.seeds import derive, generator

_FEWEST = 6
_MOST = 40
"""Scans that are measured; more change a range little, and cost seconds each at 1 mm."""
_BINS = 12
_BANDS = np.linspace(0.06, 0.48, 22)
"""Edges of the rings of spatial frequency, cycles a voxel."""
_QUANTILES = (0.05, 0.95)


@dataclass(frozen=True, kw_only=True)
class Range:
    """From where acquisitions are drawn, evenly."""

    contrast: tuple[tuple[float, float], tuple[float, float]]
    """Lowest and highest of each of the two numbers of `Acquisition.contrast`."""
    blur_mm: float
    """The most; the least is 0, as for the others."""
    noise: float
    bias: float


FREE = Range(contrast=((0.1, 0.45), (0.4, 0.68)), blur_mm=8.0, noise=0.06, bias=0.3)
"""Wider than any clinical T1: what classifiers of unseen scanners were tried with."""


def draw(limits: Range, seed: int) -> Acquisition:
    """Return an acquisition from a range; same seed, same acquisition."""
    share = generator(seed, "acquisition").uniform(size=5)
    (low, high), (low_middle, high_middle) = limits.contrast
    dark = low + share[0] * (high - low)
    middle = max(low_middle + share[1] * (high_middle - low_middle), dark + 0.05)
    return Acquisition(
        contrast=(float(dark), float(middle)),
        blur_mm=float(share[2] * limits.blur_mm),
        noise=float(share[3] * limits.noise),
        bias=float(share[4] * limits.bias),
    )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one scan shows beyond the mean scan of its cohort; below 0 where it shows less."""

    contrast: tuple[float, float]
    """As in `Acquisition`."""
    blur_mm2: float
    """Squared full width at half maximum."""
    noise2: float
    """Variance of the noise."""
    bias2: float
    """Variance, over the brain, of the smooth part of the logarithm of scan over mean scan, less
    the median scan's: anatomy is in it too."""


def measure(volumes: FloatArray) -> list[Measured]:
    """Return what each scan of a cohort shows beyond their mean.

    Contrast: the median brightness of a scan at places that are equally bright in the mean scan,
    against the same of all scans. Blur and noise: the scan's power spectrum P (in rings of 0.06 to
    0.48 cycles a voxel, within the brain) against the cohort's geometric mean S, fitted in
    logarithms by P = a S exp(-(2 pi f s)^2) + n^2, because blur falls with the frequency f and
    white noise is even. Bias: a second-order polynomial in the logarithm of
    scan over mean scan, fitted to the brighter half of the places, where no fluid is.

    Parameters
    ----------
    volumes : float32 array, shape (n, x, y, z)
        At least 6 scans, prepared; may lie on a memory map.

    Raises
    ------
    InputError
        Fewer scans.
    """
    if len(volumes) < _FEWEST:
        raise InputError(
            f"{len(volumes)} scans do not show how scanners differ.",
            remedy=f"Give {_FEWEST} or more, or set generate.acquisition.how to free or set.",
        )
    spacing_mm = BRAIN_BOX_MM[0] / volumes.shape[1]
    mean, core = _mean_scan(volumes)
    window = np.clip(2 * ndimage.gaussian_filter(core.astype(np.float32), 2.5) - 1, 0, 1)
    places = np.digitize(mean[core], np.quantile(mean[core], np.arange(1, _BINS) / _BINS))
    basis = polynomials(core)
    curves, spectra, biases = [], [], []
    for volume in volumes:
        inside = np.asarray(volume)[core]
        curve = np.array([np.median(inside[places == k]) for k in range(_BINS)])
        curves.append(curve)
        spectra.append(_spectrum(np.asarray(volume), window))
        ratio = np.log(np.maximum(inside, DARKEST) / np.maximum(curve[places], DARKEST))
        biases.append(_smooth_variance(ratio, basis, places >= _BINS // 2))
    usual, reference = np.mean(curves, axis=0), np.exp(np.mean(np.log(spectra), axis=0))
    fits = [_blur_and_noise(spectrum, reference) for spectrum in spectra]
    return [
        Measured(
            contrast=_contrast(curve, usual),
            blur_mm2=(FWHM * spacing_mm) ** 2 * variance,
            noise2=noise2,
            bias2=float(bias - np.median(biases)),
        )
        for curve, (variance, noise2), bias in zip(curves, fits, biases, strict=True)
    ]


def _mean_scan(volumes: FloatArray) -> tuple[Array, Mask]:
    """Return the mean scan, and the voxels that are brain in nine of ten scans."""
    total, inside = np.zeros(volumes.shape[1:]), np.zeros(volumes.shape[1:])
    for volume in volumes:
        total += volume
        inside += volume > 0
    return total / np.maximum(inside, 1), inside >= 0.9 * len(volumes)


def _contrast(curve: Array, usual: Array) -> tuple[float, float]:
    """Return the contrast, and by the way the gain, that makes one tone curve of another."""

    def wrong(values: Array) -> Array:
        dark, middle, gain = values
        return np.asarray(gain * tone_curve((dark, middle))(usual) - curve)

    start = np.array([*NEUTRAL_CONTRAST, 1.0])
    limits = ([0.01, 0.38, 0.5], [0.37, 0.74, 2.0])
    dark, middle, _ = least_squares(wrong, start, bounds=limits, loss="soft_l1", f_scale=0.02).x
    return float(dark), float(middle)


def _spectrum(volume: FloatArray, window: FloatArray) -> Array:
    """Return the mean power in each ring of `_BANDS`; white noise has its variance everywhere."""
    weighted = (volume - (volume * window).sum() / window.sum()) * window
    power = np.abs(np.fft.rfftn(weighted)) ** 2 / (window.astype(np.float64) ** 2).sum()
    axes = [np.fft.fftfreq(n) for n in volume.shape[:2]] + [np.fft.rfftfreq(volume.shape[2])]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    ring = np.digitize(np.sqrt(x**2 + y**2 + z**2), _BANDS).ravel()
    sums = np.bincount(ring, power.ravel(), len(_BANDS) + 1)
    return np.asarray(sums / np.maximum(np.bincount(ring, minlength=len(_BANDS) + 1), 1))[1:-1]


def _blur_and_noise(spectrum: Array, reference: Array) -> tuple[float, float]:
    """Return a Gaussian's variance, in voxels squared, and the variance of white noise."""
    middles = (_BANDS[1:] + _BANDS[:-1]) / 2
    unit = float(reference[-1])

    def wrong(values: Array) -> Array:
        gain, variance, noise2 = values
        blurred = reference * np.exp(gain - (2 * np.pi * middles) ** 2 * variance)
        fitted = np.maximum(blurred + noise2 * unit, 1e-3 * unit)
        return np.asarray(np.log(fitted / spectrum))

    found = least_squares(wrong, np.zeros(3), loss="soft_l1", f_scale=0.2).x
    return float(found[1]), float(found[2] * unit)


def _smooth_variance(ratio: Array, basis: Array, bright: Mask) -> float:
    """Return the variance over the brain of the smooth part of a log ratio."""
    known = np.clip(ratio[bright], *np.quantile(ratio[bright], [0.05, 0.95]))
    share = np.linalg.lstsq(basis[bright], known)[0]
    return float((share[1:] ** 2).sum() / len(ratio))


def measured_range(volumes: FloatArray, *, widen: float = 1.0) -> Range:
    """Return the range of acquisitions that scans show, made wider by a factor.

    From the 5 to the 95 % quantile of `measure`; contrast to both sides of neutral, the others
    from 0, because blur, noise and shading can only be added.
    """
    found = measure(volumes)
    ends = np.quantile([m.contrast for m in found], _QUANTILES, axis=0)
    sides = np.array(NEUTRAL_CONTRAST) + widen * (ends - NEUTRAL_CONTRAST)
    low, high = np.clip(sides, 0.02, LEVELS[2] - 0.06).T.tolist()
    top = _QUANTILES[1]
    blur_mm, noise, bias = (
        widen * max(0.0, float(np.quantile(squares, top))) ** 0.5
        for squares in zip(*((m.blur_mm2, m.noise2, m.bias2) for m in found), strict=True)
    )
    return Range(
        contrast=((low[0], low[1]), (high[0], high[1])),
        blur_mm=blur_mm,
        noise=noise,
        bias=bias,
    )


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What a batch gets, and where it comes from."""

    acquisitions: tuple[Acquisition, ...]
    """One a scan."""
    seeds: tuple[int, ...]
    """One a scan, for `acquisition.rerender`."""
    about: dict[str, Any]
    """Plain values for `batch.json`: `how`, the acquisition or the range, and `in_words`."""


def acquisitions_of(config: AcquisitionConfig, cohort: Cohort, n: int, seed: int) -> Applied | None:
    """Return what `generate.acquisition` asks for; None where scans stay as they are generated.

    Parameters
    ----------
    config : AcquisitionConfig
    cohort : Cohort
        Prepared, with a partition: `drawn` measures up to 40 of its training persons.
    n : int
        Scans of the batch.
    seed : int
        Of the batch. Scan i gets the same acquisition, noise and shading in any batch of it.

    Raises
    ------
    InputError
        `drawn`, and fewer than 6 training persons.
    SettingError
        The cohort holds no brains, or the contrast that is set does not rise.
    """
    if config.how == "none":
        return None
    if cohort.grid is None or not cohort.grid.is_brain:
        raise SettingError(
            "Other scanners are known for brains only, and this cohort has none.",
            remedy="Set generate.acquisition.how to none.",
        )
    seeds = tuple(derive(seed, i, "acquisition") for i in range(n))
    if config.how == "set":
        same = Acquisition(
            contrast=config.contrast,
            blur_mm=config.blur_mm,
            noise=config.noise,
            bias=config.bias,
        )
        return Applied(acquisitions=(same,) * n, seeds=seeds, about=_about("set", asdict(same)))
    limits = FREE
    if config.how == "drawn":
        limits = measured_range(_training_scans(cohort), widen=config.widen)
    return Applied(
        acquisitions=tuple(draw(limits, one) for one in seeds),
        seeds=seeds,
        about=_about(config.how, asdict(limits)),
    )


def _training_scans(cohort: Cohort) -> FloatArray:
    """Return the volumes of training persons, evenly spaced where there are many."""
    rows = sorted(first_scans(cohort, "train"))
    picks = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST)).round().astype(int))
    volumes: FloatArray = open_volumes(cohort)[[rows[i] for i in picks]]
    return volumes


def _about(how: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"how": how, **values, "in_words": _in_words(how, values)}


def _in_words(how: str, values: Mapping[str, Any]) -> str:
    """Return what was done to a batch, for its datasheet."""
    source = {
        "set": "an acquisition that was set",
        "drawn": "acquisitions drawn from what training scans show",
        "free": "acquisitions drawn from wide limits",
    }[how]
    most = "" if how == "set" else "up to "
    return (
        f"After generation every scan was rendered as another scanner would have seen it, by "
        f"{source}: blur {most}{values['blur_mm']:.1f} mm, noise {most}{values['noise']:.3f}, "
        f"shading {most}{values['bias']:.2f}, on top of what the generator has learned; contrast "
        "as each sidecar says. Gates and the search for copies judged the scans before that."
    )
