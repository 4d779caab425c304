"""Heat maps drawn over what they explain: pictures (PNG) and a film with gauges.

`write_pictures` and `write_film` are the way in; both take an `explain.Explanation`. A map that
does not depend on what was learned is not drawn, and the image says so. Nothing but pixels is
written: no names, no texts of the source.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image, ImageDraw

from rarescan.classifiers.explain import Explanation
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError, MissingExtraError
from rarescan.files import atomic_path, write_atomic

Rgb = npt.NDArray[np.uint8]
_HEAT = 0.65
"""Largest share of the heat's colour in a pixel; the rest is the image."""
_FAINTEST = 0.15
_SHORTEST_EDGE = 240
_PANEL = 190
_NOT_SHOWN = "no map: it would be the same with other weights"


def overlay(image: FloatArray, heat: FloatArray | None) -> Rgb:
    """Return a grey picture with a heat map over it, enlarged to 240 pixels at least.

    Parameters
    ----------
    image : float32 array, shape (rows, columns)
        0 to 1.
    heat : float32 array, shape (rows, columns), optional
        0 to 1; what is below 0.15 leaves the picture as it is.

    Returns
    -------
    uint8 array, shape (rows, columns, 3)
        Even numbers of rows and columns, as films need them.
    """
    factor = max(1, -(-_SHORTEST_EDGE // min(image.shape)))
    grey = np.repeat(np.clip(image, 0, 1)[:, :, None], 3, axis=2)
    if heat is not None:
        strength = np.clip((heat - _FAINTEST) / (1 - _FAINTEST), 0, 1)[:, :, None]
        colour = colormaps["inferno"](heat)[:, :, :3]
        grey = grey * (1 - _HEAT * strength) + colour * _HEAT * strength
    large = np.kron(np.round(grey * 255).astype(np.uint8), np.ones((factor, factor, 1), np.uint8))
    rows, columns = (edge - edge % 2 for edge in large.shape[:2])
    return np.ascontiguousarray(large[:rows, :columns])


def views(image: FloatArray, heat: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
    """Return the pictures in which an image is shown, each with its part of the heat map.

    A picture's planes share one map. Of a volume, the three slices through the hottest voxel.
    """
    if heat.ndim == 2:
        return [(image[:, :, plane], heat) for plane in range(image.shape[2])]
    x, y, z = np.unravel_index(int(heat.argmax()), heat.shape)
    cuts = [(image[x], heat[x]), (image[:, y], heat[:, y]), (image[:, :, z], heat[:, :, z])]
    # Upright: the last axis (superior, or anterior in the axial slice) points up.
    return [(cut.T[::-1], hot.T[::-1]) for cut, hot in cuts]


def write_pictures(
    folder: Path, images: FloatArray, explanation: Explanation, names: Sequence[str]
) -> list[Path]:
    """Write a PNG an image: the image alone, and beside it with the heat map.

    Parameters
    ----------
    folder : Path
        Gets `<name>.png`.
    images : float32 array, shape (n, *shape)
        What `explain` was given.
    explanation : Explanation
    names : sequence of str
        Scan ids, one an image.

    Returns
    -------
    list of Path
        The files, in order.
    """
    written = []
    for image, heat, name in zip(images, explanation.maps, names, strict=True):
        strips = []
        for picture, hot in views(image, heat):
            pair = [overlay(picture, None), overlay(picture, hot if explanation.shown else None)]
            strips.append(np.concatenate(pair, axis=1))
        width = max(strip.shape[1] for strip in strips)
        padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0))) for s in strips]
        sheet = Image.fromarray(np.concatenate(padded))
        if not explanation.shown:
            ImageDraw.Draw(sheet).text((6, 6), _NOT_SHOWN, fill="white")
        stream = io.BytesIO()
        sheet.save(stream, "PNG")
        write_atomic(folder / f"{name}.png", stream.getvalue())
        written.append(folder / f"{name}.png")
    return written


def write_film(
    path: Path, images: FloatArray, explanation: Explanation, *, frames_per_second: float
) -> Path:
    """Write a clip with its heat map, the probability of each class, and the confidence.

    Parameters
    ----------
    path : Path
        `.mp4` (H.264) or `.avi` (Motion JPEG).
    images : float32 array, shape (frames, rows, columns, planes)
        What `explain` was given; the first plane is shown.
    explanation : Explanation
        Of these frames. The gauge of confidence is 1 - clip(spread, 0, 0.5) / 0.5 over the
        networks, and is left out where there is only one.
    frames_per_second : float
        Of the clip.

    Raises
    ------
    InputError
        The images are no pictures.
    MissingExtraError
        The extra `video` is not installed.
    """
    if explanation.maps.ndim != 3:
        raise InputError(
            "A film can be written of pictures only.", remedy="Write pictures of volumes instead."
        )
    return write_frames(
        path, _film_frames(images, explanation), frames_per_second=frames_per_second
    )


def write_frames(path: Path, frames: Iterable[Rgb], *, frames_per_second: float) -> Path:
    """Write pictures as a film, one after another.

    Parameters
    ----------
    path : Path
        `.mp4` (H.264) or `.avi` (Motion JPEG).
    frames : iterable of uint8 arrays, shape (rows, columns, 3)
        All of one size, with even numbers of rows and columns.
    frames_per_second : float
        0.1 at least.

    Raises
    ------
    MissingExtraError
        The extra `video` is not installed.
    """
    try:
        import av
    except ImportError:
        raise MissingExtraError(
            "Films need the package av.", remedy="Install it: pip install 'rarescan[video]'."
        ) from None
    from fractions import Fraction

    codec, layout = ("mjpeg", "yuvj420p") if path.suffix == ".avi" else ("libx264", "yuv420p")
    rate = Fraction(max(frames_per_second, 0.1)).limit_denominator(1000)
    with atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.pix_fmt = layout
        for number, drawn in enumerate(frames):
            if number == 0:
                stream.height, stream.width = drawn.shape[:2]
            for packet in stream.encode(av.VideoFrame.from_ndarray(drawn, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def _film_frames(images: FloatArray, explanation: Explanation) -> Iterator[Rgb]:
    for number, (image, heat) in enumerate(zip(images, explanation.maps, strict=True)):
        picture = overlay(image[:, :, 0], heat if explanation.shown else None)
        panel = _panel(picture.shape[0], explanation, number)
        yield np.concatenate([picture, panel], axis=1)


def _panel(height: int, explanation: Explanation, number: int) -> Rgb:
    """Return the gauges beside one frame."""
    sheet = Image.new("RGB", (_PANEL, height), "black")
    draw = ImageDraw.Draw(sheet)
    bars = list(zip(explanation.classes, explanation.probabilities[number], strict=True))
    confidence = explanation.confidence
    if confidence is not None:
        bars.append(("confidence", confidence[number]))
    step = min(40, (height - 24) // len(bars))
    for i, (name, share) in enumerate(bars):
        top = 8 + i * step
        last = i == len(explanation.classes)
        colour = "#5aa9e6" if last else "#f4a259" if i == explanation.label else "#8a8a8a"
        draw.text((10, top), f"{name[:18]}  {share:.2f}", fill="white")
        draw.rectangle((10, top + 14, _PANEL - 10, top + 22), outline="#555555")
        draw.rectangle((10, top + 14, 10 + (_PANEL - 20) * float(share), top + 22), fill=colour)
    if not explanation.shown:
        draw.text((10, height - 24), "no map: same with\nother weights", fill="white")
    return np.asarray(sheet)
