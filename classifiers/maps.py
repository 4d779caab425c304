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
from rarescan.classifiers.network import load_network
from rarescan.classifiers.overlay import write_pictures
from rarescan.classifiers.spec import ClassifyConfig
from rarescan.classifiers.splits import LabelTable, draw_folds, label_table
from rarescan.cohort.contracts import FloatArray
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError
from rarescan.seeds import derive

MAPS = "maps"
MOST = 12
"""Pictures of one gallery, as many of each class as of the others."""


def write_maps(
    work: Path, prepared: Path, config: ClassifyConfig, *, device: Device = "auto"
) -> list[Path]:
    """Write `maps/<number>_<class>_said_<class>.png` for a few scans of every class.

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
        The pictures: none where nothing was trained, or no map depends on what was learned.
    """
    if not (work / "folds").is_dir():
        return []
    cohort = open_cohort(prepared)
    table = label_table(cohort, config, modality_of(cohort, config.modality))
    chosen = _drawn(table, config)
    written: list[Path] = []
    for number, fold in enumerate(draw_folds(table, config, 0)):
        own = np.array([p for p in chosen if p in set(fold.test.tolist())], dtype=np.int64)
        if len(own):
            network = work / "folds" / f"0-{number}" / "network"
            names = {p: f"{1 + chosen.index(p):02d}" for p in own.tolist()}
            written += _explained(
                work / MAPS, network, examples_of(cohort, table, own), list(names.values()), device
            )
    return sorted(written)


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
    folder: Path, network: Path, examples: Examples, names: list[str], device: Device
) -> Iterator[Path]:
    """Write one fold's pictures; scans that were called the same are explained together."""
    trained = load_network(network, device)
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
        classes = [re.sub(r"[^\w.-]+", "-", name) for name in trained.labels.names]
        captions = [f"{names[r]}_{classes[examples.labels[r]]}_said_{classes[label]}" for r in rows]
        yield from write_pictures(folder, images[rows], explanation, captions)
