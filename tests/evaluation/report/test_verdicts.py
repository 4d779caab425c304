"""Several classifiers and questions: each keeps its own verdict, and strangers' are left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rarescan.evaluation.report import write_report
from rarescan.evaluation.verdicts import verdicts
from rarescan.files import read_json, require_recipe, write_json

DIFFERENCE = {"value": 0.05, "low": 0.01, "high": 0.09, "n": 40}


def add(run: Path, folder: str, name: str, content: Any, **recipe: Any) -> None:
    write_json(run / folder / name, content)
    write_json(run / folder / "recipe.json", {"schema": 1, **recipe})


def of_own(run: Path) -> None:
    """Add the verdict on a program of the hospital's own, at an unseen site."""
    gain = read_json(run / "classifiers" / "gain.json")
    about = {
        "classifier": "command", "positive": "bvFTD", "negative": "control", "held_out": "site",
    }  # fmt: skip
    gain |= {"verdict": "use", "gain": DIFFERENCE | {"against": "strong", "arm": "x"}}
    add(run, "ours", "gain.json", gain | {"about": about}, step="retrain")


def benchmark(prepared: str) -> dict[str, Any]:
    return {"step": "thinned", "inputs": {"prepared": prepared}}


ENTRY = {
    "question": "thinned", "patients": 10, "model": "network", "best_free": "classical",
    "best_generative": "classical+vae", "verdict": "undecided",
    "arms": {"classical+vae": {"difference": {**DIFFERENCE, "low": -0.02}}},
}  # fmt: skip


@pytest.fixture
def run(quick_run: Callable[..., Path]) -> Path:
    run = quick_run(verdict="do_not_use")
    of_own(run)
    add(run, "mine", "thinned.json", [ENTRY], **benchmark(require_recipe(run / "prepared").id))
    add(run, "other", "thinned.json", [ENTRY, ENTRY], **benchmark("another cohort's"))
    return run


def test_every_verdict_on_this_cohort_is_listed_with_its_own_interval(run: Path) -> None:
    found = verdicts(run)
    assert [(row["classifier"], row["verdict"]) for row in found] == [
        ("network", "do_not_use"),
        ("command", "use"),
        ("network", "undecided"),
    ]
    assert found[1]["difference"] == DIFFERENCE
    assert found[1]["question"] == "bvFTD against control, persons of an unseen site"
    assert found[2]["question"] == "thinned, 10 patients train"


def test_the_page_shows_them_before_anything_else_where_there_are_several(run: Path) -> None:
    page = write_report(run).read_text()
    table = page[page.index("none of them speaks for another") : page.index("persons in</li>")]
    for words in ("unseen site", "+0.050 (+0.010 to +0.090)", "do not use", "10 patients train"):
        assert words in table
    (run / "ours" / "gain.json").unlink()
    (run / "mine" / "thinned.json").unlink()
    assert "speaks for another" not in write_report(run).read_text()
