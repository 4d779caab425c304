"""What may happen to pictures, modality by modality."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.classifiers.augment_planes import PlaneAugmentation
from rarescan.classifiers.modalities import MODALITIES

PICTURES = [name for name in MODALITIES if name != "mri"]
NONE = PlaneAugmentation()


def _random(seed: int = 1) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _bright(rows: slice, columns: slice, n: int = 200) -> torch.Tensor:
    images = torch.full((n, 24, 20, 1), 0.1)
    images[:, rows, columns] = 0.9
    return images


@pytest.mark.parametrize("name", PICTURES)
def test_up_stays_up_in_every_modality(name: str) -> None:
    """T46: a flipped lung shows its pleura below its own artefacts."""
    moved = MODALITIES[name].augment(_bright(slice(0, 8), slice(None)), 1.0, _random())
    upper, lower = moved[:, :12].mean((1, 2, 3)), moved[:, 12:].mean((1, 2, 3))
    assert (upper > lower).all()


@pytest.mark.parametrize(("name", "mirrored"), [(n, n == "ultrasound") for n in PICTURES])
def test_only_ultrasound_of_the_lung_is_mirrored(name: str, mirrored: bool) -> None:
    moved = MODALITIES[name].augment(_bright(slice(None), slice(0, 7)), 1.0, _random())
    on_the_right = (moved[:, :, 10:].mean((1, 2, 3)) > moved[:, :, :10].mean((1, 2, 3))).float()
    assert on_the_right.mean().item() == pytest.approx(0.5 if mirrored else 0.0, abs=0.12)


@settings(max_examples=20, deadline=None)
@given(strength=st.floats(0.01, 3), seed=st.integers(0, 2**31))
def test_shape_type_and_range_are_kept_and_background_stays_0(strength: float, seed: int) -> None:
    images = _bright(slice(8, 16), slice(8, 14), n=3) * 1.0
    images[:, :, :3] = 0
    full = MODALITIES["ultrasound"].augment
    moved = full(images, strength, _random(seed))
    assert moved.shape == images.shape
    assert moved.dtype == torch.float32
    assert moved.min() >= 0
    assert moved.max() <= 1
    still = replace(NONE, gain=0.2, offset=0.1, noise_max=0.1)(images, strength, _random(seed))
    assert (still[:, :, :3] == 0).all()


def test_strength_0_leaves_every_bit_and_no_fields_leave_every_value() -> None:
    images = 0.1 + 0.8 * torch.rand(3, 10, 12, 2)
    assert MODALITIES["ultrasound"].augment(images, 0.0, _random()) is images
    torch.testing.assert_close(NONE(images, 1.0, _random()), images, atol=1e-5, rtol=0)


def test_a_mirrored_picture_is_the_picture_read_backwards() -> None:
    images = 0.1 + 0.8 * torch.rand(16, 10, 12, 2)
    moved = replace(NONE, mirror=True)(images, 1.0, _random())
    backwards = images.flip(2)
    for before, other, after in zip(images, backwards, moved, strict=True):
        nearest = min((before - after).abs().max(), (other - after).abs().max())
        assert nearest < 1e-5


def test_a_turn_keeps_the_form_of_a_picture_that_is_not_square() -> None:
    """A disc stays a disc: rows and columns are counted in pixels, not in shares of the edge."""
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(20.0), indexing="ij")
    disc = ((rows - 19.5) ** 2 + (columns - 9.5) ** 2 < 49).float()
    images = disc[None, :, :, None].expand(20, -1, -1, -1).clone()
    moved = replace(NONE, turn_degrees=40)(images, 1.0, _random())
    assert (moved - images).abs().mean() < 0.03


def test_the_planes_of_a_person_move_together() -> None:
    one = torch.rand(4, 16, 16, 1)
    images = one.expand(-1, -1, -1, 3).clone()
    moved = replace(MODALITIES["mri2d"].augment, noise_max=0.0)(images, 1.0, _random())  # type: ignore[type-var]
    assert torch.equal(moved[..., 0], moved[..., 2])
