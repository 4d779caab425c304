"""Mistakes of the systems before us: each has a test that names it, and some have it here."""

import csv
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rarescan.classifiers import train
from rarescan.classifiers.examples import Examples, class_pools
from rarescan.classifiers.mri import MRI
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.configs.schema import load_config

TESTS = Path(__file__).parents[1]
WITH_THE_SERVICE = {38, 40}
"""Requests that share a file, and an interface without authentication: there is none yet."""
NAMED_OTHERWISE = {
    41: "evaluation/test_classifier_page.py::test_the_page_gives_no_advice_about_a_person",
    52: "evaluation/test_evaluate.py::test_copies_are_counted_and_their_donors_named",
    53: "whole_way/test_tutorial.py::test_the_arms_and_the_gain_are_said_with_intervals",
}


def test_every_trap_that_concerns_this_code_has_a_test() -> None:
    named = set()
    for path in TESTS.rglob("test_*.py"):
        if path != Path(__file__):
            text = path.read_text()
            functions = re.findall(r"def test_((?:t\d+_)+)", text)
            named |= {int(n) for name in functions for n in re.findall(r"\d+", name)}
            named |= {int(n) for n in re.findall(r"\bT(\d+)\b", text)}
    for number, place in NAMED_OTHERWISE.items():
        file, function = place.split("::")
        assert f"def {function}(" in (TESTS / file).read_text(), place
        named.add(number)
    own = {int(n) for n in re.findall(r"def test_t(\d+)_", Path(__file__).read_text())}
    assert set(range(1, 54)) - named - own == WITH_THE_SERVICE


def test_t29_watched_scans_are_measured_alike_in_whatever_order_they_come(
    make_examples: Callable[..., Examples],
) -> None:
    """A third positional argument once shuffled the validation scans."""
    examples, watched = make_examples(12, seed=1), make_examples(8, seed=2)
    turned = watched.take(range(len(watched) - 1, -1, -1))
    config = ClassifierConfig(steps=10, batch_size=4, channels=(4,))
    looks = [
        train.fit(
            examples,
            class_pools(examples, 4, 2),
            config,
            modality=MRI,
            device=torch.device("cpu"),
            watched=some,
        )[1]
        for some in (watched, turned)
    ]
    for one, other in zip(*looks, strict=True):
        assert other.watched_auc == one.watched_auc
        assert other.watched_loss == pytest.approx(one.watched_loss, rel=1e-5)
        assert replace(other, watched_loss=one.watched_loss) == one


def test_t7_lungs_with_effusions_are_not_called_regular(real_data: Path) -> None:
    """`regular` means neither of the two diseases; cases with a mass or an effusion stay out."""
    settings = load_config("ultrasound").pictures
    with (real_data / "ultrasound" / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    kept = [r for r in rows if all(r[key] == value for key, value in settings.keep.items())]
    assert len(kept) > 600
    regular = [r for r in kept if r["label"] == "regular"]
    assert not [r for r in regular if re.search("effusion|mass|artifact", r["origin"].lower())]


def test_t18_the_linter_bans_what_libraries_have_given_up() -> None:
    lint = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert {"NPY", "UP"} <= set(lint["select"])
