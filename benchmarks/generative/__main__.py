"""Our generators against MONAI's tutorial and our own baselines: one command, one table.

    python benchmarks/generative FOLDER [--study phantom|t1|curve] [--rows diffusion vae ...]
        [--budget 120] [--samples 200] [--tutorial-samples 40] [--slow-samples 12] [--spacing-mm 4]
        [--source ../shared/data/t1]

Same persons, the same CPU seconds of training at most, the same evaluation. FOLDER keeps every
cell (cohort, training, samples, scores), so a command that was stopped, or is repeated with more
rows, does only what is missing. `phantom` is the easy population with 40 + 80 persons to learn from
and 93 to be held against; `t1` is ds002748 with 50 and 22, `curve` the same with 10, 20, 30 and 50
of its persons. Prints the table, writes `FOLDER/<study>.json`, and for the phantom also
`FOLDER/places.json`: each family's place against PCA + Gaussian.

The tutorial's trainings end when the seconds are spent; ours end with their steps, and a row that
took longer than the budget says so. Another budget needs another FOLDER. Distances are unbiased
squared RBF-MMD times 1000.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from rows import COST, ROWS, SEED, Effort, cost, drawn, trained
from studies import Study, phantom, real_t1
from verdicts import claims, line, places, too_few

from rarescan.errors import ChangedRecipeError, RarescanError
from rarescan.evaluation.evaluate import SCORES, write_scores
from rarescan.evaluation.spec import EvaluateConfig
from rarescan.files import Recipe, read_json, require_recipe, run_step, write_json

CURVE = (10, 20, 30, 50)
CURVE_ROWS = ("pca-gaussian", "transfer", "vae", "gan", "diffusion")


def main() -> None:
    """Build what is missing, print one line a row and what follows from all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--study", choices=("phantom", "t1", "curve"), default="phantom")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=[])
    parser.add_argument("--budget", type=float, default=120.0)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--tutorial-samples", type=int, default=40, help="of DDIM and RFlow")
    parser.add_argument("--slow-samples", type=int, default=12, help="of DDPM with 1,000 calls")
    parser.add_argument("--steps", type=int, help="steps of ours; their own settings without")
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--spacing-mm", type=float, default=4.0)
    parser.add_argument("--source", type=Path, default=Path("../shared/data/t1"))
    given = parser.parse_args()
    logging.getLogger("rarescan").setLevel(logging.WARNING)
    effort = Effort(
        budget_s=given.budget,
        persons={
            "samples": given.samples,
            "tutorial": given.tutorial_samples,
            "slow": given.slow_samples,
        },
        steps=given.steps,
    )
    if given.study == "curve":
        _curve(given, effort)
        return
    study = _study(given)
    names = given.rows or [n for n in ROWS if study.others or n != "real"]
    table = _table(study, names, effort)
    write_json(
        given.folder / f"{given.study}.json", {"about": _about(study, effort), "rows": table}
    )
    for said in claims(study, table, effort.budget_s):
        print(said)
    if given.study == "phantom":
        found = places(study, table)
        write_json(given.folder / "places.json", found)
        for family, place in found["families"].items():
            print(f"{family}: {place['place']} than PCA + Gaussian (p {place['p']:.3g})")


def _study(given: argparse.Namespace, n_train: int = 50) -> Study:
    if given.study == "phantom":
        return phantom(given.folder, patients=given.patients, spacing_mm=given.spacing_mm)
    return real_t1(given.folder, given.source, n_train=n_train, spacing_mm=given.spacing_mm)


def _curve(given: argparse.Namespace, effort: Effort) -> None:
    found = {}
    for n_train in CURVE:
        study = _study(given, n_train)
        table = _table(study, given.rows or CURVE_ROWS, effort)
        verdict = too_few(table)
        print(f"{n_train} persons: {verdict}", flush=True)
        found[n_train] = {"about": _about(study, effort), "rows": table, "verdict": verdict}
    write_json(given.folder / "curve.json", found)


def _about(study: Study, effort: Effort) -> dict[str, Any]:
    cohort = study.cohort()
    train = [cohort.scans[i].condition.diagnosis for i in cohort.indices("train")]
    return {
        "study": study.name,
        "training_persons": {d: train.count(d) for d in sorted(set(map(str, train)))},
        "held_out": len(cohort.indices("validation")),
        "budget_s": effort.budget_s,
    }


def _table(study: Study, names: Any, effort: Effort) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            table[name] = _row(study, name, effort)
        except ChangedRecipeError:
            raise SystemExit(
                f"{study.root} holds cells of other settings or an earlier version: name another "
                "FOLDER."
            ) from None
        except RarescanError as error:
            table[name] = {"not_measured": str(error)}
        print(line(name, table[name], table.get("real")), flush=True)
    return table


def _row(study: Study, name: str, effort: Effort) -> dict[str, Any]:
    """Return a row's figures, all of its cells built."""
    model = trained(study, name, effort)
    samples = drawn(study, name, model, effort)
    recipe = Recipe(
        step="benchmark-scores",
        schema=1,
        inputs={s: require_recipe(p).id for s, p in {
            "prepared": study.prepared, "judge": study.judge, "samples": samples
        }.items()},
    )  # fmt: skip

    def build(work: Path) -> None:
        config = EvaluateConfig(seed=SEED)
        embed = study.network().embed
        write_scores(work, study.prepared, {name: samples}, embed, config, study.question)

    folder = run_step(study.root / name / samples.name.replace("samples", "scores"), recipe, build)
    scores = read_json(folder / SCORES)
    own = scores["candidates"][name]
    fidelity = own["condition_fidelity"]
    return {
        "group": ROWS[name].group,
        **cost(study, name, model),
        **read_json(samples / COST),
        "mmd": _bounds(own["scores"]["domain-train"]["mmd"]),
        "mmd_regions": _bounds(own["scores"]["regions"]["mmd"]),
        "n_synthetic": own["scores"]["domain-train"]["mmd"]["n_synthetic"],
        "floor_train": _bounds(scores["floor"]["mmd"]),
        "gates": {gate["name"]: gate["outcome"] for gate in own["gates"]},
        "agreement": (fidelity["agreement"] or {}).get("value"),
        "scores": str(folder.relative_to(study.root)),
    }


def _bounds(score: dict[str, Any]) -> dict[str, float | None]:
    return {key: score[key] for key in ("value", "low", "high")}


if __name__ == "__main__":
    main()
