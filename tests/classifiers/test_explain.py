"""Where a classifier looks, when that is shown, and how it is drawn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rarescan.classifiers.contract import ImageNetwork, Labels
from rarescan.classifiers.explain import Explanation, explain
from rarescan.classifiers.mri import MRI
from rarescan.classifiers.network import TrainedNetwork
from rarescan.classifiers.overlay import overlay, views, write_film, write_pictures
from rarescan.classifiers.planes import PICTURES
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.errors import GridMismatchError, InputError

SHAPE = (32, 32, 1)


class _Seen(nn.Module):
    """What was found, within a part of the image."""

    def __init__(self, place: torch.Tensor | None) -> None:
        super().__init__()
        self.place = place

    def forward(self, found: torch.Tensor) -> torch.Tensor:
        return found.relu() if self.place is None else found.relu() * self.place


class _Detector(ImageNetwork):
    """Answers with how strongly its kernel is found; the first class is the opposite."""

    def __init__(self, kernels: torch.Tensor, place: torch.Tensor | None = None) -> None:
        super().__init__()
        kind = nn.Conv2d if kernels.ndim == 4 else nn.Conv3d
        self.conv = kind(1, len(kernels), kernels.shape[2:], padding="same", bias=False)
        self.conv.weight = nn.Parameter(kernels)
        self.seen = _Seen(place)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.seen(self.conv(images)).flatten(2).mean(2)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        score = 40 * features[:, 0] - 0.1 * features[:, 1:].sum(1) - 1
        return torch.stack((-score, score), 1)


class _OneLogit(_Detector):
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return super().logits(features)[:, 1] * 2


def _bar_kernels(spatial: int = 2) -> torch.Tensor:
    """Return a detector of upright bars, and noise."""
    random = torch.Generator().manual_seed(0)
    kernels = 0.05 * torch.randn(6, 1, *[7] * spatial, generator=random)
    kernels[0] = -0.3
    kernels[0, 0, :, 2:5] = 0.4
    return kernels


def _trained(network: ImageNetwork, shape: Sequence[int] = SHAPE) -> TrainedNetwork:
    labels = Labels(names=("absent", "present"))
    if not isinstance(network, _OneLogit):
        labels = Labels(names=("absent", "present", "unused"))
        forward = network.logits

        def three(features: torch.Tensor) -> torch.Tensor:
            two = forward(features)
            return torch.cat((two, two[:, :1] - 5), 1)

        network.logits = three  # type: ignore[method-assign]
    return TrainedNetwork(
        network=network.eval(),
        modality=PICTURES if len(shape) == 3 and shape[2] == 1 else MRI,
        config=ClassifierConfig(),
        shape=tuple(shape),
        device=torch.device("cpu"),
        labels=labels,
    )


def _clip(n: int = 4, column: int = 20) -> np.ndarray:
    """Return frames with an upright bar that sinks, over faint texture."""
    random = np.random.default_rng(0)
    images = 0.25 + 0.04 * random.random((n, *SHAPE), dtype=np.float32)
    for i, image in enumerate(images):
        image[6 + 2 * i : 15 + 2 * i, column : column + 3] = 0.9
    return images


@pytest.mark.parametrize("kind", [_Detector, _OneLogit])
def test_the_map_is_hottest_on_what_the_network_looks_for(kind: type[_Detector]) -> None:
    found = explain([_trained(kind(_bar_kernels()))], _clip())
    assert found.label == 1
    assert found.maps.shape == (4, 32, 32)
    for i, heat in enumerate(found.maps):
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        assert 6 + 2 * i <= row < 15 + 2 * i
        assert 19 <= column <= 23
    assert found.shown


def test_the_map_follows_the_image_in_three_dimensions() -> None:
    shape = (16, 18, 14)
    images = np.full((1, *shape), 0.3, np.float32)
    images[0, 4:9, 9:12, 3:8] = 0.9
    found = explain([_trained(_Detector(_bar_kernels(3)), shape)], images, label=1)
    assert found.maps.shape == (1, *shape)
    place = np.unravel_index(found.maps[0].argmax(), shape)
    assert all(
        low - 1 <= p <= high for p, low, high in zip(place, (4, 9, 3), (9, 12, 8), strict=True)
    )


def test_t45_evidence_against_a_class_is_no_heat_for_it() -> None:
    found = explain([_trained(_Detector(_bar_kernels()[:1]))], _clip(), label=0)
    assert not found.maps.any()
    assert not found.shown


def test_t45_all_networks_of_an_ensemble_count_alike_and_explain_one_class() -> None:
    clip = np.maximum(_clip(column=4), _clip(column=24))
    left, right = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    left[..., :16], right[..., 16:] = 1, 1
    # The network of the right side is far surer; it must not be the only one who is heard.
    sure = 9 * _bar_kernels()
    networks = [_trained(_Detector(_bar_kernels(), left)), _trained(_Detector(sure, right))]
    maps = explain(networks, clip, label=1).maps
    assert maps[0, :, :12].max() == pytest.approx(0.5, abs=0.05)
    assert maps[0, :, 20:].max() == pytest.approx(0.5, abs=0.05)


def test_t45_a_map_that_ignores_the_weights_is_not_shown() -> None:
    # One weight has nowhere to go: shuffled or not, the map is the picture.
    found = explain([_trained(_Detector(torch.ones(1, 1, 1, 1)))], _clip(), label=1)
    assert found.likeness > 0.99
    assert not found.shown


def test_explaining_leaves_the_network_as_it_was() -> None:
    trained = _trained(_Detector(_bar_kernels()))
    before = trained.probabilities(_clip())
    explain([trained], _clip())
    assert trained.probabilities(_clip()).tobytes() == before.tobytes()


def test_the_same_images_give_the_same_bytes() -> None:
    one, other = (explain([_trained(_Detector(_bar_kernels()))], _clip()) for _ in range(2))
    assert one.maps.tobytes() == other.maps.tobytes()
    assert one.likeness == other.likeness


def _explanation(spread: Sequence[float] | None, *, likeness: float = 0.0) -> Explanation:
    maps = np.zeros((4, 32, 32), np.float32)
    maps[:, 10:20, 10:20] = 1
    return Explanation(
        maps=maps, label=1, classes=("absent", "present"), likeness=likeness,
        probabilities=np.array([[0.2, 0.8]] * 4, np.float32),
        spread=None if spread is None else np.array(spread, np.float32),
    )  # fmt: skip


def test_confidence_is_one_without_spread_and_zero_from_a_half_on() -> None:
    found = _explanation([0, 0.25, 0.5, 0.7]).confidence
    np.testing.assert_allclose(found, [1, 0.5, 0, 0], atol=1e-6)  # type: ignore[arg-type]
    assert _explanation(None).confidence is None


def test_two_networks_that_disagree_are_less_confident_than_twins() -> None:
    one, other = (_trained(_Detector(factor * _bar_kernels())) for factor in (1, 0))
    twins = explain([one, one], _clip(), label=1).confidence
    apart = explain([one, other], _clip(), label=1).confidence
    assert twins is not None
    assert apart is not None
    assert twins.min() == pytest.approx(1)
    assert apart.max() < 0.9


def test_networks_with_other_labels_do_not_explain_together() -> None:
    one, other = _trained(_Detector(_bar_kernels())), _trained(_OneLogit(_bar_kernels()))
    with pytest.raises(ValueError, match="same labels"):
        explain([one, other], _clip())


def test_another_shape_is_refused() -> None:
    with pytest.raises(GridMismatchError):
        explain([_trained(_Detector(_bar_kernels()))], np.zeros((1, 16, 16, 1), np.float32))


def test_the_heat_colours_its_place_and_nothing_else() -> None:
    image, heat = np.full((120, 120), 0.5, np.float32), np.zeros((120, 120), np.float32)
    heat[30:60, 60:90] = 1
    drawn = overlay(image, heat).astype(int)
    grey = (drawn.max(axis=2) - drawn.min(axis=2)) == 0
    expected = np.ones((240, 240), bool)
    expected[60:120, 120:180] = False
    np.testing.assert_array_equal(grey, expected)


def test_a_picture_shows_the_image_alone_and_with_its_map(tmp_path: Path) -> None:
    (path, *_) = write_pictures(tmp_path, _clip(), _explanation([0] * 4), list("abcd"))
    drawn = np.asarray(Image.open(path)).astype(int)
    coloured = (drawn.max(axis=2) - drawn.min(axis=2)) > 10
    width = coloured.shape[1] // 2
    assert not coloured[:, :width].any()
    assert coloured[:, width:].mean() == pytest.approx(100 / 1024, abs=0.02)


def test_a_map_that_is_not_shown_is_not_drawn(tmp_path: Path) -> None:
    hidden = _explanation([0] * 4, likeness=0.8)
    (path, *_) = write_pictures(tmp_path, _clip(), hidden, list("abcd"))
    drawn = np.asarray(Image.open(path)).astype(int)
    assert (drawn.max(axis=2) == drawn.min(axis=2)).all()


def test_a_volume_is_cut_through_its_hottest_voxel() -> None:
    heat = np.zeros((6, 7, 8), np.float32)
    heat[2, 3, 5] = 1
    cuts = views(np.random.default_rng(0).random((6, 7, 8), dtype=np.float32), heat)
    assert [cut.shape for cut, _ in cuts] == [(8, 7), (8, 6), (7, 6)]
    assert all(hot.max() == 1 for _, hot in cuts)
    # Upright: z = 5 of 8 lies in the upper half.
    assert np.unravel_index(cuts[0][1].argmax(), (8, 7)) == (2, 3)


@pytest.mark.parametrize(("name", "codec"), [("clip.mp4", "h264"), ("clip.avi", "mjpeg")])
def test_a_film_has_the_clips_frames_rate_and_gauges(name: str, codec: str, tmp_path: Path) -> None:
    path = write_film(tmp_path / name, _clip(), _explanation([0, 0.1, 0.5, 0]), frames_per_second=7)
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert stream.codec_context.name == codec
        assert stream.average_rate == 7
        frames = [f.to_ndarray(format="rgb24").astype(int) for f in film.decode(stream)]
    assert len(frames) == 4
    # Blue: the gauge of confidence, shorter the less the networks agree.
    blue = [((f[..., 2] - f[..., 0])[:, 256:] > 60).sum() for f in frames]
    assert blue[0] > blue[1] > 5 * blue[2]
    red = [((f[..., 0] - f[..., 2])[80:160, 80:160] > 40).mean() for f in frames]
    assert min(red) > 0.9


def test_a_film_without_an_ensemble_has_no_confidence(tmp_path: Path) -> None:
    path = write_film(tmp_path / "c.avi", _clip(), _explanation(None), frames_per_second=2)
    with av.open(str(path)) as film:
        frame = next(film.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert not ((frame[..., 2] - frame[..., 0])[:, 256:] > 60).any()


def test_a_volume_is_no_film(tmp_path: Path) -> None:
    volume = replace(_explanation(None), maps=np.ones((1, 4, 4, 4), np.float32))
    with pytest.raises(InputError, match="pictures"):
        write_film(tmp_path / "a.mp4", np.ones((1, 4, 4, 4)), volume, frames_per_second=1)
