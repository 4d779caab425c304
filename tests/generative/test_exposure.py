"""Losses of single persons, for membership inference by whoever holds the weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rarescan.generative.exposure import person_losses

Trained = Callable[[str, str], Path]


def test_a_codec_fitted_to_few_persons_rebuilds_them_better_than_others(
    trained: Trained, cohort: Path
) -> None:
    losses = person_losses(trained("gaussian", "pca"), cohort)
    assert set(losses) == {"reconstruction", "likelihood"}
    known, others = (losses["reconstruction"][part] for part in ("train", "validation"))
    assert (len(known), len(others)) == (21, 7)
    assert max(known) < min(others)


@pytest.mark.long
@pytest.mark.parametrize("family", ["vae", "gan", "diffusion"])
def test_networks_have_a_loss_of_their_own_for_each_person(
    family: str, trained: Trained, cohort: Path
) -> None:
    model = trained(family, "pca")
    losses = person_losses(model, cohort)
    values = np.array(losses["network"]["train"])
    assert len(values) == 21
    assert np.isfinite(values).all()
    assert len(np.unique(values)) == 21
    assert person_losses(model, cohort) == losses


def test_a_family_of_near_copies_needs_no_attack(trained: Trained, cohort: Path) -> None:
    assert person_losses(trained("transfer", "pca"), cohort) == {}
