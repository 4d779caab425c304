"""Transfer in deformation space: donors keep themselves, and patients' tissue moves."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import ndimage

from rarescan.cohort.contracts import Condition, FloatArray, Scan
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.errors import SettingError
from rarescan.generative.families import load_generator, train_generator
from rarescan.generative.model import TrainedGenerator, read_model
from rarescan.generative.spec import GeneratorSpec
from rarescan.generative.transfer import Transfer, _codec_of

SPEC = GeneratorSpec(family="transfer", codec="haar", levels=1, space="deformation")


@pytest.fixture(scope="module")
def folder(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("transfer")
    return train_generator(cohort, root / "deformation", SPEC, device="cpu")


@pytest.fixture(scope="module")
def generator(folder: Path) -> TrainedGenerator:
    return cast(TrainedGenerator, load_generator(folder))


def drawn(generator: TrainedGenerator, diagnosis: str, n: int = 8) -> FloatArray:
    conditions = [Condition(diagnosis=diagnosis, age_years=60.0, sex="F", site="S1")] * n
    return np.stack(list(generator.sample(conditions, seed=3)))


def hole_ml(volumes: FloatArray) -> float:
    """Return the mean volume of what is dark deep inside the heads."""
    centre = np.zeros(volumes.shape[1:], dtype=bool)
    centre[5:15, 6:18, 5:15] = True
    return float(((volumes < 0.4) & (volumes > 0) & centre).sum() * 0.512 / len(volumes))


def test_what_is_dark_in_patients_grows_as_in_real_ones(
    generator: TrainedGenerator, cohort: Path
) -> None:
    scans, volumes = open_cohort(cohort), open_volumes(open_cohort(cohort))
    rows = scans.indices("train")
    ill = [i for i in rows if scans.scans[i].condition.diagnosis == "bvFTD"]
    well = [i for i in rows if scans.scans[i].condition.diagnosis == "control"]
    real = hole_ml(volumes[ill]) - hole_ml(volumes[well])
    made = hole_ml(drawn(generator, "bvFTD")) - hole_ml(drawn(generator, "control"))
    assert 0.75 * real < made < 1.25 * real


def test_tissue_moves_more_than_it_fades(generator: TrainedGenerator) -> None:
    prior = cast(Transfer, generator.prior)
    ill = generator.diagnoses.index("bvFTD")
    row = prior.references[ill : ill + 1]
    means = prior.floor.mean(torch.cat([row, prior._healthy(row)]))
    whole, rest = means[0] - means[1], prior.remainders[ill]
    in_images = [generator.codec.decode(prior.floor.unwhiten(c[None])) for c in (whole, rest)]
    assert in_images[1][:, 0].square().mean() < 0.35 * in_images[0][:, 0].square().mean()


def test_a_control_is_its_donor_at_another_age(generator: TrainedGenerator) -> None:
    prior = cast(Transfer, generator.prior)
    encoded = prior.encoder.encode([Condition(diagnosis="control", age_years=60.0, sex="F")] * 4)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    away = prior.floor.unwhiten(prior.sample(encoded, noise) - prior.floor.mean(encoded))
    donors = prior.floor.unwhiten(prior.donors).flatten(1)
    nearest = (away.flatten(1)[:, None] - donors[None]).norm(dim=2).min(1).values
    # Another donor is 1.4 times as far as the mean; rounding in whitened codes is 0.1 times.
    assert nearest.max() < 0.2 * away.flatten(1).norm(dim=1).min()


def test_every_sample_is_one_piece_with_values_in_range(generator: TrainedGenerator) -> None:
    for volume in drawn(generator, "bvFTD", 4):
        assert volume.min() == 0
        assert 0.5 < volume.max() <= 1
        assert ndimage.label(volume > 0)[1] == 1


def test_donors_in_deformation_space_are_near_copies_too(generator: TrainedGenerator) -> None:
    assert generator.near_copies


def test_code_space_stores_no_movements(trained: Callable[[str, str], Path], folder: Path) -> None:
    plain = load_file(trained("transfer", "haar") / "weights.safetensors")
    moving = load_file(folder / "weights.safetensors")
    assert {k for k in moving if k not in plain} == {
        "prior.velocities", "prior.remainders", "prior.references",
    }  # fmt: skip


@pytest.mark.long
def test_the_same_seed_fits_the_same_movements(folder: Path, cohort: Path, tmp_path: Path) -> None:
    again = train_generator(cohort, tmp_path / "again", SPEC, device="cpu")
    for name, value in read_model(folder).tensors.items():
        assert torch.equal(read_model(again).tensors[name], value), name


@pytest.mark.long
def test_an_asked_severity_is_a_share_of_the_movement(
    make_cohort: Callable[..., Path], tmp_path: Path
) -> None:
    def edit(scans: list[Scan], volumes: list[FloatArray], parts: dict[str, str]) -> None:
        for i, scan in enumerate(scans):
            patient = scan.condition.diagnosis == "bvFTD"
            severity = 0.4 + 0.04 * i if patient else 0.0
            scans[i] = Scan(
                scan_id=scan.scan_id, person_id=scan.person_id, origin="phantom",
                condition=Condition(diagnosis=scan.condition.diagnosis, severity=severity),
            )  # fmt: skip
            volumes[i] = _with_hole(i, 0.15 + 0.25 * severity)

    spec = GeneratorSpec(
        family="transfer", codec="haar", levels=1, space="deformation", conditions=("severity",)
    )
    prepared = make_cohort(edit=edit)
    model = train_generator(prepared, tmp_path / "model", spec, device="cpu")
    prior = cast(Transfer, cast(TrainedGenerator, load_generator(model)).prior)
    asked = [Condition(diagnosis="bvFTD", severity=s) for s in (0.3, 0.6, 0.9)]
    encoded = prior.encoder.encode(asked)
    strength = prior._strength(encoded, encoded[:, :2].argmax(1))
    assert torch.all(strength.diff() > 0.05)
    assert strength[0].item() < 0.95 < 1.05 < strength[2].item()


def _with_hole(index: int, hole: float) -> FloatArray:
    axes = [np.linspace(-1, 1, n) for n in (20, 24, 20)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    noise = ndimage.gaussian_filter(np.random.default_rng(index).normal(size=(20, 24, 20)), 1)
    radius = np.sqrt(x**2 + y**2 + z**2)
    values = 0.6 - 0.4 / (1 + np.exp((radius - hole) / 0.03)) + 0.05 * noise
    return np.where(radius < 0.85, np.clip(values, 0.05, 1), 0).astype(np.float32)


def test_mixtures_of_persons_cannot_be_deformed(cohort: Path, tmp_path: Path) -> None:
    spec = GeneratorSpec(family="transfer", space="deformation")
    with pytest.raises(SettingError, match="codec to haar"):
        train_generator(cohort, tmp_path / "model", spec, device="cpu")


def test_pictures_are_not_deformed() -> None:
    floor = SimpleNamespace(code_shape=(16, 32, 32, 1))
    with pytest.raises(SettingError, match="Only brains"):
        _codec_of(SPEC, floor)  # type: ignore[arg-type]
