"""The conformance test: every family on every codec; then what training promises."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rarescan.cohort.contracts import Condition, FloatArray, Scan
from rarescan.errors import ChangedRecipeError, InputError, SettingError
from rarescan.generative import autoencoder, code_store, families
from rarescan.generative.contract import Batch
from rarescan.generative.families import FAMILIES, load_generator, train_generator
from rarescan.generative.run import Plan
from rarescan.generative.spec import GeneratorSpec

Spec = Callable[..., GeneratorSpec]
Trained = Callable[[str, str], Path]
Make = Callable[..., Path]

ASKED = [
    Condition(diagnosis=d, age_years=60.0 + i, sex="F" if i % 2 else "M", site="S1")
    for i, d in enumerate(["bvFTD", "control", "control", "bvFTD", "control", "bvFTD"])
]
LONG = {"kl": [pytest.mark.long]}
EVERY = pytest.mark.parametrize(
    ("family", "codec"),
    [pytest.param(f, c, marks=LONG.get(c, [])) for f in FAMILIES for c in ("pca", "haar", "kl")],
)


@EVERY
def test_samples_are_volumes_in_range_on_the_cohorts_grid(
    family: str, codec: str, trained: Trained
) -> None:
    model = load_generator(trained(family, codec))
    volumes = list(model.sample(ASKED, seed=1))
    assert len(volumes) == len(ASKED)
    for volume in volumes:
        assert volume.dtype == np.float32
        assert volume.shape == model.grid.shape == (20, 24, 20)
        assert volume.min() == 0
        assert 0 < volume.max() <= 1
        corners = volume[:: volume.shape[0] - 1, :: volume.shape[1] - 1, :: volume.shape[2] - 1]
        # Three steps do not teach an autoencoder where the head ends.
        assert codec == "kl" or not corners.any()


@EVERY
def test_a_scan_is_the_same_however_the_batch_is_cut(
    family: str, codec: str, trained: Trained
) -> None:
    model = load_generator(trained(family, codec))
    whole = [v.tobytes() for v in model.sample(ASKED, seed=1)]
    again = load_generator(trained(family, codec))
    assert [v.tobytes() for v in again.sample(ASKED, seed=1)] == whole
    for cut in (1, 3):
        parts = [*model.sample(ASKED[:cut], 1), *model.sample(ASKED[cut:], 1, first_index=cut)]
        assert [v.tobytes() for v in parts] == whole
    assert next(model.sample(ASKED, seed=2)).tobytes() != whole[0]


@EVERY
def test_a_model_folder_holds_no_code(family: str, codec: str, trained: Trained) -> None:
    folder = trained(family, codec)
    names = {path.name for path in folder.iterdir()}
    assert names == {"spec.json", "weights.safetensors", "training.json", "recipe.json"}
    assert load_file(folder / "weights.safetensors")
    told = json.loads((folder / "training.json").read_text())
    assert told["persons_by_diagnosis"] == {"bvFTD": 9, "control": 12}
    assert told["family"] == family


@EVERY
def test_an_unknown_diagnosis_is_refused_before_any_volume(
    family: str, codec: str, trained: Trained
) -> None:
    model = load_generator(trained(family, codec))
    with pytest.raises(InputError, match="bvFTD, control"):
        model.sample([*ASKED, Condition(diagnosis="AD")], seed=1)


@pytest.mark.parametrize("family", ["vae", "gan", "diffusion"])
def test_the_same_seed_trains_the_same_bytes(
    family: str, cohort: Path, tmp_path: Path, quick: Spec
) -> None:
    spec = quick(family=family)
    folders = [train_generator(cohort, tmp_path / n, spec, device="cpu") for n in ("a", "b")]
    one, two = ((f / "weights.safetensors").read_bytes() for f in folders)
    assert one == two


@pytest.mark.parametrize(
    ("family", "codec"),
    [pytest.param("diffusion", "kl", marks=LONG["kl"]), ("gan", "pca"), ("vae", "haar")],
)
def test_a_terminated_training_goes_on_to_the_same_bytes(
    family: str, codec: str, trained: Trained, cohort: Path, tmp_path: Path, quick: Spec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    spec = quick(family=family, codec=codec)
    normal = Batch.normal

    def terminated(self: Batch, *shape: int) -> Any:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return normal(self, *shape)

    monkeypatch.setattr(Batch, "normal", terminated)
    with pytest.raises(SystemExit) as stopped:
        train_generator(cohort, tmp_path / "m", spec, device="cpu")
    assert stopped.value.code == 143
    assert not (tmp_path / "m").exists()
    monkeypatch.undo()
    train_generator(cohort, tmp_path / "m", spec, device="cpu")
    wanted = (trained(family, codec) / "weights.safetensors").read_bytes()
    assert (tmp_path / "m" / "weights.safetensors").read_bytes() == wanted


def test_validation_and_test_persons_fit_nothing(
    make_cohort: Make, cohort: Path, tmp_path: Path, quick: Spec
) -> None:
    def spoil(scans: list[Scan], volumes: list[FloatArray], parts: dict[str, str]) -> None:
        for i, scan in enumerate(scans):
            if parts[scan.person_id] != "train":
                volumes[i] = np.roll(volumes[i], 2, axis=0)

    other = make_cohort(edit=spoil)
    for family in ("vae", "diffusion", "transfer"):
        spec = quick(family=family)
        weights = [
            load_file(train_generator(c, tmp_path / f"{family}{i}", spec) / "weights.safetensors")
            for i, c in enumerate((cohort, other))
        ]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_person_with_many_scans_counts_once(
    make_cohort: Make, cohort: Path, tmp_path: Path, quick: Spec
) -> None:
    def same_person(scans: list[Scan], volumes: list[FloatArray], parts: dict[str, str]) -> None:
        from dataclasses import replace

        scans[1] = replace(scans[1], person_id=scans[0].person_id, session="02")

    spec = quick(family="gaussian")
    folder = train_generator(make_cohort(edit=same_person), tmp_path / "m", spec)
    told = json.loads((folder / "training.json").read_text())
    assert told["persons_by_diagnosis"] == {"bvFTD": 8, "control": 12}


def test_repeating_is_free_and_another_spec_in_the_way_is_named(
    trained: Trained, cohort: Path, quick: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained("gaussian", "pca")
    monkeypatch.setattr(families, "_build", None)
    assert train_generator(cohort, folder, quick(family="gaussian"), device="cpu") == folder
    with pytest.raises(ChangedRecipeError, match=r"config\.components"):
        train_generator(cohort, folder, quick(family="gaussian", components=9))


def test_only_transfer_makes_near_copies(trained: Trained) -> None:
    copies = {f: load_generator(trained(f, "pca")).near_copies for f in FAMILIES}
    assert copies == {f: f == "transfer" for f in FAMILIES}


def one_patient(scans: list[Scan], volumes: list[FloatArray], parts: dict[str, str]) -> None:
    for scan in scans[1:15]:
        parts[scan.person_id] = "test"


def a_hole(scans: list[Scan], volumes: list[FloatArray], parts: dict[str, str]) -> None:
    volumes[0][5, 5, 5] = np.nan


def nothing(scans: list[Scan], volumes: list[FloatArray], parts: dict[str, str]) -> None:
    volumes[0][:] = 0


def no_partition(scans: list[Scan], volumes: list[FloatArray], parts: dict[str, str]) -> None:
    parts.clear()


def all_equal(scans: list[Scan], volumes: list[FloatArray], parts: dict[str, str]) -> None:
    volumes[:] = [volumes[0]] * len(volumes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (one_patient, "Only 1 training person has the diagnosis 'bvFTD'"),
        (a_hole, "P0000_01 is empty or has values that are no numbers"),
        (nothing, "P0000_01 is empty"),
        (no_partition, "no training persons"),
        (all_equal, "same image"),
    ],
)
def test_bad_cohorts_are_refused_with_the_reason(
    edit: Callable[..., None], message: str, make_cohort: Make, tmp_path: Path, quick: Spec
) -> None:
    with pytest.raises(InputError, match=message):
        train_generator(make_cohort(edit=edit), tmp_path / "m", quick(family="gaussian"))
    assert not (tmp_path / "m").exists()


def test_equal_scans_are_refused_in_codes_too(
    make_cohort: Make, tmp_path: Path, quick: Spec
) -> None:
    spec = quick(family="gaussian", codec="haar")
    with pytest.raises(InputError, match="same image"):
        train_generator(make_cohort(edit=all_equal), tmp_path / "m", spec)


def test_a_fit_killed_between_codes_goes_on_to_the_same_bytes(
    trained: Trained, cohort: Path, tmp_path: Path, quick: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = quick(family="gaussian", codec="haar")
    images_of = code_store.People.images_of
    seen: list[int] = []

    def killed(people: code_store.People, rows: Any) -> Any:
        if 16 in rows and len(seen) == 16:
            raise KeyboardInterrupt
        seen.extend(rows)
        return images_of(people, rows)

    monkeypatch.setattr(code_store.People, "images_of", killed)
    with pytest.raises(KeyboardInterrupt):
        train_generator(cohort, tmp_path / "m", spec, device="cpu")
    assert seen == list(range(16))
    seen.append(-1)
    model = train_generator(cohort, tmp_path / "m", spec, device="cpu")
    assert seen[17:22] == list(range(16, 21))
    wanted = (trained("gaussian", "haar") / "weights.safetensors").read_bytes()
    assert (model / "weights.safetensors").read_bytes() == wanted


def test_a_kl_codec_is_kept_at_the_second_place_under_the_name_of_its_own_training(
    cohort: Path, quick: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []

    def stopped(model: Any, data: Any, plan: Plan, **more: Any) -> None:
        plans.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(autoencoder, "fit", stopped)
    for place, codec_steps in (("here", 3), ("elsewhere", 3), ("other", 4)):
        spec = quick(
            family="gaussian",
            codec="kl",
            codec_steps=codec_steps,
            checkpoints="memory://bucket",
            checkpoint_minutes=3.0,
        )
        with pytest.raises(KeyboardInterrupt):
            train_generator(cohort, tmp_path / place, spec, device="cpu")
    assert {(p.checkpoints, p.checkpoint_minutes) for p in plans} == {("memory://bucket", 3.0)}
    here, elsewhere, other = (plan.training for plan in plans)
    assert here == elsewhere != other
    assert len(here) == 16


def test_a_cohort_that_is_not_on_a_grid_is_refused(
    make_cohort: Make, tmp_path: Path, quick: Spec
) -> None:
    with pytest.raises(InputError, match="rarescan prepare"):
        train_generator(make_cohort(grid=None), tmp_path / "m", quick(family="gaussian"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "haar", "levels": 2, "depth": 2}, "5 x 6 x 5 positions.*levels to 1"),
        ({"codec": "kl", "depth": 4}, "20 x 24 x 20 voxels.*smaller depth"),
    ],
)
def test_shapes_that_do_not_divide_are_refused_with_the_way_out(
    changes: dict[str, Any], message: str, cohort: Path, tmp_path: Path, quick: Spec
) -> None:
    with pytest.raises(SettingError, match=message):
        train_generator(cohort, tmp_path / "m", quick(**changes), device="cpu")


def test_a_folder_without_or_with_damaged_weights_is_refused(
    trained: Trained, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="holds no generator"):
        load_generator(tmp_path)
    source = trained("diffusion", "pca")
    weights = (source / "weights.safetensors").read_bytes()
    (tmp_path / "spec.json").write_bytes((source / "spec.json").read_bytes())
    (tmp_path / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="damaged"):
        load_generator(tmp_path)


def test_weights_of_another_spec_are_refused(trained: Trained, tmp_path: Path) -> None:
    weights = (trained("diffusion", "pca") / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(weights)
    (tmp_path / "spec.json").write_bytes((trained("vae", "pca") / "spec.json").read_bytes())
    with pytest.raises(InputError, match="do not belong"):
        load_generator(tmp_path)
