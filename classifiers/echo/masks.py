"""Left ventricle and left atrium in every frame of an echocardiogram, by a small U-Net.

`load_segmenter` opens a trained one (`echo.train` makes it), `Segmenter.follow` gives the masks of
a clip frame by frame, in bounded memory. What a reader would get wrong: a mask is not binary but
the share of each pixel, because areas of few pixels need their edges.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from monai.networks.nets import UNet
from safetensors import SafetensorError
from torch.nn import functional

from rarescan.classifiers.contract import Device, choose_device
from rarescan.classifiers.echo.spec import CHAMBERS, SegmentConfig
from rarescan.errors import InputError
from rarescan.files import read_json, sha256_file, write_atomic, write_json
from rarescan.threads import one_thread

Frames = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.float32]

WEIGHTS = "weights.safetensors"
SETTINGS = "segmenter.json"
_CHUNK = 8
_STEEPER = 3.0
"""Below a third and above two thirds a pixel is settled; haze adds no volume."""


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """A trained network and what is needed to use it."""

    network: torch.nn.Module
    config: SegmentConfig
    chambers: tuple[str, ...]
    """Those that it has learned; what it says of others means nothing."""
    persons: str
    """Hash of the persons that it learned from."""
    device: torch.device

    def follow(self, frames: Iterable[Frames]) -> Iterator[Masks]:
        """Yield for each frame the share of its pixels in ventricle and atrium.

        Parameters
        ----------
        frames : iterable of uint8 arrays, shape (rows, columns)
            Of one clip, all of one size; read as they are needed.

        Yields
        ------
        float32 array, shape (2, rows, columns)
            0 to 1, on the frame's own pixels. Atrium: zeros where it was never learned.
        """
        waiting: list[Frames] = []
        for frame in frames:
            waiting.append(frame)
            if len(waiting) == _CHUNK:
                yield from self._shares(waiting)
                waiting = []
        if waiting:
            yield from self._shares(waiting)

    def _shares(self, frames: Sequence[Frames]) -> Masks:
        rows, columns = frames[0].shape
        size = self.config.size_px
        chunk = np.zeros((_CHUNK, size, size), np.uint8)
        chunk[: len(frames)] = to_square(np.stack(frames), size)
        self.network.eval()
        with one_thread(), torch.inference_mode():
            logits = self.network(normal(torch.from_numpy(chunk).to(self.device)))
            shares = (_STEEPER * (logits.sigmoid() - 0.5) + 0.5).clamp(0, 1)
            edge = max(rows, columns)
            shares = functional.interpolate(
                shares, size=(edge, edge), mode="bilinear", align_corners=False
            ).cpu()
        top, left = (edge - rows) // 2, (edge - columns) // 2
        learned = torch.tensor([c in self.chambers for c in CHAMBERS])[:, None, None]
        cut = shares[: len(frames), :, top : top + rows, left : left + columns] * learned
        result: Masks = cut.numpy()
        return result

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` and `segmenter.json` into a folder."""
        state = {k: v.cpu().contiguous() for k, v in self.network.state_dict().items()}
        write_atomic(folder / WEIGHTS, safetensors.torch.save(state))
        write_json(
            folder / SETTINGS,
            {
                "config": asdict(self.config),
                "chambers": self.chambers,
                "persons": self.persons,
                "weights_sha256": sha256_file(folder / WEIGHTS),
            },
        )


def load_segmenter(folder: Path, device: Device = "auto") -> Segmenter:
    """Open what `Segmenter.save` wrote.

    Raises
    ------
    InputError
        The folder holds no network, or its weights are not the ones that were saved.
    """
    try:
        about = read_json(folder / SETTINGS)
        if sha256_file(folder / WEIGHTS) != about["weights_sha256"]:
            raise _unusable(folder, "its weights are damaged")
        stored = about["config"]
        config = SegmentConfig(**{**stored, "channels": tuple(stored["channels"])})
        network = build_network(config)
        network.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    except (FileNotFoundError, NotADirectoryError):
        raise _unusable(folder, "a file is missing") from None
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
        raise _unusable(folder, "its files are damaged") from None
    place = choose_device(device)
    return Segmenter(
        network=network.to(place),
        config=config,
        chambers=tuple(about["chambers"]),
        persons=about["persons"],
        device=place,
    )


def to_square(frames: npt.NDArray[np.generic], size_px: int) -> Frames:
    """Return frames, shape (n, rows, columns), padded to squares and brought to one size, uint8.

    Masks (bool) become 0 and 255 with mixed edges; a mask is what is above 127.
    """
    values = frames.astype(np.float32) * (255 if frames.dtype == np.bool_ else 1)
    n, rows, columns = values.shape
    edge = max(rows, columns)
    square = torch.zeros(n, 1, edge, edge)
    top, left = (edge - rows) // 2, (edge - columns) // 2
    square[:, 0, top : top + rows, left : left + columns] = torch.from_numpy(values)
    if edge != size_px:
        square = functional.interpolate(
            square, size=(size_px, size_px), mode="bilinear", antialias=True, align_corners=False
        )
    result: Frames = square[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()
    return result


def dice(found: npt.NDArray[np.floating | np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Return 2 |A and B| / (|A| + |B|) of two masks; NaN where both are empty, never 1."""
    a, b = np.asarray(found) > 0.5, np.asarray(truth) > 0.5
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def build_network(config: SegmentConfig) -> torch.nn.Module:
    """Return the untrained network: one channel in, one a chamber out."""
    network: torch.nn.Module = UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=len(CHAMBERS),
        channels=config.channels,
        strides=(2,) * (len(config.channels) - 1),
        num_res_units=1,
    )
    return network


def normal(frames: torch.Tensor) -> torch.Tensor:
    """Return uint8 frames (n, rows, columns) as input (n, 1, rows, columns), about -1 to 1."""
    return frames[:, None].float() / 127.5 - 1


def _unusable(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder.name} holds no network for chambers: {why}.",
        remedy="Train one with `rarescan echo train`.",
    )
