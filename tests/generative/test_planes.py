"""Pictures through the generator's image space and codecs: each plane is its own picture."""

from pathlib import Path

import numpy as np
import pytest
from picture_cohort import picture, write_pictures
from scipy import ndimage

from rarescan.errors import SettingError
from rarescan.generative.anatomy import brain_mask, to_image, to_volume
from rarescan.generative.families import train_generator
from rarescan.generative.spec import CodecName, GeneratorSpec


def test_a_picture_comes_back_from_its_two_channels() -> None:
    for planes in (1, 3):
        made = picture(3, True, 64, planes)
        again = to_volume(to_image(made))
        np.testing.assert_allclose(again, made, atol=1e-6)


def test_a_plane_does_not_depend_on_its_neighbours() -> None:
    made = picture(3, True, 48, 3)
    whole = to_image(made)
    for plane in range(3):
        alone = to_image(made[..., plane : plane + 1])
        np.testing.assert_array_equal(whole[..., plane], alone[..., 0])


def test_a_hole_in_one_plane_is_filled_in_that_plane() -> None:
    made = np.zeros((20, 20, 3), np.float32)
    made[4:16, 4:16] = 0.5
    made[9:11, 9:11, 1] = 0
    assert brain_mask(to_image(made)[1])[9, 9].tolist() == [True, True, True]


def test_shadows_that_cut_a_sector_in_two_leave_both_parts() -> None:
    made = np.zeros((40, 40, 1), np.float32)
    made[5:35, 3:18, 0] = 0.5
    made[5:35, 24:34, 0] = 0.5
    made[1, 38, 0] = 0.5  # a speck
    mask = brain_mask(to_image(made)[1])
    assert ndimage.label(mask)[1] == 2
    assert mask[20, 10, 0]
    assert mask[20, 30, 0]


def test_an_empty_plane_stays_empty() -> None:
    made = picture(1, False, 32, 3)
    made[..., 2] = 0
    again = to_volume(to_image(made))
    assert not again[..., 2].any()
    assert again[..., 0].any()


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_mixture_of_two_persons_has_one_edge(share: float) -> None:
    a, b = (to_image(picture(i, False, 64, 1)) for i in (1, 2))
    mixed = to_volume((share * a + (1 - share) * b).astype(np.float32))
    assert ndimage.label(mixed[..., 0] > 0)[1] == 1
    sizes = [float((to_volume(v) > 0).mean()) for v in (a, b)]
    assert min(sizes) - 0.01 < float((mixed > 0).mean()) < max(sizes) + 0.01


@pytest.mark.parametrize("codec", ["haar", "kl"])
def test_codecs_that_halve_three_axes_are_refused_for_pictures(
    tmp_path: Path, codec: CodecName
) -> None:
    prepared = write_pictures(tmp_path / "prepared", edge=16, persons=30)
    with pytest.raises(SettingError, match="codec to pca"):
        train_generator(prepared, tmp_path / "vae", GeneratorSpec(family="vae", codec=codec))
