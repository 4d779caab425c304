"""Plots are safe text, the same bytes every time, and say what they were given."""

import re
from functools import cache
from xml.etree import ElementTree

import numpy as np
import pytest

from rarescan.evaluation import charts

HOSTILE = "<b onload='x'>&$\\frac{1}$"
SCORE = {"value": 0.5, "low": 0.4, "high": 0.6}


@cache
def _plots(name: str) -> dict[str, str]:
    curve = {"fpr": [0, 0.5, 1], "tpr": [0, 1, 1]}
    rows = [(HOSTILE, SCORE, True), ("other", {**SCORE, "low": None}, False)]
    half = {"real": 0.5, "synthetic": None}
    places = np.array([[0.0, 1], [2, 3], [1, 1]])
    curves = {f"{HOSTILE}{i}": {"loss": [[0, 1.0], [1, 0.5]]} for i in range(4)}
    return {
        "forest": charts.forest_plot(rows, name, axis_label="x", floor=SCORE, line_at=0.5),
        "curves": charts.curve_plot(curves, name),
        "roc": charts.roc_plot({HOSTILE: curve}, name),
        "regions": charts.region_plot({HOSTILE: half, "b": {**half, "real_se": 0.1}}, name),
        "grid": charts.forest_grid(
            [[(HOSTILE, rows, SCORE), ("b", rows[:1], None)], [("c", rows, None)]], name
        ),
        "power": charts.power_plot({HOSTILE: (1.0, 0.86), "b": (0.5, 0.3)}, name, needed=0.8),
        "map": charts.map_plot(
            {HOSTILE: {"real": places, "synthetic": places[:2]}}, name, ("x", "y")
        ),
        "spectra": charts.spectrum_plot(np.array([0.1, 0.2]), {HOSTILE: np.ones((3, 2))}, name),
    }


KINDS = ("forest", "curves", "roc", "regions", "grid", "power", "map", "spectra")


@pytest.mark.parametrize("kind", KINDS)
def test_plots_are_well_formed_and_keep_hostile_names_as_text(kind: str) -> None:
    svg = _plots("n")[kind]
    texts = [node.text or "" for node in ElementTree.fromstring(svg).iter()]
    assert any(text.startswith(HOSTILE) for text in texts)
    assert "<b" not in svg


def test_plots_have_the_same_bytes_every_time() -> None:
    assert _plots.__wrapped__("n") == _plots("n")


def test_plots_on_one_page_share_no_id_and_refer_to_their_own() -> None:
    rows = [(HOSTILE, SCORE, True)]
    here, there = (charts.forest_plot(rows, name, axis_label="x") for name in ("n", "m"))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (here, there)]
    assert ids[0]
    assert not ids[0] & ids[1]
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', here))
    assert references <= ids[0]


def test_a_plot_names_no_address_but_the_languages_that_it_is_written_in() -> None:
    addresses = {url for svg in _plots("n").values() for url in re.findall(r'https?://[^"]+', svg)}
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def _marks(svg: str) -> int:
    return len(re.findall(r"<use ", svg))


def test_every_person_of_a_map_is_a_sign_and_empty_groups_are_none() -> None:
    places = np.random.default_rng(0).normal(size=(7, 2))
    alone = {"real": places, "synthetic": places[:0]}
    full = {"real": places, "synthetic": places[:3]}
    with_both, with_one = (
        _marks(charts.map_plot({"d": sets}, "n", ("x", "y"))) for sets in (full, alone)
    )
    assert with_both - with_one == 3


def test_a_bar_is_as_long_as_the_share_that_was_found() -> None:
    def widths(share: float) -> list[float]:
        svg = charts.power_plot({"a": (share, 0.1), "b": (1.0, 0.9)}, "n", needed=0.8)
        bars = re.findall(r'd="M ([\d.]+) \S+ \nL ([\d.]+) [^"]*"[^>]*fill: #56b4e9', svg)
        return sorted(float(right) - float(left) for left, right in bars)

    half, whole = widths(0.5)
    assert half == pytest.approx(whole / 2, rel=0.01)
