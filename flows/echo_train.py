"""`rarescan echo train`: the network that finds the chambers, from traced frames.

`train` is the verb: traced films of the part TRAIN teach, those of VAL judge, TEST is not opened.
Invented hearts (`--phantoms`) may be added; they alone teach the atrium, which nobody traced.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from rarescan.classifiers.echo_spec import EchoConfig
from rarescan.classifiers.echo_tracings import FILMS, Tracing, fill_tracing, read_tracings
from rarescan.errors import InputError
from rarescan.files import Recipe, run_step, write_json
from rarescan.flows.echo_source import SourceClip, list_clips, read_frames, source_inputs
from rarescan.seeds import derive

if TYPE_CHECKING:
    from rarescan.classifiers.echo_masks import Segmenter, Traced

JUDGED = "judged.json"
_SCHEMA = 1
_PHASES = (0.0, 0.35, 0.175, 0.7)
"""Of the cycle: the frames of an invented heart that are taught."""
Part = tuple[list[SourceClip], list[tuple[Tracing, ...]]]


def train(
    source: Path | None,
    out: Path,
    config: EchoConfig,
    *,
    phantoms: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: bool = False,
) -> Path:
    """Train a segmentation network and judge it on the validation persons.

    Parameters
    ----------
    source : Path or None
        A folder in EchoNet-Dynamic's format; None trains on invented hearts alone.
    out : Path
        Gets `weights.safetensors`, `segmenter.json` and `judged.json` (Dice a person).
    config : EchoConfig
        The table beside the films, and `segment`.
    phantoms : int
        How many invented hearts are added.
    device : str
        Where it is trained.
    overwrite : bool
        Replace a network of another recipe.

    Raises
    ------
    InputError
        No traced film is in the part TRAIN, or a person has films in two parts.
    """
    inputs = source_inputs(source, config) if source else {}
    recipe = Recipe(
        step="echo train",
        schema=_SCHEMA,
        config={"segment": asdict(config.segment), "phantoms": phantoms},
        inputs=inputs,
    )

    def build(work: Path) -> None:
        _build(work, source, config, phantoms=phantoms, device=device)

    return run_step(out, recipe, build, overwrite=overwrite)


def _build(
    work: Path, source: Path | None, config: EchoConfig, *, phantoms: int, device: Any
) -> None:
    from rarescan.classifiers.echo_masks import fit_segmenter

    parts = _parts(source, config) if source else {}
    sets = [_traced(parts["TRAIN"], config)] if parts.get("TRAIN") else []
    if phantoms:
        sets.append(invented(phantoms, config))
    if not sets:
        raise InputError(
            "There is no traced film in the part TRAIN.",
            remedy=f"Check the column Split of {FILMS}, or add --phantoms 40.",
        )
    segmenter = fit_segmenter(join(sets), config.segment, device=device)
    segmenter.save(work)
    judged = _judge(segmenter, parts["VAL"]) if parts.get("VAL") else {}
    write_json(work / JUDGED, {"dice": judged, "n_persons": len(judged)})


def _parts(source: Path, config: EchoConfig) -> dict[str, Part]:
    """Return the traced clips by part; a person stands in one part only."""
    tracings = read_tracings(source)
    parts: dict[str, Part] = {}
    where: dict[str, str] = {}
    for clip in list_clips(source, config):
        film = clip.film
        if film is None or film.name not in tracings or clip.refused:
            continue
        if where.setdefault(clip.person_id, film.split) != film.split:
            raise InputError(
                "A person has films in two parts: what is learned would be tested on.",
                remedy=f"Give all films of a person the same Split in {FILMS}.",
            )
        clips, traced = parts.setdefault(film.split, ([], []))
        clips.append(clip)
        traced.append(tracings[film.name])
    return parts


def _traced(part: Part, config: EchoConfig) -> "Traced":
    """Return the traced frames of a part on the network's square; the ventricle alone is known."""
    from rarescan.classifiers.echo_masks import Traced, to_square

    size = config.segment.size_px
    frames, masks, people = [], [], []
    for clip, found, traced in _with_frames(part):
        shape = (found.shape[1], found.shape[2])
        frames.append(to_square(found, size))
        masks.append(
            to_square(np.stack([fill_tracing(t.lines, shape) for t in traced]), size) > 127
        )
        people += [clip.person_id] * len(found)
    ventricles = np.concatenate(masks)
    return Traced(
        frames=np.concatenate(frames),
        masks=np.stack([ventricles, np.zeros_like(ventricles)], axis=1),
        known=np.tile([True, False], (len(ventricles), 1)),
        person_ids=tuple(people),
    )


def _with_frames(
    part: Part,
) -> list[tuple[SourceClip, npt.NDArray[np.uint8], list[Tracing]]]:
    """Return each clip with its traced frames, in the order of time."""
    clips, tracings = part
    ordered = [sorted(traced, key=lambda t: t.frame) for traced in tracings]
    wanted = [
        (clip, [t.frame for t in traced]) for clip, traced in zip(clips, ordered, strict=True)
    ]
    frames = read_frames(wanted)
    return [
        (clip, found, traced)
        for clip, found, traced in zip(clips, frames, ordered, strict=True)
        if found is not None
    ]


def invented(n: int, config: EchoConfig, *, seed: int = 0) -> "Traced":
    """Return frames of invented hearts with both chambers, on the network's square."""
    from rarescan.classifiers.echo_masks import Traced, to_square
    from rarescan.phantom.echo import VIEWS, chambers, draw_heart, film

    size = config.segment.size_px
    frames, masks, people = [], [], []
    for index in range(n):
        heart = draw_heart(seed, index)
        times = np.array(_PHASES) * 60 / heart.heart_rate_bpm
        for view in VIEWS:
            shown = film(heart, view, times, seed=derive(seed, index))
            both = chambers(heart, view, times)
            frames.append(to_square(shown, size))
            masks.append(np.stack([to_square(m, size) > 127 for m in both.swapaxes(0, 1)], axis=1))
            people += [f"PHANTOM{index:04d}"] * len(times)
    joined = np.concatenate(masks)
    return Traced(
        frames=np.concatenate(frames),
        masks=joined,
        known=np.ones((len(joined), 2), dtype=bool),
        person_ids=tuple(people),
    )


def join(sets: "list[Traced]") -> "Traced":
    """Return several sets of traced frames as one."""
    from rarescan.classifiers.echo_masks import Traced

    return Traced(
        frames=np.concatenate([s.frames for s in sets]),
        masks=np.concatenate([s.masks for s in sets]),
        known=np.concatenate([s.known for s in sets]),
        person_ids=tuple(person for s in sets for person in s.person_ids),
    )


def _judge(segmenter: "Segmenter", part: Part) -> dict[str, float]:
    """Return each validation person's mean Dice of the ventricle over traced frames."""
    from rarescan.classifiers.echo_masks import dice

    by_person: dict[str, list[float]] = {}
    for clip, found, traced in _with_frames(part):
        shape = (found.shape[1], found.shape[2])
        for shares, tracing in zip(segmenter.follow(found), traced, strict=True):
            score = dice(shares[0], fill_tracing(tracing.lines, shape))
            by_person.setdefault(clip.person_id, []).append(score)
    return {person: float(np.mean(scores)) for person, scores in by_person.items()}
