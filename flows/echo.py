"""`rarescan echo`: train on traced ventricles, measure clips, keep the results in tables.

`train` and `measure` are the verbs. Measuring goes in four steps, each with a folder and a recipe
of its own, so that the questionnaire can do one at a time and nothing is done twice: `clips`
(what the source holds), `views`, `masks` (chambers in every frame), `measured` (figures, page).
`echo_store.write_tables` then writes what is there to a database.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rarescan.classifiers.echo_spec import EchoConfig
from rarescan.errors import InputError
from rarescan.files import Recipe, read_json, require_recipe, run_step, sha256_file, write_json
from rarescan.flows.echo_film import follow_film
from rarescan.flows.echo_source import (
    SourceClip,
    decode,
    list_clips,
    read_even,
    source_inputs,
)
from rarescan.flows.plan import relative
from rarescan.processes import run_parallel
from rarescan.progress import Progress

if TYPE_CHECKING:
    from rarescan.classifiers.network import TrainedNetwork

Step = Literal["clips", "views", "masks", "measured"]
STEPS: tuple[Step, ...] = ("clips", "views", "masks", "measured")
CLIPS, VIEWS = "clips.json", "views.json"
UNKNOWN = "unknown"
_SCHEMA = 1
_AT_ONCE = 8
"""Clips that are decoded before they are followed: their frames lie on the disk meanwhile."""
_VIEW_FRAMES = 10
_log = logging.getLogger("rarescan")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be measured, with what, and where the results go."""

    source: Path
    out: Path
    config: EchoConfig
    network: Path | None = None
    """Written by `rarescan echo train`; needed from the step `masks` on."""
    views: Path | None = None
    """A classifier package that tells views, for clips whose view no table tells."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int | None = None
    overwrite: bool = False

    @cached_property
    def clips(self) -> tuple[SourceClip, ...]:
        """The source's clips; read when a step needs them."""
        return list_clips(self.source, self.config, workers=self.workers)

    def folder(self, step: Step) -> Path:
        """Return the folder of one step."""
        return self.out / step


def measure(job: Job, *, until: Step = "measured") -> Path:
    """Do the steps up to one of them, those that are done already excepted; return its folder.

    Raises
    ------
    InputError
        The source holds no clip, or the network is missing or damaged.
    ChangedRecipeError
        Results of another source, network or setting lie in the folder.
    """
    doers: dict[Step, Callable[[Job], Path]] = {
        "clips": _clips,
        "views": _views,
        "masks": _masks,
        "measured": _measured,
    }
    folder = job.out
    for step in STEPS[: STEPS.index(until) + 1]:
        folder = doers[step](job)
    return folder


def _step(job: Job, step: Step, build: Callable[[Path], None], **recipe: Any) -> Path:
    before = STEPS[: STEPS.index(step)]
    inputs = {name: require_recipe(job.folder(name)).id for name in before}
    made = Recipe(
        step=f"echo {step}",
        schema=_SCHEMA,
        config=recipe.get("config", {}),
        inputs=inputs | recipe.get("inputs", {}),
        found_at={name: relative(job.folder(name), job.folder(step)) for name in before},
    )
    return run_step(job.folder(step), made, build, overwrite=job.overwrite)


def _clips(job: Job) -> Path:
    config = {"table": job.config.table, "columns": job.config.columns}

    def build(work: Path) -> None:
        write_json(work / CLIPS, [_row(clip) for clip in job.clips])

    inputs = source_inputs(job.source, job.config)
    return _step(job, "clips", build, config=config, inputs=inputs)


def _row(clip: SourceClip) -> dict[str, Any]:
    info = clip.info
    known = ("kind", "rows", "columns", "n_frames", "frame_time_ms", "heart_rate_bpm")
    film = clip.film
    return {
        "clip_id": clip.clip_id,
        "study_id": clip.study_id,
        "person_id": clip.person_id,
        "sex": clip.sex,
        "view": clip.view,
        "spacing_mm": clip.spacing_mm,
        **{name: getattr(info, name) if info else None for name in known},
        "flags": sorted(
            {*(info.flags if info else ()), *((clip.refused,) if clip.refused else ())}
        ),
        "truth": None
        if film is None
        else {
            name: value if np.isfinite(value) else None
            for name, value in (("ef", film.ef), ("edv_ml", film.edv_ml), ("esv_ml", film.esv_ml))
        },
        "split": film.split if film else None,
    }


def _views(job: Job) -> Path:
    inputs = {"views": _package_id(job.views)} if job.views else {}

    def build(work: Path) -> None:
        rows = read_json(job.folder("clips") / CLIPS)
        said = {
            row["clip_id"]: {"view": row["view"], "probability": None, "model": "table"}
            for row in rows
            if row["view"]
        }
        if job.views:
            said |= _predicted(job, [c for c in job.clips if c.clip_id not in said and c.info])
        nothing = {"view": UNKNOWN, "probability": None, "model": None}
        write_json(
            work / VIEWS, {row["clip_id"]: said.get(row["clip_id"], nothing) for row in rows}
        )

    return _step(job, "views", build, inputs=inputs)


def _package_id(folder: Path) -> str:
    from rarescan.classifiers.network import WEIGHTS

    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder.name} holds no classifier of views.",
            remedy="Name a package that `rarescan classify` wrote for configs/echo.yaml.",
        )
    return sha256_file(folder / WEIGHTS)


def _predicted(job: Job, clips: Sequence[SourceClip]) -> dict[str, dict[str, Any]]:
    """Return what the network says of each clip: the mean over evenly spaced frames."""
    from rarescan.classifiers.package import open_package
    from rarescan.imaging.planes import clip_on_grid
    from rarescan.imaging.spec import PlanesConfig

    folder = job.views or Path()
    network: TrainedNetwork = open_package(folder, job.device)
    planes = PlanesConfig(rows=network.shape[0], columns=network.shape[1])
    model = _package_id(folder)
    said = {}
    with Progress("tell views", len(clips)) as progress:
        for clip in clips:
            frames = read_even(clip, _VIEW_FRAMES)
            if frames is not None:
                stack = clip_on_grid(list(frames), planes, show="sector")
                mean = network.probabilities(stack).mean(axis=0)
                said[clip.clip_id] = {
                    "view": network.labels.names[int(mean.argmax())],
                    "probability": round(float(mean.max()), 6),
                    "model": model,
                }
            progress.advance()
    return said


def _masks(job: Job) -> Path:
    from rarescan.classifiers.echo_masks import WEIGHTS, load_segmenter

    if job.network is None:
        raise InputError(
            "No network for the chambers is named.",
            remedy="Add --network FOLDER, written by `rarescan echo train`.",
        )
    # Opened before anything is looked up: a damaged one must not be found after hours.
    segmenter = load_segmenter(job.network, job.device)

    def build(work: Path) -> None:
        for left in work.glob("*.frames.npy"):
            left.unlink()
        waiting = [clip for clip in job.clips if not (work / f"{clip.clip_id}.json").exists()]
        with Progress("follow chambers", len(waiting)) as progress:
            for start in range(0, len(waiting), _AT_ONCE):
                some = waiting[start : start + _AT_ONCE]
                decoded = run_parallel(
                    partial(decode, folder=work),
                    some,
                    what="decode clips",
                    workers=job.workers,
                    on_death=_dead,
                )
                for clip, fault in zip(some, decoded, strict=True):
                    _follow(clip, fault, work, segmenter=segmenter, config=job.config)
                    progress.advance()

    return _step(
        job,
        "masks",
        build,
        config={"fewest_frames": job.config.fewest_frames},
        inputs={"network": sha256_file(job.network / WEIGHTS)},
    )


def _dead(_clip: SourceClip) -> str:
    return "CLIP_UNREADABLE"


def _follow(
    clip: SourceClip, fault: str, work: Path, *, segmenter: Any, config: EchoConfig
) -> None:
    target = work / clip.clip_id
    raw = work / f"{clip.clip_id}.frames.npy"
    try:
        frames = None if fault else np.load(raw, mmap_mode="r")
        if frames is None or len(frames) < config.fewest_frames:
            write_json(target.with_suffix(".json"), {"refused": fault or "too_few_frames"})
            return
        follow_film(
            frames,
            target,
            segmenter,
            spacing_mm=clip.spacing_mm,
            frame_time_ms=clip.info.frame_time_ms if clip.info else None,
        )
    finally:
        raw.unlink(missing_ok=True)


def _measured(job: Job) -> Path:
    from rarescan.flows.echo_results import write_results

    def build(work: Path) -> None:
        write_results(work, job.out, job.config)

    return _step(job, "measured", build, config={"fraction": asdict(job.config.fraction)})
