"""The network that finds the chambers, trained on traced frames.

`train_network` is the way in: `gather` brings traced frames to the network's square,
`fit_segmenter` trains on them, `judge` says how well others' ventricles are found. Each chamber
has a channel of its own, so that frames in which only the ventricle was traced teach it alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from monai.losses import DiceLoss
from torch.nn import functional

from rarescan.classifiers.contract import Device, choose_device
from rarescan.classifiers.echo.masks import (
    Frames,
    Segmenter,
    build_network,
    dice,
    normal,
    to_square,
)
from rarescan.classifiers.echo.spec import CHAMBERS, JUDGED, SegmentConfig
from rarescan.errors import InputError
from rarescan.files import content_id, write_json
from rarescan.progress import Progress
from rarescan.seeds import derive
from rarescan.threads import one_thread

Traced = tuple[str, Frames, npt.NDArray[np.bool_]]
"""A person, frames (n, rows, columns), and their masks (n, chambers, rows, columns): the ventricle,
or ventricle and atrium."""

_WARM_UP = 0.2
_TURN, _SHIFT, _SCALE, _GAIN, _GAMMA = 0.1, 0.04, 0.06, 0.06, 0.08
"""Standard deviations at strength 1: radians, half edges, and shares."""


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """Frames with masks, all on the network's square."""

    frames: Frames
    """Shape (n, size, size)."""
    masks: npt.NDArray[np.bool_]
    """Shape (n, 2, size, size): ventricle, atrium."""
    known: npt.NDArray[np.bool_]
    """Shape (n, 2): which of them was traced."""
    person_ids: tuple[str, ...]


def train_network(
    work: Path,
    taught: Sequence[Traced],
    judging: Sequence[Traced],
    config: SegmentConfig,
    *,
    device: Device = "auto",
) -> None:
    """Train the network into a folder, and judge it on persons who did not teach it.

    Parameters
    ----------
    work : Path
        Gets `weights.safetensors`, `segmenter.json` and `judged.json` (Dice a person).
    taught, judging : sequences of Traced
        Of training and of validation persons.

    Raises
    ------
    InputError
        Nobody was traced.
    """
    if not taught:
        raise InputError(
            "There is no traced film in the part TRAIN.",
            remedy="Check the column Split of FileList.csv, or add --phantoms 40.",
        )
    network = fit_segmenter(gather(taught, config.size_px), config, device=device)
    network.save(work)
    judged = judge(network, judging)
    write_json(work / JUDGED, {"dice": judged, "n_persons": len(judged)})


def gather(traced: Iterable[Traced], size_px: int) -> Lessons:
    """Return traced frames of any sizes on the network's square; what was not traced is unknown."""
    frames, masks, known, people = [], [], [], []
    for person, shown, outlines in traced:
        n, told = outlines.shape[:2]
        both = np.zeros((n, len(CHAMBERS), size_px, size_px), dtype=bool)
        for chamber in range(told):
            both[:, chamber] = to_square(outlines[:, chamber], size_px) > 127
        frames.append(to_square(shown, size_px))
        masks.append(both)
        known.append(np.tile(np.arange(len(CHAMBERS)) < told, (n, 1)))
        people += [person] * n
    return Lessons(
        frames=np.concatenate(frames),
        masks=np.concatenate(masks),
        known=np.concatenate(known),
        person_ids=tuple(people),
    )


def judge(segmenter: Segmenter, traced: Iterable[Traced]) -> dict[str, float]:
    """Return each person's mean Dice of the ventricle over traced frames."""
    by_person: dict[str, list[float]] = {}
    for person, shown, outlines in traced:
        for shares, outline in zip(segmenter.follow(shown), outlines, strict=True):
            by_person.setdefault(person, []).append(dice(shares[0], outline[0]))
    return {person: float(np.mean(scores)) for person, scores in by_person.items()}


def fit_segmenter(lessons: Lessons, config: SegmentConfig, *, device: Device = "auto") -> Segmenter:
    """Train the network on traced frames.

    Parameters
    ----------
    lessons : Lessons
        Of training persons only. Every frame is drawn equally often.
    config : SegmentConfig
        Size, steps, rates, strength of the augmentation, seed.
    device : str
        On the CPU one seed gives one network, bit for bit.

    Raises
    ------
    InputError
        There is no frame with a traced ventricle.

    Notes
    -----
    Loss: 1 - Dice plus cross-entropy, a chamber at a time, over the frames where it was lessons.
    """
    if not lessons.known[:, 0].any():
        raise InputError(
            "There is no traced ventricle to learn from.",
            remedy="Name a source with VolumeTracings.csv, or add --phantoms.",
        )
    place = choose_device(device)
    forked = [place] if place.type == "cuda" else []
    with one_thread(), torch.random.fork_rng(forked):
        torch.manual_seed(derive(config.seed, "weights"))
        network = build_network(config).to(place)
        _train(network, lessons, config, place)
    chambers = tuple(chamber for k, chamber in enumerate(CHAMBERS) if lessons.known[:, k].any())
    return Segmenter(
        network=network,
        config=config,
        chambers=chambers,
        persons=content_id(sorted(set(lessons.person_ids))),
        device=place,
    )


def _train(
    network: torch.nn.Module, lessons: Lessons, config: SegmentConfig, place: torch.device
) -> None:
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps + 1, pct_start=_WARM_UP
    )
    network.train()
    with Progress("train segmentation", config.steps) as progress:
        for step in range(config.steps):
            random = torch.Generator("cpu").manual_seed(derive(config.seed, step, "draw"))
            chosen = _draw(len(lessons.frames), config, step)
            frames, masks = _augmented(
                normal(torch.from_numpy(lessons.frames[chosen])),
                torch.from_numpy(lessons.masks[chosen]).float(),
                config.augmentation,
                random,
            )
            known = torch.from_numpy(lessons.known[chosen]).float().to(place)
            loss = _loss(network(frames.to(place)), masks.to(place), known)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            progress.advance(note=f"loss {loss.item():.3f}")


def _draw(n: int, config: SegmentConfig, step: int) -> list[int]:
    """Return the positions of one batch: every frame once before any comes again."""
    places = range(step * config.batch_size, (step + 1) * config.batch_size)
    orders = {
        epoch: torch.randperm(
            n, generator=torch.Generator("cpu").manual_seed(derive(config.seed, epoch, "order"))
        ).tolist()
        for epoch in {place // n for place in places}
    }
    return [orders[place // n][place % n] for place in places]


def _loss(logits: torch.Tensor, masks: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    overlap = DiceLoss(sigmoid=True, reduction="none")(logits, masks).flatten(1)
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    each: torch.Tensor = (overlap + entropy.mean(dim=(2, 3))) * known
    return each.sum() / known.sum().clamp(min=1)


def _augmented(
    frames: torch.Tensor, masks: torch.Tensor, strength: float, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return frames and masks turned, moved, scaled alike, and frames of another gain.

    Nothing is flipped: left and right of a view are a convention that the reader relies on.
    """
    if strength == 0:
        return frames, masks
    n = len(frames)
    draws = strength * torch.randn(n, 6, generator=random)
    turn, scale = _TURN * draws[:, 0], torch.exp(_SCALE * draws[:, 1])
    sine, cosine = scale * turn.sin(), scale * turn.cos()
    shift = _SHIFT * draws[:, 2:4]
    matrix = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], dim=1).reshape(
        n, 2, 3
    )
    grid = functional.affine_grid(matrix, list(frames.shape), align_corners=False)
    moved = functional.grid_sample((frames + 1) / 2, grid, align_corners=False)
    masks = functional.grid_sample(masks, grid, align_corners=False)
    gain = torch.exp(_GAIN * draws[:, 4]).reshape(n, 1, 1, 1)
    gamma = torch.exp(_GAMMA * draws[:, 5]).reshape(n, 1, 1, 1)
    return 2 * (gain * moved.clamp(min=0) ** gamma).clamp(0, 1) - 1, masks
