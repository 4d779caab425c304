"""Echocardiography: train on traced ventricles, measure clips, keep the results, show them.

`train`, `measure` and `film` are the verbs. Measuring goes in four steps, each with a folder and a
recipe of its own, so that the questionnaire can do one at a time and nothing is done twice:
`clips` (what the source holds), `views`, `masks` (chambers in every frame), `measured` (figures,
page). What is there is then written to a database.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarescan.classifiers.echo import results
from rarescan.classifiers.echo.film import follow_film, show_film
from rarescan.classifiers.echo.rows import write_tables
from rarescan.configs.schema import RunConfig
from rarescan.errors import InputError, SettingError, nearest
from rarescan.evaluation.echo_page import write_page
from rarescan.files import (
    Recipe,
    read_json,
    require_recipe,
    run_step,
    sha256_file,
    write_atomic,
    write_json,
)
from rarescan.flows.plan import relative, workers_of
from rarescan.imaging.echo import ClipSource, SourceClip, list_clips
from rarescan.imaging.echo_frames import decoded, read_frames, read_traced
from rarescan.imaging.persons import fingerprint, read_erased, write_erased
from rarescan.imaging.planes import clip_on_grid
from rarescan.phantom.echo import lessons
from rarescan.progress import Progress

if TYPE_CHECKING:
    from rarescan.classifiers.network import TrainedNetwork

STEPS = ("clips", "views", "masks", "measured")
TAUGHT = "taught.json"
"""Fingerprints of the persons who taught or judged a network, so that they can be erased."""
_SCHEMA = 2
_AT_ONCE, _VIEW_FRAMES = 8, 10


def train(
    config: RunConfig, folder: Path, *, source: Path | None = None, overwrite: bool = False
) -> Path:
    """Train the network that finds the chambers, and judge it on the validation persons.

    Parameters
    ----------
    config : RunConfig
        `echo.segment`, the table and the key of `echo`, `device`.
    folder : Path
        Gets `weights.safetensors`, `segmenter.json` and `judged.json` (Dice a person).
    source : Path, optional
        A folder in EchoNet-Dynamic's format: traced films of the part TRAIN teach, those of VAL
        judge, TEST is not opened. Without one, invented hearts alone teach.

    Raises
    ------
    InputError
        No traced film is in the part TRAIN, or a person has films in two parts.
    """
    clips = _source(config, source) if source else None
    recipe = Recipe(
        step="echo train",
        schema=_SCHEMA,
        config={"segment": asdict(config.echo.segment)},
        inputs=clips.inputs if clips else {},
    )

    def build(work: Path) -> None:
        from rarescan.classifiers.echo.train import train_network

        settings, parts = config.echo.segment, read_traced(clips) if clips else {}
        taught = [*parts.get("TRAIN", ()), *lessons(settings.phantoms)]
        judging = parts.get("VAL", [])
        train_network(work, taught, judging, settings, device=config.device)
        people = {"taught": taught, "judged": judging}
        known = {how: sorted({fingerprint(p) for p, *_ in part}) for how, part in people.items()}
        write_json(work / TAUGHT, known)

    return run_step(folder, recipe, build, overwrite=overwrite)


def measure(
    config: RunConfig,
    source: Path,
    folder: Path,
    *,
    network: Path | None = None,
    views: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Do the step that has the folder's name, and those before it that are not done yet.

    Parameters
    ----------
    config : RunConfig
        `echo`, `planes` (how the network of views saw its pictures), `device`, `workers`.
    source : Path
        EchoNet-Dynamic's format, or any folder of DICOM files and videos.
    folder : Path
        `OUT/clips`, `OUT/views`, `OUT/masks` or `OUT/measured`; the database lies in `OUT`.
    network : Path, optional
        Written by `train`; needed from the step `masks` on.
    views : Path, optional
        A package of `rarescan classify` that tells views; a table's word counts more than its.

    Raises
    ------
    InputError
        The source holds no clip, or a network is missing or damaged.
    SettingError
        The folder is none of the steps.
    """
    if folder.name not in STEPS:
        raise SettingError(f"'{folder.name}' is no step.", remedy=nearest(folder.name, list(STEPS)))
    job = _Job(config, source, folder.parent, network, views, overwrite)
    for name in STEPS[: STEPS.index(folder.name) + 1]:
        _BUILDERS[name](job)
    write_tables(job.out, address=config.echo.address, network=network)
    return folder


def film(
    config: RunConfig, source: Path, out: Path, study: str, *, overwrite: bool = False
) -> Path:
    """Write a film of each measured clip of a study: contours, curve, beats, quality flags.

    Parameters
    ----------
    source : Path
        What was measured; frames are not kept with the results.
    out : Path
        Written by `measure`; gets `films/<study>/<clip>.mp4`.
    study : str
        Its pseudonym, as the page and the tables have it.

    Raises
    ------
    InputError
        Nothing was measured there, there is no such study, or none of its clips was measured.
    """
    figures = out / "measured" / results.FIGURES
    rows = read_json(figures)["clips"] if figures.is_file() else []
    wanted = {c["clip_id"]: c for c in rows if c["study_id"] == study and c["refused"] is None}
    if not wanted:
        raise InputError(
            "No clip of such a study was measured there.",
            remedy=f"List them with `rarescan echo inquire {out} --question studies`.",
        )
    job = _Job(config, source, out, overwrite=overwrite)

    def build(work: Path) -> None:
        clips = [clip for clip in job.clips if clip.clip_id in wanted]
        for clip, raw, fault in decoded(clips, work, workers=workers_of(config)):
            if not fault:
                name = clip.clip_id
                show_film(raw, out / "masks" / name, work / f"{name}.mp4", wanted[name])

    return job.run(f"films/{study}", build, before=STEPS[2:])


@dataclass(frozen=True)
class _Job:
    """What is to be measured, with what, and where the results go."""

    config: RunConfig
    source: Path
    out: Path
    network: Path | None = None
    views: Path | None = None
    overwrite: bool = False

    @cached_property
    def clips(self) -> tuple[SourceClip, ...]:
        """The source's clips without those of erased persons; read when a step needs them."""
        erased = read_erased(self.out / "clips")
        clips = list_clips(_source(self.config, self.source))
        return tuple(clip for clip in clips if fingerprint(clip.person_id) not in erased)

    def run(
        self, name: str, build: Callable[[Path], None], *, before: Sequence[str] = (), **recipe: Any
    ) -> Path:
        """Fill one folder of the results, unless it holds this recipe's result."""
        folder = self.out / name
        made = Recipe(
            step=f"echo {name.partition('/')[0]}",
            schema=_SCHEMA,
            config=recipe.get("config", {}),
            inputs={b: require_recipe(self.out / b).id for b in before} | recipe.get("inputs", {}),
            found_at={one: relative(self.out / one, folder) for one in before},
        )
        return run_step(folder, made, build, overwrite=self.overwrite)


def _source(config: RunConfig, folder: Path) -> ClipSource:
    names = ("table", "columns", "key_file")
    told: dict[str, Any] = {name: getattr(config.echo, name) for name in names}
    return ClipSource(folder=folder, workers=workers_of(config), **told)


def _clips(job: _Job) -> None:
    told = {"table": job.config.echo.table, "columns": job.config.echo.columns}

    def build(work: Path) -> None:
        write_json(work / results.CLIPS, [clip.as_row() for clip in job.clips])
        write_erased(work, read_erased(job.out / "clips"))

    job.run("clips", build, config=told, inputs=_source(job.config, job.source).inputs)


def _views(job: _Job) -> None:
    network, model, recipe = None, "", dict[str, Any]()
    if job.views:
        from rarescan.classifiers.network import WEIGHTS
        from rarescan.classifiers.package import open_package

        if not (job.views / WEIGHTS).is_file():
            raise InputError(
                f"{job.views.name} holds no classifier of views.",
                remedy="Name `model` of a folder that `rarescan classify -c echo` wrote.",
            )
        network = open_package(job.views, job.config.device)
        model = sha256_file(job.views / WEIGHTS)
        recipe = {"config": {"planes": asdict(job.config.planes)}, "inputs": {"views": model}}

    def build(work: Path) -> None:
        rows = read_json(job.out / "clips" / results.CLIPS)
        said = dict(_told_views(job, network)) if network else {}
        write_json(work / results.VIEWS, results.join_views(rows, said, model))

    job.run("views", build, before=STEPS[:1], **recipe)


def _told_views(job: _Job, network: "TrainedNetwork") -> Iterator[tuple[str, tuple[str, float]]]:
    """Yield for each clip what the network says of it: the mean over evenly spaced frames."""
    rows, columns = network.shape[:2]
    planes = replace(job.config.planes, rows=rows, columns=columns, planes=())
    clips = [clip for clip in job.clips if clip.info]
    for start in range(0, len(clips), _AT_ONCE):
        some = clips[start : start + _AT_ONCE]
        found = read_frames([(clip, _VIEW_FRAMES) for clip in some], workers=workers_of(job.config))
        for clip, frames in zip(some, found, strict=True):
            if frames is not None:
                shown = clip_on_grid(list(frames), planes, show="sector")
                mean = network.probabilities(shown).mean(axis=0)
                best = int(mean.argmax())
                yield clip.clip_id, (network.labels.names[best], float(mean[best]))


def _masks(job: _Job) -> None:
    from rarescan.classifiers.echo.masks import WEIGHTS, load_segmenter

    if job.network is None:
        raise InputError(
            "No network for the chambers is named.",
            remedy="Add --network FOLDER, written by `rarescan echo train`.",
        )
    # Opened before anything is looked up: a damaged one must not be found after hours.
    segmenter = load_segmenter(job.network, job.config.device)
    fewest = {"fewest_frames": job.config.echo.fewest_frames}

    def build(work: Path) -> None:
        waiting = [clip for clip in job.clips if not (work / f"{clip.clip_id}.json").exists()]
        workers = workers_of(job.config)
        with Progress("follow chambers", len(waiting)) as progress:
            for clip, raw, fault in decoded(waiting, work, workers=workers, **fewest):
                follow_film(
                    raw,
                    work / clip.clip_id,
                    segmenter,
                    fault=fault,
                    spacing_mm=clip.spacing_mm,
                    frame_time_ms=clip.info.frame_time_ms if clip.info else None,
                )
                progress.advance()

    inputs = {"network": sha256_file(job.network / WEIGHTS)}
    job.run("masks", build, before=STEPS[:2], config=fewest, inputs=inputs)


def _measured(job: _Job) -> None:
    fraction = job.config.echo.fraction

    def build(work: Path) -> None:
        page = write_page(*results.write_results(work, job.out, fraction))
        write_atomic(work / "echo.html", page)

    job.run("measured", build, before=STEPS[:3], config={"fraction": asdict(fraction)})


_BUILDERS = dict(zip(STEPS, (_clips, _views, _masks, _measured), strict=True))
