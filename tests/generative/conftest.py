"""A cohort of ellipsoids: small heads with a rim, a ventricle that patients have larger."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from rarescan.cohort.contracts import Condition, FloatArray, Scan, brain_grid
from rarescan.cohort.store import create_volumes, write_cohort
from rarescan.files import Recipe, run_step
from rarescan.generative.families import train_generator
from rarescan.generative.spec import GeneratorSpec
from rarescan.seeds import generator

GRID = brain_grid(8)
PARTS = ("train", "train", "train", "validation", "test")
QUICK = GeneratorSpec(
    levels=1, components=8, width=8, depth=2, latent=4, steps=4, batch_size=4,
    codec_steps=3, latent_channels=2, solver_steps=3, checkpoint_every=2,
)  # fmt: skip


def _head(index: int, patient: bool, age: float) -> FloatArray:
    random = generator(11, "head", index)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID.shape), indexing="ij", sparse=True)
    radius = 0.8 + 0.04 * random.normal(size=3)
    distance = np.sqrt((x / radius[0]) ** 2 + (y / radius[1]) ** 2 + (z / radius[2]) ** 2)
    hole = 0.2 + 0.12 * patient + 0.002 * (age - 60) + 0.02 * random.normal()
    texture = ndimage.gaussian_filter(random.normal(size=GRID.shape), 1.2)
    values = 0.6 - 0.4 * (np.sqrt(x**2 + y**2 + z**2) < hole) + 0.1 * texture
    return np.where(distance < 1, np.clip(values, 0.05, 1), 0).astype(np.float32)


def _person(index: int, n_patients: int) -> Scan:
    random = generator(11, "person", index)
    diagnosis = "bvFTD" if index < n_patients else "control"
    condition = Condition(
        diagnosis=diagnosis,
        age_years=float(random.uniform(50, 75)),
        sex="F" if index % 2 else "M",
        site=f"S{index % 3 // 2 + 1}",
        severity=None,
    )
    name = f"P{index:04d}"
    return Scan(scan_id=f"{name}_01", person_id=name, origin="phantom", condition=condition)


@pytest.fixture(scope="session")
def make_cohort(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a prepared cohort and returns its folder."""

    def make(n_patients: int = 15, n_controls: int = 20, **changes: Any) -> Path:
        n = n_patients + n_controls
        scans = [_person(i, n_patients) for i in range(n)]
        parts = changes.get("parts") or {s.person_id: PARTS[i % 5] for i, s in enumerate(scans)}
        volumes = [
            _head(i, s.condition.diagnosis == "bvFTD", s.condition.age_years or 60)
            for i, s in enumerate(scans)
        ]
        edit = changes.get("edit")
        if edit:
            edit(scans, volumes, parts)

        def build(work: Path) -> None:
            create_volumes(work, n, GRID)[:] = np.stack(volumes)
            grid = changes.get("grid", GRID)
            write_cohort(work, scans=scans, grid=grid, partition=parts)

        folder = tmp_path_factory.mktemp("cohort") / "prepared"
        # The same id whatever was edited: tests compare models of edited cohorts.
        return run_step(folder, Recipe(step="prepare", schema=1), build)

    return make


@pytest.fixture(scope="session")
def cohort(make_cohort: Callable[..., Path]) -> Path:
    """Return a prepared cohort of 15 patients and 20 controls at 8 mm."""
    return make_cohort()


@pytest.fixture(scope="session")
def quick() -> Callable[..., GeneratorSpec]:
    """Return a function that gives a spec for a few steps of a small network."""
    return lambda **changes: replace(QUICK, **changes)


@pytest.fixture(scope="session")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return a function that trains a family on a codec, once a session."""
    root = tmp_path_factory.mktemp("models")

    def get(family: str, codec: str) -> Path:
        spec = replace(QUICK, family=family, codec=codec)
        return train_generator(cohort, root / f"{family}-{codec}", spec, device="cpu")

    return get
