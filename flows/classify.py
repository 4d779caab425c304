"""A classifier of the cohort's own labels, tested on persons whom it has not seen.

`classify` is the way in: folds by person with every baseline beside the network, figures with
intervals, and the page. What it finds is an answer, also where it is "insufficient".
"""

from dataclasses import asdict
from pathlib import Path

from rarescan.configs.schema import RunConfig
from rarescan.files import Recipe, require_recipe, run_step
from rarescan.flows.plan import relative, workers_of


def classify(config: RunConfig, prepared: Path, folder: Path, *, overwrite: bool = False) -> Path:
    """Train and test the classifier that `classify` in the settings describes."""
    from rarescan.classifiers.folds import run_folds
    from rarescan.classifiers.maps import write_maps
    from rarescan.evaluation.classifier_page import write_page

    recipe = Recipe(
        step="classify",
        schema=1,
        config={"classify": asdict(config.classify)},
        inputs={"prepared": require_recipe(prepared).id},
        found_at={"prepared": relative(prepared, folder)},
    )

    def build(work: Path) -> None:
        run_folds(work, prepared, config.classify, workers=workers_of(config), device=config.device)
        write_maps(work, prepared, config.classify, device=config.device)
        write_page(work)

    return run_step(folder, recipe, build, overwrite=overwrite)
