from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from rarescan.cohort.contracts import Scan, brain_grid
from rarescan.cohort.store import open_cohort
from rarescan.errors import GateRefusedError
from rarescan.generative.code_store import People, people_of
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.reconstruction import (
    edge_loss,
    report,
    require_faithful,
    similarity,
)


class Changed:
    """A codec whose decoding does something to the images."""

    name = "kl"
    code_shape = (2, 20, 24, 20)

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self._change = change

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, codes: Tensor) -> Tensor:
        return self._change(codes)

    def state(self) -> dict[str, Tensor]:
        return {}


@pytest.fixture(scope="module")
def many(make_cohort: Callable[..., Path]) -> People:
    """Return 26 persons, nearly half of them patients."""

    def all_seen(scans: list[Scan], volumes: list[object], parts: dict[str, str]) -> None:
        parts.update({scan.person_id: "validation" for scan in scans})

    cohort = open_cohort(make_cohort(12, 14, edit=all_seen))
    encoder = ConditionEncoder.fit([scan.condition for scan in cohort.scans], ())
    return people_of(cohort, "validation", encoder)


def blurred(images: Tensor) -> Tensor:
    soft = ndimage.gaussian_filter(images[:, 0].numpy(), (0, 1.5, 1.5, 1.5))
    return torch.stack([torch.from_numpy(soft), images[:, 1]], dim=1)


def test_a_codec_that_changes_nothing_is_faithful(many: People) -> None:
    told = report(Changed(lambda codes: codes), many, brain_grid(8), 2)
    assert told.n_persons == 26
    assert (told.edge_dice, told.similarity, told.region_error) == (1, pytest.approx(1), 0)
    assert told.psnr_db == pytest.approx(120)
    slope, recognised = told.gates
    assert (slope.outcome, slope.statistic) == ("pass", pytest.approx(1))
    assert recognised.outcome == "pass"
    assert recognised.statistic == pytest.approx(0.5, abs=0.01)
    require_faithful(told)


def test_the_error_of_a_known_change_is_known(many: People) -> None:
    def darker(images: Tensor) -> Tensor:
        return torch.stack([images[:, 0] - 0.1, images[:, 1]], dim=1)

    told = report(Changed(darker), many, brain_grid(8), 2)
    assert told.psnr_db == pytest.approx(20, abs=1e-3)
    assert told.brain_volume_error == 0


def test_a_codec_that_loses_the_diagnosis_is_refused(many: People) -> None:
    mean = many.images.mean(0)
    told = report(Changed(lambda codes: mean + 0.3 * (codes - mean)), many, brain_grid(8), 2)
    assert told.gates[0].outcome == "fail"
    assert told.gates[0].statistic == pytest.approx(0.3, abs=0.1)
    with pytest.raises(GateRefusedError, match=r"keeps the diagnosis: slope .* codec: haar"):
        require_faithful(told)


def test_a_codec_that_blurs_is_recognised(many: People) -> None:
    told = report(Changed(blurred), many, brain_grid(8), 2)
    assert told.gates[1].outcome == "fail"
    assert told.gates[1].statistic is not None
    assert told.gates[1].statistic > 0.9


def test_few_persons_are_insufficient_and_refuse_nothing(many: People) -> None:
    few = replace(
        many, positions=many.positions[:4], scan_ids=many.scan_ids[:4], encoded=many.encoded[:4]
    )
    nobody = replace(many, positions=(), scan_ids=(), encoded=many.encoded[:0])
    for people in (few, nobody):
        told = report(Changed(blurred), people, brain_grid(8), 2)
        assert {gate.outcome for gate in told.gates} == {"insufficient"}
        require_faithful(told)
    assert told.psnr_db is None
    assert told.region_error is None


def test_edges_count_at_every_scale() -> None:
    image = torch.rand(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    assert edge_loss(image, image) == 0
    # A ramp of slope 0.5 along one axis has mean gradients of 0.5, 1 and 2 at scales 1, 2 and 4.
    ramp = (0.5 * torch.arange(8.0)).view(1, 1, 8, 1, 1).expand(1, 1, 8, 8, 8)
    assert edge_loss(ramp, torch.zeros_like(ramp)).item() == pytest.approx((0.5 + 1 + 2) / 9)


def test_similarity_of_a_shifted_constant_has_its_closed_form() -> None:
    a, b = torch.full((1, 1, 8, 8, 8), 0.5), torch.full((1, 1, 8, 8, 8), 0.7)
    expected = (2 * 0.5 * 0.7 + 1e-4) / (0.25 + 0.49 + 1e-4)
    assert similarity(a, b).item() == pytest.approx(expected, abs=1e-3)
    noise = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    assert similarity(noise, noise).item() == pytest.approx(1)
    assert similarity(noise, 1 - noise).item() < 0
