from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rarescan.cohort.contracts import Condition
from rarescan.files import read_json
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.families import FAMILIES, train_generator
from rarescan.generative.floor import Floor
from rarescan.generative.gaussian import Gaussian
from rarescan.generative.snapshots import Watch, is_due
from rarescan.generative.spec import GeneratorSpec
from rarescan.seeds import generator

CPU = torch.device("cpu")
N_DIMENSIONS = 16


class Copier(Gaussian):
    """Returns, when told to, training persons with a share of noise."""

    codes: Tensor
    copied: list[Any] | None = None
    """Rows to copy, for each diagnosis."""
    share = 0.0
    """Of noise."""

    def sample(self, encoded: Tensor, noise: Tensor) -> Tensor:
        own = super().sample(encoded, noise)
        if self.copied is None:
            return own
        pick = (noise.flatten(1).sum(1).abs() * 1000).long()
        diagnoses = encoded[:, :2].argmax(1).tolist()
        rows = [
            self.copied[d][int(k) % len(self.copied[d])]
            for d, k in zip(diagnoses, pick, strict=True)
        ]
        return self.share * own + (1 - self.share**2) ** 0.5 * self.codes[rows]


def of_each(n: int, first: int = 0) -> list[list[int]]:
    """Return the rows of patients (every third) and of controls."""
    rows = range(first, first + n)
    return [[i for i in rows if i % 3 == 0], [i for i in rows if i % 3]]


def population(n: int, seed: int, shape: tuple[int, ...] = (N_DIMENSIONS,)) -> tuple[Tensor, Any]:
    values = generator(seed, "people").normal(size=(n, *shape)).astype(np.float32)
    conditions = [Condition(diagnosis="bvFTD" if i % 3 == 0 else "control") for i in range(n)]
    return torch.from_numpy(values), conditions


def watched(
    n_train: int = 36, n_held_out: int = 21, *, seed: int = 0, shape: tuple[int, ...] = ()
) -> tuple[Copier, Watch]:
    codes, conditions = population(n_train + n_held_out, seed, shape or (N_DIMENSIONS,))
    encoder = ConditionEncoder.fit(conditions, ())
    encoded = encoder.encode(conditions)
    train, held_out = slice(n_train), slice(n_train, None)
    floor = Floor.fit(codes[train], encoded[train], 2)
    prior = Copier(GeneratorSpec(components=N_DIMENSIONS), floor, encoder)
    whitened = floor.whiten(codes)
    prior.codes = whitened[train]
    watch = Watch(
        prior, (whitened[train], encoded[train]), (whitened[held_out], encoded[held_out]), seed=seed
    )
    return prior, watch


def test_looks_are_at_powers_of_two_from_16_and_at_the_end() -> None:
    assert [step for step in range(1, 601) if is_due(step, 600)] == [
        16, 32, 64, 128, 256, 512, 600,
    ]  # fmt: skip
    assert [step for step in range(1, 6) if is_due(step, 5)] == [5]


def test_the_floor_itself_has_ratio_one_and_passes() -> None:
    _, watch = watched()
    same = {"ratio": 1.0, "p": 1.0}
    assert watch.look(CPU) == {
        "outcome": "pass", **same, "diagnoses": {"bvFTD": same, "control": same},
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(N_DIMENSIONS,), (2, 4, 4, 4)])
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_copies_of_training_persons_are_found_exact_or_half_noise(
    shape: tuple[int, ...], share: float
) -> None:
    prior, watch = watched(shape=shape)
    prior.share = share
    prior.copied = of_each(36)
    found = watch.look(CPU)
    assert found["outcome"] == "fail"
    assert found["ratio"] < 0.9
    assert found["p"] < 0.01


def test_copying_the_rare_diagnosis_alone_is_found() -> None:
    prior, watch = watched(48, 36)
    prior.share = 0.7
    prior.copied = [of_each(48)[0], of_each(36, first=48)[1]]
    prior.codes = torch.cat([prior.codes, torch.randn(36, N_DIMENSIONS)])  # strangers
    found = watch.look(CPU)
    assert found["outcome"] == "fail"
    assert found["diagnoses"]["bvFTD"]["ratio"] < 0.9 < found["diagnoses"]["control"]["ratio"]


def test_samples_that_are_no_nearer_to_training_persons_are_let_be() -> None:
    # Other draws of the same Gaussian, and a narrower one, which is nearer to everybody.
    for change in (lambda own: own.roll(1, 0), lambda own: 0.6 * own):
        prior, watch = watched()
        honest = prior.sample
        prior.sample = lambda e, z, c=change, h=honest: c(h(e, z))  # type: ignore[method-assign]
        assert watch.look(CPU)["outcome"] == "pass"


def test_a_generator_that_does_not_know_who_was_trained_on_is_stopped_rarely() -> None:
    # It copies a few of all persons, trained on or not, who are thus alike to it. Then the ratio
    # alone, below 0.9, would stop many runs.
    stopped, small, n_runs = 0, 0, 20
    for seed in range(n_runs):
        prior, watch = watched(30, 30, seed=seed)
        prior.codes = prior.floor.whiten(population(60, seed)[0])
        prior.share = 0.5
        random = generator(seed, "copied")
        prior.copied = [random.permutation(rows)[:6] for rows in of_each(60)]
        found = watch.look(CPU)
        stopped += found["outcome"] == "fail"
        small += found["ratio"] < 0.9
    assert stopped <= 3  # more than 3 of 20 have a chance of 1.6 % at 5 %
    assert small >= n_runs / 4


@pytest.mark.parametrize(
    ("n", "outcome"), [(12, "insufficient"), (15, "pass"), (3, "insufficient")]
)
def test_too_few_validation_persons_are_no_judges(n: int, outcome: str) -> None:
    _, watch = watched(n_held_out=n)
    assert watch.look(CPU)["outcome"] == outcome


def test_a_look_is_the_same_twice_and_leaves_torchs_randomness_alone() -> None:
    prior, watch = watched()
    prior.copied, prior.share = of_each(12), 0.9
    before = torch.get_rng_state()
    assert watch.look(CPU) == watch.look(CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", ["vae", "gan", "diffusion"])
def test_every_family_has_its_looks_in_the_curves(
    make_cohort: Callable[..., Path],
    quick: Callable[..., GeneratorSpec],
    tmp_path: Path,
    family: Any,
) -> None:
    cohort = make_cohort(35, 30)
    spec = quick(family=family, codec="pca", steps=32)
    told = read_json(
        train_generator(cohort, tmp_path / family, spec, device="cpu") / "training.json"
    )
    assert [look["step"] for look in told["snapshots"]] == [16, 32]
    assert [look["outcome"] for look in told["snapshots"]] == ["pass", "pass"]
    assert all(0.9 < look["ratio"] < 1.1 and 0 < look["p"] <= 1 for look in told["snapshots"])
    assert told["stopped"] == {"why": "steps", "step": 32, "kept": 32}
    assert told["precision"] == "fp32"
    assert FAMILIES[family].family == family


def test_where_checkpoints_lie_is_no_part_of_a_model(
    cohort: Path, quick: Callable[..., GeneratorSpec], tmp_path: Path
) -> None:
    spec = quick(family="diffusion", codec="pca")
    plain = train_generator(cohort, tmp_path / "plain", spec, device="cpu")
    bucket = tmp_path / "bucket"
    elsewhere = quick(
        family="diffusion", codec="pca", checkpoints=f"file://{bucket}", checkpoint_minutes=1e-9
    )
    same = train_generator(cohort, tmp_path / "same", elsewhere, device="cpu")
    for name in ("weights.safetensors", "spec.json", "recipe.json"):
        assert (same / name).read_bytes() == (plain / name).read_bytes()
    assert list(bucket.glob("*/step-00000004.pt"))
    assert str(bucket) not in (same / "training.json").read_text()
