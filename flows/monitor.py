"""The verb `monitor`: new scans against the champion's training persons, without Prefect.

Each look at a cohort is a step of its own, `RUN/monitor/<cohort's id>`, so that earlier looks
stay. Where the cohort has grown by validation persons, the champion's samples are scored again by
the same function that scored them first.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rarescan.cohort.contracts import Cohort
from rarescan.cohort.store import open_cohort, require_same_grid, tables
from rarescan.configs.schema import RunConfig
from rarescan.errors import SettingError
from rarescan.files import RECIPE, Recipe, read_json, require_recipe, run_step
from rarescan.flows.plan import Places, relative, workers_of


def monitor(config: RunConfig, run: Path, cohort: Path, *, overwrite: bool = False) -> Path:
    """Hold a prepared cohort's new persons against a run's training persons; judge its champion."""
    from rarescan.evaluation import drift
    from rarescan.evaluation.monitor import look_at, settings_that_matter, write_page

    places = Places(run)
    known, grown = open_cohort(places.prepared), open_cohort(cohort)
    require_same_grid(known.grid, grown.grid, (str(places.prepared), str(cohort)))
    newcomers = _persons(grown) - _persons(known)
    if not newcomers:
        raise SettingError(
            f"{cohort} has no person whom the run does not know yet.",
            remedy="Ingest and prepare the scans that came since, and name that cohort.",
        )
    inputs = {"prepared": places.prepared, "cohort": cohort}
    inputs |= {
        name: folder
        for name in ("network", "evaluation", "decision")
        if ((folder := getattr(places, name)) / RECIPE).exists()
    }
    folder = run / "monitor" / grown.cohort_id
    recipe = Recipe(
        step="monitor",
        schema=1,
        config={"monitor": settings_that_matter(config.monitor)},
        inputs={name: require_recipe(path).id for name, path in inputs.items()},
        found_at={name: relative(path, folder) for name, path in inputs.items()},
    )

    def build(work: Path) -> None:
        reference = look_at(known, _persons(known, "train"), workers=workers_of(config))
        new = look_at(grown, newcomers, workers=workers_of(config))
        content = {
            **drift.drift(reference, new, config.monitor),
            "champion": _judge_again(config, places, known, grown, work),
            "phantom": all(scan.origin == "phantom" for scan in grown.scans),
            "ids": dict(recipe.inputs),
        }
        write_page(work, content)

    return run_step(folder, recipe, build, overwrite=overwrite)


def _persons(cohort: Cohort, part: str | None = None) -> set[str]:
    return {
        scan.person_id
        for scan in cohort.scans
        if part is None or cohort.partition.get(scan.person_id) == part
    }


def _judge_again(
    config: RunConfig, places: Places, known: Cohort, grown: Cohort, work: Path
) -> dict[str, Any]:
    """Score the champion's samples against the grown cohort, or say why that cannot be."""
    from rarescan.classifiers.domain import open_network
    from rarescan.evaluation.decide import read_scores
    from rarescan.evaluation.evaluate import write_scores
    from rarescan.evaluation.monitor import champion_now

    champion = _champion(places)
    reason = _why_not(places, champion, known, grown)
    if champion is None or reason:
        return {"reason": reason}
    name = str(champion["candidate"])
    samples = {name: places.evaluation / "samples" / name}
    embed = open_network(places.network).embed
    write_scores(work, grown.root, samples, embed, config.evaluate, config.question)
    then, now = read_scores(places.evaluation), read_scores(work)
    return champion_now(then, now, name, then["extractors"]["primary"])


def _champion(places: Places) -> Mapping[str, Any] | None:
    path = places.decision / "decision.json"
    champion: Mapping[str, Any] | None = read_json(path)["champion"] if path.exists() else None
    return champion


def _why_not(
    places: Places, champion: Mapping[str, Any] | None, known: Cohort, grown: Cohort
) -> str:
    """Return why a champion cannot be judged by a cohort; nothing where it can."""
    if champion is None:
        return "The run has no champion."
    if (places.decision / "erased.json").exists():
        return "The champion learned from a person who was erased since."
    if champion["prepared_id"] != known.cohort_id:
        return "The champion learned from the cohort of an earlier run: name that run."
    samples = places.evaluation / "samples" / str(champion["candidate"])
    if not (tables(samples) / "cohort.json").exists():
        return "The champion's samples are gone: run `rarescan evaluate` again."
    taught = _persons(known, "train")
    if _persons(grown, "validation") & taught:
        return (
            "Validation persons of the new cohort taught the champion: prepare the grown cohort "
            "over a copy of the run's own, which keeps everybody's part."
        )
    if not taught <= _persons(grown, "train"):
        return "The new cohort lacks persons whom the champion learned from, so it did not grow."
    if not _persons(grown, "validation") - _persons(known):
        return "No new person validates: the champion has been judged by these persons already."
    return ""
