"""How well the left ventricle is found and its ejection fraction measured, by folds of persons.

    python benchmarks/echo.py ../shared/data/echo [--size 64] [--steps 800] [--folds 5]

Trains on the traced films of four fifths of the persons and measures the others, five times. Two
baselines stand beside it: always the mean of the training persons, and a smoothed threshold.
Intervals: 95 %, persons drawn again.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from rarescan.classifiers.echo.agreement import agreement
from rarescan.classifiers.echo.masks import dice
from rarescan.classifiers.echo.measure import FilmFigures, measure_film, measure_study
from rarescan.classifiers.echo.spec import EchoConfig, SegmentConfig
from rarescan.classifiers.echo.train import fit_segmenter, gather
from rarescan.classifiers.echo.volumes import measure_clip
from rarescan.imaging.echo import ClipSource, SourceClip, list_clips
from rarescan.imaging.echo_frames import read_frames
from rarescan.imaging.echonet import Tracing, fill_tracing, read_tracings
from rarescan.progress import show_log


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--folds", type=int, default=5)
    given = parser.parse_args()
    show_log()
    columns = EchoConfig().columns
    clips = list_clips(ClipSource(folder=given.source, table="labels.csv", columns=columns))
    frames = read_frames([(clip, range(32)) for clip in clips], workers=1)
    films = {c.clip_id: (c, f) for c, f in zip(clips, frames, strict=True) if f is not None}
    tracings = read_tracings(given.source)
    config = SegmentConfig(size_px=given.size, steps=given.steps)
    people = sorted({clip.person_id for clip in clips})
    rows: dict[str, list[tuple[str, float, float]]] = {
        name: [] for name in ("U-Net, one clip", "U-Net, both views", "threshold", "constant")
    }
    overlaps: dict[str, list[float]] = {}
    seconds = [0.0, 0.0]
    for fold in range(given.folds):
        held = {person for k, person in enumerate(people) if k % given.folds == fold}
        start = time.process_time()
        taught = [_traced(c, f, tracings) for c, f in films.values() if c.person_id not in held]
        segmenter = fit_segmenter(gather(taught, given.size), config, device="cpu")
        trained = time.process_time()
        mean = np.mean([c.film.ef for c, _ in films.values() if c.film and c.person_id not in held])
        for person in sorted(held):
            own = [pair for pair in films.values() if pair[0].person_id == person]
            figures = {c.view or "": _measured(c, segmenter.follow(f)) for c, f in own}
            both = measure_study({view: [one] for view, one in figures.items()})
            truth = own[0][0].film.ef if own[0][0].film else float("nan")
            rows["U-Net, both views"].append((person, truth, both.ef))
            for clip, shown in own:
                rows["U-Net, one clip"].append((person, truth, figures[clip.view or ""].ef))
                rows["threshold"].append((person, truth, _measured(clip, _threshold(shown)).ef))
                rows["constant"].append((person, truth, float(mean)))
                found = list(segmenter.follow(shown))
                for traced in tracings[clip.clip_id]:
                    outline = fill_tracing(traced.lines, shown.shape[1:])
                    overlaps.setdefault(person, []).append(dice(found[traced.frame][0], outline))
        seconds[0] += trained - start
        seconds[1] += time.process_time() - trained
        print(f"fold {fold} done, {seconds[0]:.0f} CPU s of training", flush=True)
    _print(rows, overlaps, seconds)


def _traced(
    clip: SourceClip, shown: np.ndarray, tracings: dict[str, Sequence[Tracing]]
) -> tuple[str, np.ndarray, np.ndarray]:
    own = tracings[clip.clip_id]
    outlines = np.stack([fill_tracing(traced.lines, shown.shape[1:]) for traced in own])
    return clip.person_id, shown[[traced.frame for traced in own]], outlines[:, None]


def _measured(clip: SourceClip, masks: Iterator[np.ndarray]) -> FilmFigures:
    track = measure_clip((shares[0] for shares in masks), clip.spacing_mm)
    time_ms = clip.info.frame_time_ms if clip.info else None
    return measure_film(track, frame_time_ms=time_ms, in_mm=clip.spacing_mm is not None)


def _threshold(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the dark piece in the middle of each smoothed frame."""
    for frame in frames:
        grey = frame.astype(np.float64)
        sector = ndimage.binary_fill_holes(ndimage.gaussian_filter(grey, 2.5) > 60)
        dark = ndimage.gaussian_filter(grey, 1.2) < 125
        dark &= ndimage.binary_erosion(sector, iterations=3)
        pieces, _ = ndimage.label(ndimage.binary_opening(dark, iterations=2))
        middle = pieces[frame.shape[0] // 5 : frame.shape[0] * 3 // 5]
        sizes = np.bincount(middle[middle > 0], minlength=2)
        yield (ndimage.binary_dilation(pieces == sizes.argmax()) & (pieces.max() > 0))[None] * 1.0


def _print(
    rows: dict[str, list[tuple[str, float, float]]],
    overlaps: dict[str, list[float]],
    seconds: Sequence[float],
) -> None:
    means = np.array([np.mean(scores) for scores in overlaps.values()])
    draws = np.random.default_rng(0).choice(means, size=(2000, len(means))).mean(axis=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    print(
        f"Dice of the ventricle {means.mean():.4f} [{low:.4f}, {high:.4f}], lowest person "
        f"{means.min():.4f}, {len(means)} persons"
    )
    print(
        f"{'ejection fraction':20}{'MAE':>22}{'RMSE':>8}{'R2':>7}{'bias':>22}{'clips':>7}{'NaN':>5}"
    )
    for name, pairs in rows.items():
        people, truth, found = zip(*pairs, strict=True)
        got = agreement(truth, found, people)
        mae, bias = ("{:.2f} [{:.2f}, {:.2f}]".format(*got[key]) for key in ("mae", "bias"))
        missing = int(np.isnan(found).sum())
        print(
            f"{name:20}{mae:>22}{got['rmse'][0]:8.2f}{got['r2'][0]:7.2f}{bias:>22}"
            f"{len(pairs):7}{missing:5}"
        )
    print(f"CPU seconds: training {seconds[0]:.0f}, measuring {seconds[1]:.0f}")


if __name__ == "__main__":
    main()
