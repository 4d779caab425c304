import csv
import gzip
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import clips
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread

from rarescan.errors import MissingExtraError
from rarescan.imaging.frames import (
    ClipInfo,
    Luminance,
    RefusedClipError,
    even_positions,
    open_clip,
)

RAMP = np.tile(np.arange(256, dtype=np.uint8), (16, 1))


def read(path: Path, positions: list[int] | None = None) -> tuple[ClipInfo, np.ndarray]:
    with open_clip(path) as clip:
        return clip.info, np.stack(list(clip.frames(positions)))


def refusal(path: Path, positions: list[int] | None = None) -> str:
    with pytest.raises(RefusedClipError) as caught:
        read(path, positions)
    return caught.value.code


def turning(n_frames: int = 8, size: int = 32) -> np.ndarray:
    """Return frames in which a bright square goes down the left side."""
    frames = np.full((n_frames, size, size), 20, np.uint8)
    for time in range(n_frames):
        frames[time, 3 * time : 3 * time + 6, 2:8] = 230
    return frames


@pytest.mark.parametrize("kind", ["dicom", "video", "gif", "nifti", "nifti.gz"])
def test_t10_an_asymmetrical_clip_keeps_the_order_of_its_frames_and_is_not_flipped(
    tmp_path: Path, kind: str
) -> None:
    frames = turning()
    path = tmp_path / "clip"
    if kind == "dicom":
        clips.save_clip(path, frames)
    elif kind == "video":
        clips.save_video(tmp_path / "clip.mp4", frames).rename(path)
    elif kind == "gif":
        clips.save_gif(tmp_path / "clip.gif", frames).rename(path)
    else:
        # As echo sets in NIfTI are stored: first axis to the right, second down, third time.
        image: Any = nib.Nifti1Image(frames.transpose(2, 1, 0), np.eye(4))  # type: ignore[no-untyped-call]
        data = image.to_bytes()
        path.write_bytes(gzip.compress(data) if kind == "nifti.gz" else data)
    _, found = read(path)
    assert found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).mean() < 6
    centres = [np.argwhere(frame > 128).mean(axis=0) for frame in found]
    assert np.diff([row for row, _ in centres]) == pytest.approx(3, abs=0.5)
    assert all(column < 12 for _, column in centres)


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "pgm", "mp4", "dicom"])
def test_t17_a_grey_ramp_survives_within_a_level(tmp_path: Path, kind: str, colour: bool) -> None:
    if kind == "pgm" and colour:
        pytest.skip("PGM has no colour")
    values = np.stack([RAMP] * 3, axis=-1) if colour else RAMP
    path = tmp_path / f"ramp.{kind}"
    if kind == "dicom":
        clips.save_clip(path, values[None])
    elif kind == "mp4":
        clips.save_video(path, values[None].repeat(3, axis=0), codec="libx264")
    else:
        Image.fromarray(values).save(path, quality=100)
    _, frames = read(path)
    # Video keeps 220 of 256 levels, so that one may be off by rounding twice.
    assert np.abs(frames[0].astype(int) - RAMP).max() <= (2 if kind == "mp4" else 1)
    assert (np.diff(frames[0, 8].astype(int)) >= 0).all()


@settings(max_examples=40)
@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_t17_luminance_lies_between_the_channels_and_never_wraps(rgb: tuple[int, ...]) -> None:
    grey = int(Luminance()(np.array([[rgb]], np.uint8))[0, 0])
    assert min(rgb) <= grey <= max(rgb)
    assert grey == int(Fraction(299 * rgb[0] + 587 * rgb[1] + 114 * rgb[2] + 500, 1000))


def test_what_the_real_dicom_clip_shows_is_its_luminance(real_data: Path) -> None:
    path = real_data / "echo/dicom/sonosite_30frames_ybr422.dcm"
    info, frames = read(path, [0, 29])
    with open_clip(path) as clip:
        assert clip.count() == 30
        assert np.array_equal(np.stack(list(clip.frames()))[[0, 29]], frames)
    coloured = dcmread(path).pixel_array[[0, 29]]  # pydicom's own way: to RGB
    ours = np.stack([Luminance()(frame) for frame in coloured])
    assert np.abs(ours.astype(int) - frames).mean() < 1
    assert (info.rows, info.columns, info.n_frames) == (240, 320, 30)
    assert info.frame_time_ms == pytest.approx(33.333)


def test_t13_a_heart_rate_of_zero_or_none_is_none(real_data: Path) -> None:
    folder = real_data / "echo/dicom"
    rates = {
        name: read(folder / f"{name}.dcm", [0])[0].heart_rate_bpm
        for name in ("e001_a4c", "e002_a4c_nohr", "sonosite_30frames_ybr422")
    }
    assert rates == {"e001_a4c": 77, "e002_a4c_nohr": None, "sonosite_30frames_ybr422": None}


def test_t12_spacing_comes_down_and_across_from_the_tissue_region_in_centimetres(
    tmp_path: Path,
) -> None:
    frames = clips.fan(48)
    tissue = clips.region(4, 43, 2, 45, PhysicalDeltaX=0.03, PhysicalDeltaY=-0.07)
    trace = clips.region(0, 47, 0, 47, RegionSpatialFormat=3, PhysicalUnitsXDirection=4)
    info, _ = read(clips.save_clip(tmp_path / "a.dcm", frames, [trace, tissue]))
    assert info.spacing_mm == pytest.approx((0.7, 0.3))
    assert info.region == (4, 44, 2, 46)


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"PhysicalUnitsXDirection": 4}, "REGION_UNITS"),
        ({"PhysicalUnitsYDirection": 0}, "REGION_UNITS"),
        ({"PhysicalDeltaY": 0.0}, "REGION_UNITS"),
        ({"PhysicalDeltaX": 51.0}, "REGION_UNITS"),
        ({"RegionLocationMaxX1": 90, "RegionLocationMaxY1": 95}, "REGION_OUTSIDE"),
        ({"RegionLocationMinY0": 47}, "REGION_OUTSIDE"),
    ],
)
def test_t12_a_scale_that_is_not_in_centimetres_or_of_another_size_counts_as_unknown(
    tmp_path: Path, values: dict[str, Any], flag: str
) -> None:
    item = clips.region(4, 43, 2, 45, **values)
    info, _ = read(clips.save_clip(tmp_path / "a.dcm", clips.fan(48), [item]))
    assert info.spacing_mm is None
    assert info.flags == (flag,)


def test_t12_of_two_regions_only_the_tissue_counts(real_data: Path) -> None:
    info, frames = read(real_data / "echo/dicom/philips_palette_2regions.dcm")
    assert info.spacing_mm == pytest.approx((0.2622879, 0.2622879), rel=1e-5)
    assert info.region == (60, 350, 120, 800)
    assert frames.shape == (1, 350, 800)
    # The banner's blue (36, 62, 104) or so is darker than the white letters in it.
    assert frames[0, :60].max() > 200 > 90 > np.median(frames[0, :60])


def test_a_picture_that_was_made_smaller_after_the_scan_has_no_scale(real_data: Path) -> None:
    """The region ends at 595 x 414 in a picture of 320 x 240: the scale is not this picture's.

    Read with it, the sector of 178 rows would be 9 cm deep; the screen says 19 cm.
    """
    info, _ = read(real_data / "echo/dicom/sonosite_30frames_ybr422.dcm", [0])
    assert (info.spacing_mm, info.region, info.flags) == (None, None, ("REGION_OUTSIDE",))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"FrameTime": 20.0}, 20.0),
        ({"FrameTime": None, "CineRate": 50}, 20.0),
        ({"FrameTime": None, "FrameTimeVector": [0.0, 10.0, 30.0, 20.0, 20.0, 20.0]}, 20.0),
        ({"FrameTime": None}, None),
        ({"FrameTime": 0.0}, None),
    ],
)
def test_the_time_between_frames_comes_from_what_the_header_has(
    tmp_path: Path, tags: dict[str, Any], expected: float | None
) -> None:
    info, _ = read(clips.save_clip(tmp_path / "a.dcm", clips.fan(48), **tags))
    assert info.frame_time_ms == (None if expected is None else pytest.approx(expected))


def test_films_of_16_bits_keep_their_order_and_their_window(tmp_path: Path) -> None:
    values = (np.arange(4096, dtype=np.uint16).reshape(64, 64))[None]
    path = clips.save_clip(tmp_path / "a.dcm", values, BitsStored=12, HighBit=11)
    _, full = read(path)
    assert np.abs(full[0].astype(float) - values[0] / 4095 * 255).max() <= 0.5
    path = clips.save_clip(
        tmp_path / "b.dcm", values, BitsStored=12, HighBit=11, WindowCenter=1024, WindowWidth=512
    )
    _, window = read(path)
    assert window[0][values[0] <= 768].max() == 0
    assert window[0][values[0] >= 1280].min() == 255
    path = clips.save_clip(
        tmp_path / "c.dcm",
        values,
        BitsStored=12,
        HighBit=11,
        PhotometricInterpretation="MONOCHROME1",
    )
    assert np.array_equal(read(path)[1][0], 255 - full[0])


@settings(max_examples=40)
@given(st.integers(1, 400), st.integers(1, 60))
def test_t19_sampled_frames_are_ascending_within_the_clip_and_evenly_spread(
    n_frames: int, wanted: int
) -> None:
    positions = even_positions(n_frames, wanted)
    assert len(positions) == min(n_frames, wanted)
    assert positions == sorted({*positions})
    assert positions[0] >= 0
    assert positions[-1] < n_frames
    steps = np.diff(positions)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@pytest.mark.parametrize(("n_frames", "rate"), [(10, 25), (2, 2), (4, 2), (1, 1)])
def test_t19_t43_short_and_slow_clips_are_read(tmp_path: Path, n_frames: int, rate: int) -> None:
    frames = clips.fan(48, n_frames=n_frames)
    path = clips.save_video(tmp_path / "a.mp4", frames, rate=rate)
    with open_clip(path) as clip:
        assert clip.count() == n_frames
        positions = even_positions(clip.count(), 6)
        assert len(list(clip.frames(positions))) == min(6, n_frames)
        if n_frames > 1:
            assert clip.info.frame_time_ms == pytest.approx(1000 / rate, rel=0.01)


def test_frames_at_positions_are_those_of_the_whole_clip(real_data: Path) -> None:
    path = real_data / "ultrasound/videos/Pneu_liftl_pneu_case3_clip3.mp4"
    _, every = read(path)
    _, some = read(path, [0, 3, 3, 24])
    assert np.array_equal(some, every[[0, 3, 3, 24]])
    with open_clip(path) as clip, pytest.raises(ValueError, match="ascend"):
        clip.frames([3, 1])


def test_shipped_clips_have_the_frames_that_their_table_says(real_data: Path) -> None:
    table = csv.DictReader((real_data / "ultrasound/videos.csv").read_text().splitlines())
    for row in [row for row in table if int(row["n_frames"]) < 100]:
        with open_clip(real_data / "ultrasound" / row["file"]) as clip:
            assert clip.count() == int(row["n_frames"])
            assert 1000 / (clip.info.frame_time_ms or 1) == pytest.approx(float(row["fps"]), 1e-3)


def test_the_bytes_tell_the_kind_whatever_the_name(tmp_path: Path) -> None:
    picture = tmp_path / "scan.dcm"
    Image.fromarray(RAMP).save(picture, "PNG")
    assert read(picture)[0].kind == "image"
    clip = clips.save_clip(tmp_path / "film.png", clips.fan(48))
    assert read(clip)[0].kind == "dicom"


def test_what_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert refusal(tmp_path / "absent") == "FILE_MISSING"
    for data in (b"", b"no picture", bytes(5000), b"\x1f\x8bxx", b"GIF89a"):
        path.write_bytes(data)
        assert refusal(path) == "CLIP_UNREADABLE"
    volume: Any = nib.Nifti1Image(np.ones((4, 4, 4, 4), np.uint8), np.eye(4))  # type: ignore[no-untyped-call]
    path.write_bytes(volume.to_bytes())
    assert refusal(path) == "NOT_2D"


@pytest.mark.parametrize("kind", ["dicom", "video", "jpg", "png", "gif"])
def test_a_truncated_file_is_refused_with_a_reason(tmp_path: Path, kind: str) -> None:
    frames = clips.fan(96, n_frames=30)
    if kind == "dicom":
        path = clips.save_clip(tmp_path / "a.dcm", frames)
    elif kind == "video":
        path = clips.save_video(tmp_path / "a.avi", frames)
    elif kind == "gif":
        path = clips.save_gif(tmp_path / "a.gif", frames)
    else:
        path = tmp_path / f"a.{kind}"
        Image.fromarray(frames[0]).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    if kind in ("video", "gif"):
        with open_clip(path) as clip:
            if kind == "gif":  # promises no number of frames: what is there counts
                assert 10 < clip.count() < 20
                return
            with pytest.raises(RefusedClipError, match="CLIP_TRUNCATED"):
                clip.count()
        return
    assert refusal(path, [0] if kind != "dicom" else [29]) in ("CLIP_TRUNCATED", "CLIP_UNREADABLE")


def test_sizes_that_no_scanner_makes_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = clips.save_clip(tmp_path / "a.dcm", clips.fan(48), Rows=65535, Columns=65535)
    assert refusal(path) == "CLIP_SIZE"
    for edge in (9_000, 60_000):
        bomb = tmp_path / "b.png"
        Image.new("1", (8, 8)).save(bomb)
        head = b"IHDR" + struct.pack(">II", edge, edge) + bomb.read_bytes()[24:29]
        data = bomb.read_bytes()[:12] + head + struct.pack(">I", zlib.crc32(head))
        bomb.write_bytes(data + bomb.read_bytes()[33:])
        assert refusal(bomb) == "CLIP_SIZE"
    path = clips.save_clip(tmp_path / "c.dcm", clips.fan(48), NumberOfFrames=10**9)
    assert refusal(path, [10**8]) == "CLIP_TRUNCATED"


def test_a_playlist_does_not_make_the_reader_open_another_file(tmp_path: Path) -> None:
    clips.save_video(tmp_path / "other.mp4", clips.fan(48))
    for text in ("#EXTM3U\n#EXTINF:1,\nother.mp4\n", "ffconcat version 1.0\nfile other.mp4\n"):
        playlist = tmp_path / "list.mp4"
        playlist.write_text(text)
        assert refusal(playlist) == "CLIP_UNREADABLE"


def test_t42_a_name_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / 'a"; touch pwned; ".mp4'
    clips.save_video(tmp_path / "a.mp4", clips.fan(48)).rename(path)
    assert len(read(path)[1]) == 6
    assert not (tmp_path / "pwned").exists()
    assert not Path("pwned").exists()


def test_without_pyav_a_video_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips.save_video(tmp_path / "a.mp4", clips.fan(48))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"rarescan\[video\]"):
        read(path)


@pytest.mark.parametrize(("red", "shows"), [((220, 40, 30), True), ((230, 200, 150), False)])
def test_red_flow_is_seen_and_sepia_is_not(
    tmp_path: Path, red: tuple[int, int, int], shows: bool
) -> None:
    frames = np.stack([clips.fan(64)] * 3, axis=-1)
    frames[:, 30:42, 28:36] = red
    for path in (
        clips.save_video(tmp_path / "a.mp4", frames),
        clips.save_clip(tmp_path / "a.dcm", frames),
    ):
        with open_clip(path) as clip:
            list(clip.frames())
            assert clip.shows_flow() == shows


_MEASURE = """
import resource, sys
from pathlib import Path
from rarescan.imaging.frames import open_clip
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_clip(Path(sys.argv[1])) as clip:
    for number, frame in enumerate(clip.frames()):
        if number == 200: before = peak()
print(number + 1, peak() - before)
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["dicom", "video"])
def test_ten_thousand_frames_are_read_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    frames = np.zeros((10_000, 64, 64), np.uint8)
    frames[:, 20:40, 20:40] = (np.arange(10_000) % 200)[:, None, None]
    path = tmp_path / "long"
    if kind == "dicom":
        clips.save_clip(path, frames)
    else:
        clips.save_video(tmp_path / "long.mp4", frames).rename(path)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    n_frames, grown_kib = map(int, done.stdout.split())
    assert n_frames == 10_000
    assert grown_kib < 12_000  # all of them would be 40,000
