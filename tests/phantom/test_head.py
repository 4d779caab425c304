import numpy as np
import pytest
import torch

from rarescan.phantom import head
from rarescan.phantom.anatomy import brain_of
from rarescan.phantom.persons import draw_person
from rarescan.phantom.spec import PhantomConfig

CONFIG = PhantomConfig()
STILL = torch.zeros(3, 40, 48, 40)
VOXELS = np.diag([2.0, 2.0, 2.0, 1.0])
VOXELS[:3, 3] = np.array(head.HEAD_LOW_MM) + 1


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    brain = brain_of(CONFIG, draw_person(CONFIG, 0, severity=0.0), 2)
    return head.head_picture(brain, np.array([0.65, 0.87, 0.25]), solid=1.0, blur_mm=0)


def _at(picture: torch.Tensor, *mm: float) -> float:
    index = ((np.array(mm) - head.HEAD_LOW_MM) / 2).astype(int)
    return float(picture[0, index[0], index[1], index[2]])


def test_an_unmoved_head_on_its_own_voxels_is_itself(picture: torch.Tensor) -> None:
    seen = head.scan_head(picture, STILL, np.eye(4), VOXELS, (96, 128, 122))
    torch.testing.assert_close(seen, picture[0], atol=2e-4, rtol=0)


def test_a_moved_head_is_seen_moved(picture: torch.Tensor) -> None:
    pose = np.eye(4)
    pose[:3, 3] = (4, -6, 10)
    seen = head.scan_head(picture, STILL, pose, VOXELS, (96, 128, 122))
    torch.testing.assert_close(seen[2:, :-3, 5:], picture[0][:-2, 3:, :-5], atol=3e-4, rtol=0)


def test_a_turned_head_is_seen_turned(picture: torch.Tensor) -> None:
    # A quarter turn about z: the head's +y comes to lie along the scanner's -x.
    pose = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    voxels = np.diag([2.0, 2.0, 2.0, 1.0])
    voxels[:3, 3] = (-61, -61, -61)
    turned = head.scan_head(picture, STILL, pose, voxels, (62, 62, 62))
    straight = head.scan_head(picture, STILL, np.eye(4), voxels, (62, 62, 62))
    expected = straight.flip(1).transpose(0, 1)
    assert float((turned - expected).abs().mean()) < 0.01


def test_between_brain_and_air_lie_a_dark_skull_and_a_bright_scalp(picture: torch.Tensor) -> None:
    # From the middle of the brain straight to the right ear, at 2 mm steps.
    ray = np.array([_at(picture, x, -20, 10) for x in range(40, 95, 2)])
    skull = int(np.argmin(ray[:22]))
    scalp = skull + int(np.argmax(ray[skull:]))
    assert ray[:10].mean() > 0.5
    assert ray[skull] < 0.25
    assert ray[scalp] > 0.6
    assert ray[-1] < 0.02


def test_the_head_has_eyes_airway_and_neck(picture: torch.Tensor) -> None:
    assert _at(picture, 32, 58, -37) < 0.3 < _at(picture, 32, 42, -36)
    assert _at(picture, 0, 14, -90) < 0.2
    assert _at(picture, 40, -28, -90) > 0.3


def test_air_is_empty_and_so_are_the_walls_of_the_box(picture: torch.Tensor) -> None:
    volume = picture[0]
    for wall in (volume[0], volume[-1], volume[:, 0], volume[:, -1], volume[:, :, -1]):
        assert float(wall.max()) < 0.01


def test_fluid_and_scalp_answer_to_their_own_brightness() -> None:
    brain = brain_of(CONFIG, draw_person(CONFIG, 0), 2)
    dark, bright = (
        head.head_picture(brain, np.array([0.5, 0.4, fluid]), solid=0.5, blur_mm=0)
        for fluid in (0.2, 1.0)
    )
    assert _at(bright, 32, 58, -37) > 2 * _at(dark, 32, 58, -37)
    assert _at(bright, 88, -20, 10) == pytest.approx(_at(dark, 88, -20, 10), abs=0.02)
