"""The whole way as one Prefect flow, and one flow for each single verb.

`flows.start` is the way in. A task starts one job (`flows.job`), and only paths and settings
cross task boundaries. Retries serve what the outside world can break: a registry that is away, a
job that was killed.
"""

import importlib.metadata
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.concurrency.sync import concurrency
from prefect.task_runners import ThreadPoolTaskRunner

from rarescan._version import VERSION
from rarescan.configs.schema import RunConfig, dump_config, parse_config
from rarescan.errors import GateRefusedError, SettingError, UnreachableError
from rarescan.files import read_json, read_recipe, write_atomic, write_json
from rarescan.flows.job import JobDiedError, JobResult, peak_memory, run_job
from rarescan.flows.plan import Places, mark_finished, show_paths, source_of, with_phantom_tables
from rarescan.processes import available_cores

_log = logging.getLogger("rarescan")

Plain = dict[str, Any]
_SIDE_BY_SIDE = ("train", "judge", "utility_draw")
_ON_GPU = ("evaluate", "generate", "retrain")
_PACKAGES = ("torch", "monai", "numpy", "prefect", "mlflow", "pydicom", "SimpleITK", "nilearn")


def _worth_repeating(_task: Any, _run: Any, state: Any) -> bool:
    """Repeat only what may be otherwise next time."""
    try:
        state.result()
    except (UnreachableError, JobDiedError):
        return True
    except BaseException:
        return False
    return False


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=_worth_repeating)
def step(
    verb: str, config: Plain, arguments: Plain, *, overwrite: bool = False, on_gpu: bool = False
) -> str:
    """Run one verb as a job; note what it took; return its folder."""
    _log.info("%s ...", Path(arguments.get("folder", verb)).name)
    with _gpu() if on_gpu else nullcontext():
        result = run_job(
            verb,
            config,
            arguments,
            overwrite=overwrite,
            beside_others=verb in _SIDE_BY_SIDE,
        )
    _note(Places(Path(config["runs"]) / config["name"]), verb, result)
    return str(result.folder)


@contextmanager
def _gpu() -> Iterator[None]:
    """Wait for the device; a server without the limit `gpu` is an error."""
    from prefect.concurrency.v1.asyncio import ConcurrencySlotAcquisitionError

    try:
        with concurrency("gpu", occupy=1, strict=True):
            yield
    except ConcurrencySlotAcquisitionError:
        raise SettingError(
            "The Prefect server has no limit named 'gpu', so jobs would share the device.",
            remedy="Run `prefect gcl create gpu --limit 1` once on that server.",
        ) from None


def _note(places: Places, verb: str, result: JobResult) -> None:
    """Keep a step's recipe, seconds and memory beside the run; a step found done keeps its own."""
    recipe = read_recipe(result.folder)
    if recipe is None or not result.folder.is_relative_to(places.root):
        return
    name = f"{verb}-{result.folder.name}" if verb in ("train", "utility_draw") else verb
    path = places.recipes / f"{name}.json"
    if path.exists() and read_json(path)["id"] == recipe.id:
        return
    write_json(
        path,
        {
            **recipe.as_dict(),
            "id": recipe.id,
            "seconds": result.seconds,
            "peak_memory_mb": result.peak_memory_mb,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {
                "rarescan": VERSION,
                **{name: importlib.metadata.version(name) for name in _PACKAGES},
            },
        },
    )


_ALL_CORES: Any = ThreadPoolTaskRunner(max_workers=available_cores())


@flow(name="augment", task_runner=_ALL_CORES)
def augment(config: Plain, *, overwrite: bool = False) -> str:
    """Go the whole way: from what came in to the report."""
    run = parse_config(show_paths(config))
    places = Places(run.root)
    write_atomic(places.root / "config.yaml", dump_config(run))
    config = with_phantom_tables(run)
    with peak_memory() as memory:
        folders = _all_steps(run, config, places, overwrite=overwrite)
    write_json(places.recipes / "memory.json", {"peak_memory_mb": round(memory[0], 1)})
    report = step.with_options(name="report")("report", config, {"run": str(places.root)})
    mark_finished(run, folders)
    _show_report(places)
    return report


@task(name="run")
def _one_of_several(config: Plain, *, overwrite: bool) -> str:
    """Go the whole way for one configuration among others."""
    name = str(show_paths(config)["name"])
    return augment.with_options(flow_run_name=name)(config, overwrite=overwrite)


@flow(name="together", task_runner=_ALL_CORES)
def together(configs: list[Plain], *, overwrite: bool = False) -> list[str]:
    """Go several whole ways side by side (MRI, ultrasound, echo), each with settings of its own.

    One that fails stops none of the others; its error is raised when all have ended. Jobs on a GPU
    wait for each other, as they do within one run.
    """
    waiting = [
        _one_of_several.with_options(name=str(show_paths(config)["name"])).submit(
            config, overwrite=overwrite
        )
        for config in configs
    ]
    for one in waiting:
        one.wait()
    return [one.result() for one in waiting]


def _all_steps(run: RunConfig, config: Plain, places: Places, *, overwrite: bool) -> list[Path]:
    """Run the steps in order; return the folders that they wrote."""

    def do(verb: str, **arguments: Path | None) -> Path:
        plain = {key: None if value is None else str(value) for key, value in arguments.items()}
        named = step.with_options(name=verb)
        on_gpu = run.device == "cuda" and verb in _ON_GPU
        return Path(named(verb, config, plain, overwrite=overwrite, on_gpu=on_gpu))

    folders = [do("phantom", folder=places.phantom)] if run.source.kind == "phantom" else []
    if run.source.kind == "pacs":
        do("pull", folder=places.pulled)
    cohort = do("ingest", source=source_of(run), folder=places.cohort)
    prepared = do("prepare", cohort=cohort, folder=places.prepared)
    models = _train_all(run, config, places, overwrite=overwrite)
    common = {"prepared": prepared, "models": places.models}
    evaluation = do("evaluate", **common, folder=places.evaluation)
    _show_scores(places)
    decision = do("select", **common, evaluation=evaluation, folder=places.decision)
    folders += [cohort, prepared, *models, places.network, evaluation, decision]
    batch, refused = None, places.recipes / "refused.json"
    refused.unlink(missing_ok=True)
    if read_json(decision / "decision.json")["champion"] is not None:
        try:
            batch = do("generate", prepared=prepared, decision=decision, folder=places.synthetic)
            folders.append(batch)
        except GateRefusedError as error:
            # A generator whose batch is refused is a result: the arms without it and the report
            # follow, and the verdict says so.
            _log.warning("%s", error.problem)
            write_json(refused, {"problem": error.problem})
    folders.append(do("retrain", prepared=prepared, batch=batch, folder=places.classifiers))
    return folders


def _train_all(run: RunConfig, config: Plain, places: Places, *, overwrite: bool) -> list[Path]:
    """Train every candidate and the judge beside each other, as far as cores or the GPU allow."""
    on_gpu = run.device == "cuda"
    prepared = str(places.prepared)
    jobs = [("judge", places.network)] + [("train", places.models / name) for name in run.train]
    waiting = [
        step.with_options(name=f"{verb} {folder.name}").submit(
            verb,
            config,
            {"prepared": prepared, "folder": str(folder)},
            overwrite=overwrite,
            on_gpu=on_gpu,
        )
        for verb, folder in jobs
    ]
    return [Path(future.result()) for future in waiting][1:]


def _show_scores(places: Places) -> None:
    scores = read_json(places.evaluation / "scores.json")
    primary = scores["extractors"]["primary"]
    table = [
        {
            "candidate": name,
            **{key: _interval(score) for key, score in found["scores"][primary].items()},
            "gates": ", ".join(f"{gate['name']}: {gate['outcome']}" for gate in found["gates"]),
        }
        for name, found in scores["candidates"].items()
    ]
    create_table_artifact(table, key="scores", description="Distances to validation persons")


def _interval(score: Mapping[str, Any]) -> str:
    if score["low"] is None:
        return f"{score['value']:.4g}"
    return f"{score['value']:.4g} ({score['low']:.4g} to {score['high']:.4g})"


def _show_report(places: Places) -> None:
    content = read_json(places.root / "report.json")
    verdict = content["verdict"]
    create_markdown_artifact(
        f"## {verdict['sentence']}\n\n[report.html]({places.report.resolve().as_uri()})",
        key="report",
    )


@flow(name="verb")
def single(verb: str, config: Plain, arguments: Plain, *, overwrite: bool = False) -> str:
    """Run one verb."""
    named = step.with_options(name=verb)
    return named(verb, show_paths(config), show_paths(arguments), overwrite=overwrite)
