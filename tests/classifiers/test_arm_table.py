import pytest

from rarescan.classifiers.arm_table import ARMS, FREE, arm_spec
from rarescan.classifiers.spec import RetrainConfig
from rarescan.errors import SettingError
from rarescan.evaluation.gain import FREE_ARMS


def test_what_costs_nothing_is_the_same_for_training_and_for_the_gain() -> None:
    assert set(FREE) == set(FREE_ARMS)
    assert len(FREE) == 14


def test_a_free_arm_with_a_batch_changes_only_what_the_batch_brings() -> None:
    plain, with_batch = ARMS["site_balanced"], arm_spec("site_balanced+swap:all:0.25")
    assert (with_batch.kind, with_batch.batch, with_batch.use) == ("generative", "swap", "all")
    assert with_batch.real_share == 0.25
    for name in ("recipe", "cells", "mix", "landmarks", "class_weights"):
        assert getattr(with_batch, name) == getattr(plain, name)


def test_patients_of_a_batch_take_half_of_the_places_unless_said_otherwise() -> None:
    assert arm_spec("strong+vae").real_share == 0.5
    assert arm_spec("strong+vae:patients:persons").real_share is None
    assert arm_spec("classical+synthetic") == arm_spec("classical_synthetic")


def test_places_need_classes_where_a_batch_replaces_patients() -> None:
    assert arm_spec("real+vae").cells == "class"
    assert arm_spec("real+vae:all").cells == "none"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("stron", "strong"),
        ("oracle+vae", "Valid: age_adjusted"),
        ("clasical+vae", "classical"),
        ("strong+", "strong"),
        ("harmonised+swap", "Valid: age_adjusted"),
        ("strong+vae:onyl", "only"),
        ("strong+vae:placebo", "Valid: all"),
        ("strong+vae:all:2", "from 0 to below 1"),
        ("strong+vae:all:half", "from 0 to below 1"),
    ],
)
def test_an_unknown_arm_is_refused_with_the_nearest_one(name: str, remedy: str) -> None:
    with pytest.raises(SettingError) as refused:
        RetrainConfig(arms=(name,))
    assert name in refused.value.problem
    assert remedy in refused.value.remedy
