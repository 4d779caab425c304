import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rarescan.cohort.contracts import Cohort, Condition, Scan, brain_grid
from rarescan.errors import InputError
from rarescan.files import write_json
from rarescan.generative import advise as advise_
from rarescan.generative import places
from rarescan.generative.advise import Advised, advise
from rarescan.generative.families import train_generator
from rarescan.generative.places import read_places
from rarescan.generative.spec import GeneratorSpec

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_table() -> Iterator[None]:
    read_places.cache_clear()
    yield
    read_places.cache_clear()


@pytest.fixture(autouse=True)
def _known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advise_, "flops_per_second", lambda device: 1e12)
    monkeypatch.setattr(advise_, "free_bytes", lambda device: int(16e9))


def cohort_of(patients: int, controls: int, spacing_mm: float = 4.0) -> Cohort:
    scans = tuple(
        Scan(
            scan_id=f"P{i}_01",
            person_id=f"P{i}",
            condition=Condition(diagnosis="bvFTD" if i < patients else "control", age_years=50 + i),
        )
        for i in range(patients + controls)
    )
    return Cohort(
        cohort_id="x",
        root=Path("prepared"),
        grid=brain_grid(spacing_mm),
        scans=scans,
        partition={scan.person_id: "train" for scan in scans},
    )


def verdicts(told: Advised) -> dict[str, str]:
    return {one.family: one.verdict for one in told.families}


def test_with_8_patients_only_the_baselines_are_taken_and_the_reason_is_their_number() -> None:
    told = advise(cohort_of(8, 60), device=CPU)
    assert verdicts(told) == {
        "gaussian": "take", "transfer": "take",
        "diffusion": "not yet", "vae": "not yet", "gan": "not yet",
    }  # fmt: skip
    assert "8 patients, too few by our judgement" in told.families[2].why
    assert any("validation persons are too few" in note for note in told.notes)


def test_with_40_patients_diffusion_is_taken_because_it_falls_back_to_the_gaussian() -> None:
    told = verdicts(advise(cohort_of(40, 80), device=CPU))
    assert told["diffusion"] == "take"
    assert told["gan"] == "try"


def test_one_patient_is_refused_for_every_family() -> None:
    assert set(verdicts(advise(cohort_of(1, 30), device=CPU)).values()) == {"refused"}


def test_a_family_that_the_benchmarks_table_calls_better_is_taken_with_its_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # As `python benchmarks/generative` writes it, with what a later one may add.
    about = {"population": "phantom, hard", "spacing_mm": 2.0, "patients": 60, "controls": 90,
             "held_out": 77, "prepared": "x", "against": "pca-gaussian", "date": "d"}  # fmt: skip
    vae = {"difference": -0.02, "se": 0.005, "p": 6e-05, "place": "better", "network_kept": None}
    write_json(tmp_path / "places.json", {"about": about, "families": {"vae": vae}})
    monkeypatch.setattr(places, "_TABLE", tmp_path / "places.json")
    read_places.cache_clear()
    told = advise(cohort_of(40, 80), device=CPU)
    assert verdicts(told)["vae"] == "take"
    assert "better than it (-20.0 +- 5.0 in squared MMD x 1000, p 6e-05)" in told.table()
    assert "phantom, hard, 60 patients and 90 controls at 2 mm, 77 persons" in told.notes[-2]
    assert "Not measured against it." in told.families[-1].why
    few = advise(cohort_of(8, 80), device=CPU).families[3].why
    assert "8 patients, too few by our judgement; with 60: Measured" in few


def test_the_shipped_table_has_every_family_that_is_held_against_the_gaussian() -> None:
    shipped = read_places()
    assert set(shipped.families) == {"transfer", "vae", "gan", "diffusion"}
    for place in shipped.families.values():
        assert (place.place == "no better") == (place.p >= 0.05)
        assert place.se > 0


def test_fine_grids_get_the_exact_codec_and_coarse_ones_components() -> None:
    # 120 persons' images: 74 MB at 4 mm, 4.7 GB at 1 mm.
    coarse = replace_case(n_persons=120, shape=brain_grid(4.0).shape)
    fine = replace_case(n_persons=120, shape=brain_grid(1.0).shape)
    assert (coarse.codec, fine.codec) == ("pca", "haar")
    assert coarse.settings("vae") == {"codec": "pca"}


def test_what_does_not_fit_into_the_free_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advise_, "free_bytes", lambda device: 1000)
    told = advise(cohort_of(40, 80), device=CPU)
    assert set(verdicts(told).values()) == {"refused"}
    assert "more memory" in told.families[0].why


def test_cost_is_hours_times_price_and_open_without_a_price() -> None:
    free = advise(cohort_of(40, 80), device=CPU).families[2]
    paid = advise(cohort_of(40, 80), device=CPU, price_per_hour=3600.0).families[2]
    assert free.cost is None
    assert free.hours
    assert paid.cost == pytest.approx(free.hours * 3600, rel=0.05)


def test_epochs_over_patients_are_those_that_training_counts(
    cohort: Path, tmp_path: Path, quick: Callable[..., GeneratorSpec]
) -> None:
    spec = quick(family="vae", steps=12, batch_size=6)
    train_generator(cohort, tmp_path / "vae", spec, device="cpu")
    counted = json.loads((tmp_path / "vae" / "training.json").read_text())["epochs_by_diagnosis"]
    case = replace_case(n_patients=9)
    assert advise_._epochs(case, spec) == pytest.approx(counted["bvFTD"], rel=0.35)


def replace_case(**changes: Any) -> advise_._Case:
    case = advise_._Case(
        n_persons=21, n_patients=9, n_features=5, shape=(20, 24, 20), spacing_mm=8.0,
        free_bytes=1, flops_per_second=1.0, price_per_hour=None,
    )  # fmt: skip
    return replace(case, **changes)


def test_native_scans_are_sent_to_prepare() -> None:
    with pytest.raises(InputError, match="rarescan prepare"):
        advise(replace(cohort_of(5, 5), grid=None), device=CPU)


def test_the_speed_of_this_machine_is_a_number_of_operations_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    assert 1e8 < advise_.flops_per_second(CPU) < 1e14
