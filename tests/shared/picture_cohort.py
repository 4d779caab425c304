"""A prepared cohort of pictures of nobody: a bright sector with a spot that one class has."""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from rarescan.cohort.contracts import Condition, Scan, plane_grid
from rarescan.cohort.partition import PartitionConfig, draw_partition
from rarescan.cohort.store import create_volumes, write_cohort
from rarescan.files import Recipe, write_json


def picture(person: int, ill: bool, edge: int, planes: int, *, seed: int = 0) -> np.ndarray:
    """Return one person's planes: texture of its own in an ellipse, brighter spot where ill."""
    random = np.random.default_rng([seed, person])
    down, right = np.mgrid[0:edge, 0:edge] / edge - 0.5
    found = np.zeros((edge, edge, planes), np.float32)
    for plane in range(planes):
        wide, high = random.normal(0.40, 0.02, 2)
        inside = (down / high) ** 2 + (right / wide) ** 2 < 1
        rough = sum(
            weight * gaussian_filter(random.normal(0, 1, (edge, edge)), sd) * sd
            for weight, sd in ((0.10, 1.0), (0.15, 2.5), (0.25, 6.0))
        )
        spot = np.exp(-((down - 0.1) ** 2 + (right + 0.12) ** 2) / 0.008)
        value = 0.4 + random.uniform(1.0, 1.6) * rough + (0.25 if ill else 0.0) * spot
        found[..., plane] = np.where(inside, np.clip(value, 0.02, 1), 0)
    return found


def write_pictures(
    root: Path, *, edge: int = 64, planes: int = 1, persons: int = 60, scans_each: int = 1
) -> Path:
    """Write what `rarescan prepare` leaves of pictures; every second person is ill."""
    grid = plane_grid(edge, edge, planes)
    scans = [
        Scan(
            scan_id=f"P{person:03d}-{scan}",
            person_id=f"P{person:03d}",
            session=f"C{scan:04d}",
            modality="PIC",
            unit="frame",
            origin="phantom",
            condition=Condition(diagnosis="ill" if person % 2 else "well"),
            target="ill" if person % 2 else "well",
            site=f"S{person % 3}",
            licence="CC0-1.0",
        )
        for person in range(persons)
        for scan in range(scans_each)
    ]
    config = PartitionConfig(validation=0.34, test=0.2, fewest_validation=20)
    write_cohort(root, scans=scans, grid=grid, partition=draw_partition(scans, config), about={})
    volumes = create_volumes(root, len(scans), grid)
    for row, scan in enumerate(scans):
        person, which = int(scan.person_id[1:]), int(scan.session[1:])
        volumes[row] = picture(person, person % 2 == 1, edge, planes, seed=which)
    volumes.flush()
    recipe = Recipe(step="prepare", schema=1, config={"edge": edge, "planes": planes})
    write_json(root / "recipe.json", {"id": recipe.id, **recipe.as_dict()})
    return root
