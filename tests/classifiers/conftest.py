"""Small cohorts whose difference is planted: a darker frontal lobe in patients."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from rarescan.classifiers.examples import Examples
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.cohort.contracts import Condition, Scan, brain_grid, plane_grid
from rarescan.cohort.partition import PartitionConfig, draw_partition
from rarescan.cohort.store import create_volumes, write_cohort, write_metadata
from rarescan.files import Recipe, run_step, write_json
from rarescan.seeds import generator

SPACING_MM = 8.0


def _place() -> tuple[np.ndarray, np.ndarray]:
    """Return the brain and its frontal part, on the 8 mm grid."""
    shape = brain_grid(SPACING_MM).shape
    axes = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    brain = gaussian_filter(((x**2 + y**2 + z**2) < 0.7).astype(np.float32), 0.7)
    frontal = np.exp(-((y - 0.5) ** 2 + 0.5 * x**2 + z**2) / 0.08)
    return brain, frontal.astype(np.float32)


def _person(random: np.random.Generator, effect: float) -> np.ndarray:
    brain, frontal = _place()
    nodes = random.normal(size=(5, 6, 5))
    folds = zoom(nodes, np.array(brain.shape) / nodes.shape, order=3)
    noise = random.normal(size=brain.shape)
    image = 0.55 * brain * (1 + 0.12 * folds - effect * frontal) + 0.02 * noise
    return np.where(brain > 0.3, np.clip(image, 0, 1), 0).astype(np.float32)


def _write(
    root: Path,
    patients: int,
    controls: int,
    *,
    effect: float = 0.35,
    seed: int = 0,
    scans_each: int = 1,
    origin: str = "phantom",
    spacing_mm: float = SPACING_MM,
    partition: bool = True,
    prepared_id: str | None = None,
) -> Path:
    """Write a cohort; `origin="synthetic"` writes a batch."""
    grid = brain_grid(spacing_mm)
    scans = [
        Scan(
            scan_id=f"{'SYN' if origin == 'synthetic' else 'PH'}{p:05d}-{s}",
            person_id=f"{'SYN' if origin == 'synthetic' else 'PH'}{p:05d}",
            session=f"{s + 1:02d}",
            origin=origin,
            condition=Condition(diagnosis="bvFTD" if p < patients else "control"),
        )
        for p in range(patients + controls)
        for s in range(scans_each)
    ]

    def build(work: Path) -> None:
        volumes = create_volumes(work, len(scans), grid)
        for i, scan in enumerate(scans):
            random = generator(seed, scan.person_id, scan.session)
            sick = scan.condition.diagnosis == "bvFTD"
            image = _person(random, effect if sick else 0.0)
            volumes[i] = zoom(image, np.array(grid.shape) / image.shape, order=0)
        config = PartitionConfig(fewest_validation=0)
        parts = draw_partition(scans, config) if partition else {}
        write_cohort(work, scans=scans, grid=grid, partition=parts)
        if origin == "synthetic":
            about = {} if prepared_id is None else {"prepared_id": prepared_id}
            write_json(work / "batch.json", about)

    recipe = Recipe(step="prepare", schema=1, config={"seed": seed, "effect": effect})
    return run_step(root, recipe, build)


@pytest.fixture(scope="session")
def make_cohort() -> Callable[..., Path]:
    """Return the function that writes a small cohort."""
    return _write


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 24 patients and 36 controls with a planted effect."""
    return _write(tmp_path_factory.mktemp("cohort") / "prepared", 24, 36)


@pytest.fixture(scope="session")
def make_examples() -> Callable[..., Examples]:
    """Return the function that makes labelled images in memory, one scan a person."""

    def make(n: int, *, seed: int, effect: float = 0.35) -> Examples:
        labels = tuple(i % 2 for i in range(n))
        images = np.stack(
            [_person(generator(seed, "example", i), effect * labels[i]) for i in range(n)]
        )
        return Examples(
            sources=(images,),
            rows=tuple((0, i) for i in range(n)),
            labels=labels,
            person_ids=tuple(f"P{i}" for i in range(n)),
        )

    return make


@pytest.fixture
def quick() -> ClassifierConfig:
    """Return settings that train in a second at 8 mm."""
    return ClassifierConfig(steps=60, seed=3)


def _write_pictures(
    root: Path,
    persons: dict[str, int],
    *,
    frames: int = 2,
    edge: int = 16,
    planes: int = 1,
    effect: float = 0.9,
    seed: int = 0,
    modality: str = "US",
    sources: int = 2,
    partition: bool = True,
    change: Callable[[Scan], Scan] = lambda scan: scan,
) -> Path:
    """Write a prepared cohort of pictures: class c has a bright bar in the c-th row of blocks."""
    grid = plane_grid(edge, edge, planes)
    people = [(name, i) for name, n in persons.items() for i in range(n)]
    scans = [
        change(
            Scan(
                scan_id=f"S{p:03d}-{f}",
                person_id=f"P{p:03d}",
                session=f"C{p:03d}",
                modality=modality,
                unit="frame",
                origin="phantom",
                target=name,
                site=f"H{i % sources}",
                licence="CC BY 4.0",
                condition=Condition(diagnosis=name),
            )
        )
        for p, (name, i) in enumerate(people)
        for f in range(frames)
    ]

    def build(work: Path) -> None:
        volumes = create_volumes(work, len(scans), grid)
        names = list(persons)
        for i, scan in enumerate(scans):
            random = generator(seed, scan.person_id)
            person = gaussian_filter(random.normal(size=grid.shape), (2, 2, 0)) + 0.4
            image = person + 0.05 * generator(seed, scan.scan_id).normal(size=grid.shape)
            height = edge // len(names)
            place = names.index(scan.condition.diagnosis) * height
            image[place : place + height] += effect
            volumes[i] = np.clip(image, 0.01, 1)
        config = PartitionConfig(fewest_validation=0)
        parts = draw_partition(scans, config) if partition else {}
        write_cohort(work, scans=scans, grid=grid, partition=parts)
        rows = [
            {"width": 600 + j % 7, "height": 480, "frames_per_second": 20.0}
            for j, _ in enumerate(scans)
        ]
        write_metadata(work, rows)

    recipe = Recipe(step="prepare", schema=1, config={"seed": seed, "persons": persons})
    return run_step(root, recipe, build)


@pytest.fixture(scope="session")
def make_pictures() -> Callable[..., Path]:
    """Return the function that writes a small cohort of pictures."""
    return _write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 3 classes, 12 persons each, two frames a person."""
    root = tmp_path_factory.mktemp("pictures") / "prepared"
    return _write_pictures(root, {"covid": 12, "pneumonia": 12, "regular": 12})
