"""The gallery of a tested classifier: where its networks looked, in persons whom they never saw.

`write_maps` is the way in. Every scan is explained by the network of its own fold. Scans are
drawn by chance, wrong answers with the right ones; maps that do not depend on what was learned
are left out.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rarescan.classifiers.contract import Device
from rarescan.classifiers.examples import Examples
from rarescan.classifiers.explain import explain
from rarescan.classifiers.folds import examples_of
from rarescan.classifiers.modalities import modality_of
from rarescan.classifiers.network import TrainedNetwork, load_network
from rarescan.classifiers.overlay import write_film, write_pictures
from rarescan.classifiers.spec import ClassifyConfig
from rarescan.classifiers.splits import Ints, LabelTable, draw_folds, label_table
from rarescan.cohort.contracts import FloatArray
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError
from rarescan.seeds import derive

MAPS = "maps"
MOST = 12
"""Pictures of one gallery, as many of each class as of the others."""
_FRAMES_PER_SECOND = 4.0
"""Of a film: a prepared clip is a sample of its frames, shown slowly enough to look at each."""


def write_maps(
    work: Path, prepared: Path, config: ClassifyConfig, *, device: Device = "auto"
) -> list[Path]:
    """Write `maps/<number>_<class>_said_<class>.png` for a few scans of every class.

    Where scans are frames of clips, the first person's clip of every class is written too, as
    `maps/<number>_<class>_said_<class>.mp4`.

    Parameters
    ----------
    work : Path
        What `folds.run_folds` filled; the networks of its first repeat are used.
    prepared : Path
        The cohort that they were tested on.
    config : ClassifyConfig
        The settings that they were tested with.
    device : {"auto", "cpu", "cuda"}

    Returns
    -------
    list of Path
        The pictures and films: none where nothing was trained, or no map depends on what was
        learned.

    Raises
    ------
    MissingExtraError
        The cohort has clips, and the extra `video` is not installed.
    """
    if not (work / "folds").is_dir():
        return []
    cohort = open_cohort(prepared)
    table = label_table(cohort, config, modality_of(cohort, config.modality))
    chosen = _drawn(table, config)
    firsts = {int(table.truth[p]): p for p in reversed(chosen)}.values()
    written: list[Path] = []
    for number, fold in enumerate(draw_folds(table, config, 0)):
        own = np.array([p for p in chosen if p in set(fold.test.tolist())], dtype=np.int64)
        if not len(own):
            continue
        trained = load_network(work / "folds" / f"0-{number}" / "network", device)
        names = [f"{1 + chosen.index(p):02d}" for p in own.tolist()]
        written += _explained(work / MAPS, trained, examples_of(cohort, table, own), names)
        for position, name in zip(own.tolist(), names, strict=True):
            clip = _clip_of(table, position)
            if position in firsts and len(clip) > 1:
                written += _film(work / MAPS, trained, examples_of(cohort, table, clip), name)
    return sorted(written)


def _clip_of(table: LabelTable, position: int) -> Ints:
    """Return the positions of all frames of a scan's clip; of the scan alone without one."""
    items = np.array(table.items)
    return np.flatnonzero(items == items[position])


def _drawn(table: LabelTable, config: ClassifyConfig) -> list[int]:
    """Return positions: of each class a few persons by chance, of each person the middle scan."""
    classes = len(table.labels.names)
    found = []
    for label in range(classes):
        scans: dict[str, list[int]] = defaultdict(list)
        for position in np.flatnonzero(table.truth == label).tolist():
            scans[table.person_ids[position]].append(position)
        order = sorted(scans, key=lambda person: derive(config.network.seed, "maps", person))
        found += [scans[p][len(scans[p]) // 2] for p in order[: max(MOST // classes, 1)]]
    return found


def _explained(
    folder: Path, trained: TrainedNetwork, examples: Examples, names: list[str]
) -> Iterator[Path]:
    """Write one fold's pictures; scans that were called the same are explained together."""
    images: FloatArray = examples.read()
    said = trained.probabilities(images).argmax(axis=1)
    for label in np.unique(said):
        rows = np.flatnonzero(said == label)
        try:
            explanation = explain([trained], images[rows], label=int(label))
        except InputError:
            # A network without feature maps was tested all the same.
            return
        if not explanation.shown:
            continue
        captions = [_caption(trained, names[r], examples.labels[r], int(label)) for r in rows]
        yield from write_pictures(folder, images[rows], explanation, captions)


def _film(folder: Path, trained: TrainedNetwork, clip: Examples, name: str) -> Iterator[Path]:
    """Write one clip's film, explained for what it is called as a whole."""
    images: FloatArray = clip.read()
    label = int(trained.probabilities(images).mean(axis=0).argmax())
    try:
        explanation = explain([trained], images, label=label)
    except InputError:
        return
    if explanation.shown and explanation.maps.ndim == 3:
        path = folder / f"{_caption(trained, name, clip.labels[0], label)}.mp4"
        yield write_film(path, images, explanation, frames_per_second=_FRAMES_PER_SECOND)


def _caption(trained: TrainedNetwork, name: str, true: int, said: int) -> str:
    classes = [re.sub(r"[^\w.-]+", "-", each) for each in trained.labels.names]
    return f"{name}_{classes[true]}_said_{classes[said]}"
